//! The store as its users see it: what goes in comes out, whatever happens in between.

mod book;
mod days;
mod faults;
mod host;
mod properties;
mod readings;
mod schema;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::{fs, path::Path};

use jiff::{
    Timestamp,
    civil::{Date, date},
    tz::TimeZone,
};
use tempfile::TempDir;
use traffic_ebpf::Cell;

use super::{Reader, Store};
use crate::{
    history::{Absolute, Epoch, Flush, Quarter, Series, TargetFlush},
    report::{Counters, Direction, Family, Leg, Origin, Protocol, Scope},
};

/// A state directory of its own.
fn directory() -> TempDir {
    let directory = TempDir::with_prefix("ta-store-").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o750)).unwrap();
    directory
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn open(directory: &Path) -> Store {
    Store::open(directory, &TimeZone::UTC).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn quarter(text: &str) -> Quarter {
    Quarter::of(at(text))
}

fn series(port: u16) -> Series {
    Series {
        interface: "eth0".to_owned(),
        scope: Scope::Billed,
        origin: Origin::Socket,
        direction: Direction::Ingress,
        leg: Leg::Client,
        protocol: Protocol::Tcp,
        port: Some(port).filter(|&port| port != 0),
        family: Family::Ipv4,
    }
}

fn counters(wire_bytes: u64) -> Counters {
    Counters { packets: 1, bytes: wire_bytes, wire_packets: 2, wire_bytes, ..Counters::default() }
}

fn cell(wire_bytes: u64) -> Cell {
    Cell { packets: 1, bytes: wire_bytes, wire_packets: 2, wire_bytes, ..Cell::default() }
}

fn epoch(map_id: u32) -> Epoch {
    Epoch { boot_id: "0b7e9a52-7e06-4d3c-8f6a-3c0b9f3f3f0e".to_owned(), map_id }
}

/// A flush of one target that adds nothing yet.
fn empty(target: &str, quarter: Quarter) -> TargetFlush {
    TargetFlush {
        target: target.to_owned(),
        selector: format!("unit:{target}.service"),
        taken_at: quarter.start(),
        observed_until: None,
        quarter,
        postings: Vec::new(),
        observed: Vec::new(),
        absolute: Vec::new(),
        closed: Vec::new(),
        events: Vec::new(),
        readings: Vec::new(),
    }
}

fn one(target: TargetFlush) -> Flush {
    Flush { targets: vec![target], ..Flush::default() }
}

const ALL_QUARTERS: Range<Quarter> = Quarter(i64::MIN)..Quarter(i64::MAX);
const ALL_DAYS: Range<Date> = Date::MIN..Date::MAX;

/// Everything of a target by quarter.
fn quarters(reader: &Reader, target: &str) -> BTreeMap<(Quarter, Series), Counters> {
    let mut all = BTreeMap::new();
    reader
        .quarters(target, ALL_QUARTERS, |quarter, series, counters| {
            assert!(all.insert((quarter, series.clone()), counters).is_none(), "a row twice");
        })
        .unwrap();
    all
}

/// Everything of a target by day.
fn days(reader: &Reader, target: &str) -> BTreeMap<(Date, Series), Counters> {
    let mut all = BTreeMap::new();
    reader
        .days(target, ALL_DAYS, |day, series, counters| {
            assert!(all.insert((day, series.clone()), counters).is_none(), "a row twice");
        })
        .unwrap();
    all
}

//! Part e: what keeping the history costs, and how fast a year of it is read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use tempfile::TempDir;
use traffic_agent::history::{Absolute, Epoch, Flush, Quarter, Series, TargetFlush};
use traffic_agent::report::{Counters, Direction, Family, Leg, Origin, Protocol, Scope};
use traffic_agent::store::{DATABASE, Reader, Store};
use traffic_ebpf::Cell;

use crate::bench::Bench;
use crate::clock::process_time;
use crate::comparison::{Against, Comparison};

const TARGETS: usize = 5;
const SERIES_PER_TARGET: u16 = 20;
const QUARTERS_PER_DAY: i64 = 96;
const DAYS: i64 = 365;
/// 2025-11-24T00:00Z.
const START: Quarter = Quarter(1_763_942_400 / Quarter::SECONDS);
/// Flushes per round.
const FLUSHES: usize = 20;

/// Questions about the history on disk.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let directory = TempDir::with_prefix("ta-bench-")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o750))?;
    bench.progress.begin('e', "a year of history", DAYS as usize);
    let mut store = Store::open(directory.path(), &TimeZone::UTC)?;
    for day in 0..DAYS {
        store.flush(&day_of_year(day))?;
        bench.progress.step();
    }
    drop(store);
    let flushing = flushing(bench, directory.path())?;
    let reading = reading(bench, directory.path())?;
    let size = size(directory.path())?;
    Ok(vec![flushing, reading, size, cutting_again(directory.path())?])
}

fn question(title: &str, unit: &'static str, scenarios: &[&str]) -> Comparison {
    let scenarios = scenarios.iter().map(|&scenario| scenario.to_owned()).collect();
    Comparison::new('e', title, unit, Against::Nothing, scenarios, vec!["ours".to_owned()])
}

fn flushing(bench: &mut Bench, directory: &Path) -> Result<Comparison> {
    let title = "one flush of 5 targets with 20 series each";
    let mut comparison = question(title, "µs", &["processor time", "until it is on the disk"]);
    let rounds = bench.plan.rounds;
    bench.progress.begin('e', title, rounds);
    let mut store = Store::open(directory, &TimeZone::UTC)?;
    let mut number = DAYS * QUARTERS_PER_DAY * 90;
    for _ in 0..rounds {
        let (begin, worked) = (Instant::now(), process_time());
        for _ in 0..FLUSHES {
            // Ninety flushes of ten seconds in a quarter.
            number += 1;
            store.flush(&Flush { targets: at(number / 90, number as u64) })?;
        }
        let per_flush = |seconds: f64| seconds * 1e6 / FLUSHES as f64;
        comparison.push(0, 0, per_flush((process_time() - worked).as_secs_f64()));
        comparison.push(1, 0, per_flush(begin.elapsed().as_secs_f64()));
        bench.progress.step();
    }
    Ok(comparison)
}

fn reading(bench: &mut Bench, directory: &Path) -> Result<Comparison> {
    let title = "opening and reading a history of a year, 5 targets with 20 series each";
    let scenarios =
        ["the year by day", "a month by day", "a day by quarter", "the year by quarter"];
    let mut comparison = question(title, "ms", &scenarios);
    let rounds = bench.plan.rounds;
    bench.progress.begin('e', title, rounds);
    let last_month = date(2026, 10, 1)..date(2026, 11, 1);
    let end = START.0 + DAYS * QUARTERS_PER_DAY;
    let last_day = Quarter(end - QUARTERS_PER_DAY)..Quarter(end);
    for _ in 0..rounds {
        let times = [
            time(|| read_days(directory, Date::MIN..Date::MAX))?,
            time(|| read_days(directory, last_month.clone()))?,
            time(|| read_quarters(directory, last_day.clone()))?,
            time(|| read_quarters(directory, START..Quarter(end)))?,
        ];
        for (scenario, milliseconds) in times.into_iter().enumerate() {
            comparison.push(scenario, 0, milliseconds);
        }
        bench.progress.step();
    }
    Ok(comparison)
}

fn cutting_again(directory: &Path) -> Result<Comparison> {
    let title = "opening that history in another time zone: all days are cut again";
    let mut comparison = question(title, "ms", &["until it is open"]);
    for zone in ["Asia/Kathmandu", "UTC"] {
        let zone = TimeZone::get(zone)?;
        comparison.push(0, 0, time(|| Ok(drop(Store::open(directory, &zone)?)))?);
    }
    Ok(comparison)
}

fn size(directory: &Path) -> Result<Comparison> {
    let mut comparison = question("size of that history", "MB", &["the database", "its log"]);
    let bytes = |name: &str| fs::metadata(directory.join(name)).map(|file| file.len() as f64 / 1e6);
    comparison.push(0, 0, bytes(DATABASE)?);
    comparison.push(1, 0, bytes(&format!("{DATABASE}-wal"))?);
    Ok(comparison)
}

fn time(read: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    read()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn read_days(directory: &Path, range: std::ops::Range<Date>) -> Result<()> {
    let reader = Reader::open(directory)?;
    for target in reader.targets()? {
        let mut sum = Counters::default();
        reader.days(&target.name, range.clone(), |_, _, counters| sum += counters)?;
        reader.observed_days(&target.name, range.clone())?;
        std::hint::black_box(sum);
    }
    Ok(())
}

fn read_quarters(directory: &Path, range: std::ops::Range<Quarter>) -> Result<()> {
    let reader = Reader::open(directory)?;
    for target in reader.targets()? {
        let mut sum = Counters::default();
        reader.quarters(&target.name, range.clone(), |_, _, counters| sum += counters)?;
        reader.observed(&target.name, range.clone())?;
        std::hint::black_box(sum);
    }
    Ok(())
}

/// All quarters of a day as one flush.
fn day_of_year(day: i64) -> Flush {
    let quarters = day * QUARTERS_PER_DAY..(day + 1) * QUARTERS_PER_DAY;
    Flush { targets: quarters.flat_map(|quarter| at(quarter, quarter as u64)).collect() }
}

/// Traffic in every series of every target, of a busy server: each some 100 MB a quarter.
fn at(quarter: i64, number: u64) -> Vec<TargetFlush> {
    let quarter = Quarter(START.0 + quarter);
    (0..TARGETS)
        .map(|target| TargetFlush {
            target: format!("target-{target}"),
            selector: format!("unit:target-{target}.service"),
            taken_at: quarter.next().start(),
            quarter,
            postings: (0..SERIES_PER_TARGET).map(|n| (series(n), counters(number, n))).collect(),
            observed: vec![(quarter, Quarter::MILLISECONDS)],
            absolute: vec![Absolute {
                epoch: Epoch { boot_id: "a boot".to_owned(), map_id: target as u32 },
                cells: (0..SERIES_PER_TARGET)
                    .map(|n| (u32::from(n) * 97, absolute(number, n)))
                    .collect(),
            }],
            closed: Vec::new(),
            events: Vec::new(),
        })
        .collect()
}

fn series(number: u16) -> Series {
    Series {
        interface: "eth0".to_owned(),
        scope: Scope::Billed,
        origin: Origin::Socket,
        direction: if number.is_multiple_of(2) { Direction::Ingress } else { Direction::Egress },
        leg: Leg::Client,
        protocol: Protocol::Tcp,
        port: Some(443 + number / 4),
        family: if (number / 2).is_multiple_of(2) { Family::Ipv4 } else { Family::Ipv6 },
    }
}

fn counters(number: u64, series: u16) -> Counters {
    // Some spread, so that rows are as long as real ones.
    let wire_packets = 50_000 + number.wrapping_mul(7919).wrapping_add(u64::from(series)) % 50_000;
    let packets = wire_packets / 20;
    let wire_bytes = wire_packets * 1400;
    Counters {
        packets,
        bytes: wire_bytes - (wire_packets - packets) * 52,
        wire_packets,
        wire_bytes,
        payload_bytes: wire_bytes - wire_packets * 52,
        retransmitted_bytes: wire_bytes / 1000,
    }
}

fn absolute(number: u64, series: u16) -> Cell {
    let Counters { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
        counters(number, series);
    let grown = |counter: u64| (number + 1) * 100_000 + counter;
    Cell {
        packets: grown(packets),
        bytes: grown(bytes),
        wire_packets: grown(wire_packets),
        wire_bytes: grown(wire_bytes),
        payload_bytes: grown(payload_bytes),
        retransmitted_bytes: grown(retransmitted_bytes),
    }
}

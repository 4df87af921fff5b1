//! Part f: what a history costs beneath `report`: a flush, reading a year, its size, another time zone.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use tempfile::TempDir;
use traffic_agent::history::{Absolute, Epoch, Flush, Quarter};
use traffic_agent::report::Counters;
use traffic_agent::store::{DATABASE, Reader, Store};
use traffic_ebpf::Cell;

use crate::bench::Bench;
use crate::clock::process_time;
use crate::comparison::{Against, Comparison};
use crate::year;

/// Flushes per round.
const FLUSHES: usize = 20;
/// Flushes of ten seconds in a quarter.
const FLUSHES_PER_QUARTER: u64 = 90;

/// Four questions about the history on disk.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let directory = TempDir::with_prefix_in("traffic-bench-", year::MEMORY)?;
    year::write(directory.path(), bench)?;
    let size = size(directory.path())?;
    let reading = reading(bench, directory.path())?;
    let cutting = cutting_again(directory.path())?;
    // On a disk, not in memory: what a sync takes is asked, too.
    let beside = std::env::current_exe()?;
    let beside = beside.parent().context("the program is in no directory")?;
    let disk = TempDir::with_prefix_in("bench-history-", beside)?;
    fs::copy(directory.path().join(DATABASE), disk.path().join(DATABASE))?;
    Ok(vec![flushing(bench, disk.path())?, reading, size, cutting])
}

fn question(title: &str, unit: &'static str, scenarios: &[&str]) -> Comparison {
    let scenarios = scenarios.iter().map(|&scenario| scenario.to_owned()).collect();
    Comparison::new('f', title, unit, Against::Nothing, scenarios, vec!["ours".to_owned()])
}

fn flushing(bench: &mut Bench, directory: &Path) -> Result<Comparison> {
    let title = "one flush of 5 targets with 20 series each, behind a year of history";
    let mut comparison = question(title, "µs", &["processor time", "until it is on the disk"]);
    let rounds = bench.plan.rounds;
    bench.progress.begin('f', title, rounds);
    let mut store = Store::open(directory, &TimeZone::UTC)?;
    let series = year::series();
    let now = Quarter::of(Timestamp::now()).0;
    let mut number = 0;
    for _ in 0..rounds {
        let (begin, worked) = (Instant::now(), process_time());
        for _ in 0..FLUSHES {
            number += 1;
            let quarter = Quarter(now + (number / FLUSHES_PER_QUARTER) as i64);
            let mut flush = year::flush(quarter, &series);
            keep(&mut flush, number);
            store.flush(&flush)?;
        }
        let per_flush = |seconds: f64| seconds * 1e6 / FLUSHES as f64;
        comparison.push(0, 0, per_flush((process_time() - worked).as_secs_f64()));
        comparison.push(1, 0, per_flush(begin.elapsed().as_secs_f64()));
        bench.progress.step();
    }
    Ok(comparison)
}

/// Absolute counters that have all changed since the flush before.
fn keep(flush: &mut Flush, number: u64) {
    for (map_id, target) in (1..).zip(&mut flush.targets) {
        let cell = Cell { packets: number, wire_bytes: number << 30, ..Cell::default() };
        let cells = (0..).step_by(97).zip(&target.postings).map(|(place, _)| (place, cell));
        target.absolute = vec![Absolute {
            epoch: Epoch { boot_id: "a boot".to_owned(), map_id },
            interfaces: vec![],
            cells: cells.collect(),
        }];
    }
}

fn reading(bench: &mut Bench, directory: &Path) -> Result<Comparison> {
    let title = "opening that year, and reading every row";
    let mut comparison = question(title, "ms", &["of the days", "of the quarters"]);
    let rounds = bench.plan.rounds;
    bench.progress.begin('f', title, rounds);
    for _ in 0..rounds {
        let (mut days, mut quarters) = (Counters::default(), Counters::default());
        let begin = Instant::now();
        let reader = Reader::open(directory)?;
        for target in reader.targets()? {
            let range = Date::MIN..Date::MAX;
            reader.days(&target.name, range, |_, _, counters| days += counters)?;
        }
        comparison.push(0, 0, begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        let reader = Reader::open(directory)?;
        for target in reader.targets()? {
            let range = Quarter(i64::MIN)..Quarter(i64::MAX);
            reader.quarters(&target.name, range, |_, _, counters| quarters += counters)?;
        }
        comparison.push(1, 0, begin.elapsed().as_secs_f64() * 1e3);
        ensure!(days == quarters, "the days and the quarters of the year differ");
        bench.progress.step();
    }
    Ok(comparison)
}

fn size(directory: &Path) -> Result<Comparison> {
    let title = "size of a year of 5 targets with 20 series each";
    let mut comparison = question(title, "MB", &["the database"]);
    comparison.push(0, 0, fs::metadata(directory.join(DATABASE))?.len() as f64 / 1e6);
    Ok(comparison)
}

fn cutting_again(directory: &Path) -> Result<Comparison> {
    let title = "opening that year in another time zone: all days are cut again";
    let mut comparison = question(title, "ms", &["until it is open"]);
    for zone in ["Asia/Kathmandu", "UTC"] {
        let zone = TimeZone::get(zone)?;
        let begin = Instant::now();
        drop(Store::open(directory, &zone)?);
        comparison.push(0, 0, begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(comparison)
}

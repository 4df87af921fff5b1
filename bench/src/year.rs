//! Part e: a year of history for five targets, and how long the agent takes to report it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jiff::{Timestamp, tz::TimeZone};
use nix::sys::resource::{UsageWho, getrusage};
use tempfile::TempDir;
use traffic_agent::history::{Flush, Quarter, Series, TargetFlush};
use traffic_agent::report::{Counters, Direction, Family, Leg, Origin, Protocol, Scope};
use traffic_agent::store::Store;

use crate::bench::Bench;
use crate::comparison::{Against, Comparison};

/// Targets in the history.
const TARGETS: [&str; 5] = ["hysteria", "sing-box", "v2ray", "x-ui", "xray"];
/// Quarters of 365 days.
const QUARTERS: i64 = 365 * 96;
/// Quarters between two looks at how far it is.
const STEP: i64 = 96;
/// Where a file costs no disk: what is measured is reading, and writing a year takes 35,040 syncs.
pub const MEMORY: &str = "/dev/shm";

/// What is asked, and how long is told of each. The last cuts every day from quarters.
const REPORTS: [(&str, &[&str]); 6] = [
    ("report", &[]),
    ("--by day, the year", &["--by", "day", "--from", "1y"]),
    ("--by month, the year", &["--by", "month", "--from", "1y"]),
    ("--by day,port, the year, JSON", &["--by", "day,port", "--from", "1y", "--format", "json"]),
    ("--by hour, 24 h", &["--by", "hour"]),
    ("--by month, another zone", &["--by", "month", "--from", "1y", "--time-zone", "Asia/Kolkata"]),
];

/// Makes the year, and reports of it.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let directory = TempDir::with_prefix_in("traffic-bench-", MEMORY)
        .with_context(|| format!("{MEMORY} cannot be written"))?;
    write(directory.path(), bench)?;
    let title = "a year of 5 targets, reported";
    let question = |title: &str| {
        let scenarios = REPORTS.iter().map(|(name, _)| (*name).to_owned()).collect();
        Comparison::new('e', title, "ms", Against::Nothing, scenarios, vec!["ours".to_owned()])
    };
    let mut times = question(title);
    // What the same is if nothing else runs on the machine.
    let mut work = question("the same, processor time");
    let rounds = 2 * bench.plan.rounds;
    bench.progress.begin('e', title, rounds);
    for _ in 0..rounds {
        for (scenario, (name, arguments)) in REPORTS.iter().enumerate() {
            let mut command = Command::new(&bench.agent);
            command.args(["report", "--state-dir"]).arg(directory.path()).args(*arguments);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let (begin, worked) = (Instant::now(), time_of_children()?);
            let status = command.status().context("cannot start the agent")?;
            times.push(scenario, 0, begin.elapsed().as_secs_f64() * 1e3);
            work.push(scenario, 0, time_of_children()? - worked);
            ensure!(status.success(), "{name}: the agent ended with {status}");
        }
        bench.progress.step();
    }
    Ok(vec![times, work])
}

/// Milliseconds of a processor that children needed which have ended.
fn time_of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let milliseconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(milliseconds(usage.user_time()) + milliseconds(usage.system_time()))
}

/// Writes the year that ends now: 20 series a target, with traffic in every quarter.
pub fn write(directory: &Path, bench: &mut Bench) -> Result<()> {
    let mut store = Store::open(directory, &TimeZone::UTC)?;
    let end = Quarter::of(Timestamp::now()).0;
    let series = series();
    bench.progress.begin('e', "writing a year", (QUARTERS / STEP) as usize);
    for quarter in end - QUARTERS..end {
        store.flush(&flush(Quarter(quarter), &series))?;
        if quarter % STEP == 0 {
            bench.progress.step();
        }
    }
    Ok(())
}

/// A quarter of every target.
pub fn flush(quarter: Quarter, series: &[Series]) -> Flush {
    let targets = (1..).zip(TARGETS).map(|(number, target)| full(target, number, quarter, series));
    Flush { targets: targets.collect(), ..Flush::default() }
}

fn full(target: &str, number: u64, quarter: Quarter, series: &[Series]) -> TargetFlush {
    let counters = |index: u64| {
        // Some hundred megabytes a quarter, none like the other.
        let packets = (quarter.0 as u64 % 96 + 1) * 1_000 * number + index;
        Counters {
            packets: packets / 20,
            bytes: packets * 1450,
            wire_packets: packets,
            wire_bytes: packets * 1500,
            payload_bytes: packets * 1448,
            retransmitted_bytes: packets,
        }
    };
    TargetFlush {
        target: target.to_owned(),
        selector: format!("unit:{target}.service"),
        taken_at: quarter.next().start(),
        observed_until: None,
        quarter,
        postings: (0..)
            .zip(series)
            .map(|(index, series)| (series.clone(), counters(index)))
            .collect(),
        observed: vec![(quarter, Quarter::MILLISECONDS)],
        absolute: vec![],
        closed: vec![],
        events: vec![],
        readings: Vec::new(),
    }
}

/// Four listening ports and the upstream leg, in both directions and families: 20 series.
pub fn series() -> Vec<Series> {
    let client = |protocol, port| (Leg::Client, protocol, Some(port));
    let places = [
        client(Protocol::Tcp, 443),
        client(Protocol::Tcp, 8443),
        client(Protocol::Udp, 443),
        client(Protocol::Udp, 8443),
        (Leg::Upstream, Protocol::Tcp, None),
    ];
    let mut all = Vec::new();
    for (leg, protocol, port) in places {
        for direction in [Direction::Ingress, Direction::Egress] {
            for family in [Family::Ipv4, Family::Ipv6] {
                all.push(Series {
                    interface: "eth0".to_owned(),
                    scope: Scope::Billed,
                    origin: Origin::Socket,
                    direction,
                    leg,
                    protocol,
                    port,
                    family,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_twenty_series() {
        let mut all = series();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 20);
    }
}

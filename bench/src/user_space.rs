//! Part d: what the agent itself needs: reading the cells, starting, memory.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use traffic_agent::kernel::attached::{Hook, query};
use traffic_agent::kernel::{Counter, Options};
use traffic_lab::process::Place;
use traffic_lab::{CountedCgroup, Process};

use crate::bench::Bench;
use crate::clock::{process_time, time_of};
use crate::comparison::{Against, Comparison};
use crate::throughput::wait_until;

/// Targets whose cells are read.
const TARGETS: [usize; 4] = [1, 4, 16, 64];
/// Reads per round and target count.
const READS: usize = 5;

/// Three questions about user space.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let mut comparisons = vec![reading(bench)?];
    comparisons.extend(starting(bench)?);
    Ok(comparisons)
}

fn question(title: &str, unit: &'static str, scenarios: Vec<String>) -> Comparison {
    Comparison::new('d', title, unit, Against::Nothing, scenarios, vec!["ours".to_owned()])
}

fn reading(bench: &mut Bench) -> Result<Comparison> {
    let title = "reading all cells";
    let scenarios = TARGETS.map(|count| format!("targets {count}")).to_vec();
    let mut comparison = question(title, "µs", scenarios);
    let rounds = bench.plan.rounds;
    bench.progress.begin('d', title, TARGETS.len());
    let mut counters: Vec<Counter> = Vec::new();
    for (scenario, count) in TARGETS.into_iter().enumerate() {
        while counters.len() < count {
            counters.push(Counter::load(&Options::default())?);
        }
        for _ in 0..rounds * READS {
            let begin = Instant::now();
            for counter in &counters {
                counter.sample()?;
            }
            comparison.push(scenario, 0, begin.elapsed().as_secs_f64() * 1e6);
        }
        bench.progress.step();
    }
    Ok(comparison)
}

fn starting(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let title = "start";
    let mut times = question(
        title,
        "ms",
        ["Counter::load", "Counter::attach", "agent: exec to attached"].map(str::to_owned).to_vec(),
    );
    // What the same is if nothing else runs on the machine, on one processor.
    let mut work = question(
        "start, processor time",
        "ms",
        ["Counter::load", "Counter::attach", "agent: exec to attached"].map(str::to_owned).to_vec(),
    );
    let mut memory = question(
        "memory of a running agent",
        "MiB",
        ["resident", "most resident"].map(str::to_owned).to_vec(),
    );
    let rounds = 2 * bench.plan.rounds;
    bench.progress.begin('d', title, rounds);
    for _ in 0..rounds {
        let cgroup = CountedCgroup::new("bench")?;
        let (begin, worked) = (Instant::now(), process_time());
        let mut counter = Counter::load(&Options::default())?;
        times.push(0, 0, milliseconds(begin.elapsed()));
        work.push(0, 0, milliseconds(process_time() - worked));
        let (begin, worked) = (Instant::now(), process_time());
        counter.attach(cgroup.path())?;
        times.push(1, 0, milliseconds(begin.elapsed()));
        work.push(1, 0, milliseconds(process_time() - worked));
        drop(counter);

        let cgroup = CountedCgroup::new("bench")?;
        let mut command = Command::new(&bench.agent);
        command.args(["compare", "--duration", "10s", "--target"]);
        command.arg(format!("cgroup:{}", cgroup.cgroup_path()));
        let directory = fs::File::open(cgroup.path())?;
        let begin = Instant::now();
        let mut agent = Process::spawn(command, Place::default())?;
        wait_until("the agent attaches", || {
            if let Some(status) = agent.poll()? {
                anyhow::bail!("the agent ended with {status}: {}", agent.log());
            }
            // The last one that is attached.
            Ok(!query(&directory, Hook::Egress)?.programs.is_empty())
        })?;
        times.push(2, 0, milliseconds(begin.elapsed()));
        work.push(2, 0, milliseconds(time_of(agent.pid())?));
        // What it allocates at the start is there a moment later.
        std::thread::sleep(Duration::from_millis(100));
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        for (scenario, field) in ["VmRSS:", "VmHWM:"].into_iter().enumerate() {
            memory.push(scenario, 0, mebibytes(&status, field)?);
        }
        bench.progress.step();
    }
    Ok(vec![times, work, memory])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Reads a line such as `VmRSS:      5120 kB` of `/proc/PID/status`.
pub fn mebibytes(status: &str, field: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let line = line.with_context(|| format!("/proc/PID/status has no {field}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mebibytes() {
        let status = "Name:\tx\nVmHWM:\t    6144 kB\nVmRSS:\t    5120 kB\n";
        assert_eq!(mebibytes(status, "VmRSS:").unwrap(), 5.0);
        assert!(mebibytes(status, "VmX:").is_err());
    }
}

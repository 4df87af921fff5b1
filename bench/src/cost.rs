//! Part a: what a packet costs, by test runs and under real traffic.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::sys::{Stats, enable_stats};
use nix::net::if_::if_nametoindex;
use traffic_lab::packet::Family;
use traffic_lab::topology::{UPSTREAM_DEVICE, addresses};
use traffic_lab::{CountedCgroup, Lab, Namespace, Stack};

use crate::bench::Bench;
use crate::clock::pin;
use crate::comparison::{Against, Comparison, order};
use crate::packets::TestPacket;
use crate::sockets::{Bulk, Turns};
use crate::subject::{self, Direction, Loaded, Programs, Runs, Subject};

/// The far end's port of bulk data, and of datagrams.
const PORT: u16 = 8080;

/// Traffic under which programs run.
struct Drive<'a> {
    /// The scenario of the first direction; the others follow.
    scenario: usize,
    directions: &'a [Direction],
    run: &'a dyn Fn(Duration) -> Result<()>,
}

/// ns per packet, three ways.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let subjects = subject::all();
    let lab = Lab::new(Stack::Plain)?;
    Ok(vec![
        test_runs(bench, &subjects, &lab.proxy)?,
        all_cpus(bench, &subjects, &lab.proxy)?,
        real_traffic(bench, &subject::under_traffic())?,
    ])
}

fn test_runs(bench: &mut Bench, subjects: &[Subject], inside: &Namespace) -> Result<Comparison> {
    let kinds = TestPacket::kinds();
    // The way in differs by one question, so one kind is enough.
    let mut runs: Vec<_> =
        kinds.iter().map(|kind| (Direction::Egress, kind, kind.name.to_owned())).collect();
    runs.push((Direction::Ingress, &kinds[1], format!("{}, in", kinds[1].name)));
    let title = "BPF_PROG_TEST_RUN, egress";
    let mut comparison = Comparison::new(
        'a',
        title,
        "ns per packet",
        Against::Difference,
        runs.iter().map(|run| run.2.clone()).collect(),
        subject::names(subjects),
    );
    let (rounds, repeat) = (bench.plan.test_rounds, bench.plan.repeat);
    bench.progress.begin('a', title, rounds);
    for round in 0..rounds {
        // Anew each round: where the kernel puts a program and its maps is worth some ns.
        let loaded = load(bench, subjects)?;
        let programs: Vec<&Programs> = loaded.iter().map(Loaded::programs).collect();
        inside.run_in(|| -> Result<()> {
            pin(0)?;
            let ifindex = if_nametoindex(UPSTREAM_DEVICE)?;
            for (scenario, (direction, packet, _)) in runs.iter().enumerate() {
                for subject in order(round, programs.len()) {
                    // The first packet of an interface claims its slot.
                    programs[subject].test_run(*direction, packet, ifindex, 1)?;
                    let cost = programs[subject].test_run(*direction, packet, ifindex, repeat)?;
                    comparison.push(scenario, subject, cost);
                }
            }
            Ok(())
        })??;
        bench.progress.step();
    }
    Ok(comparison)
}

/// The same program on one CPU, and on all at once: what they share, they fight for.
fn all_cpus(bench: &mut Bench, subjects: &[Subject], inside: &Namespace) -> Result<Comparison> {
    let cpus = thread::available_parallelism()?.get();
    let title = "BPF_PROG_TEST_RUN on several CPUs at once, TCP 1500 B";
    let counts = if cpus > 1 { vec![1, cpus] } else { vec![1] };
    let mut comparison = Comparison::new(
        'a',
        title,
        "ns per packet",
        Against::Difference,
        counts.iter().map(|count| format!("CPUs {count}")).collect(),
        subject::names(subjects),
    );
    let (rounds, repeat) = (bench.plan.test_rounds, bench.plan.repeat);
    bench.progress.begin('a', title, rounds);
    for round in 0..rounds {
        let loaded = load(bench, subjects)?;
        for (scenario, &count) in counts.iter().enumerate() {
            for subject in order(round, loaded.len()) {
                let programs = loaded[subject].programs();
                let cost = inside.run_in(|| at_once(programs, count, repeat))??;
                comparison.push(scenario, subject, cost);
            }
        }
        bench.progress.step();
    }
    Ok(comparison)
}

/// The mean cost where so many CPUs run the program at the same time.
fn at_once(programs: &Programs, cpus: usize, repeat: u32) -> Result<f64> {
    let [_, packet, ..] = TestPacket::kinds();
    let ifindex = if_nametoindex(UPSTREAM_DEVICE)?;
    let start = Barrier::new(cpus);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus)
            .map(|cpu| {
                let (packet, start) = (&packet, &start);
                scope.spawn(move || -> Result<f64> {
                    let pinned = pin(cpu);
                    start.wait();
                    pinned.with_context(|| format!("cannot run on CPU {cpu}"))?;
                    programs.test_run(Direction::Egress, packet, ifindex, repeat)
                })
            })
            .collect();
        let mut sum = 0.0;
        for thread in threads {
            sum += thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(sum / cpus as f64)
    })
}

/// Run time statistics of the kernel while traffic passes, which is what it costs with caches as they are
/// then. Some 50 ns of each figure are the measuring itself: see the empty program.
fn real_traffic(bench: &mut Bench, subjects: &[Subject]) -> Result<Comparison> {
    let title = "run time under real traffic";
    let scenarios = ["TCP in", "TCP out", "TCP GSO in", "TCP GSO out", "UDP 92 B out"];
    let mut comparison = Comparison::new(
        'a',
        title,
        "ns per packet",
        Against::Difference,
        scenarios.map(str::to_owned).to_vec(),
        subject::names(subjects),
    );
    let cgroup = CountedCgroup::new("bench")?;
    let labs = [Lab::new(Stack::Plain)?, Lab::new(Stack::GsoGro)?];
    let to = (addresses(Family::Ipv4).upstream, PORT).into();
    let ends = |lab: &Lab| Bulk::new(&cgroup, (&lab.proxy, &lab.upstream), to);
    let (plain, gso) = (ends(&labs[0])?, ends(&labs[1])?);
    let udp = Turns::one_udp(&cgroup, (&labs[0].proxy, &labs[0].upstream), to)?;
    let (rounds, time) = (bench.plan.rounds, bench.plan.time);
    let _statistics = enable_stats(Stats::RunTime).context("no run time statistics")?;
    bench.progress.begin('a', title, rounds * subjects.len());
    for round in 0..rounds {
        for subject in order(round, subjects.len()) {
            let mut loaded = subjects[subject].load(&bench.programs)?;
            loaded.attach(cgroup.path())?;
            let both = [Direction::Ingress, Direction::Egress];
            let run_plain = |time| plain.run(time).map(drop);
            let run_gso = |time| gso.run(time).map(drop);
            let run_udp = |time| udp.run(time).map(drop);
            let drives = [
                Drive { scenario: 0, directions: &both, run: &run_plain },
                Drive { scenario: 2, directions: &both, run: &run_gso },
                Drive { scenario: 4, directions: &both[1..], run: &run_udp },
            ];
            for Drive { scenario, directions, run } in drives {
                let costs = cost_of(&loaded, directions, || run(time))?;
                for (scenario, cost) in (scenario..).zip(costs) {
                    comparison.push(scenario, subject, cost);
                }
            }
            bench.progress.step();
        }
    }
    Ok(comparison)
}

/// ns per run of a program while traffic passes, by direction.
pub fn cost_of(
    loaded: &Loaded,
    directions: &[Direction],
    traffic: impl FnOnce() -> Result<()>,
) -> Result<Vec<f64>> {
    let read = || -> Result<Vec<Runs>> {
        directions.iter().map(|&direction| loaded.programs().runs(direction)).collect()
    };
    let before = read()?;
    traffic()?;
    let after = read()?;
    let costs = after.iter().zip(before).map(|(after, before)| after.nanoseconds_since(before));
    costs.collect::<Option<_>>().context("no packet has passed the program")
}

fn load(bench: &Bench, subjects: &[Subject]) -> Result<Vec<Loaded>> {
    subjects.iter().map(|subject| subject.load(&bench.programs)).collect()
}

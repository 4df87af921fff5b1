//! Part b: how much less passes, and how much more work a byte is, beside nothing at all.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use traffic_lab::packet::Family;
use traffic_lab::process::{Place, find_program};
use traffic_lab::topology::addresses;
use traffic_lab::{CountedCgroup, Lab, Namespace, Process, Stack};

use crate::bench::Bench;
use crate::clock::{process_time, time_of};
use crate::comparison::{Against, Comparison, order};
use crate::sockets::{Bulk, Carried, SMALL, Short, Turns};
use crate::subject::{ANDROID, COMPARE, EMPTY, Loaded, SYSTEMD, Subject};

/// The far end's port of bulk data, and of datagrams.
const PORT: u16 = 8080;
/// The near end's port of short connections.
const LISTENING: u16 = 11710;
/// How long nethogs takes until it sees packets.
const NETHOGS_STARTS: Duration = Duration::from_millis(400);

/// What is on while traffic passes.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nothing,
    Rules,
    Program(Subject),
    Nethogs,
}

const ALL: [Beside; 7] = [
    Beside::Nothing,
    Beside::Program(EMPTY),
    Beside::Program(COMPARE),
    Beside::Program(SYSTEMD),
    Beside::Program(ANDROID),
    Beside::Rules,
    Beside::Nethogs,
];

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Rules => "two iptables rules",
            Self::Program(subject) => subject.name,
            Self::Nethogs => "nethogs",
        }
    }
}

/// The traffic, with its sockets: the same all the time.
struct Site {
    cgroup: CountedCgroup,
    plain: Lab,
    bulk: Bulk,
    gso: Bulk,
    udp: Turns,
    short: Short,
    // Behind the sockets that are in it.
    super_packets: Lab,
}

const WORKLOADS: [&str; 4] = ["TCP", "TCP GSO", "UDP 64 B", "short connections"];

impl Site {
    fn new() -> Result<Self> {
        let cgroup = CountedCgroup::new("bench")?;
        let (plain, super_packets) = (Lab::new(Stack::Plain)?, Lab::new(Stack::GsoGro)?);
        // A client's port may be used again after a second.
        plain.client.sysctl("ipv4/tcp_tw_reuse", "1")?;
        let addresses = addresses(Family::Ipv4);
        let to = (addresses.upstream, PORT).into();
        let listening = (addresses.proxy_client, LISTENING).into();
        Ok(Self {
            bulk: Bulk::new(&cgroup, (&plain.proxy, &plain.upstream), to)?,
            gso: Bulk::new(&cgroup, (&super_packets.proxy, &super_packets.upstream), to)?,
            udp: Turns::one_udp(&cgroup, (&plain.proxy, &plain.upstream), to)?,
            short: Short::new(&cgroup, &plain.proxy, listening)?,
            cgroup,
            plain,
            super_packets,
        })
    }

    fn proxies(&self) -> [&Namespace; 2] {
        [&self.plain.proxy, &self.super_packets.proxy]
    }

    fn drive(&self, workload: usize, time: Duration) -> Result<Carried> {
        match workload {
            0 => self.bulk.run(time),
            1 => self.gso.run(time),
            2 => self.udp.run(time),
            _ => self.short.run(&self.plain.client, time),
        }
    }
}

/// Throughput, and work per byte.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let names: Vec<String> = ALL.iter().map(|beside| beside.name().to_owned()).collect();
    let scenarios = |units: [&str; 4]| {
        let titles = WORKLOADS.iter().zip(units);
        titles.map(|(workload, unit)| format!("{workload}, {unit}")).collect()
    };
    let mut rates = Comparison::new(
        'b',
        "throughput",
        "per second",
        Against::Ratio,
        scenarios(["Gbit", "Gbit", "k packets", "k conn."]),
        names.clone(),
    );
    let mut work = Comparison::new(
        'b',
        "processor time of both ends and of what counts",
        "ns",
        Against::Ratio,
        scenarios(["per kB", "per kB", "per byte", "per conn."]),
        names,
    );
    let site = Site::new()?;
    let (rounds, time) = (bench.plan.rounds, bench.plan.time);
    bench.progress.begin('b', "throughput", rounds * ALL.len());
    // The first of everything is slower: nobody's fault.
    for workload in 0..WORKLOADS.len() {
        site.drive(workload, time)?;
    }
    for round in 0..rounds {
        for subject in order(round, ALL.len()) {
            let on = On::start(ALL[subject], &site, bench)?;
            for workload in 0..WORKLOADS.len() {
                let before = process_time() + on.work()?;
                let carried = site.drive(workload, time)?;
                let used = (process_time() + on.work()? - before).as_nanos() as f64;
                let (rate, per) = match workload {
                    0 | 1 => (carried.rate() * 8.0 / 1e9, carried.units as f64 / 1e3),
                    2 => (carried.rate() / 1e3, carried.units as f64 * SMALL as f64),
                    _ => (carried.rate() / 1e3, carried.units as f64),
                };
                rates.push(workload, subject, rate);
                work.push(workload, subject, used / per);
            }
            bench.progress.step();
        }
    }
    Ok(vec![rates, work])
}

/// What is on, until it is dropped.
enum On<'s> {
    Nothing,
    Rules { _undone: Vec<Rules<'s>> },
    Program { _loaded: Box<Loaded> },
    Nethogs(Vec<Process>),
}

impl<'s> On<'s> {
    fn start(beside: Beside, site: &'s Site, bench: &Bench) -> Result<Self> {
        Ok(match beside {
            Beside::Nothing => Self::Nothing,
            Beside::Rules => {
                let rules: Result<_> = site.proxies().into_iter().map(Rules::add).collect();
                Self::Rules { _undone: rules? }
            }
            Beside::Program(subject) => {
                let mut loaded = subject.load(&bench.programs)?;
                loaded.attach(site.cgroup.path())?;
                Self::Program { _loaded: Box::new(loaded) }
            }
            Beside::Nethogs => {
                let started: Result<_> = site.proxies().into_iter().map(nethogs).collect();
                thread::sleep(NETHOGS_STARTS);
                Self::Nethogs(started?)
            }
        })
    }

    /// What it has worked in processes of its own.
    fn work(&self) -> Result<Duration> {
        match self {
            Self::Nethogs(processes) => {
                processes.iter().map(|process| time_of(process.pid())).sum::<Result<_>>()
            }
            _ => Ok(Duration::ZERO),
        }
    }
}

fn nethogs(namespace: &Namespace) -> Result<Process> {
    let program = find_program("nethogs").context("nethogs is missing: apt-get install nethogs")?;
    let mut command = Command::new(program);
    command.args(["-t", "-v", "2"]);
    let mut process =
        Process::spawn(command, Place { namespace: Some(namespace), ..Place::default() })?;
    ensure!(process.poll()?.is_none(), "nethogs ends at once: {}", process.log());
    Ok(process)
}

/// Two counting rules of iptables in a namespace. Dropped, they are gone, and the chains with them.
struct Rules<'s>(&'s Namespace);

impl<'s> Rules<'s> {
    fn add(namespace: &'s Namespace) -> Result<Self> {
        let rules = Self(namespace);
        let port = PORT.to_string();
        for (chain, side) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
            rules.call("iptables", &["-w", "-A", chain, "-p", "tcp", side, &port])?;
        }
        Ok(rules)
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let path = find_program(program)
            .with_context(|| format!("{program} is missing: apt-get install {program}"))?;
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let status = self.0.command_in(&mut command)?.status()?;
        ensure!(status.success(), "{program} {} ended with {status}", arguments.join(" "));
        Ok(())
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        // An empty chain still costs, so nft takes the tables away; it does not know those of the
        // legacy variant, where only the rules can go.
        let _ = self.call("iptables", &["-w", "-F"]);
        let _ = self.call("nft", &["flush", "ruleset"]);
    }
}

/// Waits until something holds, looking often; an error after a while.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    while !holds()? {
        ensure!(begin.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        thread::sleep(Duration::from_micros(100));
    }
    Ok(begin.elapsed())
}

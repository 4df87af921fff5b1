//! Part g: what the daemon needs: `traffic-agent run` that reads once a second and writes every ten, idle
//! and while its targets work, beside what it may need.
//!
//! A minute holds two looks at ports and processes (every 30 s) and the audit of sockets that follows the
//! start; that comes every five minutes later, so in the long run it is a little less.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use traffic_agent::kernel::attached::{Hook, query};
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::topology::addresses;
use traffic_lab::workload::{Route, Server, Workload, run as drive};
use traffic_lab::{CountedCgroup, Lab, Process, Stack};

use crate::bench::Bench;
use crate::clock::time_of;
use crate::comparison::{Against, Comparison};
use crate::throughput::wait_until;
use crate::user_space::mebibytes;

/// What it may take of a core.
const PERCENT_OF_A_CORE: f64 = 0.1;
/// What may be resident.
const MEBIBYTES: f64 = 10.0;
/// What may pass from exec until all is attached.
const MILLISECONDS: f64 = 50.0;

/// Where the first relay listens; the others behind it.
const RELAY_PORT: u16 = 11710;
const SERVER_PORT: u16 = 8080;
/// What is carried through one relay after the other.
const TRAFFIC: Workload = Workload {
    name: "steady",
    connections: 20,
    parallel: 4,
    upload_bytes: 20_000,
    download_bytes: 200_000,
    at_once: false,
};
/// Between two of them: the load is on the targets, not on the machine.
const PAUSE: Duration = Duration::from_millis(20);

/// How many targets, and whether they work.
const SITUATIONS: [(&str, usize, bool); 4] = [
    ("1 target, idle", 1, false),
    ("1 target, under load", 1, true),
    ("5 targets, idle", 5, false),
    ("5 targets, under load", 5, true),
];

/// Four questions about the daemon.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let question = |title: &str, unit: &'static str, subjects: &[&str]| {
        let scenarios = SITUATIONS.map(|(name, ..)| name.to_owned()).to_vec();
        let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
        Comparison::new('g', title, unit, Against::Nothing, scenarios, subjects)
    };
    let mut processor = question("the daemon: processor time", "% of a core", &["ours", "at most"]);
    let mut memory = question(
        "the daemon: memory",
        "MiB",
        &["resident", "at most", "highest", "its share, if shared"],
    );
    let mut wakeups = question("the daemon: wakeups", "per second", &["ours"]);
    let mut start =
        question("the daemon: exec to the last target attached", "ms", &["ours", "at most"]);
    bench.progress.begin('g', "the daemon", SITUATIONS.len());
    for (scenario, (_, targets, works)) in SITUATIONS.into_iter().enumerate() {
        let figures = measure(&bench.agent, targets, works, bench.plan.watch)?;
        processor.push(scenario, 0, figures.percent_of_a_core);
        processor.push(scenario, 1, PERCENT_OF_A_CORE);
        memory.push(scenario, 0, figures.resident);
        memory.push(scenario, 1, MEBIBYTES);
        memory.push(scenario, 2, figures.most_resident);
        memory.push(scenario, 3, figures.share);
        wakeups.push(scenario, 0, figures.wakeups);
        start.push(scenario, 0, figures.start.as_secs_f64() * 1e3);
        start.push(scenario, 1, MILLISECONDS);
        bench.progress.step();
    }
    Ok(vec![processor, memory, wakeups, start])
}

/// What was measured of one daemon. Memory in MiB.
struct Figures {
    percent_of_a_core: f64,
    resident: f64,
    most_resident: f64,
    share: f64,
    wakeups: f64,
    start: Duration,
}

/// Lets a daemon run for a while.
fn measure(agent: &Path, targets: usize, works: bool, watch: Duration) -> Result<Figures> {
    let lab = Lab::new(Stack::default())?;
    let targets: Vec<Target> =
        (0..targets).map(|index| Target::start(&lab, index)).collect::<Result<_>>()?;
    let server = Server::start(&lab.upstream, format!("[::]:{SERVER_PORT}").parse()?)?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            while works && !done.load(Ordering::Relaxed) {
                for target in &targets {
                    target.carry(&lab, &server)?;
                }
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        let figures = watch_daemon(agent, &targets, watch);
        done.store(true, Ordering::Relaxed);
        match load.join() {
            Ok(carried) => carried.context("the traffic")?,
            Err(_) => bail!("the traffic broke off"),
        }
        figures
    })
}

/// A relay in a cgroup of its own.
struct Target {
    port: u16,
    // Ends before its cgroup goes.
    _relay: Process,
    cgroup: CountedCgroup,
}

impl Target {
    fn start(lab: &Lab, index: usize) -> Result<Self> {
        let cgroup = CountedCgroup::new(&format!("bench{index}"))?;
        let port = RELAY_PORT + index as u16;
        let role = Role::Relay { listen: format!("[::]:{port}").parse()? };
        let place =
            Place { namespace: Some(&lab.proxy), cgroup: Some(&cgroup), ..Place::default() };
        let mut relay = Process::spawn(role.command()?, place)?;
        relay.wait_for_port(port, Duration::from_secs(10))?;
        Ok(Self { port, _relay: relay, cgroup })
    }

    fn carry(&self, lab: &Lab, server: &Server) -> Result<()> {
        let addresses = addresses(Family::Ipv4);
        let route = Route {
            client: &lab.client,
            relay: Some((addresses.proxy_client, self.port).into()),
            target: (addresses.upstream, SERVER_PORT).into(),
        };
        drive(&TRAFFIC, route, server, &|_| ()).map(drop)
    }
}

/// A state directory and a bpf filesystem. Dropped, both are gone.
struct Home(TempDir);

impl Home {
    fn new() -> Result<Self> {
        let home = Self(TempDir::with_prefix("traffic-bench-")?);
        for name in ["state", "bpf"] {
            fs::create_dir(home.0.path().join(name))?;
        }
        fs::set_permissions(home.0.path().join("state"), Permissions::from_mode(0o750))?;
        let bpf = home.0.path().join("bpf");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a bpf filesystem")?;
        Ok(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = umount2(&self.0.path().join("bpf"), MntFlags::MNT_DETACH);
    }
}

fn watch_daemon(agent: &Path, targets: &[Target], watch: Duration) -> Result<Figures> {
    let home = Home::new()?;
    let mut command = Command::new(agent);
    command.args(["run", "--interval", "1s", "--flush-interval", "10s"]);
    command.arg("--state-dir").arg(home.0.path().join("state"));
    command.arg("--bpffs").arg(home.0.path().join("bpf"));
    for (index, target) in targets.iter().enumerate() {
        let path = target.cgroup.cgroup_path();
        command.args(["--target", &format!("target{index}=cgroup:{path}")]);
    }
    let last = targets.last().context("no targets")?;
    let directory = File::open(last.cgroup.path())?;
    let begin = Instant::now();
    let mut daemon = Process::spawn(command, Place::default())?;
    wait_until("the daemon attaches", || {
        if let Some(status) = daemon.poll()? {
            bail!("the daemon ended with {status}: {}", daemon.log());
        }
        Ok(!query(&directory, Hook::Egress)?.programs.is_empty())
    })?;
    let start = begin.elapsed();
    // The first look and the first flush are the start's.
    thread::sleep(Duration::from_secs(1));
    let of = |name: &str| -> Result<String> {
        let path = format!("/proc/{}/{name}", daemon.pid());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let (begin, worked, slept) = (Instant::now(), time_of(daemon.pid())?, sleeps(&of("status")?)?);
    thread::sleep(watch);
    let seconds = begin.elapsed().as_secs_f64();
    let worked = time_of(daemon.pid())?.saturating_sub(worked);
    let status = of("status")?;
    Ok(Figures {
        percent_of_a_core: worked.as_secs_f64() / seconds * 100.0,
        resident: mebibytes(&status, "VmRSS:")?,
        most_resident: mebibytes(&status, "VmHWM:")?,
        share: mebibytes(&of("smaps_rollup")?, "Pss:")?,
        wakeups: (sleeps(&status)? - slept) as f64 / seconds,
        start,
    })
}

/// How often the process's first thread has slept.
fn sleeps(status: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("/proc/PID/status does not say how often it slept")?.trim().parse()?)
}

//! The soak: traffic without end, and all that happens to an agent meanwhile. `cargo xtask soak`.
//!
//! Two daemons count the same cgroup. One is killed, stopped and started at random moments; the other lives
//! from the first round to the last, and is watched for growth. In each round both histories must have
//! gained what the far ends captured, to the byte, each under its coordinates.

use std::fmt;
use std::fs;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use traffic_lab::link::{End, connect};
use traffic_lab::packet::Family;
use traffic_lab::topology::{CLIENT_DEVICE, MTU, UPSTREAM_DEVICE};
use traffic_lab::workload::{Server, Workload};
use traffic_lab::{Namespace, Process, Stack};

use crate::daemon::Home;
use crate::figures::{self, Books, Figures};
use crate::site::{RELAY_PORT, Site, tcp};

/// The argument of the program of this package.
pub const ARGUMENT: &str = "soak";

const TARGET: &str = "counted";
/// How long a round's traffic lasts.
const ROUND: Duration = Duration::from_secs(8);
/// The longest pause between two events.
const LONGEST_PAUSE: u64 = 600;
/// Rounds until everything was done once: growth is growth beyond what is there then.
const WARM_UP: u32 = 6;
/// What a daemon's own memory may grow by: pieces of what is used now and then lie between those that stay.
const GROWTH_KIB: u64 = 1536;
/// How often its memory is looked at, of which the least counts: in between it may be at work.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// The same in files: a socket may be open while it is looked.
const GROWTH_FDS: usize = 2;

/// What is carried again and again.
const TRAFFIC: Workload = Workload {
    name: "steady",
    connections: 20,
    parallel: 4,
    upload_bytes: 20_000,
    download_bytes: 200_000,
    at_once: false,
};

/// Between two of them a new relay can take the place of the old.
const PAUSE: Duration = Duration::from_millis(50);

/// Datagrams over an interface that comes and goes, their payload, and that with its headers.
const DATAGRAMS: u64 = 7;
const PAYLOAD: usize = 500;
const L3_BYTES: u64 = PAYLOAD as u64 + 28;

/// Whether somebody wants it to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Something that happens during a round.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Kill,
    Stop,
    Reload,
    RestartRelay,
    ShortLivedInterface,
}

const HAPPENINGS: [Happening; 5] = [
    Happening::Kill,
    Happening::Stop,
    Happening::Reload,
    Happening::RestartRelay,
    Happening::ShortLivedInterface,
];

/// How often what happened in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    kills: u32,
    stops: u32,
    reloads: u32,
    relays: u32,
    interfaces: u32,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, stops, reloads, relays, interfaces } = self;
        write!(
            f,
            "{kills} kills, {stops} stops, {reloads} reloads, {relays} new relays, {interfaces} interfaces"
        )
    }
}

/// What a process that leaks would have more and more of.
#[derive(Clone, Copy, Debug)]
struct Vitals {
    resident_kib: u64,
    fds: usize,
    pins: usize,
    history_bytes: u64,
}

impl Vitals {
    fn of(home: &Home) -> Result<Self> {
        let process = format!("/proc/{}", home.pid()?);
        // Its code comes and goes, and so does what a look at all sockets takes: the daemon gives it back.
        let mut resident_kib = u64::MAX;
        for _ in 0..LOOKS {
            let status = fs::read_to_string(format!("{process}/status"))?;
            let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let anonymous = anonymous.context("/proc/PID/status has no RssAnon")?;
            resident_kib = resident_kib.min(anonymous.trim().trim_end_matches(" kB").parse()?);
            thread::sleep(BETWEEN_LOOKS);
        }
        let mut history_bytes = 0;
        for entry in fs::read_dir(home.state_dir())? {
            history_bytes += entry?.metadata()?.len();
        }
        Ok(Self {
            resident_kib,
            fds: fs::read_dir(format!("{process}/fd"))?.count(),
            pins: files_below(&home.bpffs())?,
            history_bytes,
        })
    }

    /// An error if there is more than there was.
    fn check_growth(&self, before: &Self) -> Result<()> {
        ensure!(
            self.resident_kib <= before.resident_kib + GROWTH_KIB
                && self.fds <= before.fds + GROWTH_FDS
                && self.pins <= before.pins,
            "the daemon grows: {self}, after round {WARM_UP} {before}"
        );
        Ok(())
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident_kib, fds, pins, history_bytes } = self;
        let history = history_bytes / 1024;
        write!(f, "{resident_kib} KiB, {fds} files, {pins} pins, history {history} KiB")
    }
}

fn files_below(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files_below(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// Soaks for so long. An error at the first byte that is missing or too much, or if a daemon grows.
pub fn run(time: Duration) -> Result<()> {
    let action =
        SigAction::new(SigHandler::Handler(interrupt), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores to an atomic, and does nothing else.
        unsafe { sigaction(signal, &action) }?;
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let bar = bar(time);
    let site = Site::new(Stack::default())?;
    let result = Soak::begin(&site, Rng::with_seed(seed)).and_then(|soak| soak.run(time, &bar));
    bar.finish_and_clear();
    match result {
        // Whoever interrupts interrupts the daemons and the relay, too: what they said of it says nothing.
        _ if is_interrupted() => {
            println!("interrupted: everything is taken down, nothing is left behind");
            Ok(())
        }
        result => result,
    }
}

fn bar(time: Duration) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(time.as_secs());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} s") {
        bar.set_style(style);
    }
    bar
}

struct Soak<'s> {
    site: &'s Site,
    server: Server,
    /// None while it is being replaced.
    relay: Option<Process>,
    /// Lives from the first round to the last.
    steady: Home,
    /// Dies and comes again.
    hunted: Home,
    random: Rng,
    /// Of the last interface.
    number: u8,
}

impl<'s> Soak<'s> {
    fn begin(site: &'s Site, random: Rng) -> Result<Self> {
        let target = format!("{TARGET}=cgroup:{}", site.cgroup.cgroup_path());
        let flags = ["--target", &target, "--interval", "1s", "--flush-interval", "1s"];
        let relay = Some(site.relay()?);
        let server = site.server()?;
        let (mut steady, hunted) = (Home::new(&flags)?, Home::new(&flags)?);
        steady.start_and_wait()?;
        Ok(Self { site, server, relay, steady, hunted, random, number: 0 })
    }

    fn run(mut self, time: Duration, bar: &ProgressBar) -> Result<()> {
        let begin = Instant::now();
        let (mut round, mut proved, mut bytes) = (0, 0, 0);
        let mut warm = None;
        while begin.elapsed() < time && !is_interrupted() {
            round += 1;
            bar.set_message(format!("round {round}"));
            let (tally, exact) = self.round(bar).with_context(|| format!("round {round}"))?;
            let vitals = Vitals::of(&self.steady)?;
            let result = match exact {
                Some(exact) => {
                    proved += 1;
                    bytes += exact;
                    format!("{exact} bytes as captured, twice")
                }
                None => "the lab lost frames, so there is no truth to compare with".to_owned(),
            };
            bar.suspend(|| println!("round {round}: {result}; {tally}; {vitals}"));
            if round >= WARM_UP {
                vitals.check_growth(warm.get_or_insert(vitals))?;
            }
            bar.set_position(begin.elapsed().as_secs().min(time.as_secs()));
        }
        ensure!(proved > 0 || is_interrupted(), "no round proved anything: the lab lost frames");
        self.steady.stop()?;
        bar.suspend(|| {
            println!("{proved} of {round} rounds proved; {bytes} bytes, none missing or doubled")
        });
        Ok(())
    }

    /// One round. Returns what happened and how many bytes were as captured; none if the lab lost frames.
    fn round(&mut self, bar: &ProgressBar) -> Result<(Tally, Option<u64>)> {
        let before =
            [&self.steady, &self.hunted].map(|home| home.books(TARGET).unwrap_or_default());
        self.hunted.start_and_wait()?;
        let capture = self.site.lab.capture()?;
        let tally = self.under_load(bar)?;
        let trace = capture.stop()?;
        // The hunted one may not have come as far as its first reading.
        self.hunted.kill()?;
        self.hunted.start_and_wait()?;
        self.hunted.stop()?;
        let asked = Timestamp::now().as_millisecond();
        self.steady.signal(Signal::SIGHUP)?;
        self.steady.wait_until("the daemon writes its history at a reload", |home| {
            home.last_flush() > Some(asked)
        })?;
        if trace.check().is_err() {
            return Ok((tally, None));
        }
        let captured = figures::of_capture(&trace, &[tcp(RELAY_PORT)]);
        let beside = expected_beside(tally.interfaces);
        for (home, before, name) in
            [(&self.steady, &before[0], "lives on"), (&self.hunted, &before[1], "was killed")]
        {
            let mut counted = figures::since(&home.books(TARGET)?, before);
            let short_lived: Books =
                counted.extract_if(.., |key, _| !is_of_lab(&key.interface)).collect();
            let short_lived = figures::sum(&short_lived, |_| true);
            ensure!(
                counted == captured && short_lived == beside,
                "the history of the daemon that {name} is not what was captured\nhistory {counted:#?}\n\
                 captures {captured:#?}\nshort-lived interfaces {short_lived:?}, sent {beside:?}\n{}",
                home.log()
            );
        }
        Ok((tally, Some(figures::sum(&captured, |_| true).wire_bytes + beside.wire_bytes)))
    }

    /// Lets things happen while traffic flows.
    fn under_load(&mut self, bar: &ProgressBar) -> Result<Tally> {
        let Self { site, server, relay, steady, hunted, random, number } = self;
        let (done, driving) = (AtomicBool::new(false), Mutex::new(()));
        thread::scope(|scope| {
            let driver = scope.spawn(|| -> Result<()> {
                let mut family = Family::Ipv4;
                while !done.load(Ordering::Relaxed) {
                    let drives = driving.lock();
                    site.drive(&TRAFFIC, family, server)?;
                    drop(drives);
                    thread::sleep(PAUSE);
                    family = if family == Family::Ipv4 { Family::Ipv6 } else { Family::Ipv4 };
                }
                Ok(())
            });
            let restart = || -> Result<()> {
                // In this thread, with which it would end; and when nobody is connected.
                let _nobody = driving.lock();
                *relay = None;
                *relay = Some(site.relay()?);
                Ok(())
            };
            let happened = happen(site, steady, hunted, (random, number), restart, bar);
            done.store(true, Ordering::Relaxed);
            match driver.join() {
                Ok(driven) => driven.context("the traffic")?,
                Err(_) => bail!("the traffic broke off"),
            }
            happened
        })
    }
}

/// Lets random things happen at random moments, for as long as a round takes.
fn happen(
    site: &Site,
    steady: &Home,
    hunted: &mut Home,
    (random, number): (&mut Rng, &mut u8),
    mut restart_relay: impl FnMut() -> Result<()>,
    bar: &ProgressBar,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let (begin, at) = (Instant::now(), bar.position());
    while begin.elapsed() < ROUND && !is_interrupted() {
        thread::sleep(Duration::from_millis(random.u64(..LONGEST_PAUSE)));
        bar.set_position(at + begin.elapsed().as_secs());
        match HAPPENINGS[random.usize(..HAPPENINGS.len())] {
            Happening::Kill => {
                hunted.kill()?;
                // Now and then it stays away for a while.
                thread::sleep(Duration::from_millis(random.u64(..LONGEST_PAUSE)));
                hunted.start()?;
                tally.kills += 1;
            }
            Happening::Stop => {
                // Before it runs it would not be stopped, but killed.
                hunted.kill()?;
                hunted.start_and_wait()?;
                hunted.stop()?;
                hunted.start()?;
                tally.stops += 1;
            }
            Happening::Reload => {
                steady.signal(Signal::SIGHUP)?;
                tally.reloads += 1;
            }
            Happening::RestartRelay => {
                restart_relay()?;
                tally.relays += 1;
            }
            Happening::ShortLivedInterface => {
                *number = number.wrapping_add(1);
                send_over_short_lived(site, *number)?;
                tally.interfaces += 1;
            }
        }
    }
    Ok(tally)
}

/// Makes an interface, sends over it from the counted cgroup, and removes it. The kernel takes it away some
/// time later, so that the next one has another number.
fn send_over_short_lived(site: &Site, number: u8) -> Result<()> {
    let (near, far) = (Ipv4Addr::new(10, 88, number, 2), Ipv4Addr::new(10, 88, number, 1));
    let device = format!("n{number}");
    let far_end = Namespace::new("short-lived")?;
    let at = |address: Ipv4Addr| [(IpAddr::V4(address), 24)];
    connect(
        End { namespace: &far_end, name: "f1", addresses: &at(far) },
        End { namespace: &site.lab.proxy, name: &device, addresses: &at(near) },
        MTU,
    )?;
    let there = SocketAddr::from((far, 7000));
    let server = far_end.run_in(|| UdpSocket::bind(there))??;
    server.set_read_timeout(Some(Duration::from_secs(60)))?;
    let client = site.factory.udp_unbound(there)?;
    for _ in 0..DATAGRAMS {
        client.send_to(&[1; PAYLOAD], there)?;
        server.recv(&mut [0; 2 * PAYLOAD])?;
    }
    Ok(())
}

/// What so many of them have carried.
fn expected_beside(interfaces: u32) -> Figures {
    let wire_packets = u64::from(interfaces) * DATAGRAMS;
    Figures {
        wire_packets,
        wire_bytes: wire_packets * L3_BYTES,
        payload_bytes: wire_packets * PAYLOAD as u64,
    }
}

fn is_of_lab(interface: &str) -> bool {
    [CLIENT_DEVICE, UPSTREAM_DEVICE].contains(&interface)
}

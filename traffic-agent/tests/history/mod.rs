//! A history made by hand, and the built `traffic-agent` that reads it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::Value;
use tempfile::TempDir;
use traffic_agent::history::{Event, Flush, MethodReading, Quarter, Series, TargetFlush, spread};
use traffic_agent::host::HostFlush;
use traffic_agent::report::{Counters, Direction, Family, Leg, Origin, Protocol, Scope};
use traffic_agent::store::Store;

/// A state directory with a history in a time zone.
pub struct History {
    directory: TempDir,
    store: Store,
}

impl History {
    /// An empty one.
    pub fn new(zone: &str) -> Self {
        let directory = TempDir::with_prefix("ta-report-").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let store = Store::open(directory.path(), &TimeZone::get(zone).unwrap()).unwrap();
        Self { directory, store }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Flushes a span of a target that was all observed, with its traffic in the quarter where it ends.
    pub fn observed(
        &mut self,
        target: &str,
        from: &str,
        to: &str,
        postings: Vec<(Series, Counters)>,
    ) {
        self.flush(target, to, spread(at(from), at(to)), postings, vec![]);
    }

    /// Flushes what other methods counted of a target.
    pub fn read(&mut self, target: &str, at: Timestamp, readings: Vec<MethodReading>) {
        let flush = TargetFlush {
            target: target.to_owned(),
            selector: format!("unit:{target}.service"),
            taken_at: at,
            observed_until: None,
            quarter: Quarter::of(at),
            postings: vec![],
            observed: spread(at - SignedDuration::from_hours(1), at),
            absolute: vec![],
            closed: vec![],
            events: vec![],
            readings,
        };
        let mut flushes = Flush::default();
        flushes.targets.push(flush);
        self.store.flush(&flushes).unwrap();
    }

    /// Flushes a span of a target.
    pub fn flush(
        &mut self,
        target: &str,
        to: &str,
        observed: Vec<(Quarter, u32)>,
        postings: Vec<(Series, Counters)>,
        events: Vec<Event>,
    ) {
        let end = at(to);
        let last = end - SignedDuration::from_millis(1);
        let target = TargetFlush {
            target: target.to_owned(),
            selector: format!("unit:{target}.service"),
            taken_at: end,
            observed_until: None,
            quarter: Quarter::of(last),
            postings,
            observed,
            absolute: vec![],
            closed: vec![],
            events,
            readings: Vec::new(),
        };
        let mut flush = Flush::default();
        flush.targets.push(target);
        self.store.flush(&flush).unwrap();
    }

    /// Flushes what the host's cgroups and interfaces had.
    pub fn host(&mut self, host: HostFlush) {
        self.store.flush(&Flush { host: Some(host), ..Flush::default() }).unwrap();
    }

    /// Keeps the configured overhead, as the daemon does at its start.
    pub fn keep_link_overhead(&mut self, bytes: u32) {
        self.store.keep_link_overhead(bytes).unwrap();
    }

    /// Runs a command on it.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Finished {
        run(command, self.path(), arguments)
    }

    /// Runs `report --format json` and parses what it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--format", "json"];
        all.extend(arguments);
        self.run("report", &all).json()
    }
}

/// Runs a command on a state directory, as it looks without a terminal and in a UTF-8 locale.
pub fn run(command: &str, state_dir: &Path, arguments: &[&str]) -> Finished {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_traffic-agent"))
        .arg(command)
        .arg("--state-dir")
        .arg(state_dir)
        .args(arguments)
        .env_remove("LC_CTYPE")
        .env_remove("LANG")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Finished {
    /// The JSON that it printed.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// It failed like this, and said so in one line on standard error.
    #[track_caller]
    pub fn assert_complains(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        assert_eq!(self.err.matches('\n').count(), 1, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in: {}", self.err);
        }
    }
}

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Coordinates of TCP over IPv4.
pub fn series(
    (interface, scope): (&str, Scope),
    (leg, port): (Leg, Option<u16>),
    direction: Direction,
) -> Series {
    Series {
        interface: interface.to_owned(),
        scope,
        origin: Origin::Socket,
        direction,
        leg,
        protocol: Protocol::Tcp,
        port,
        family: Family::Ipv4,
    }
}

/// Packets of 1500 bytes on the wire.
pub fn packets(packets: u64) -> Counters {
    Counters {
        packets,
        bytes: packets * 1500,
        wire_packets: packets,
        wire_bytes: packets * 1500,
        payload_bytes: packets * 1448,
        retransmitted_bytes: 0,
    }
}

pub const ETH0: (&str, Scope) = ("eth0", Scope::Billed);
pub const LO: (&str, Scope) = ("lo", Scope::Loopback);
pub const CLIENT: (Leg, Option<u16>) = (Leg::Client, Some(443));
pub const UPSTREAM: (Leg, Option<u16>) = (Leg::Upstream, None);

/// A proxy that takes `down` packets from upstream and hands them to its clients, with one packet back for
/// each hundred.
pub fn proxied(down: u64) -> Vec<(Series, Counters)> {
    use Direction::{Egress, Ingress};
    vec![
        (series(ETH0, UPSTREAM, Ingress), packets(down)),
        (series(ETH0, UPSTREAM, Egress), packets(down / 100)),
        (series(ETH0, CLIENT, Ingress), packets(down / 100)),
        (series(ETH0, CLIENT, Egress), packets(down)),
    ]
}

//! A target that is looked at in the background, and a firewall that is changed meanwhile.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use traffic_agent::background::{Background, Look, Minute, Observer};
use traffic_agent::estimate::PortBytes;
use traffic_agent::history::{Method, Series};
use traffic_agent::method::ListeningPort;
use traffic_agent::report::{CellReport, Counters, Leg};
use traffic_lab::Namespace;
use traffic_lab::packet::Family;
use traffic_lab::workload::{Server, Workload};

use crate::site::{Counting, RELAY_PORT, Site, tcp};

/// The ports of the target.
pub const PORTS: [ListeningPort; 1] = [tcp(RELAY_PORT)];

/// A measurement, as the daemon looks at it.
pub struct Watched<'s> {
    site: &'s Site,
    counting: Counting<'s>,
    posted: BTreeMap<Series, Counters>,
    background: Background,
    observer: Observer,
    runtime: tokio::runtime::Runtime,
}

impl<'s> Watched<'s> {
    /// Starts to count, and looks for the first time.
    pub fn start(site: &'s Site) -> Result<Self> {
        let counting = site.count()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut watched = Self {
            site,
            counting,
            posted: BTreeMap::new(),
            background: Background::default(),
            observer: Observer::tireless(),
            runtime,
        };
        let first = watched.look()?;
        ensure!(first.readings.is_empty(), "nothing to take a difference from: {first:?}");
        Ok(watched)
    }

    /// Posts what came since the last time.
    fn post(&mut self) -> Result<()> {
        let cells = self.counting.so_far()?;
        let gained: Vec<CellReport> = cells
            .into_iter()
            .map(|cell| {
                let before = self.posted.insert(Series::from(&cell), cell.counters);
                CellReport { counters: minus(&cell.counters, &before.unwrap_or_default()), ..cell }
            })
            .collect();
        self.background.post(&gained);
        Ok(())
    }

    /// Waits until the client leg has carried so many bytes more.
    pub fn wait_for(&mut self, bytes: u64) -> Result<()> {
        let carried = |counting: &mut Counting<'_>| -> Result<u64> {
            let cells = counting.so_far()?;
            let client = cells.iter().filter(|cell| cell.leg == Leg::Client);
            Ok(client.map(|cell| cell.counters.bytes).sum())
        };
        let enough = carried(&mut self.counting)? + bytes;
        let deadline = Instant::now() + Duration::from_secs(60);
        while carried(&mut self.counting)? < enough {
            ensure!(Instant::now() < deadline, "no traffic any more");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Looks at everything now.
    pub fn look(&mut self) -> Result<Minute> {
        let network = self.counting.measurement.network()?;
        self.post()?;
        self.background.begin();
        ensure!(self.observer.start(network, PORTS.to_vec()), "the last look hangs");
        let look: Look = self.runtime.block_on(self.observer.finished());
        self.post()?;
        Ok(self.background.finish(&look, &PORTS, Timestamp::now()))
    }

    /// Drives a workload, waits for silence, and looks.
    pub fn drive_and_look(&mut self, bytes: u64, server: &Server) -> Result<Minute> {
        self.drive(bytes, server)?;
        self.look()
    }

    /// Drives so many bytes up, and twice as many down, by each IP version; then waits for silence.
    pub fn drive(&self, bytes: u64, server: &Server) -> Result<()> {
        for family in [Family::Ipv4, Family::Ipv6] {
            self.site.drive(&workload(bytes), family, server)?;
        }
        self.counting.settle()
    }

    /// Codes of what is wrong with the rules.
    pub fn findings(&self) -> Vec<&'static str> {
        self.background.findings().iter().map(|finding| finding.code).collect()
    }
}

/// Two connections that carry this up and twice as much down.
pub fn workload(bytes: u64) -> Workload {
    Workload {
        name: "both",
        connections: 2,
        parallel: 2,
        upload_bytes: bytes / 2,
        download_bytes: bytes,
        at_once: true,
    }
}

fn minus(now: &Counters, before: &Counters) -> Counters {
    Counters {
        packets: now.packets - before.packets,
        bytes: now.bytes - before.bytes,
        wire_packets: now.wire_packets - before.wire_packets,
        wire_bytes: now.wire_bytes - before.wire_bytes,
        payload_bytes: now.payload_bytes - before.payload_bytes,
        retransmitted_bytes: now.retransmitted_bytes - before.retransmitted_bytes,
    }
}

/// What a method read in both directions, if it did.
pub fn seen(minute: &Minute, method: Method) -> Option<PortBytes> {
    let reading = minute.readings.iter().find(|reading| reading.method == method)?;
    Some(PortBytes { ingress: reading.ingress?, egress: reading.egress? })
}

/// Runs a shell script in a namespace.
pub fn script(namespace: &Namespace, script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = namespace.command_in(&mut command)?.output().context("cannot run sh")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

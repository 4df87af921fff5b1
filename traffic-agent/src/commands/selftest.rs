//! `selftest`: the core of the proof on the user's own kernel. Known traffic through a lab that it makes
//! itself, and every byte that the hook counted held against captures at both far ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use traffic_lab::kernel::{Kernel, is_ipv6_syn_ack};
use traffic_lab::packet::{ACK, Direction as Way, Family as Version, Packet, SYN};
use traffic_lab::role::Role;
use traffic_lab::sockets::Transport;
use traffic_lab::topology::{LabTrace, LegTrace, addresses};
use traffic_lab::trace::{Filter, Sum};
use traffic_lab::udp::{Receive, Receiver, Report, Send};
use traffic_lab::workload::{self, Route, Server, Workload};
use traffic_lab::{CountedCgroup, Lab, Process, Stack};

use super::output::{self, Sink};
use super::stage::{self, Interrupted, PROXY_PORT, UPSTREAM_PORT};
use super::{DONE, FAILED};
use crate::cli::{Format, Printing, Selftest, UnitsArg};
use crate::measure::Measurement;
use crate::proof::{self, Case, HANDSHAKE_TWICE, Known, Payload, SYN_ACK_IPV6, SelftestReport};
use crate::render::progress::Progress;
use crate::report::{Direction, FORMAT, Family, Leg};
use crate::target::Host;

/// A UDP port of a server's own choice.
const UDP_PORT: u16 = 8443;
/// Payload of a datagram: as QUIC begins.
const DATAGRAM_BYTES: u16 = 1200;
/// A UDP program that takes longer is stuck; an emulated processor takes seconds.
const UDP_WITHIN: Duration = Duration::from_secs(30);
/// How long a server may take to note what it has echoed.
const NOTED_WITHIN: Duration = Duration::from_secs(10);
/// What is sent to learn how fast this machine is, per direction.
const PROBE_BYTES: u64 = 1_000_000;
/// How long a bulk transfer shall take.
const BULK_TIME: Duration = Duration::from_millis(400);
/// Most bytes of a bulk transfer: more would prove no more.
const BULK_BYTES: u64 = 20_000_000;

const FAMILIES: [Version; 2] = [Version::Ipv4, Version::Ipv6];

/// Kinds of traffic, in the order of the report.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Bulk,
    Short,
    Datagrams,
    Segmented,
    Merged,
}

/// With super-packets; then one packet per frame everywhere.
const KINDS: [(Stack, &[Kind]); 2] = [
    (Stack::GsoGro, &[Kind::Bulk, Kind::Short, Kind::Datagrams, Kind::Segmented, Kind::Merged]),
    (Stack::Plain, &[Kind::Bulk]),
];

/// Runs `selftest`; returns the exit status.
pub async fn run(args: Selftest) -> Result<i32> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!(
            "the self-test needs root: it makes network namespaces, a cgroup and captures; run \
             `sudo traffic-agent selftest`"
        );
    }
    let printing = Printing {
        format: if args.json { Format::Json } else { args.format },
        json: false,
        units: UnitsArg::Bytes,
        verbose: args.verbose,
        output: args.output,
        strict: false,
    };
    let mut sink = Sink::open(&printing, output::Default::Stdout)?;
    let bytes = args.bytes;
    let report = stage::run(move |interrupted| drive(bytes, interrupted)).await?;
    sink.selftest(&report)?;
    Ok(if report.passed { DONE } else { FAILED })
}

/// Makes the lab for each stack, drives all kinds of traffic, takes the lab down.
fn drive(bytes: Option<u64>, interrupted: &Interrupted) -> Result<SelftestReport> {
    let begin = Instant::now();
    let host = Host::detect()?;
    let kernel = Kernel::running()?;
    let count: usize = KINDS.iter().map(|(_, kinds)| kinds.len() * FAMILIES.len()).sum();
    let progress = Progress::steps("selftest", count as u64);
    let mut cases = Vec::new();
    let mut bulk_bytes = bytes;
    for (stack, kinds) in KINDS {
        interrupted.check()?;
        progress.set_message("making three network namespaces and a relay");
        let lab = Lab::new(stack).context("cannot make the lab")?;
        let cgroup = CountedCgroup::new("selftest")?;
        let mut bench = Bench::new(&host, kernel, &lab, &cgroup)?;
        let bytes = match bulk_bytes {
            Some(bytes) => bytes,
            None => *bulk_bytes.insert(bench.fitting_bytes()?),
        };
        for (kind, family) in kinds.iter().flat_map(|kind| FAMILIES.map(|family| (kind, family))) {
            interrupted.check()?;
            progress.set_message(kind.describe(bytes));
            cases.push(stage::until_clean(|| bench.case(*kind, family, bytes))?);
            progress.step();
        }
    }
    let release = nix::sys::utsname::uname().context("uname")?;
    Ok(SelftestReport {
        format: FORMAT,
        command: "selftest",
        version: env!("CARGO_PKG_VERSION"),
        kernel: release.release().to_string_lossy().into_owned(),
        passed: cases.iter().all(Case::holds),
        seconds: begin.elapsed().as_secs_f64(),
        cases,
    })
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bulk => "tcp-bulk",
            Self::Short => "tcp-short",
            Self::Datagrams => "udp",
            Self::Segmented => "udp-gso",
            Self::Merged => "udp-gro",
        }
    }

    fn describe(self, bytes: u64) -> String {
        match self {
            Self::Bulk => "TCP bulk, both ways at once".to_owned(),
            Self::Short => format!("TCP, {} short connections", connections(bytes)),
            Self::Datagrams => "UDP and its echo".to_owned(),
            Self::Segmented => "UDP GSO and its echo".to_owned(),
            Self::Merged => "UDP GRO in, GSO out".to_owned(),
        }
    }
}

/// How many short connections go with so many bytes of bulk.
fn connections(bytes: u64) -> u32 {
    (bytes / 40_000).clamp(50, 300) as u32
}

/// How many bytes of UDP go with so many bytes of bulk; the last datagram is short.
fn udp_bytes(bytes: u64) -> u64 {
    (bytes / 10).clamp(120_000, 1_200_000) + 1
}

/// What the traffic is driven on, and what counts it.
struct Bench<'a> {
    kernel: Kernel,
    lab: &'a Lab,
    cgroup: &'a CountedCgroup,
    relay: Process,
    server: Server,
    measurement: Measurement<'a>,
}

impl<'a> Bench<'a> {
    fn new(
        host: &'a Host,
        kernel: Kernel,
        lab: &'a Lab,
        cgroup: &'a CountedCgroup,
    ) -> Result<Self> {
        let relay = stage::start_relay(lab, cgroup)?;
        let server = Server::start(&lab.upstream, format!("[::]:{UPSTREAM_PORT}").parse()?)?;
        let measurement = Measurement::start(host, stage::plan(cgroup)?)?;
        Ok(Self { kernel, lab, cgroup, relay, server, measurement })
    }

    /// How many bytes this machine carries through the relay in [`BULK_TIME`], each way.
    fn fitting_bytes(&mut self) -> Result<u64> {
        let probe = self.carry(&bulk(PROBE_BYTES), Version::Ipv4)?;
        let times = BULK_TIME.as_secs_f64() / probe.duration.as_secs_f64().max(1e-3);
        Ok(((PROBE_BYTES as f64 * times) as u64).clamp(PROBE_BYTES, BULK_BYTES))
    }

    /// Drives one kind of traffic and holds what was counted against the capture.
    fn case(&mut self, kind: Kind, family: Version, bytes: u64) -> Result<Case> {
        let described = || format!("{} over {family:?}", kind.describe(bytes));
        let capture = self.lab.capture()?;
        let start = self.measurement.sample()?;
        let application = match kind {
            Kind::Bulk => self.tcp(&bulk(bytes), family),
            Kind::Short => self.tcp(&short(connections(bytes)), family),
            Kind::Datagrams => self.udp(false, family, bytes),
            Kind::Segmented => self.udp(true, family, bytes),
            Kind::Merged => self.udp_server(family, bytes),
        }
        .with_context(described)?;
        let truth = capture.stop().with_context(described)?;
        let end = self.measurement.sample()?;
        stage::check_truth(&truth).with_context(described)?;
        self.measurement.follow()?;
        let cells = self.measurement.cells(&start, &end)?;

        let mut rows = Vec::new();
        for (leg, link) in [(Leg::Client, &truth.client), (Leg::Upstream, &truth.upstream)] {
            for (direction, way) in
                [(Direction::Ingress, Way::Ingress), (Direction::Egress, Way::Egress)]
            {
                let captured = link.trace.sum(Filter::all().direction(way));
                let mut known = Known::of(&link.trace, direction);
                match way {
                    Way::Ingress => known.few_twice(HANDSHAKE_TWICE, handshakes(link)),
                    Way::Egress => known.together(SYN_ACK_IPV6, self.unseen_syn_acks(link)),
                }
                rows.push(proof::row(&cells, leg, direction, captured, &known));
            }
        }
        rows.retain(|row| row.hook.packets > 0 || row.capture.wire_packets > 0);
        Ok(Case {
            name: kind.name(),
            description: kind.describe(bytes),
            family: match family {
                Version::Ipv4 => Family::Ipv4,
                Version::Ipv6 => Family::Ipv6,
            },
            offload: self.lab.stack() != Stack::Plain,
            payloads: payloads(&truth, &application),
            rows,
        })
    }

    /// SYN-ACKs that this kernel's hook does not see.
    fn unseen_syn_acks(&self, link: &LegTrace) -> Sum {
        if self.kernel.shows_ipv6_syn_acks() {
            return Sum::default();
        }
        Sum::of(link.trace.packets.iter().filter(|packet| is_ipv6_syn_ack(packet)))
    }

    fn carry(&mut self, workload: &Workload, family: Version) -> Result<workload::Outcome> {
        let addresses = addresses(family);
        let route = Route {
            client: &self.lab.client,
            relay: Some((addresses.proxy_client, PROXY_PORT).into()),
            target: (addresses.upstream, UPSTREAM_PORT).into(),
        };
        let outcome = workload::run(workload, route, &self.server, &|_| ())?;
        stage::check_relay(&mut self.relay)?;
        Ok(outcome)
    }

    /// TCP through the relay.
    fn tcp(&mut self, workload: &Workload, family: Version) -> Result<Vec<(Leg, u64)>> {
        let outcome = self.carry(workload, family)?;
        let of = |end: workload::Endpoint| end.sent_bytes + end.received_bytes;
        Ok(vec![(Leg::Client, of(outcome.client)), (Leg::Upstream, of(outcome.server))])
    }

    /// UDP from the counted cgroup to a server at the upstream, and its echo.
    fn udp(&self, segmented: bool, family: Version, bytes: u64) -> Result<Vec<(Leg, u64)>> {
        let listen: SocketAddr = format!("[::]:{UPSTREAM_PORT}").parse()?;
        let server =
            Receiver::start(&self.lab.upstream, Receive { listen, echo: true, gro: false })?;
        let target = (addresses(family).upstream, UPSTREAM_PORT).into();
        let role = Role::UdpSend(Send { segmented, ..datagrams(target, bytes) });
        let sender = Process::spawn(role.command()?, stage::place(self.lab, self.cgroup))?;
        let sent = Report::parse(&sender.output(UDP_WITHIN)?)?;
        // The server takes note of a datagram after it has echoed it.
        let begin = Instant::now();
        while server.totals().sent_bytes < sent.received_bytes && begin.elapsed() < NOTED_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        let totals = server.totals();
        if (sent.sent_bytes, sent.received_bytes) != (totals.received_bytes, totals.sent_bytes) {
            bail!("the two ends disagree: {sent}, {totals}");
        }
        Ok(vec![(Leg::Upstream, totals.received_bytes + totals.sent_bytes)])
    }

    /// UDP from a client to a server in the counted cgroup that takes merged datagrams, and its echo.
    fn udp_server(&self, family: Version, bytes: u64) -> Result<Vec<(Leg, u64)>> {
        let listen = format!("[::]:{UDP_PORT}").parse()?;
        let role = Role::UdpReceive(Receive { listen, echo: true, gro: true });
        let mut server = Process::spawn(role.command()?, stage::place(self.lab, self.cgroup))?;
        server.wait_for(Transport::Udp, UDP_PORT, UDP_WITHIN)?;
        let target = (addresses(family).proxy_client, UDP_PORT).into();
        let send = Send { segmented: true, ..datagrams(target, bytes) };
        let client = self.lab.client.run_in(|| send.run(|| true))??;
        Ok(vec![(Leg::Client, client.sent_bytes + client.received_bytes)])
    }
}

/// Both directions at once, on two connections.
fn bulk(bytes: u64) -> Workload {
    Workload {
        name: "bulk",
        connections: 2,
        parallel: 2,
        upload_bytes: bytes / 2,
        download_bytes: bytes / 2,
        at_once: true,
    }
}

/// As of a browser: little up, some kB down.
fn short(connections: u32) -> Workload {
    Workload {
        name: "short",
        connections,
        parallel: 8,
        upload_bytes: 200,
        download_bytes: 2_000,
        at_once: false,
    }
}

/// Plain datagrams that are echoed.
fn datagrams(target: SocketAddr, bytes: u64) -> Send {
    Send {
        target,
        sockets: 1,
        datagram_bytes: DATAGRAM_BYTES,
        total_bytes: udp_bytes(bytes),
        segmented: false,
        await_echo: true,
    }
}

/// The packets that complete the handshake of an inbound connection, and the first data behind them.
fn handshakes(link: &LegTrace) -> Vec<&Packet> {
    // How many packets have come on each connection since its SYN.
    let mut begun: HashMap<SocketAddr, u32> = HashMap::new();
    let mut found = Vec::new();
    for packet in link.trace.packets.iter().filter(|packet| packet.direction == Way::Ingress) {
        match packet.headers.tcp {
            Some(tcp) if tcp.has(SYN) && !tcp.has(ACK) => drop(begun.insert(packet.peer(), 0)),
            _ => {
                let Some(number) = begun.get_mut(&packet.peer()) else { continue };
                *number += 1;
                if *number <= 2 {
                    found.push(packet);
                }
            }
        }
    }
    found
}

/// What the applications know, beside what the far ends saw of it.
fn payloads(truth: &LabTrace, application: &[(Leg, u64)]) -> Vec<Payload> {
    let payload = |&(leg, application_bytes)| {
        let link = match leg {
            Leg::Client => &truth.client,
            Leg::Upstream => &truth.upstream,
        };
        Payload {
            leg,
            application_bytes,
            captured_bytes: link.trace.sum(Filter::all()).payload_bytes,
            resent_bytes: link.trace.retransmitted_payload(Filter::all()),
        }
    };
    application.iter().map(payload).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesser_traffic_grows_with_the_bulk_within_limits() {
        assert_eq!((connections(100_000), udp_bytes(100_000)), (50, 120_001));
        assert_eq!((connections(4_000_000), udp_bytes(4_000_000)), (100, 400_001));
        assert_eq!((connections(BULK_BYTES), udp_bytes(BULK_BYTES)), (300, 1_200_001));
    }
}

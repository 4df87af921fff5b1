//! One real proxy in the lab, measured by `traffic-agent compare` and held against what the far ends
//! captured, and against real rules of the firewall.

mod reading;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use traffic_lab::packet::{Direction, Family, TCP, UDP};
use traffic_lab::process::Place;
use traffic_lab::proxy::{self, Program, Protocol, Proxy, RunningProxy};
use traffic_lab::sockets::Transport;
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, LegTrace, UPSTREAM_DEVICE};
use traffic_lab::workload::{Closing, Outcome, Server, Workload, run_closing};
use traffic_lab::{CountedCgroup, Filter, Lab, Process, Stack, Sum, answered};

use crate::frequency::{self, WithoutSocket};

use self::reading::{Compare, Counted, Reading};

/// Where the server behind the proxy listens.
const UPSTREAM_PORT: u16 = 8080;
/// Frames lost inside the lab spoil its truth; then the workload is driven again.
const TRIES: u32 = 3;
/// How long a program that sets up a rule may take.
const RULES_WITHIN: Duration = Duration::from_secs(60);

/// Connections at a time, at least: xray takes about a second to close one that it spliced.
const PARALLEL: u32 = 40;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];
const DOWNLOAD: Workload = Workload {
    name: "download",
    connections: 2,
    parallel: 2,
    upload_bytes: 500,
    download_bytes: 5_000_000,
    at_once: false,
};
const UPLOAD: Workload =
    Workload { name: "upload", upload_bytes: 5_000_000, download_bytes: 500, ..DOWNLOAD };
/// Few, because xray takes about a second to close a connection that it spliced.
const SHORT: Workload = Workload {
    name: "short",
    connections: 20,
    parallel: 10,
    upload_bytes: 200,
    download_bytes: 2_000,
    at_once: false,
};

/// So many that the kernel exchanges some packets without the proxy's socket: where the proxy closes first,
/// its peers' last packets come late.
const MANY: Workload = Workload { name: "many", connections: 2000, parallel: 8, ..SHORT };

/// Drives a download, an upload and short connections through a real proxy, by IPv4 and by IPv6, and
/// holds every figure of `traffic-agent compare` against the far ends' captures.
pub fn check(program: Program, protocol: Protocol) -> Result<()> {
    // Connections that are kept are of the family of before: then each has its own scene.
    let scenes: &[&[Family]] = match protocol.keeps_connections() {
        true => &[&[Family::Ipv4], &[Family::Ipv6]],
        false => &[&[Family::Ipv4, Family::Ipv6]],
    };
    scenes.iter().try_for_each(|families| {
        let scene = Scene::new(program, protocol)?;
        let checked = scene.check(families);
        checked.with_context(|| format!("{program} {protocol}{}", scene.proxy.logs()))
    })
}

/// What is driven. The Trojan client of this xray ends a connection that begins with more than 8 kB
/// ("failed to write A request payload > common/buf: buffer is full"), so it can upload nothing large.
fn workloads(protocol: Protocol) -> &'static [Workload] {
    match protocol {
        Protocol::TrojanTls => &[DOWNLOAD, SHORT],
        _ => &[DOWNLOAD, UPLOAD, SHORT],
    }
}

/// Drives the demo's four workloads through a real proxy, holds every cell against the captures, and prints
/// how much of each the kernel exchanged without a socket.
pub fn check_demo(program: Program, protocol: Protocol) -> Result<()> {
    let scene = Scene::new(program, protocol)?;
    let table = || -> Result<()> {
        frequency::print_head()?;
        for workload in Workload::DEMO {
            let workload = Workload { parallel: workload.parallel.max(PARALLEL), ..workload };
            for family in [Family::Ipv4, Family::Ipv6] {
                let measured = scene.measure_until_clean(family, workload)?;
                scene.check_leg(&measured, Leg::Client)?;
                scene.check_leg(&measured, Leg::Upstream)?;
                let proxy = format!("{program} {protocol}");
                let without = measured.without_socket();
                frequency::print_row(&proxy, &workload, family, &measured.trace, without)?;
            }
        }
        Ok(())
    };
    table().with_context(|| format!("{program} {protocol}{}", scene.proxy.logs()))
}

/// Finds a program that `cargo xtask test` installs.
pub fn find(program: Program) -> Result<PathBuf> {
    let name = program.name();
    let tools = std::env::var_os("TRAFFIC_TOOLS").map(PathBuf::from);
    let mut candidates: Vec<PathBuf> = tools.into_iter().map(|tools| tools.join(name)).collect();
    if program == Program::V2ray {
        candidates.push("/usr/bin/v2ray".into());
    }
    let found = candidates.iter().find(|file| file.is_file()).cloned();
    found.with_context(|| {
        format!(
            "{name} is not there (looked for {candidates:?}): run `cargo xtask test`, which \
             installs it and tells the tests by TRAFFIC_TOOLS where it is"
        )
    })
}

/// A running proxy with everything around it.
struct Scene {
    program: Program,
    proxy: RunningProxy,
    server: Server,
    cgroup: CountedCgroup,
    lab: Lab,
}

/// The proxy did not carry what it should: nothing is said of the agent.
#[derive(Debug, thiserror::Error)]
#[error("the proxy has not carried the workload: {0}")]
struct NotCarried(String);

/// What is known when a workload is over.
struct Measured {
    family: Family,
    workload: Workload,
    outcome: Outcome,
    trace: LabTrace,
    reading: Reading,
}

impl Scene {
    fn new(program: Program, protocol: Protocol) -> Result<Self> {
        let binary = find(program)?;
        let lab = Lab::new(Stack::GsoGro)?;
        let cgroup = CountedCgroup::new(program.name())?;
        let proxy = Proxy { program, binary, protocol }.start(&lab, &cgroup)?;
        let server = Server::start(&lab.upstream, format!("[::]:{UPSTREAM_PORT}").parse()?)?;
        let scene = Self { program, proxy, server, cgroup, lab };
        scene.add_rules()?;
        Ok(scene)
    }

    fn check(&self, families: &[Family]) -> Result<()> {
        for &family in families {
            for &workload in workloads(self.proxy.protocol()) {
                self.check_one(family, workload)
                    .with_context(|| format!("{}, {family:?}", workload.name))?;
            }
            if (self.program, self.proxy.protocol()) == (Program::Xray, Protocol::VmessWs) {
                let by_kernel = self.check_one(family, MANY)?;
                ensure!(by_kernel > 0, "2000 connections, and no packet came without a socket");
            }
        }
        Ok(())
    }

    /// Returns how many packets the kernel exchanged without the proxy's socket.
    fn check_one(&self, family: Family, workload: Workload) -> Result<u64> {
        let begin = Instant::now();
        let measured = self.measure_until_clean(family, workload)?;
        self.check_leg(&measured, Leg::Client)?;
        self.check_leg(&measured, Leg::Upstream)?;
        measured.check_other_cells()?;
        measured.check_payload()?;
        let exact = measured.check_total()?;
        let estimates = measured.check_estimates(exact)?;
        let by_kernel = measured.reading.sum(|cell| cell.origin != "socket");
        println!(
            "{} {}, {family:?} {}: capture and count {exact} B, of which the kernel exchanged {} B \
             in {} packets. {estimates}; {:.1} s",
            self.program,
            self.proxy.protocol(),
            workload.name,
            by_kernel.wire_bytes,
            by_kernel.wire_packets,
            begin.elapsed().as_secs_f64(),
        );
        Ok(by_kernel.wire_packets)
    }

    /// Drives a workload, again if the lab itself lost frames: then its captures are no truth.
    fn measure_until_clean(&self, family: Family, workload: Workload) -> Result<Measured> {
        for attempt in 1..=TRIES {
            let measured = match self.measure(family, workload) {
                Ok(measured) => measured,
                // Of some thousand connections xray ends one before it has passed on what it got, or one
                // not at all.
                Err(error) if error.is::<NotCarried>() && attempt < TRIES => {
                    println!("attempt {attempt} of {TRIES}: {error:#}; once more");
                    continue;
                }
                Err(error) => return Err(error),
            };
            match measured.trace.check() {
                Ok(()) => return Ok(measured),
                Err(error) => println!("attempt {attempt} of {TRIES}: {error:#}; once more"),
            }
        }
        bail!("the lab lost frames {TRIES} times; is the machine very busy?")
    }

    fn measure(&self, family: Family, workload: Workload) -> Result<Measured> {
        let capture = self.lab.capture()?;
        let compare = Compare::start(&self.cgroup)?;
        self.proxy.resume()?;
        let route = self.proxy.route(&self.lab, family, UPSTREAM_PORT);
        let outcome = run_closing(Closing::WhenDone, &workload, route, &self.server, &|_| ())
            .map_err(|error| anyhow::Error::new(NotCarried(format!("{error:#}"))))?;
        self.proxy.wait_until_idle()?;
        self.proxy.hush()?;
        capture.settle()?;
        let reading = compare.finish()?;
        let trace = capture.stop()?;
        Ok(Measured { family, workload, outcome, trace, reading })
    }

    /// Rules without a target, one per direction and family, as people have them for estimates.
    fn add_rules(&self) -> Result<()> {
        let protocol = protocol_name(self.proxy.protocol().transport());
        let port = proxy::PORT.to_string();
        for program in ["iptables", "ip6tables"] {
            for (chain, side) in [("INPUT", "--dport"), ("OUTPUT", "--sport")] {
                let mut command = Command::new(program);
                command.args(["-A", chain, "-p", protocol, side, &port]);
                let place = Place { namespace: Some(&self.lab.proxy), ..Place::default() };
                Process::spawn(command, place)
                    .and_then(|process| process.output(RULES_WITHIN))
                    .with_context(|| {
                        format!(
                            "{program} adds no rule; if it is not installed: run `cargo xtask \
                             test`, which installs it"
                        )
                    })?;
            }
        }
        Ok(())
    }

    /// Every packet of a leg is in the right cells, also of those that the kernel answered.
    fn check_leg(&self, measured: &Measured, leg: Leg) -> Result<()> {
        let transport = self.proxy.protocol().transport();
        let (captured, interface, protocol, port) = match leg {
            Leg::Client => {
                let protocol = protocol_name(transport);
                (&measured.trace.client, CLIENT_DEVICE, protocol, Some(proxy::PORT))
            }
            Leg::Upstream => (&measured.trace.upstream, UPSTREAM_DEVICE, "tcp", None),
        };
        let own = match leg {
            Leg::Client if transport == Transport::Udp => {
                Filter::all().protocol(UDP).proxy_port(proxy::PORT)
            }
            Leg::Client => Filter::all().protocol(TCP).proxy_port(proxy::PORT),
            Leg::Upstream => Filter::all().protocol(TCP).peer_port(UPSTREAM_PORT),
        };
        let all = captured.trace.sum(Filter::all());
        let own = captured.trace.sum(own.family(measured.family));
        ensure!(own == all, "{leg:?}: the link carried {all:?}, of which the proxy's are {own:?}");

        let cells = |direction| {
            measured.reading.sum(|cell| {
                cell.leg == leg.name()
                    && cell.direction == name_of(direction)
                    && cell.interface == interface
                    && cell.scope == "billed"
                    && cell.protocol == protocol
                    && cell.port == port
                    && cell.family == family_name(measured.family)
            })
        };
        let counted = DIRECTIONS.map(cells);
        for (direction, counted) in DIRECTIONS.into_iter().zip(counted) {
            let sum = captured.trace.sum(Filter::all().direction(direction));
            let wire = Sum {
                packets: counted.wire_packets,
                l3_bytes: counted.wire_bytes,
                payload_bytes: counted.payload_bytes,
            };
            ensure!(
                wire == sum,
                "{leg:?} leg, {direction:?}: captured {sum:?}, counted {wire:?}; the packets that the \
                 capture shows to be without a socket: {:#?}; cells: {:#?}; findings: {}",
                answered::classify(&captured.trace),
                measured.reading.cells(),
                measured.reading.findings()
            );
        }
        check_device(captured, counted)
            .with_context(|| format!("{leg:?} leg: {interface} and cells disagree"))
    }
}

/// What the device of a leg has counted is what the cells say.
///
/// Packets are IP packets on the wire. Egress bytes have Ethernet's header on each of them; ingress
/// bytes are not comparable on a veth with NAPI.
fn check_device(leg: &LegTrace, counted: [Counted; 2]) -> Result<()> {
    let device = [leg.device.ingress_packets, leg.device.egress_packets];
    let ours = counted.map(|counted| counted.wire_packets);
    ensure!(ours == device, "{ours:?} packets, ingress first, against {device:?}");
    let [_, egress] = counted;
    let bytes = egress.wire_bytes + 14 * egress.wire_packets;
    ensure!(
        bytes == leg.device.egress_bytes,
        "egress: {bytes} bytes, {} Ethernet headers included, against {}",
        egress.wire_packets,
        leg.device.egress_bytes
    );
    // Super-packets went through the stack, and were counted as what the wire carried.
    ensure!(
        egress.packets <= egress.wire_packets && egress.bytes <= egress.wire_bytes,
        "more at the hook than on the wire: {egress:?}"
    );
    Ok(())
}

impl Measured {
    /// What the kernel exchanged without a socket.
    fn without_socket(&self) -> WithoutSocket {
        let [ingress, egress] = DIRECTIONS.map(|direction| {
            self.reading.sum(|cell| cell.origin != "socket" && cell.direction == name_of(direction))
        });
        WithoutSocket {
            packets: ingress.wire_packets + egress.wire_packets,
            ingress_bytes: ingress.wire_bytes,
            egress_bytes: egress.wire_bytes,
        }
    }

    /// Nothing is counted under coordinates that nobody used.
    fn check_other_cells(&self) -> Result<()> {
        let family = family_name(self.family);
        let others: Vec<String> = self
            .reading
            .cells()
            .iter()
            .filter(|cell| {
                let client = cell.leg == "client"
                    && cell.interface == CLIENT_DEVICE
                    && cell.port == Some(proxy::PORT);
                let upstream = cell.leg == "upstream" && cell.interface == UPSTREAM_DEVICE;
                !(client || upstream) || cell.family != family
            })
            .map(|cell| format!("{cell:?}"))
            .collect();
        ensure!(others.is_empty(), "unexpected cells: {others:#?}");
        Ok(())
    }

    /// The upstream leg carries the server's bytes and nothing else, but for repetitions.
    fn check_payload(&self) -> Result<()> {
        let expected = [self.outcome.server.sent_bytes, self.outcome.server.received_bytes];
        for (direction, expected) in DIRECTIONS.into_iter().zip(expected) {
            let trace = &self.trace.upstream.trace;
            let filter = Filter::all().direction(direction);
            let again = trace.retransmitted_payload(filter);
            let payload = trace.sum(filter).payload_bytes;
            ensure!(
                payload - again == expected,
                "{direction:?}: {payload} B of payload less {again} B sent again on the upstream \
                 leg, but the server's sockets say {expected}"
            );
        }
        Ok(())
    }

    /// The report's total is the capture.
    fn check_total(&self) -> Result<u64> {
        let captured = self.trace.sum(Filter::all()).l3_bytes;
        let total = self.reading.total()?;
        ensure!(captured == total, "the capture has {captured} B, the report {total} B");
        ensure!(
            self.reading.is_complete(),
            "the report says that it is not complete: {}",
            self.reading.findings()
        );
        Ok(total)
    }

    /// The rules count what we count at the port; the estimates' errors follow from that by arithmetic on
    /// the capture.
    fn check_estimates(&self, exact: u64) -> Result<String> {
        let rules = self.reading.method("iptables-port")?;
        let hook = self.reading.method("hook-port")?;
        ensure!(rules == hook, "the rules count {rules:?}, ingress first, and hook-port {hook:?}");
        // Rules see super-packets: at least the payload, at most the wire's bytes.
        let trace = &self.trace.client.trace;
        let [ingress, egress] =
            DIRECTIONS.map(|direction| trace.sum(Filter::all().direction(direction)));
        let both = ingress + egress;
        let mut said = Vec::new();
        for (name, factor, sum) in
            [("in-x2", 2, ingress), ("out-x2", 2, egress), ("sum-x1", 1, both), ("sum-x2", 2, both)]
        {
            let (total, error_percent) = self.reading.estimate(name)?;
            let (low, high) = (factor * sum.payload_bytes, factor * sum.l3_bytes);
            ensure!(
                (low..=high).contains(&total),
                "{name} is {total}, but the capture allows {low} to {high}"
            );
            let expected = 100.0 * (total as f64 - exact as f64) / exact as f64;
            ensure!(
                (error_percent - expected).abs() < 1e-6,
                "{name}: an error of {error_percent} % is reported; it is {expected} %"
            );
            let worst =
                matches!((name, self.workload.name), ("in-x2", "download") | ("out-x2", "upload"));
            ensure!(
                !worst || error_percent < -90.0,
                "{name} on a pure {}: {error_percent} %, expected below -90 %",
                self.workload.name
            );
            said.push(format!("{name} {error_percent:+.2} %"));
        }
        Ok(said.join(", "))
    }
}

/// The side of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Client,
    Upstream,
}

impl Leg {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        }
    }
}

fn name_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

fn protocol_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

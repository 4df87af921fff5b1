//! `demo`: the main job on one machine, no proxy needed. The lab is not the product; what measures it
//! here is what `compare` measures with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use traffic_lab::answered::classify;
use traffic_lab::packet::Family;
use traffic_lab::process::{Place, find_program};
use traffic_lab::proxy::{Program, Protocol, Proxy, RunningProxy};
use traffic_lab::role::Role;
use traffic_lab::topology;
use traffic_lab::workload::{self, Closing, Route, Server, Workload};
use traffic_lab::{CountedCgroup, Filter, Lab, Process, Stack};

use super::output::{self, Sink};
use super::{DONE, INCOMPLETE};
use crate::cli::{Demo, RealProxy};
use crate::comparison::{Comparison, Options};
use crate::measure::{Measurement, Plan};
use crate::method::added::{self, AddedRules};
use crate::render::progress::Progress;
use crate::report::{DemoReport, DemoWorkload, FORMAT, Finding, Severity};
use crate::signals::Signals;
use crate::target::{Cgroup, Host, PortFilter};
use crate::units::{self, Units};

/// Where the relay listens: the port of the original measurement.
const PROXY_PORT: u16 = 11710;
/// Where the server behind it listens.
const UPSTREAM_PORT: u16 = 8080;
/// The IP version of the demo's traffic.
const FAMILY: Family = Family::Ipv4;
/// Frames lost inside the lab spoil its truth; then the workload is driven again.
const TRIES: u32 = 3;

/// Runs `demo`; returns the exit status.
pub async fn run(args: Demo) -> Result<i32> {
    let mut signals = Signals::take()?;
    let mut sink = Sink::open(&args.printing, output::Default::Stdout)?;
    let units = sink.units();
    let interrupted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&interrupted);
    let mut work =
        tokio::task::spawn_blocking(move || drive(&args, units, &seen).map(|r| (r, args)));
    let (report, args) = loop {
        tokio::select! {
            done = &mut work => break done.context("the demo broke off")??,
            arrived = signals.next() => {
                if arrived.context("cannot wait for signals")?.ends() {
                    // The workload that runs is finished, then everything is taken down.
                    interrupted.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    sink.demo(&report)?;
    let complete = report.workloads.iter().all(|workload| workload.target.complete);
    Ok(if args.printing.strict && !complete { INCOMPLETE } else { DONE })
}

/// Makes the lab, drives the workloads, takes the lab down.
fn drive(args: &Demo, units: Units, interrupted: &AtomicBool) -> Result<DemoReport> {
    let host = Host::detect()?;
    let steps = Workload::DEMO.len() as u64;
    let progress = Progress::steps("demo", steps + 1);
    progress.set_message("making three network namespaces and a relay");
    let lab = Lab::new(Stack::GsoGro).context("cannot make the lab: run as root")?;
    let addresses = topology::addresses(FAMILY);
    let cgroup = CountedCgroup::new("demo")?;
    let mut carrier = Carrier::start(args.real, &lab, &cgroup)?;
    let server = Server::start(&lab.upstream, (addresses.upstream, UPSTREAM_PORT).into())?;
    let rules_refused = rules_refused(&lab);
    progress.step();

    let proxy = carrier.to_string();
    let mut scene =
        Scene { host: &host, lab: &lab, cgroup: &cgroup, server: &server, carrier: &mut carrier };
    let mut workloads = Vec::new();
    for workload in Workload::DEMO {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; the lab is taken down, nothing is left behind");
        }
        progress.set_message(describe(&workload));
        let mut measured = scene.measure_until_clean(&workload, rules_refused.is_none(), units)?;
        measured.target.findings.extend(rules_refused.clone());
        workloads.push(measured);
        progress.step();
    }
    Ok(DemoReport { format: FORMAT, command: "demo", proxy, workloads })
}

/// Why no counting rule can be added here, if so: a fresh machine has neither nft nor iptables.
fn rules_refused(lab: &Lab) -> Option<Finding> {
    let error = match AddedRules::add(Some(lab.proxy.fd()), &[]).map(AddedRules::remove) {
        Ok(Ok(())) => return None,
        Ok(Err(error)) | Err(error) => error,
    };
    Some(Finding {
        severity: Severity::Info,
        code: "rules-not-added",
        message: error.to_string(),
        remedy: match error {
            added::Error::NotInstalled => "install nftables to see the rules themselves".to_owned(),
            _ => "nothing; the estimate is made of hook-port".to_owned(),
        },
        incomplete: false,
    })
}

/// What the workloads are driven on.
struct Scene<'a> {
    host: &'a Host,
    lab: &'a Lab,
    cgroup: &'a CountedCgroup,
    server: &'a Server,
    carrier: &'a mut Carrier,
}

/// What carries the traffic.
enum Carrier {
    /// The lab's own relay.
    Relay(Process),
    /// A real proxy: a server instance in the cgroup, a client instance where the client is.
    Real { name: String, proxy: RunningProxy },
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay(_) => f.write_str("built-in relay"),
            Self::Real { name, .. } => f.write_str(name),
        }
    }
}

impl Carrier {
    fn start(real: Option<RealProxy>, lab: &Lab, cgroup: &CountedCgroup) -> Result<Self> {
        let Some(real) = real else {
            let place =
                Place { namespace: Some(&lab.proxy), cgroup: Some(cgroup), ..Place::default() };
            let listen = format!("[::]:{PROXY_PORT}").parse()?;
            let mut relay = Process::spawn(Role::Relay { listen }.command()?, place)?;
            relay.wait_for_port(PROXY_PORT, Duration::from_secs(5))?;
            return Ok(Self::Relay(relay));
        };
        // Protocols whose connections close at once: spliced VLESS takes a second for each.
        let (program, protocol) = match real {
            RealProxy::Xray => (Program::Xray, Protocol::VmessWs),
            RealProxy::SingBox => (Program::SingBox, Protocol::Shadowsocks2022),
            RealProxy::V2ray => (Program::V2ray, Protocol::VmessWs),
        };
        let binary = find_program(program.name()).with_context(|| {
            format!("{program} is not in PATH: install it, or run the demo without --real")
        })?;
        let proxy = Proxy { program, binary, protocol }.start(lab, cgroup)?;
        Ok(Self::Real { name: format!("real {program}, {protocol},"), proxy })
    }

    fn route<'l>(&self, lab: &'l Lab, server: &Server) -> Route<'l> {
        match self {
            Self::Relay(_) => Route {
                client: &lab.client,
                relay: Some((topology::addresses(FAMILY).proxy_client, PROXY_PORT).into()),
                target: server.address(),
            },
            Self::Real { proxy, .. } => proxy.route(lab, FAMILY, UPSTREAM_PORT),
        }
    }

    /// Real proxies do not pass on that one direction has ended.
    fn closing(&self) -> Closing {
        match self {
            Self::Relay(_) => Closing::ByHalves,
            Self::Real { .. } => Closing::WhenDone,
        }
    }

    /// Waits until the connections of the last workload are closed.
    fn finish_connections(&mut self) -> Result<()> {
        match self {
            // It closes when both ends have.
            Self::Relay(relay) => match relay.poll()? {
                None => Ok(()),
                Some(status) => bail!("the relay has ended with {status}: {}", relay.log()),
            },
            Self::Real { proxy, .. } => proxy.wait_until_idle(),
        }
    }
}

impl Scene<'_> {
    /// Drives a workload, again if the lab itself lost frames.
    fn measure_until_clean(
        &mut self,
        workload: &Workload,
        add_rules: bool,
        units: Units,
    ) -> Result<DemoWorkload> {
        let mut last = self.measure(workload, add_rules, units);
        for _ in 1..TRIES {
            match &last {
                Err(error) if error.is::<LabLostFrames>() => {
                    last = self.measure(workload, add_rules, units);
                }
                _ => break,
            }
        }
        last.with_context(|| format!("workload {}", workload.name))
    }

    fn measure(
        &mut self,
        workload: &Workload,
        add_rules: bool,
        units: Units,
    ) -> Result<DemoWorkload> {
        let plan = Plan {
            name: "relay".to_owned(),
            selector: format!("cgroup:{}", self.cgroup.cgroup_path()),
            selectors: Vec::new(),
            cgroups: vec![Cgroup {
                path: self.cgroup.cgroup_path(),
                dir: self.cgroup.path().to_owned(),
                id: self.cgroup.id()?,
            }],
            notes: Vec::new(),
            ports: PortFilter::default(),
            unbilled: Vec::new(),
            trace_packets: 0,
        };
        let measurement = Measurement::start(self.host, plan)?;
        let options = Options { add_rules, ..Options::default() };
        let comparison = Comparison::start(measurement, &options)?;
        let capture = self.lab.capture()?;
        let route = self.carrier.route(self.lab, self.server);
        let closing = self.carrier.closing();
        let outcome = workload::run_closing(closing, workload, route, self.server, &|_| ())?;
        self.carrier.finish_connections()?;
        let truth = capture.stop()?;
        let target = comparison.finish(units)?;
        truth.check().map_err(|error| anyhow::Error::new(LabLostFrames(format!("{error:#}"))))?;
        let far_ends_bytes = truth.sum(Filter::all()).l3_bytes;
        let answered = [&truth.client, &truth.upstream].map(|leg| {
            let answered = classify(&leg.trace);
            answered.ingress().l3_bytes + answered.egress().l3_bytes
        });
        Ok(DemoWorkload {
            name: workload.name,
            description: describe(workload),
            application_bytes: outcome.server.sent_bytes + outcome.server.received_bytes,
            far_ends_bytes,
            answered_by_kernel_bytes: answered.iter().sum(),
            difference_bytes: target.total_wire_bytes as i64 - far_ends_bytes as i64,
            target,
        })
    }
}

/// The far end's capture holds frames that never reached the proxy: it is no truth to compare with.
#[derive(Debug, thiserror::Error)]
#[error("the lab's own links lost frames, so there is no truth to compare with: {0}")]
struct LabLostFrames(String);

fn describe(workload: &Workload) -> String {
    let si = |bytes| units::format_bytes(bytes, Units::Si);
    format!(
        "{} connection{}, each {} up, {} down",
        units::format_count(workload.connections.into()),
        if workload.connections == 1 { "" } else { "s" },
        si(workload.upload_bytes),
        si(workload.download_bytes),
    )
}

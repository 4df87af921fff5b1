//! `demo`: the main job on one machine, no proxy needed. The lab is not the product; what measures it
//! here is what `compare` measures with.

use std::fmt;

use anyhow::{Context as _, Result};
use traffic_lab::answered::classify;
use traffic_lab::packet::Family;
use traffic_lab::process::find_program;
use traffic_lab::proxy::{Program, Protocol, Proxy, RunningProxy};
use traffic_lab::topology;
use traffic_lab::workload::{self, Closing, Route, Server, Workload};
use traffic_lab::{CountedCgroup, Filter, Lab, Process, Stack};

use super::output::{self, Sink};
use super::stage::{self, Interrupted, PROXY_PORT, UPSTREAM_PORT};
use super::{DONE, INCOMPLETE};
use crate::cli::{Demo, RealProxy};
use crate::comparison::{Comparison, Options};
use crate::measure::Measurement;
use crate::method::added::{self, AddedRules};
use crate::render::progress::Progress;
use crate::report::{DemoReport, DemoWorkload, FORMAT, Finding, Severity};
use crate::target::Host;
use crate::units::{self, Units};

/// The IP version of the demo's traffic.
const FAMILY: Family = Family::Ipv4;
/// Runs `demo`; returns the exit status.
pub async fn run(args: Demo) -> Result<i32> {
    let mut sink = Sink::open(&args.printing, output::Default::Stdout)?;
    let units = sink.units();
    let strict = args.printing.strict;
    let report = stage::run(move |interrupted| drive(&args, units, interrupted)).await?;
    sink.demo(&report)?;
    let complete = report.workloads.iter().all(|workload| workload.target.complete);
    Ok(if strict && !complete { INCOMPLETE } else { DONE })
}

/// Makes the lab, drives the workloads, takes the lab down.
fn drive(args: &Demo, units: Units, interrupted: &Interrupted) -> Result<DemoReport> {
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
        interrupted.check()?;
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
            return Ok(Self::Relay(stage::start_relay(lab, cgroup)?));
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
            Self::Relay(relay) => stage::check_relay(relay),
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
        stage::until_clean(|| self.measure(workload, add_rules, units))
            .with_context(|| format!("workload {}", workload.name))
    }

    fn measure(
        &mut self,
        workload: &Workload,
        add_rules: bool,
        units: Units,
    ) -> Result<DemoWorkload> {
        let measurement = Measurement::start(self.host, stage::plan(self.cgroup)?)?;
        let options = Options { add_rules, ..Options::default() };
        let comparison = Comparison::start(measurement, &options)?;
        let capture = self.lab.capture()?;
        let route = self.carrier.route(self.lab, self.server);
        let closing = self.carrier.closing();
        let outcome = workload::run_closing(closing, workload, route, self.server, &|_| ())?;
        self.carrier.finish_connections()?;
        let truth = capture.stop()?;
        let target = comparison.finish(units)?;
        stage::check_truth(&truth)?;
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

//! `demo`: the main job on one machine, no proxy needed. The lab is not the product; what measures it
//! here is what `compare` measures with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::topology::{self, Addresses};
use traffic_lab::workload::{self, Route, Server, Workload};
use traffic_lab::{CountedCgroup, Filter, Lab, Process, Stack};

use super::output::{self, Sink};
use super::{DONE, INCOMPLETE};
use crate::cli::Demo;
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
    let addresses = topology::addresses(Family::Ipv4);
    let cgroup = CountedCgroup::new("demo")?;
    let place = Place { namespace: Some(&lab.proxy), cgroup: Some(&cgroup), ..Place::default() };
    let listen = format!("[::]:{PROXY_PORT}").parse()?;
    let mut relay = Process::spawn(Role::Relay { listen }.command()?, place)?;
    relay.wait_for_port(PROXY_PORT, Duration::from_secs(5))?;
    let server = Server::start(&lab.upstream, (addresses.upstream, UPSTREAM_PORT).into())?;
    let rules_refused = rules_refused(&lab);
    progress.step();

    let scene = Scene { host: &host, lab: &lab, cgroup: &cgroup, server: &server, addresses };
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
    Ok(DemoReport {
        format: FORMAT,
        command: "demo",
        proxy: args.real.map_or("built-in relay", |_| "real").to_owned(),
        workloads,
    })
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
    addresses: Addresses,
}

impl Scene<'_> {
    /// Drives a workload, again if the lab itself lost frames.
    fn measure_until_clean(
        &self,
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

    fn measure(&self, workload: &Workload, add_rules: bool, units: Units) -> Result<DemoWorkload> {
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
        let route = Route {
            client: &self.lab.client,
            relay: Some((self.addresses.proxy_client, PROXY_PORT).into()),
            target: self.server.address(),
        };
        let outcome = workload::run(workload, route, self.server, &|_| ())?;
        let truth = capture.stop()?;
        let target = comparison.finish(units)?;
        truth.check().map_err(|error| anyhow::Error::new(LabLostFrames(format!("{error:#}"))))?;
        let far_ends_bytes = truth.sum(Filter::all()).l3_bytes;
        Ok(DemoWorkload {
            name: workload.name,
            description: describe(workload),
            application_bytes: outcome.server.sent_bytes + outcome.server.received_bytes,
            far_ends_bytes,
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

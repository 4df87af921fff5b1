//! What `demo` and `selftest` share: a relay in a counted cgroup of the lab, what to measure there,
//! workloads that are driven again if the lab lost frames, and an end by Ctrl-C that cleans up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::topology::LabTrace;
use traffic_lab::{CountedCgroup, Lab, Process};

use crate::measure::Plan;
use crate::signals::Signals;
use crate::target::{Cgroup, PortFilter};

/// Where the relay listens: the port of the original measurement.
pub const PROXY_PORT: u16 = 11710;
/// Where the server behind it listens.
pub const UPSTREAM_PORT: u16 = 8080;
/// Frames lost inside the lab spoil its truth; then the workload is driven again.
const TRIES: u32 = 3;

/// A place for programs that are counted.
pub fn place<'l>(lab: &'l Lab, cgroup: &'l CountedCgroup) -> Place<'l> {
    Place { namespace: Some(&lab.proxy), cgroup: Some(cgroup), ..Place::default() }
}

/// Starts the lab's relay in the counted cgroup.
pub fn start_relay(lab: &Lab, cgroup: &CountedCgroup) -> Result<Process> {
    let listen = format!("[::]:{PROXY_PORT}").parse()?;
    let mut relay = Process::spawn(Role::Relay { listen }.command()?, place(lab, cgroup))?;
    relay.wait_for_port(PROXY_PORT, Duration::from_secs(5))?;
    Ok(relay)
}

/// An error if the relay has ended.
pub fn check_relay(relay: &mut Process) -> Result<()> {
    match relay.poll()? {
        None => Ok(()),
        Some(status) => bail!("the relay has ended with {status}: {}", relay.log()),
    }
}

/// The plan that measures the counted cgroup.
pub fn plan(cgroup: &CountedCgroup) -> Result<Plan> {
    let path = cgroup.cgroup_path();
    Ok(Plan {
        name: "relay".to_owned(),
        selector: format!("cgroup:{path}"),
        selectors: Vec::new(),
        cgroups: vec![Cgroup { path, dir: cgroup.path().to_owned(), id: cgroup.id()? }],
        notes: Vec::new(),
        ports: PortFilter::default(),
        unbilled: Vec::new(),
        trace_packets: 0,
    })
}

/// The far end's capture holds frames that never reached the proxy: it is no truth to compare with.
#[derive(Debug, thiserror::Error)]
#[error("the lab's own links lost frames, so there is no truth to compare with: {0}")]
pub struct LabLostFrames(String);

/// An error if the lab itself lost frames.
pub fn check_truth(truth: &LabTrace) -> Result<()> {
    truth.check().map_err(|error| anyhow::Error::new(LabLostFrames(format!("{error:#}"))))
}

/// Measures a workload, again if the lab itself lost frames.
pub fn until_clean<T>(mut measure: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = measure();
    for _ in 1..TRIES {
        match &last {
            Err(error) if error.is::<LabLostFrames>() => last = measure(),
            _ => break,
        }
    }
    last
}

/// Says whether the user wants it to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// An error once the user wants it to end. To be asked between workloads: what runs is finished,
    /// then everything is taken down.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted; the lab is taken down, nothing is left behind");
        }
        Ok(())
    }
}

/// Does the work in a thread of its own, and waits for it and for signals.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce(&Interrupted) -> Result<T> + Send + 'static,
) -> Result<T> {
    // Before the thread, which inherits the mask.
    let mut signals = Signals::take()?;
    let interrupted = Interrupted::default();
    let seen = interrupted.clone();
    let mut work = tokio::task::spawn_blocking(move || work(&seen));
    loop {
        tokio::select! {
            done = &mut work => return done.context("the work broke off")?,
            arrived = signals.next() => {
                if arrived.context("cannot wait for signals")?.ends() {
                    interrupted.0.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

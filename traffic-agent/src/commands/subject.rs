//! A command that is measured in a cgroup of its own: what `exec` and `compare -- CMD` share.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::child::{self, FreshCgroup, RunAs, Running, Survivor};
use crate::measure::{Measurement, Plan};
use crate::report::{ExitStatus, Finding, Severity};
use crate::signals::Signals;
use crate::target::{Cgroup, Host, PortFilter, cgroup2};

/// How long after the end of a command its last connections may take to close.
const DRAIN_AT_MOST: Duration = Duration::from_secs(1);

/// A command, ready to be started in a cgroup that is there already.
pub struct Subject {
    command: Vec<OsString>,
    user: Option<RunAs>,
    cgroup: FreshCgroup,
}

impl Subject {
    /// Looks everything up that can fail, and makes the cgroup.
    pub fn prepare(host: &Host, command: Vec<OsString>, user: Option<&str>) -> Result<Self> {
        let user = user.map(RunAs::look_up).transpose()?;
        let parent = own_cgroup(host)?;
        let cgroup = FreshCgroup::create(&parent.dir)?;
        Ok(Self { command, user, cgroup })
    }

    /// What to measure.
    pub fn plan(
        &self,
        host: &Host,
        ports: PortFilter,
        unbilled: Vec<String>,
        trace_packets: u32,
    ) -> Result<Plan> {
        let relative = self.cgroup.directory().strip_prefix(host.cgroups.mount())?;
        let path = format!("/{}", relative.to_str().context("the cgroup's path is not UTF-8")?);
        let dir = self.cgroup.directory().to_owned();
        let words: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
        Ok(Plan {
            name: self.program_name(),
            selector: format!("exec:{}", words.join(" ")),
            selectors: Vec::new(),
            cgroups: vec![Cgroup { path, dir, id: self.cgroup.id() }],
            notes: Vec::new(),
            ports,
            unbilled,
            trace_packets,
        })
    }

    /// The command's file name.
    pub fn program_name(&self) -> String {
        let program = self.command.first().map(Path::new).and_then(Path::file_name);
        program.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Starts the command.
    pub fn start(&self, signals: &Signals) -> Result<Running, child::Error> {
        Running::start(&self.command, &self.cgroup, self.user.as_ref(), signals)
    }

    /// Removes the cgroup; what is still running is reported.
    pub fn remove(self) -> Option<Finding> {
        let path = self.cgroup.directory().display().to_string();
        match self.cgroup.remove() {
            Ok(survivors) if survivors.is_empty() => None,
            Ok(survivors) => Some(still_running(&survivors)),
            Err(error) => Some(Finding {
                severity: Severity::Warning,
                code: "cgroup-left-behind",
                message: format!("cgroup {path} could not be removed: {error}"),
                remedy: format!("end what is in it, then: rmdir {path}"),
                incomplete: false,
            }),
        }
    }
}

/// Waits for the command, following it. The error of a look that failed does not end the waiting.
pub async fn wait(
    running: &mut Running,
    signals: &mut Signals,
    mut each_tick: impl FnMut(),
) -> Result<ExitStatus, child::Error> {
    // Early at first, so that short commands are seen, then once a second.
    let mut pause = Duration::from_millis(20);
    loop {
        tokio::select! {
            status = running.wait(signals) => return status,
            () = tokio::time::sleep(pause) => {
                each_tick();
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// Waits until the connections that the command left behind are closed, so that their last packets
/// are counted; not for ever, since a peer may never answer.
pub async fn drain(measurement: &mut Measurement<'_>) {
    let deadline = Instant::now() + DRAIN_AT_MOST;
    loop {
        match measurement.is_draining() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                measurement.note_once("not-drained", &*error);
                break;
            }
        }
        if Instant::now() >= deadline {
            measurement.add_finding(Finding {
                severity: Severity::Info,
                code: "still-closing",
                message: "connections of the command were still being closed when the counters \
                          were read: packets that came later are not in the report"
                    .to_owned(),
                remedy: "nothing; a peer does not answer".to_owned(),
                incomplete: true,
            });
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The cgroup that the agent itself is in.
pub fn own_cgroup(host: &Host) -> Result<Cgroup> {
    let file = host.proc.join("self/cgroup");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let path = cgroup2::process_path(&text)
        .and_then(|named| host.cgroups.visible_path(named))
        .with_context(|| {
            format!(
                "the agent's own cgroup is not visible below {}; run it outside of this \
                 container, or give the container a cgroup namespace of its own",
                host.cgroups.mount().display()
            )
        })?;
    host.cgroups.cgroup(&path).with_context(|| format!("cannot open the agent's own cgroup {path}"))
}

fn still_running(survivors: &[Survivor]) -> Finding {
    let names: Vec<_> =
        survivors.iter().map(|one| format!("{} (pid {})", one.name, one.pid)).collect();
    Finding {
        severity: Severity::Warning,
        code: "still-running",
        message: format!(
            "{} of the command's processes go on: {}. What they sent until now is in the report; \
             what they send from now on is not",
            survivors.len(),
            names.join(", ")
        ),
        remedy: "measure a service with `traffic-agent compare`".to_owned(),
        incomplete: true,
    }
}

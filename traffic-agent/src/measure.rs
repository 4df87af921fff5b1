//! One target, measured from one instant to another: what `compare`, `exec` and `demo` share.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use traffic_ebpf::{
    Cell, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER, LOOPBACK_IFINDEX, PORT_SLOTS, PacketRecord,
};

use crate::kernel::{Counter, Options, Owner, Sample};
use crate::ledger::{self, Names};
use crate::method::ListeningPort;
use crate::network::{self, Networks};
use crate::report::{
    CellReport, CgroupReport, Finding, ProcessReport, Scope, Severity, TargetReport,
};
use crate::target::sockets::Which;
use crate::target::{
    self, Cgroup, Host, Listening, PortFilter, Survey, TargetSpec, Value, ownership,
};

/// What to measure, and how to divide it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Short name of the target.
    pub name: String,
    /// How it was selected, for the report.
    pub selector: String,
    /// The same for the ownership audit; empty for a command's own cgroup.
    pub selectors: Vec<Value>,
    /// Where to attach; none inside another.
    pub cgroups: Vec<Cgroup>,
    /// What the user may not expect of them.
    pub notes: Vec<String>,
    /// Ports added and taken away.
    pub ports: PortFilter,
    /// Interfaces whose traffic is free.
    pub unbilled: Vec<String>,
    /// Describe each of the first so many packets.
    pub trace_packets: u32,
}

impl Plan {
    /// Resolves a target to the cgroups it is now.
    pub fn resolve(
        host: &Host,
        spec: &TargetSpec,
        ports: PortFilter,
        unbilled: Vec<String>,
        trace_packets: u32,
    ) -> Result<Self, target::Error> {
        let resolved = target::resolve(host, spec)?;
        Ok(Self {
            name: spec.name.clone(),
            selector: spec.selector(),
            selectors: spec.selectors.clone(),
            cgroups: resolved.cgroups,
            notes: resolved.notes,
            ports,
            unbilled,
            trace_packets,
        })
    }
}

/// A running measurement. Dropping it detaches.
pub struct Measurement<'h> {
    host: &'h Host,
    plan: Plan,
    counter: Counter,
    networks: Networks,
    processes: BTreeSet<(i32, String)>,
    /// Ids of the cgroups and of all that were ever seen below them: the sockets of a child that was
    /// removed are still counted.
    owned: BTreeSet<u64>,
    findings: Vec<Finding>,
}

impl<'h> Measurement<'h> {
    /// Loads a program instance, tells it the ports that listen already, and attaches it.
    pub fn start(host: &'h Host, plan: Plan) -> Result<Self> {
        let survey = Survey::take(host, &plan.cgroups, Which::Bound)?;
        let listening = survey.listening(&plan.ports);
        let options = Options {
            trace_packets: plan.trace_packets,
            transparent: listening.iter().any(|port| port.transparent),
            retransmissions: true,
        };
        let mut counter = Counter::load(&options)?;
        for excluded in plan.ports.excluded() {
            counter.slots().exclude_port(excluded);
        }
        claim(&mut counter, &listening)?;
        for cgroup in &plan.cgroups {
            counter.attach(&cgroup.dir)?;
        }
        let mut measurement = Self {
            host,
            plan,
            counter,
            networks: Networks::default(),
            processes: BTreeSet::new(),
            owned: BTreeSet::new(),
            findings: Vec::new(),
        };
        // Once more, for what began to listen between the look and the attachment.
        let plan = &measurement.plan;
        let survey = Survey::take(host, &plan.cgroups, Which::Bound)?;
        claim(&mut measurement.counter, &survey.listening(&plan.ports))?;
        measurement.follow()?;
        Ok(measurement)
    }

    /// What was asked for.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Follows the target: its processes, its interfaces, its listening ports. To be called about
    /// once a second. The program finds new TCP listeners and UDP binds by itself; this finds what
    /// listened before, and takes ports away that nobody uses any more.
    pub fn follow(&mut self) -> Result<()> {
        let pids = self.host.cgroups.pids(&self.plan.cgroups)?;
        for &pid in &pids {
            if let Some(process) = target::processes::read(&self.host.proc, pid) {
                self.processes.insert((pid, process.name));
            }
        }
        self.networks.note_processes(&self.host.proc, pids);
        self.networks.learn_interfaces()?;

        self.owned.extend(self.host.cgroups.subtree_ids(&self.plan.cgroups));
        let sockets = self.networks.sockets(Which::Bound, &self.owned)?;
        for socket in sockets.iter().filter(|socket| network::listens(socket)) {
            let port = ListeningPort { protocol: socket.protocol, port: socket.local.port() };
            self.counter.slots().claim_port(port)?;
        }
        let unused: Vec<ListeningPort> = self
            .counter
            .slots()
            .client_ports()
            .into_iter()
            .filter(|port| !self.plan.ports.adds(*port))
            .filter(|port| !sockets.iter().any(|socket| network::uses_port(socket, *port)))
            .collect();
        if !unused.is_empty() {
            // Nobody listens there any more; its connections may still be going on.
            let sockets = self.networks.sockets(Which::All, &self.owned)?;
            for port in unused {
                if !sockets.iter().any(|socket| network::uses_port(socket, port)) {
                    self.counter.slots().release_port(port);
                }
            }
        }
        Ok(())
    }

    /// Follows the target; a look that fails is noted, and does not end the measurement.
    pub fn follow_or_note(&mut self) {
        if let Err(error) = self.follow() {
            self.note_once("not-followed", &*error);
        }
    }

    /// Notes an error as a finding, the first of each code.
    pub fn note_once(&mut self, code: &'static str, error: &(impl std::fmt::Display + ?Sized)) {
        if self.findings.iter().all(|finding| finding.code != code) {
            self.findings.push(Finding {
                severity: Severity::Warning,
                code,
                message: format!("{error:#}"),
                remedy: "the totals are right; ports and names may be out of date".to_owned(),
                incomplete: false,
            });
        }
    }

    /// Whether connections of the target are still being closed, so that packets are to come.
    pub fn is_draining(&self) -> Result<bool> {
        let sockets = self.networks.sockets(Which::All, &self.owned)?;
        Ok(sockets.iter().any(|socket| {
            // A socket without a file belongs to no process any more.
            socket.inode == 0 && !network::listens(socket)
        }))
    }

    /// Reads all counters.
    pub fn sample(&self) -> Result<Sample> {
        Ok(self.counter.sample()?)
    }

    /// The packets traced since the last call.
    pub fn take_packets(&mut self) -> Vec<PacketRecord> {
        self.counter.trace().take_packets()
    }

    /// The name of an interface, as far as it is known.
    pub fn interface_name(&self, index: u32) -> Option<String> {
        self.networks.interface(index).map(str::to_owned)
    }

    /// The namespace in which rules and interface counters of the target are to be read.
    pub fn network(&self) -> Result<crate::netns::NetNs> {
        Ok(self.networks.first()?)
    }

    /// The ports whose packets are the client leg now.
    pub fn client_ports(&mut self) -> Vec<ListeningPort> {
        self.counter.slots().client_ports()
    }

    /// What was counted between two samples, with names.
    pub fn cells(&mut self, start: &Sample, end: &Sample) -> Result<Vec<CellReport>> {
        let counted: Vec<Cell> = ledger::difference(&start.cells, &end.cells)?;
        let names = self.names()?;
        Ok(ledger::name_cells(&counted, &names))
    }

    /// Adds what was noticed elsewhere.
    pub fn add_finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Looks at the target once more, and puts the report together from two samples.
    ///
    /// The methods, estimates and verdict are the caller's to add.
    pub fn report(&mut self, start: &Sample, end: &Sample) -> Result<TargetReport> {
        let cells = self.cells(start, end)?;
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(self.audit().unwrap_or_else(|error| vec![audit_failed(&error)]));
        findings.extend(self.slot_findings(&cells));
        findings.extend(self.networks.finding());
        findings.extend(unparsable(self.counter.trace().take_log()));
        if cells.is_empty() && !self.plan.selectors.is_empty() {
            findings.push(no_traffic());
        }
        let totals = ledger::totals(&cells);
        // Ports beyond the table are summed in a row without a number: as rows of their own they would
        // seem to have had no traffic.
        let listening = self.client_ports();
        let own_slot: BTreeSet<ListeningPort> = self
            .counter
            .slots()
            .owners()?
            .into_iter()
            .filter_map(|(_, owner)| match owner {
                Owner::Port(port) => Some(port),
                Owner::Interface(_) => None,
            })
            .filter(|port| listening.contains(port))
            .collect();
        let seconds = end.taken_at.duration_since(start.taken_at).as_secs_f64();
        Ok(TargetReport {
            name: self.plan.name.clone(),
            selector: self.plan.selector.clone(),
            cgroups: self.plan.cgroups.iter().map(CgroupReport::from).collect(),
            processes: self
                .processes
                .iter()
                .map(|(pid, name)| ProcessReport { pid: *pid, name: name.clone() })
                .collect(),
            complete: !findings.iter().any(|finding| finding.incomplete),
            observed_seconds: seconds,
            total_wire_bytes: totals.billed.wire_bytes(),
            totals,
            ports: ledger::ports(&cells, &own_slot.into_iter().collect::<Vec<_>>()),
            cells,
            methods: Vec::new(),
            estimates: Vec::new(),
            capture_rates: Vec::new(),
            ratio: None,
            verdict: String::new(),
            findings,
        })
    }

    /// Whose sockets were counted, and whose were not.
    fn audit(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut alive = Vec::new();
        for cgroup in &self.plan.cgroups {
            match self.host.cgroups.cgroup(&cgroup.path) {
                Ok(now) if now.id == cgroup.id => alive.push(cgroup.clone()),
                _ => findings.push(cgroup_gone(cgroup)),
            }
        }
        if !alive.is_empty() {
            let mut survey = Survey::take(self.host, &alive, Which::All)
                .context("cannot audit who owns the sockets")?;
            for id in &self.owned {
                survey.owned.entry(*id).or_insert(0);
            }
            // Several namespaces are reported from what was seen all along.
            let seen =
                survey.findings.iter().filter(|finding| finding.code != "several-namespaces");
            findings.extend(seen.cloned());
            findings.extend(ownership::audit(self.host, &survey, &self.plan.selectors)?);
        }
        Ok(findings)
    }

    fn names(&mut self) -> Result<Names> {
        let mut names = Names {
            interfaces: std::array::from_fn(|_| ("other".to_owned(), Scope::Billed)),
            ports: [None; PORT_SLOTS],
        };
        names.interfaces[usize::from(INTERFACE_SLOT_LOOPBACK)] =
            (name_interface(&self.networks, LOOPBACK_IFINDEX), Scope::Loopback);
        for (slot, owner) in self.counter.slots().owners()? {
            match owner {
                Owner::Port(port) => names.ports[usize::from(slot)] = Some(port),
                Owner::Interface(index) => {
                    let name = name_interface(&self.networks, index);
                    let unbilled = self.plan.unbilled.contains(&name);
                    let scope = if unbilled { Scope::Unbilled } else { Scope::Billed };
                    names.interfaces[usize::from(slot)] = (name, scope);
                }
            }
        }
        Ok(names)
    }

    fn slot_findings(&self, cells: &[CellReport]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let beyond = ledger::sum(cells, |cell| cell.interface == "other").wire_bytes();
        if beyond > 0 {
            findings.push(Finding {
                severity: Severity::Info,
                code: "interface-without-slot",
                message: format!(
                    "{beyond} bytes passed interfaces beyond the {} that are told apart; they are \
                     counted, as billed, under `other`",
                    INTERFACE_SLOT_OTHER - 1
                ),
                remedy: "nothing, unless one of them is free and named by --unbilled".to_owned(),
                incomplete: false,
            });
        }
        let ports = ledger::sum(cells, |cell| {
            cell.leg == crate::report::Leg::Client && cell.port.is_none()
        });
        if ports.wire_bytes() > 0 {
            findings.push(Finding {
                severity: Severity::Info,
                code: "port-without-slot",
                message: format!(
                    "{} bytes belong to listening ports beyond the 58 that are told apart; they are \
                     counted, as client leg, in one sum per protocol",
                    ports.wire_bytes()
                ),
                remedy: "take ports that do not matter away with --port '!tcp/N'".to_owned(),
                incomplete: false,
            });
        }
        findings
    }
}

fn claim(counter: &mut Counter, listening: &[Listening]) -> Result<()> {
    for listening in listening {
        counter.slots().claim_port(listening.port)?;
    }
    Ok(())
}

fn name_interface(networks: &Networks, index: u32) -> String {
    networks.interface(index).map_or_else(|| format!("if{index}"), str::to_owned)
}

fn audit_failed(error: &anyhow::Error) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "audit-failed",
        message: format!("{error:#}"),
        remedy: "the totals are right; whether they are all of the target's traffic is not known"
            .to_owned(),
        incomplete: true,
    }
}

fn cgroup_gone(cgroup: &Cgroup) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "cgroup-gone",
        message: format!(
            "cgroup {} was removed while it was measured: what was counted until then is in the \
             report, what its successor did is not",
            cgroup.path
        ),
        remedy: "the service was restarted or stopped; measure again".to_owned(),
        incomplete: true,
    }
}

fn no_traffic() -> Finding {
    Finding {
        severity: Severity::Info,
        code: "no-traffic",
        message: "not one packet passed the target's sockets".to_owned(),
        remedy: "if it should have: is it the right target, and did its process start after its \
                 cgroup was made? `traffic-agent doctor` looks"
            .to_owned(),
        incomplete: false,
    }
}

fn unparsable(log: Vec<String>) -> Option<Finding> {
    let first = log.first()?;
    Some(Finding {
        severity: Severity::Warning,
        code: "unparsable-packets",
        message: format!(
            "at least {} packets had headers that could not be read; they are counted with their \
             length as upstream, other. The first: {first}",
            log.len()
        ),
        remedy: "please report it with what runs in the cgroup".to_owned(),
        incomplete: false,
    })
}

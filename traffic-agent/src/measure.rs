//! One target, measured from one instant to another: what `compare`, `exec` and `demo` share.

pub mod finding;
mod follow;
mod hang;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use traffic_ebpf::{INTERFACE_SLOT_LOOPBACK, LOOPBACK_IFINDEX, PORT_SLOTS, PacketRecord};

use crate::history::KnownInterface;
use crate::kernel::pins::PinRoot;
use crate::kernel::{Counter, Departed, Options, Owner, Retired, Sample};
use crate::ledger::Names;
use crate::method::ListeningPort;
use crate::network::{self, Networks};
use crate::report::{Finding, Scope, Severity};
use crate::target::sockets::Which;
use crate::target::{self, Cgroup, Host, Listening, PortFilter, Survey, TargetSpec, Value};

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
    /// Whether it was loaded for transparent listeners.
    transparent: bool,
    /// Whether one was there at the last look.
    has_transparent: bool,
    networks: Networks,
    /// The interfaces that are gone, and still have slots.
    departed: Departed,
    /// What the interfaces were called that had slots when names were asked for last.
    known_interfaces: Vec<KnownInterface>,
    /// Client ports that nobody uses, and since when no look has found anybody.
    unused: BTreeMap<ListeningPort, Instant>,
    /// The cgroups that the counter counts, by their ids, as far as it is known where they are or were.
    hung: BTreeMap<u64, Cgroup>,
    /// Where its hooks hang that select, by their ids, likewise.
    anchors: BTreeMap<u64, Cgroup>,
    /// Paths of cgroups that must not be hooked themselves.
    held: BTreeSet<String>,
    /// Since when a cgroup is attached of which it is not sure in which namespace its processes are.
    unsure_since: Option<Instant>,
    /// Whether it goes on when it is dropped: then processes come and go, and their namespaces with them.
    outlives: bool,
    processes: BTreeSet<(i32, String)>,
    /// Ids of the cgroups and of all that were ever seen below them: the sockets of a child that was
    /// removed are still counted.
    owned: BTreeSet<u64>,
    findings: Vec<Finding>,
}

impl<'h> Measurement<'h> {
    /// Loads a program instance, tells it the ports that listen already, and attaches it.
    pub fn start(host: &'h Host, plan: Plan) -> Result<Self> {
        let (mut measurement, ()) =
            Self::with_counter(host, plan, |options, _| Ok((Counter::load(options)?, ())))?;
        for cgroup in measurement.plan.cgroups.clone() {
            measurement.hang(&cgroup)?;
            measurement.hung.insert(cgroup.id, cgroup);
        }
        // Once more, for what began to listen between the look and the attachment.
        let plan = &measurement.plan;
        let survey = Survey::take(host, &plan.cgroups, Which::Bound)?;
        claim(&mut measurement.counter, &survey.listening(&plan.ports))?;
        measurement.follow()?;
        Ok(measurement)
    }

    /// Opens, or begins, a measurement that goes on when it is dropped. The cgroups that it hung on when it
    /// was last open are counted all the while; those of the plan are to be attached by
    /// [`Measurement::attach`].
    ///
    /// With it come counters of an earlier version of this program, which are to be read to their end.
    pub fn open(host: &'h Host, plan: Plan, root: &PinRoot) -> Result<(Self, Vec<Retired>)> {
        let (mut measurement, retired) = Self::with_counter(host, plan, |options, plan| {
            Ok(Counter::open(options, root, &plan.name)?)
        })?;
        measurement.find_hung()?;
        // Whoever had it before may have been killed on the way.
        measurement.counter.slots().settle_interfaces()?;
        measurement.unsure_since = Some(Instant::now());
        measurement.outlives = true;
        Ok((measurement, retired))
    }

    /// Gets a counter for what the target is now, and tells it the ports that listen already. It hangs on
    /// nothing that it did not hang on before.
    fn with_counter<T>(
        host: &'h Host,
        plan: Plan,
        get: impl FnOnce(&Options, &Plan) -> Result<(Counter, T)>,
    ) -> Result<(Self, T)> {
        let survey = Survey::take(host, &plan.cgroups, Which::Bound)?;
        let listening = survey.listening(&plan.ports);
        let options = options(&plan, &listening);
        let (mut counter, with_it) = get(&options, &plan)?;
        counter.slots().set_excluded(&plan.ports.excluded());
        claim(&mut counter, &listening)?;
        let mut networks = Networks::default();
        let pids = host.cgroups.pids(&plan.cgroups)?;
        let is_empty = pids.is_empty();
        networks.note_processes(&host.proc, pids);
        follow::tell_namespaces(&mut counter, &networks, is_empty)?;
        let measurement = Self {
            host,
            plan,
            counter,
            transparent: options.transparent,
            has_transparent: false,
            networks,
            departed: Departed::default(),
            known_interfaces: Vec::new(),
            hung: BTreeMap::new(),
            anchors: BTreeMap::new(),
            held: BTreeSet::new(),
            unsure_since: None,
            unused: BTreeMap::new(),
            outlives: false,
            processes: BTreeSet::new(),
            owned: BTreeSet::new(),
            findings: Vec::new(),
        };
        Ok((measurement, with_it))
    }

    /// Whether the programs were loaded for what the target was at the last [`Measurement::follow`]: transparent
    /// listeners need a variant.
    pub fn is_up_to_date(&self) -> bool {
        !self.has_transparent || self.transparent
    }

    /// Takes these cgroups for the target, and attaches to those that are new. Those it hung on before stay
    /// until their last socket is gone, but for those that one of these contains or lies in: their packets
    /// would be counted twice.
    ///
    /// Returns the cgroups that were not counted before.
    pub fn attach(&mut self, cgroups: Vec<Cgroup>) -> Result<Vec<Cgroup>> {
        let is_nested =
            |hung: &Cgroup| cgroups.iter().any(|it| it.is_above(hung) || hung.is_above(it));
        let nested: Vec<u64> =
            self.hung.values().filter(|it| is_nested(it)).map(|it| it.id).collect();
        self.detach(&nested)?;
        let mut attached = Vec::new();
        for cgroup in &cgroups {
            if !self.counter.is_attached(cgroup.id) {
                let before = self.way_of(cgroup.id);
                attached.extend(self.hang(cgroup)?);
                self.hung.insert(cgroup.id, cgroup.clone());
                // Else an agent that was killed then had not hung on all that is rare.
                if before.is_none() || before != self.way_of(cgroup.id) {
                    attached.push(cgroup.clone());
                }
                self.unsure_since = Some(Instant::now());
            }
        }
        let hangs_on = self.counter.attached_cgroups();
        self.hung.retain(|id, _| hangs_on.contains(id));
        self.hung.extend(cgroups.iter().map(|cgroup| (cgroup.id, cgroup.clone())));
        self.plan.cgroups = cgroups;
        Ok(attached)
    }

    /// How a cgroup is counted, if it is: by hooks on itself or by an anchor.
    fn way_of(&self, cgroup: u64) -> Option<Option<u64>> {
        self.counter.counts(cgroup).then(|| self.counter.anchor_of(cgroup))
    }

    /// Detaches from all cgroups but these: the target was chosen anew, and what it was before is not its own
    /// any more.
    pub fn keep_only(&mut self, cgroups: &[Cgroup]) -> Result<()> {
        let mut others = self.counter.attached_cgroups();
        others.retain(|id| cgroups.iter().all(|cgroup| cgroup.id != *id));
        self.detach(&others)
    }

    fn detach(&mut self, ids: &[u64]) -> Result<()> {
        for id in ids {
            self.counter.detach(*id)?;
            self.hung.remove(id);
        }
        Ok(())
    }

    /// Takes for the target what it hangs on already.
    pub fn keep_cgroups(&mut self) {
        self.plan.cgroups = self.hung.values().cloned().collect();
    }

    /// Whether there is a cgroup whose processes are still to come.
    pub fn is_unsure(&self) -> bool {
        self.unsure_since.is_some()
    }

    /// The kernel's side.
    pub fn counter(&mut self) -> &mut Counter {
        &mut self.counter
    }

    /// What was asked for.
    pub fn plan(&self) -> &Plan {
        &self.plan
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

    /// Adds what was noticed elsewhere.
    pub fn add_finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Takes what interfaces were called when they were counted last: they may be gone.
    pub fn remember_interfaces(&mut self, known: impl IntoIterator<Item = KnownInterface>) {
        self.networks.remember(known.into_iter().map(|one| (one.number, one.name)));
    }

    /// What the interfaces are called that had slots when [`Measurement::names`] was called last, in the order
    /// of their numbers.
    pub fn known_interfaces(&self) -> &[KnownInterface] {
        &self.known_interfaces
    }

    /// What the slots stand for now.
    pub fn names(&mut self) -> Result<Names> {
        let mut names = Names {
            interfaces: std::array::from_fn(|_| ("other".to_owned(), Scope::Billed)),
            ports: [None; PORT_SLOTS],
        };
        let owners = self.counter.slots().owners()?;
        let is_unknown = |(_, owner): &(u8, Owner)| match owner {
            Owner::Interface(index) => self.networks.interface(*index).is_none(),
            Owner::Port(_) => false,
        };
        let is_unsure =
            self.unsure_since.is_some() || self.networks.interface(LOOPBACK_IFINDEX).is_none();
        if is_unsure || owners.iter().any(is_unknown) {
            // It, or the process, came since the last look.
            let pids = self.host.cgroups.pids(&self.plan.cgroups)?;
            self.look_at_networks(pids)?;
        }
        names.interfaces[usize::from(INTERFACE_SLOT_LOOPBACK)] =
            (name_interface(&self.networks, LOOPBACK_IFINDEX), Scope::Loopback);
        self.known_interfaces.clear();
        for (slot, owner) in owners {
            match owner {
                Owner::Port(port) => names.ports[usize::from(slot)] = Some(port),
                Owner::Interface(index) => {
                    let name = name_interface(&self.networks, index);
                    let unbilled = self.plan.unbilled.contains(&name);
                    let scope = if unbilled { Scope::Unbilled } else { Scope::Billed };
                    if self.networks.interface(index).is_some() {
                        let known = KnownInterface { number: index, name: name.clone(), scope };
                        self.known_interfaces.push(known);
                    }
                    names.interfaces[usize::from(slot)] = (name, scope);
                }
            }
        }
        // One that came back at the moment its slot was given again may have two.
        self.known_interfaces.sort_unstable();
        self.known_interfaces.dedup();
        Ok(names)
    }
}

fn options(plan: &Plan, listening: &[Listening]) -> Options {
    Options {
        trace_packets: plan.trace_packets,
        transparent: listening.iter().any(|port| port.transparent),
        retransmissions: true,
        answered: true,
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

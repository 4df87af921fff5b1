//! The host's ledger: what every cgroup of the host used, and what the interfaces counted meanwhile.
//!
//! [`HostLedger::sample`] says what was counted since the last commit; [`HostLedger::committed`] is to be called
//! when that is safe. In between nothing is forgotten: a flush that fails is made up for by the next one.
//! What fails here is no reason to stop counting for the targets.

mod interfaces;
pub mod ledger;
mod paths;

use std::collections::BTreeMap;

use jiff::Timestamp;
use nix::net::if_::if_nameindex;
use traffic_ebpf::{HostKey, LOOPBACK_IFINDEX};

use self::interfaces::{Departures, Names};
use self::ledger::{Device, Devices, Owner, Restart, device_gain, gains};
use self::paths::{OVERFLOW, Paths};
use crate::history::{Event, EventKind, Quarter};
use crate::kernel::{self, HostCounter, HostSample, pins::PinRoot};
use crate::method::interface::{self, InterfaceCounters, LOOPBACK};
use crate::netns::{self, NetNs};
use crate::report::{Counters, Direction};
use crate::target::{self, Hierarchy};

/// Stands for the interfaces of namespaces other than the ledger's own, but for their loopback.
pub const OTHER_NAMESPACES: &str = "(other namespaces)";
/// Stands for an interface that was gone before anybody saw its name.
pub const GONE: &str = "(gone)";
/// Directions in the order of the cells.
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Why the host's ledger does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's side.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The tree of cgroups.
    #[error(transparent)]
    Cgroups(#[from] target::Error),
    /// A namespace could not be looked into.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// The interfaces' counters.
    #[error(transparent)]
    Interfaces(#[from] interface::Error),
    /// The interfaces' numbers.
    #[error("cannot list the network interfaces")]
    List(#[source] nix::Error),
}

/// Coordinates under which traffic of the host is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostSeries {
    /// Path of the cgroup; in brackets what is none: `(kernel)`, `(removed)`, `(overflow)`.
    pub cgroup: String,
    /// The target that the cgroup belongs to.
    pub target: Option<String>,
    /// Name of the interface; in brackets what is none of the ledger's own namespace.
    pub interface: String,
    /// Seen from the cgroup.
    pub direction: Direction,
}

/// A target, as far as the host's ledger must know it: so its traffic is told from that of all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTarget {
    /// Short name.
    pub name: String,
    /// Paths of its cgroups. What is below them is its own, too.
    pub cgroups: Vec<String>,
}

/// What the ledger's counters were when they were last committed: all that a restart must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAbsolute {
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// [`HostCounter::map_id`].
    pub map_id: u32,
    /// The counters of up to two turns.
    pub turns: Vec<HostSample>,
    /// The interfaces' own counters.
    pub devices: Devices,
}

/// What one flush adds to the history of the host.
#[derive(Clone, Debug)]
pub struct HostFlush {
    /// Where the traffic goes.
    pub quarter: Quarter,
    /// Traffic since the last commit, to be added.
    pub postings: Vec<(HostSeries, Counters)>,
    /// What the interfaces of the ledger's own namespace counted, frames with their link-layer headers, to be
    /// added.
    pub interfaces: Vec<(String, InterfaceCounters)>,
    /// To take the place of what was kept of the last flush.
    pub absolute: HostAbsolute,
    /// What happened.
    pub events: Vec<Event>,
}

/// The ledger of one host.
pub struct HostLedger {
    counter: HostCounter,
    cgroups: Hierarchy,
    /// Whose interfaces are balanced.
    namespace: NetNs,
    paths: Paths,
    names: Names,
    committed: HostAbsolute,
    departures: Departures,
    /// What becomes of them when the last sample is committed.
    sampled_departures: Departures,
    /// What `sample` has to tell beside numbers, until it is committed.
    events: Vec<Event>,
}

impl HostLedger {
    /// Begins to count at the root of the tree, or goes on with what is pinned. `kept`: what the history has
    /// of the last commit. The interfaces are those of `namespace`.
    ///
    /// Without `pins` counting ends with this.
    ///
    /// # Errors
    ///
    /// [`Error`]. The targets can be counted all the same.
    pub fn start(
        pins: Option<&PinRoot>,
        cgroups: Hierarchy,
        namespace: NetNs,
        boot_id: &str,
        kept: Option<HostAbsolute>,
    ) -> Result<Self, Error> {
        let counter = match pins {
            Some(root) => HostCounter::open(root)?,
            None => HostCounter::load()?,
        };
        Self::with(counter, cgroups, namespace, boot_id, kept)
    }

    /// The same with a counter that was made before: a test makes small ones.
    ///
    /// # Errors
    ///
    /// As [`HostLedger::start`].
    pub fn with(
        mut counter: HostCounter,
        cgroups: Hierarchy,
        namespace: NetNs,
        boot_id: &str,
        kept: Option<HostAbsolute>,
    ) -> Result<Self, Error> {
        let now = Timestamp::now();
        let (mut committed, mut events) = (HostAbsolute::default(), Vec::new());
        // What another boot has left says nothing of today's counters.
        if let Some(kept) = kept.filter(|kept| kept.boot_id == boot_id) {
            committed.devices = kept.devices;
            if kept.map_id == counter.map_id() {
                committed.turns = kept.turns;
            } else {
                events.push(note(
                    now,
                    "the host's counters are new: what cgroups used meanwhile is not known",
                ));
            }
        } else {
            // Only what comes from here on is compared with what the cgroups use.
            committed.devices = devices(&namespace)?.0;
            let turns = [Some(counter.sample()?), counter.previous()?];
            if turns.iter().flatten().any(|turn| !turn.is_empty()) {
                let message = "what the cgroups had used before this history began is part of it, what the \
                               interfaces had counted is not: they do not balance here";
                events.push(note(now, message));
            }
        }
        committed.boot_id = boot_id.to_owned();
        committed.map_id = counter.map_id();
        if !counter.tells_namespaces() {
            let message = "this kernel does not show its types: interfaces of other network namespaces \
                           are taken for those of the same number";
            events.push(note(now, message));
        }
        counter.attach(cgroups.mount())?;
        Ok(Self {
            counter,
            cgroups,
            namespace,
            paths: Paths::default(),
            names: Names::default(),
            committed,
            departures: Departures::default(),
            sampled_departures: Departures::default(),
            events,
        })
    }

    /// Whether another network namespace's interface of the same number is told apart.
    pub fn tells_namespaces(&self) -> bool {
        self.counter.tells_namespaces()
    }

    /// Reads everything: what is new since the last commit.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is lost by it.
    pub fn sample(&mut self, targets: &[HostTarget]) -> Result<HostFlush, Error> {
        let now = Timestamp::now();
        let turns = self.read_turns()?;
        let (devices, names) = devices(&self.namespace)?;
        self.names.learn(names);

        let gains = gains(&self.committed.turns, &turns);
        self.paths.learn(&self.cgroups, gains.keys())?;
        let mut postings: BTreeMap<HostSeries, Counters> = BTreeMap::new();
        for (owner, cells) in &gains {
            let cgroup = self.paths.name(*owner);
            let target = targets.iter().find(|target| target.owns(cgroup));
            for (direction, cell) in DIRECTIONS.into_iter().zip(cells) {
                if cell.packets == 0 {
                    continue;
                }
                let series = HostSeries {
                    cgroup: cgroup.to_owned(),
                    target: target.map(|target| target.name.clone()),
                    interface: self.interface(*owner),
                    direction,
                };
                *postings.entry(series).or_default() += (*cell).into();
            }
        }
        let mut events = self.events.clone();
        let lost = postings.iter().filter(|(series, _)| series.cgroup == OVERFLOW);
        let lost: u64 = lost.map(|(_, counters)| counters.wire_bytes).sum();
        if lost > 0 {
            let message = format!(
                "{lost} B are of cgroups and interfaces that are not known: more of them came at once \
                 than there is room for"
            );
            events.push(note(now, &message));
        }
        let interfaces = self.interface_gains(&devices, now, &mut events);
        events.extend(self.departed(&devices, now));
        let absolute = HostAbsolute { turns, devices, ..self.committed.clone() };
        Ok(HostFlush {
            quarter: Quarter::of(now),
            postings: postings.into_iter().collect(),
            interfaces,
            absolute,
            events,
        })
    }

    /// To be called when a flush is safe, and before the next sample: it is what that will be compared with.
    ///
    /// # Errors
    ///
    /// If the counters that are at rest could not be emptied; nothing is lost by it.
    pub fn committed(&mut self, flush: &HostFlush) -> Result<(), Error> {
        self.committed = flush.absolute.clone();
        self.departures = self.sampled_departures.clone();
        self.events.clear();
        if self.counter.previous()?.is_some_and(|previous| !previous.is_empty()) {
            self.counter.clear_previous()?;
        }
        // Of the turn before nothing more can come.
        if let Some(last) = self.committed.turns.last().map(|sample| sample.turn) {
            self.committed.turns.retain(|sample| sample.turn == last);
            let live = || self.committed.turns.iter().flat_map(|sample| sample.cells.keys());
            self.paths.forget_all_but(live().map(|key| key.cgroup));
            let present = self.committed.devices.values().map(|device| device.index);
            self.names.forget_all_but(present.chain(live().map(|key| key.interface)));
        }
        Ok(())
    }

    /// Reads the turn before, if there is anything in it, and the one in use; turns if that is filling up.
    fn read_turns(&mut self) -> Result<Vec<HostSample>, Error> {
        let mut turns: Vec<HostSample> =
            self.counter.previous()?.into_iter().filter(|sample| !sample.is_empty()).collect();
        let current = self.counter.sample()?;
        // Only when the other map is free: what is in it has been committed, and taken out, then.
        if self.counter.is_filling(&current) && turns.is_empty() {
            self.counter.turn()?;
            // Once more: now it is at rest.
            turns.extend(self.counter.previous()?);
            turns.push(self.counter.sample()?);
        } else {
            turns.push(current);
        }
        Ok(turns)
    }

    /// The name under which an interface is kept.
    fn interface(&self, owner: Owner) -> String {
        let Owner::Key(HostKey { namespace, interface, .. }) = owner else {
            return GONE.to_owned();
        };
        if interface == LOOPBACK_IFINDEX {
            return LOOPBACK.to_owned();
        }
        if namespace != 0 && u64::from(namespace) != self.namespace.inode() {
            return OTHER_NAMESPACES.to_owned();
        }
        self.names.of(interface).unwrap_or(GONE).to_owned()
    }

    fn interface_gains(
        &self,
        devices: &Devices,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) -> Vec<(String, InterfaceCounters)> {
        let mut gained = Vec::new();
        for (name, device) in devices {
            let (gain, restart) = device_gain(self.committed.devices.get(name), device);
            let why = match restart {
                None => None,
                Some(Restart::Replaced) => Some("is another one of the same name"),
                Some(Restart::Backwards) => Some("was set back, or counts with 32 bits only"),
            };
            if let Some(why) = why {
                let message = format!("interface {name} {why}: its counters are taken from 0 on");
                events.push(note(now, &message));
            }
            if gain != InterfaceCounters::default() {
                gained.push((name.clone(), gain));
            }
        }
        gained
    }

    /// What is to be told of interfaces that are gone, from the last commit on.
    fn departed(&mut self, devices: &Devices, now: Timestamp) -> Option<Event> {
        let before = self.committed.devices.keys();
        let gone = before.filter(|name| !devices.contains_key(*name)).cloned().collect();
        self.sampled_departures = self.departures.clone();
        self.sampled_departures.take(now, gone)
    }
}

impl HostTarget {
    fn owns(&self, cgroup: &str) -> bool {
        self.cgroups.iter().any(|own| {
            let below = cgroup.strip_prefix(own.trim_end_matches('/'));
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn note(at: Timestamp, message: &str) -> Event {
    Event { start: at, end: at, kind: EventKind::Note, message: message.to_owned() }
}

/// Reads the interfaces of a namespace: their counters by name, and their names by number.
fn devices(namespace: &NetNs) -> Result<(Devices, BTreeMap<u32, String>), Error> {
    namespace.run(|| {
        let mut devices = Devices::new();
        let numbers = if_nameindex().map_err(Error::List)?;
        let names: BTreeMap<u32, String> = numbers
            .iter()
            .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
            .collect();
        let counters = interface::read()?;
        for (index, name) in &names {
            // One that came or went between the two readings has its turn the next time.
            if let Some(counters) = counters.get(name) {
                devices.insert(name.clone(), Device { index: *index, counters: *counters });
            }
        }
        Ok((devices, names))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_owns_its_cgroups_and_what_is_below_them() {
        let target = |path: &str| HostTarget { name: "x".into(), cgroups: vec![path.to_owned()] };
        assert!(target("/proxy.slice").owns("/proxy.slice"));
        assert!(target("/proxy.slice").owns("/proxy.slice/xray.service"));
        assert!(!target("/proxy.slice").owns("/proxy.slice2"));
        assert!(!target("/proxy.slice").owns("(removed)"));
        assert!(target("/").owns("/anything"));
    }
}

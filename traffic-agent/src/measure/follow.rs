//! Following a target: where its processes are, on which ports they listen, what their interfaces are called.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Measurement;
use crate::kernel::{Absence, Counter};
use crate::method::ListeningPort;
use crate::network::{self, BoundLooks, Networks};
use crate::report::Protocol;
use crate::target;
use crate::target::sockets::Which;

/// So long after its cgroup was made a container's first process is in the namespace that it stays in: it
/// begins in the one of whoever starts it.
const SETTLED: Duration = Duration::from_secs(2);

/// So long after it was first found unused a port is given up: a proxy that is restarted has it again before.
const RESTARTED: Duration = Duration::from_secs(20);

/// More cgroups below a target than these are not remembered when they are gone: over months, a target that makes
/// them all the time would grow without end.
const MOST_OWNED: usize = 1024;

impl Measurement<'_> {
    /// Follows the target: its processes, its interfaces, its listening ports. To be called about
    /// once a second. The program finds new TCP listeners and UDP binds by itself; this finds what
    /// listened before, and takes ports away that nobody uses any more.
    pub fn follow(&mut self) -> Result<()> {
        self.follow_with(&mut BoundLooks::default())
    }

    /// The same for one target of several. `looks`: where those before it have looked just now.
    pub fn follow_with(&mut self, looks: &mut BoundLooks) -> Result<()> {
        let pids = self.host.cgroups.pids(&self.plan.cgroups)?;
        for &pid in &pids {
            if let Some(process) = target::processes::read(&self.host.proc, pid) {
                self.processes.insert((pid, process.name));
            }
        }
        if self.outlives {
            // Only a report of a whole measurement asks for those that ended; over months they would grow
            // without end.
            self.processes.retain(|(pid, _)| pids.contains(pid));
        }
        let is_empty = pids.is_empty();
        self.look_at_networks(pids)?;

        let mut current = self.host.cgroups.subtree_ids(&self.plan.cgroups);
        self.owned.extend(&current);
        let sockets = self.networks.bound(looks, &self.owned)?;
        if self.owned.len() > MOST_OWNED {
            // Of those that are gone, only what still listens is looked for.
            current.extend(sockets.iter().filter_map(|(socket, _)| socket.cgroup_id));
            self.owned.retain(|id| current.contains(id));
        }
        self.has_transparent = false;
        for (socket, waits) in &sockets {
            let port = ListeningPort { protocol: socket.protocol, port: socket.local.port() };
            if network::listens(socket) {
                self.counter.slots().claim_port(port)?;
            }
            self.has_transparent |= socket.transparent && *waits && !self.plan.ports.excludes(port);
        }
        let mut unused: Vec<ListeningPort> = self
            .counter
            .slots()
            .client_ports()
            .into_iter()
            .filter(|port| !self.plan.ports.adds(*port))
            .filter(|port| !sockets.iter().any(|(socket, _)| network::uses_port(socket, *port)))
            .collect();
        if self.outlives {
            // While a proxy is restarted nobody listens, and what comes meanwhile is still its own.
            let now = Instant::now();
            self.unused.retain(|port, _| !is_empty && unused.contains(port));
            unused.retain(|port| {
                !is_empty && now - *self.unused.entry(*port).or_insert(now) >= RESTARTED
            });
        }
        // What cannot be seen is not unused.
        if unused.is_empty() || self.networks.is_closed() { Ok(()) } else { self.release(unused) }
    }

    /// Notes in which namespaces these processes are, and what their interfaces are called.
    pub(super) fn look_at_networks(&mut self, pids: BTreeSet<i32>) -> Result<()> {
        let is_empty = pids.is_empty();
        let inodes = self.networks.note_processes(&self.host.proc, pids);
        if !is_empty && self.unsure_since.is_some_and(|since| since.elapsed() >= SETTLED) {
            self.unsure_since = None;
        }
        // Without a process those of the last ones are the best guess; and a process that was just made may still
        // be in the one of whoever makes it.
        if self.outlives && !inodes.is_empty() && self.unsure_since.is_none() {
            self.networks.keep_only(&inodes);
        }
        self.networks.learn_interfaces()?;
        if self.outlives {
            self.look_for_departed()?;
        }
        tell_namespaces(&mut self.counter, &self.networks, is_empty)
    }

    /// Looks which interfaces are gone, so that their slots can be given again.
    fn look_for_departed(&mut self) -> Result<()> {
        let slots = self.counter.slots();
        // Not before it is sure where the processes are.
        if self.unsure_since.is_none() {
            self.departed.look(slots, |number| self.networks.is_present(number))?;
        }
        let with_slot = slots.interfaces()?.into_iter().map(|(_, number)| number).collect();
        self.networks.forget_gone(&with_slot);
        Ok(())
    }

    /// The interfaces that are gone, and of which a sample that was taken then has everything.
    pub fn departed_before(&self, taken_at: Instant) -> Vec<Absence> {
        self.departed.at_rest(taken_at)
    }

    /// Gives the slots of interfaces again that are gone: such a sample is in the history.
    pub fn give_slots_again(&mut self, absences: &[Absence]) -> Result<()> {
        Ok(self.departed.give_again(self.counter.slots(), absences)?)
    }

    /// Takes ports on which nobody listens any more out of the client leg, unless their connections
    /// are still going on.
    fn release(&mut self, mut unused: Vec<ListeningPort>) -> Result<()> {
        let sockets = self.networks.sockets(Which::All, &self.owned)?;
        unused.retain(|port| !sockets.iter().any(|socket| network::uses_port(socket, *port)));
        for port in &unused {
            self.counter.slots().release_port(*port);
        }
        if unused.is_empty() {
            return Ok(());
        }
        // The program notices who opens one of them from here on; for who did so since the look above
        // it was still taken.
        let sockets = self.networks.sockets(Which::Bound, &self.owned)?;
        for port in unused {
            let opened = sockets.iter().any(|socket| {
                network::uses_port(socket, port)
                    && (port.protocol == Protocol::Udp || network::listens(socket))
            });
            if opened {
                self.counter.slots().claim_port(port)?;
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

    /// Looks whether names of interfaces are a guess that may become better: no process was seen yet. Where
    /// there is one whose namespace may not be seen, waiting does not help.
    pub fn is_guess(&mut self) -> Result<bool> {
        if !self.networks.is_guess() {
            return Ok(false);
        }
        let pids = self.host.cgroups.pids(&self.plan.cgroups)?;
        let is_empty = pids.is_empty();
        self.look_at_networks(pids)?;
        Ok(is_empty && self.networks.is_guess())
    }
}

/// Where no process was seen and none is there, the program is faster than any look, and better than a guess.
pub(super) fn tell_namespaces(
    counter: &mut Counter,
    networks: &Networks,
    is_empty: bool,
) -> Result<()> {
    if is_empty && networks.is_guess() {
        return Ok(());
    }
    Ok(counter.answered().set_namespaces(&networks.inodes()?)?)
}

//! The network namespaces of a target: names of their interfaces, listening ports of its sockets.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nix::net::if_::if_nameindex;

use crate::method::ListeningPort;
use crate::netns::NetNs;
use crate::report::{Finding, Protocol, Severity};
use crate::target::sockets::{self, Socket, State, Which};
use crate::target::survey::Namespace;
use crate::target::{Error, ports, processes};

/// The namespaces that processes of a target were seen in, and what was found there.
#[derive(Default)]
pub struct Networks {
    seen: Vec<NetNs>,
    /// By the namespace's inode and the interface's number: numbers repeat between namespaces.
    interfaces: BTreeMap<(u64, u32), String>,
    /// The interfaces that were there at the last look.
    present: BTreeSet<(u64, u32)>,
    /// The names, by number, in the namespaces that were left: what passed there may still have to be
    /// named.
    left: BTreeMap<u32, String>,
    /// The names, by number, that the history has kept: of what this agent may never have seen.
    kept: BTreeMap<u32, String>,
    /// Namespaces of the target's processes that may not be looked into, by their inodes.
    closed: BTreeSet<u64>,
    /// SYN-ACKs with cookies that each namespace had sent when it was first seen.
    cookies: BTreeMap<u64, u64>,
    /// The agent's own namespace, where there are several.
    own: Option<u64>,
}

impl Networks {
    /// Notes the namespaces of these processes that may be looked into, and returns the inodes of all. A process
    /// that ended meanwhile is passed over.
    pub fn note_processes(
        &mut self,
        proc: &Path,
        pids: impl IntoIterator<Item = i32>,
    ) -> BTreeSet<u64> {
        let (mut inodes, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for pid in pids {
            let inode = processes::read(proc, pid).and_then(|process| process.netns);
            inodes.extend(inode);
            if inode.is_some_and(|inode| !self.has_seen(inode) && !refused.contains(&inode))
                && let Ok(netns) = NetNs::of_process(proc, pid)
            {
                match netns.run(cookies_of_thread) {
                    Ok(cookies) => {
                        self.cookies.extend(cookies.map(|cookies| (netns.inode(), cookies)));
                        self.seen.push(netns);
                    }
                    // One that can be held, and not looked into, is none that anything is known of; and is
                    // tried once, however many processes it has.
                    Err(_) => _ = refused.insert(netns.inode()),
                }
            }
        }
        if self.seen.len() > 1 && self.own.is_none() {
            self.own = NetNs::current().ok().map(|own| own.inode());
        }
        if !inodes.is_empty() {
            self.closed = inodes.iter().copied().filter(|&inode| !self.has_seen(inode)).collect();
        }
        inodes
    }

    fn has_seen(&self, inode: u64) -> bool {
        self.seen.iter().any(|netns| netns.inode() == inode)
    }

    /// Whether processes are in a namespace that may not be looked into.
    pub fn is_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Takes names, by number, that were kept with the counters: for what is not there any more.
    pub fn remember(&mut self, names: impl IntoIterator<Item = (u32, String)>) {
        self.kept.extend(names);
    }

    /// Whether no process was seen in any namespace: the agent's own is a guess.
    pub fn is_guess(&self) -> bool {
        self.seen.is_empty()
    }

    /// Lets go of all namespaces but these: each is held open, and with it the interfaces in it and their other
    /// ends. What their interfaces were called is remembered.
    pub fn keep_only(&mut self, inodes: &BTreeSet<u64>) {
        let left = |inode: &u64| !inodes.contains(inode);
        if !self.seen.iter().any(|netns| left(&netns.inode())) {
            return;
        }
        self.seen.retain(|netns| !left(&netns.inode()));
        self.cookies.retain(|inode, _| !left(inode));
        let names = self.interfaces.extract_if(.., |(inode, _), _| left(inode));
        self.left.extend(names.map(|((_, index), name)| (index, name)));
    }

    /// Learns the names of interfaces, also of those that came since the last call. A name stays
    /// known when its interface is gone.
    pub fn learn_interfaces(&mut self) -> Result<(), Error> {
        let mut present = BTreeSet::new();
        for netns in self.all()? {
            // The number 0 does not exist; names are UTF-8 but for who wants trouble.
            let names: Result<Vec<(u32, String)>, _> = netns.run(|| {
                if_nameindex().map(|interfaces| {
                    interfaces
                        .iter()
                        .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
                        .collect()
                })
            })?;
            // Half a look would be none.
            let Ok(names) = names else { return Ok(()) };
            for (index, name) in names {
                present.insert((netns.inode(), index));
                self.interfaces.insert((netns.inode(), index), name);
            }
        }
        self.present = present;
        Ok(())
    }

    /// Whether an interface of this number was in one of the namespaces at the last look.
    pub fn is_present(&self, index: u32) -> bool {
        self.present.iter().any(|(_, number)| *number == index)
    }

    /// Forgets what interfaces were called that are gone, but for those with these numbers: over months, they
    /// would grow without end.
    pub fn forget_gone(&mut self, but: &BTreeSet<u32>) {
        let present = &self.present;
        self.interfaces.retain(|place, _| present.contains(place) || but.contains(&place.1));
        self.left.retain(|number, _| but.contains(number));
        self.kept.retain(|number, _| but.contains(number));
    }

    /// The name of an interface number, as far as it was learnt: in a namespace of the target's processes (the
    /// agent's own last: a process begins in the one of whoever makes it), or where they were before, or as it was
    /// kept. If no process was seen, what has the number in the agent's own namespace is taken for it.
    pub fn interface(&self, index: u32) -> Option<&str> {
        let learnt = |is_meant: &dyn Fn(u64) -> bool| {
            let mut known = self.interfaces.iter();
            let found = known.find(|((inode, number), _)| *number == index && is_meant(*inode));
            found.map(|(_, name)| name)
        };
        learnt(&|inode| self.has_seen(inode) && self.own != Some(inode))
            .or_else(|| learnt(&|inode| self.has_seen(inode)))
            .or_else(|| self.left.get(&index))
            .or_else(|| self.kept.get(&index))
            .or_else(|| learnt(&|_| self.seen.is_empty()))
            .map(String::as_str)
    }

    /// The inodes of the namespaces, also of those that may not be looked into: the program needs no more.
    pub fn inodes(&self) -> Result<Vec<u64>, Error> {
        if self.is_closed() {
            let seen = self.seen.iter().map(NetNs::inode);
            return Ok(seen.chain(self.closed.iter().copied()).collect());
        }
        Ok(self.all()?.iter().map(NetNs::inode).collect())
    }

    /// How many SYN-ACKs with a cookie were sent since the namespaces were first seen. They have no socket,
    /// and no tracepoint.
    pub fn cookies_sent(&self) -> u64 {
        let since = |netns: &NetNs| {
            let before = self.cookies.get(&netns.inode())?;
            cookies_sent(netns)?.checked_sub(*before)
        };
        self.seen.iter().filter_map(since).sum()
    }

    /// All sockets of the target: those that the given cgroups own.
    pub fn sockets(&self, which: Which, owned: &BTreeSet<u64>) -> Result<Vec<Socket>, Error> {
        let mut all = Vec::new();
        for netns in self.all()? {
            let sockets = netns.run(|| sockets::dump(which))??;
            all.extend(sockets.into_iter().filter(|socket| is_owned(socket, owned)));
        }
        Ok(all)
    }

    /// The same of those that are [bound](Which::Bound), each with whether it waits for clients. `looks`: where
    /// other targets may have looked already.
    pub fn bound(
        &self,
        looks: &mut BoundLooks,
        owned: &BTreeSet<u64>,
    ) -> Result<Vec<(Socket, bool)>, Error> {
        let mut all = Vec::new();
        for netns in self.all()? {
            let namespace = looks.of(&netns)?;
            let own = namespace.sockets.iter().filter(|it| is_owned(it, owned));
            let waits = |socket: &Socket| ports::is_listening(socket, &namespace.ephemeral);
            all.extend(own.map(|socket| (socket.clone(), waits(socket))));
        }
        Ok(all)
    }

    /// The namespace that rules and interface counters are read in: the first that was seen.
    pub fn first(&self) -> Result<NetNs, Error> {
        let first = self.all()?.swap_remove(0);
        Ok(first)
    }

    /// Interface numbers belong to a namespace: with several of them, names may be mixed up.
    pub fn finding(&self) -> Option<Finding> {
        (self.seen.len() > 1).then(|| Finding {
            severity: Severity::Warning,
            code: "several-namespaces",
            message: format!(
                "processes of the target were seen in {} network namespaces: numbers and names of \
                 their interfaces may be mixed up, and what is billed with them",
                self.seen.len()
            ),
            remedy: "measure the namespaces as targets of their own".to_owned(),
            incomplete: true,
        })
    }

    /// The namespaces seen, or the agent's own as long as there is none.
    fn all(&self) -> Result<Vec<NetNs>, Error> {
        if self.seen.is_empty() {
            return Ok(vec![NetNs::current()?]);
        }
        self.seen.iter().map(|netns| netns.try_clone().map_err(Error::from)).collect()
    }
}

/// Looks at the sockets that are bound in namespaces: into each of them once, however many targets are there.
#[derive(Default)]
pub struct BoundLooks(BTreeMap<u64, Namespace>);

impl BoundLooks {
    fn of(&mut self, netns: &NetNs) -> Result<&Namespace, Error> {
        match self.0.entry(netns.inode()) {
            Entry::Occupied(looked) => Ok(looked.into_mut()),
            Entry::Vacant(place) => {
                let look = || Namespace::look(netns.inode(), None, Which::Bound);
                Ok(place.insert(netns.run(look)??))
            }
        }
    }
}

fn is_owned(socket: &Socket, owned: &BTreeSet<u64>) -> bool {
    socket.cgroup_id.is_some_and(|id| owned.contains(&id))
}

/// How many SYN-ACKs with a cookie a namespace has sent; `None` if it does not say.
fn cookies_sent(netns: &NetNs) -> Option<u64> {
    netns.run(cookies_of_thread).ok()?
}

/// The same of the calling thread's, which may be another than the process's first.
fn cookies_of_thread() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    counter(&text, "TcpExt:", "SyncookiesSent")
}

/// Finds a number in the format of /proc/net/netstat: a line of names, and one of numbers with the same
/// beginning.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split(' ').position(|known| known == name)?;
    numbers.split(' ').nth(place)?.parse().ok()
}

/// Whether a socket has this local port.
pub fn uses_port(socket: &Socket, port: ListeningPort) -> bool {
    socket.protocol == port.protocol && socket.local.port() == port.port
}

/// Whether a socket waits for TCP connections.
pub fn listens(socket: &Socket) -> bool {
    socket.protocol == Protocol::Tcp && socket.state == State::LISTEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_the_name_above_them() {
        let text =
            "TcpExt: SyncookiesSent SyncookiesRecv\nTcpExt: 7 5\nIpExt: InNoRoutes\nIpExt: 3\n";
        assert_eq!(counter(text, "TcpExt:", "SyncookiesSent"), Some(7));
        assert_eq!(counter(text, "IpExt:", "InNoRoutes"), Some(3));
        assert_eq!(counter(text, "TcpExt:", "InNoRoutes"), None);
        assert_eq!(counter("TcpExt: SyncookiesSent", "TcpExt:", "SyncookiesSent"), None);
    }
}

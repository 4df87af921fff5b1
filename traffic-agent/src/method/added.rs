//! Counting rules of our own for as long as a measurement takes (`compare --add-rules`).
//!
//! With nft: a table of its own, whose chains run behind all others of INPUT and OUTPUT (a packet
//! that another rule drops never gets to the socket, and the cgroup's hook does not see it either).
//! Without: chains of its own, jumped to from the first place of INPUT and OUTPUT. No rule has a
//! verdict, and nothing else of the firewall is touched. The rules are removed when the value is
//! dropped; those of a run that was killed, by the next run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::report::Protocol;

use super::firewall::{OWN_CHAIN, OWN_TABLE, Reading};
use super::ruleset::Ruleset;
use super::{ListeningPort, iptables, nft, run};

/// Why rules could not be added, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to add them with.
    #[error(
        "neither nft nor iptables is installed, so no rule can be added; hook-port gives the same \
         figure without a rule"
    )]
    NotInstalled,
    /// The program refused.
    #[error("cannot {action}: {reason}")]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// What the program said.
        reason: String,
    },
    /// The target's namespace could not be kept open.
    #[error("cannot keep the target's network namespace open")]
    Namespace(#[source] io::Error),
}

/// Rules that exist as long as this value.
#[derive(Debug)]
pub struct AddedRules {
    netns: Option<OwnedFd>,
    backend: Backend,
    ports: BTreeSet<ListeningPort>,
    removed: bool,
}

#[derive(Debug)]
enum Backend {
    Nft { path: PathBuf, table: String },
    Iptables { programs: Vec<PathBuf>, suffix: String },
}

/// Several targets of one process have a table each.
static INSTANCE: AtomicU32 = AtomicU32::new(0);

impl AddedRules {
    /// Adds rules that count the ports, in a network namespace (`None`: our own).
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is left behind then.
    pub fn add(netns: Option<BorrowedFd<'_>>, ports: &[ListeningPort]) -> Result<Self, Error> {
        let netns =
            netns.map(|fd| fd.try_clone_to_owned()).transpose().map_err(Error::Namespace)?;
        let pid = std::process::id();
        let suffix = match INSTANCE.fetch_add(1, Ordering::Relaxed) {
            0 => pid.to_string(),
            number => format!("{pid}_{number}"),
        };
        let nft = run::find("nft");
        let programs: Vec<_> =
            ["iptables", "ip6tables"].into_iter().filter_map(run::find).collect();
        let mut backends = Vec::new();
        if let Some(path) = nft {
            backends.push(Backend::Nft { path, table: format!("{OWN_TABLE}{suffix}") });
        }
        if !programs.is_empty() {
            backends.push(Backend::Iptables { programs, suffix });
        }
        Self::add_with(netns, backends, ports)
    }

    /// Takes the first backend that works.
    fn add_with(
        netns: Option<OwnedFd>,
        backends: Vec<Backend>,
        ports: &[ListeningPort],
    ) -> Result<Self, Error> {
        let mut refused = Error::NotInstalled;
        for backend in backends {
            let mut added = Self { netns: None, backend, ports: BTreeSet::new(), removed: false };
            added.netns =
                netns.as_ref().map(OwnedFd::try_clone).transpose().map_err(Error::Namespace)?;
            added.remove_stale();
            match added
                .create()
                .and_then(|()| ports.iter().try_for_each(|&port| added.ensure(port)))
            {
                Ok(()) => return Ok(added),
                // Dropped here, with what was made of it. The first answer is the one to show.
                Err(error) if matches!(refused, Error::NotInstalled) => refused = error,
                Err(_) => {}
            }
        }
        Err(refused)
    }

    /// Counts this port from now on, too.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub fn ensure(&mut self, port: ListeningPort) -> Result<(), Error> {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            // Has no port.
            _ => return Ok(()),
        };
        if self.ports.contains(&port) {
            return Ok(());
        }
        let number = port.port.to_string();
        let action = "add a counting rule";
        match &self.backend {
            Backend::Nft { path, table } => {
                let mut script = String::new();
                for (chain, side) in [("input", "dport"), ("output", "sport")] {
                    let _ = writeln!(
                        script,
                        "add rule inet {table} {chain} {protocol} {side} {number} counter"
                    );
                }
                self.run(path, &["-f", "-"], &script, action)?;
            }
            Backend::Iptables { programs, suffix } => {
                for program in programs {
                    for (end, side) in [("IN", "--dport"), ("OUT", "--sport")] {
                        let chain = chain_name(suffix, end);
                        let rule = ["-w", "-A", &chain, "-p", protocol, side, &number];
                        self.run(program, &rule, "", action)?;
                    }
                }
            }
        }
        self.ports.insert(port);
        Ok(())
    }

    /// Reads our own rules. Two such readings go into [`super::firewall::difference`].
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], also if somebody flushed the rules.
    pub fn read(&self) -> Result<Reading, Error> {
        let action = "read the added rules";
        let refused = |reason: String| Error::Refused { action, reason };
        let ports: Vec<_> = self.ports.iter().copied().collect();
        let mut ruleset = Ruleset::default();
        match &self.backend {
            Backend::Nft { path, table } => {
                let text = self.run(path, &["-j", "list", "table", "inet", table], "", action)?;
                ruleset = nft::parse(&text, |_, name| name != table).map_err(refused)?;
            }
            Backend::Iptables { programs, suffix } => {
                for program in programs {
                    let (command, family) = command_of(program);
                    let text = self.run(&save_of(program), &["-c", "-t", "filter"], "", action)?;
                    let saved = iptables::parse(&text, command, family)
                        .map_err(|e| refused(e.to_string()))?;
                    for mut table in saved.tables {
                        let own = ["IN", "OUT"].map(|end| chain_name(suffix, end));
                        table
                            .chains
                            .retain(|chain| chain.hook.is_some() || own.contains(&chain.name));
                        for chain in table.chains.iter_mut().filter(|chain| chain.hook.is_some()) {
                            chain.rules.retain(|rule| {
                                own.iter().any(|own| rule.text == format!("-j {own}"))
                            });
                        }
                        ruleset.tables.push(table);
                    }
                }
            }
        }
        let reading = Reading::of(ruleset, &ports, vec![self.program()], Vec::new());
        let counted = reading.rules.iter().filter(|rule| rule.counted).count();
        if counted < 2 * self.ports.len() {
            return Err(refused("some of them are gone: the firewall was reloaded".to_owned()));
        }
        Ok(reading)
    }

    /// Removes the rules.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]; dropping the value tries no second time.
    pub fn remove(mut self) -> Result<(), Error> {
        self.removed = true;
        self.delete()
    }

    fn program(&self) -> String {
        match &self.backend {
            Backend::Nft { .. } => "nft".to_owned(),
            Backend::Iptables { .. } => "iptables".to_owned(),
        }
    }

    fn create(&self) -> Result<(), Error> {
        let action = "add counting rules";
        match &self.backend {
            Backend::Nft { path, table } => {
                let mut script = format!("add table inet {table}\n");
                for hook in ["input", "output"] {
                    let _ = writeln!(
                        script,
                        "add chain inet {table} {hook} {{ type filter hook {hook} priority 1000; policy accept; }}"
                    );
                }
                self.run(path, &["-f", "-"], &script, action)?;
            }
            Backend::Iptables { programs, suffix } => {
                for program in programs {
                    for (end, from) in [("IN", "INPUT"), ("OUT", "OUTPUT")] {
                        let chain = chain_name(suffix, end);
                        self.run(program, &["-w", "-N", &chain], "", action)?;
                        self.run(program, &["-w", "-I", from, "1", "-j", &chain], "", action)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn delete(&self) -> Result<(), Error> {
        let action = "remove the counting rules";
        match &self.backend {
            Backend::Nft { path, table } => {
                self.run(path, &["delete", "table", "inet", table], "", action)?;
            }
            Backend::Iptables { programs, suffix } => {
                // All are tried, whatever becomes of the others.
                let mut result = Ok(());
                for program in programs {
                    for end in ["IN", "OUT"] {
                        result = result.and(self.delete_chain(program, &chain_name(suffix, end)));
                    }
                }
                result?;
            }
        }
        Ok(())
    }

    fn delete_chain(&self, program: &Path, chain: &str) -> Result<(), Error> {
        let action = "remove the counting rules";
        let from = if chain.ends_with("-IN") { "INPUT" } else { "OUTPUT" };
        let unhooked = self.run(program, &["-w", "-D", from, "-j", chain], "", action);
        let flushed = self.run(program, &["-w", "-F", chain], "", action);
        let deleted = self.run(program, &["-w", "-X", chain], "", action);
        unhooked.and(flushed).and(deleted).map(drop)
    }

    /// Removes what killed runs left. Best effort: what cannot be removed does no harm.
    fn remove_stale(&self) {
        let action = "remove what a killed run left";
        match &self.backend {
            Backend::Nft { path, .. } => {
                let Ok(text) = self.run(path, &["-j", "list", "tables"], "", action) else {
                    return;
                };
                for table in stale_tables(&text, is_alive) {
                    let _ = self.run(path, &["delete", "table", "inet", &table], "", action);
                }
            }
            Backend::Iptables { programs, .. } => {
                for program in programs {
                    let (command, family) = command_of(program);
                    let Ok(text) = self.run(&save_of(program), &["-c", "-t", "filter"], "", action)
                    else {
                        continue;
                    };
                    let Ok(saved) = iptables::parse(&text, command, family) else { continue };
                    for chain in saved.tables.iter().flat_map(|table| &table.chains) {
                        let dead = owner(&chain.name, OWN_CHAIN).is_some_and(|pid| !is_alive(pid));
                        if dead {
                            let _ = self.delete_chain(program, &chain.name);
                        }
                    }
                }
            }
        }
    }

    fn run(
        &self,
        path: &Path,
        arguments: &[&str],
        input: &str,
        action: &'static str,
    ) -> Result<String, Error> {
        let netns = self.netns.as_ref().map(AsFd::as_fd);
        run::run(path, arguments, input, netns)
            .map_err(|error| Error::Refused { action, reason: super::firewall::chain(&error) })
    }
}

impl Drop for AddedRules {
    fn drop(&mut self) {
        if !self.removed {
            // Nobody is left to tell; the next run removes what stayed.
            let _ = self.delete();
        }
    }
}

/// At most 28 characters: pids have up to 7 digits.
fn chain_name(suffix: &str, end: &str) -> String {
    format!("{OWN_CHAIN}{suffix}-{end}")
}

fn command_of(program: &Path) -> (&'static str, &'static str) {
    match program.file_name().is_some_and(|name| name == "ip6tables") {
        true => ("ip6tables", "ip6"),
        false => ("iptables", "ip"),
    }
}

/// `iptables-save` beside `iptables`: of the same backend.
fn save_of(program: &Path) -> PathBuf {
    program.with_file_name(format!("{}-save", command_of(program).0))
}

/// The process a name of ours belongs to.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split(['_', '-']).next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Our tables of dead processes, out of `nft -j list tables`.
fn stale_tables(text: &str, is_alive: impl Fn(u32) -> bool) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let listed =
        json.get("nftables").and_then(|list| list.as_array()).map_or(&[][..], Vec::as_slice);
    let tables = listed.iter().filter_map(|entry| entry.get("table"));
    let inet = tables.filter(|table| table.get("family").is_some_and(|family| family == "inet"));
    let names = inet.filter_map(|table| table.get("name")?.as_str());
    names
        .filter(|name| owner(name, OWN_TABLE).is_some_and(|pid| !is_alive(pid)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
#[path = "added_tests.rs"]
mod tests;

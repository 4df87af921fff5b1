//! The method `iptables-port`: the counters of the rules that match the target's ports.
//!
//! Reads every backend there is, changes nothing. Which rules make up the sum is decided in `choice`.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::{io, thread};

use crate::report::{Covers, Direction, Layer, MethodReport, RuleReport};

use super::choice::{self, Candidate};
use super::ruleset::{Counter, Rule, Ruleset, Table};
use super::{Coverage, ListeningPort, RuleCounter, iptables, nft, run};

/// Tables and chains of our own begin with this; they are read by `added` alone.
pub(crate) const OWN_TABLE: &str = "traffic_agent_";
pub(crate) const OWN_CHAIN: &str = "TRAFFIC-AGENT-";

/// The firewall of a network namespace.
#[derive(Debug)]
pub struct Firewall;

/// All counters of the firewall at one instant, and what they say of some ports.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The counters that have to do with the ports, those of the sum marked `counted`.
    pub rules: Vec<RuleCounter>,
    /// Which parts of the client leg the counted rules stand for.
    pub coverage: Coverage,
    /// The programs that were read.
    pub programs: Vec<String>,
    /// What went wrong with others.
    pub problems: Vec<String>,
    pub(super) ruleset: Ruleset,
    pub(super) ports: Vec<ListeningPort>,
}

impl Firewall {
    /// Reads all counters in a network namespace (`None`: our own).
    ///
    /// Never fails: what could not be read is in [`Reading::problems`], and where nothing is left
    /// [`Reading::unavailable`] says why.
    pub fn read(netns: Option<BorrowedFd<'_>>, ports: &[ListeningPort]) -> Reading {
        let sources = sources();
        let results: Vec<_> = run_all(&sources, |_| None, netns);
        let (texts, problems) = sort_out(&sources, results);
        interpret(&texts, problems, ports)
    }
}

/// What a program printed; `None` if its reading broke off.
pub(super) type Printed = Option<Result<String, run::Error>>;

/// Runs the programs side by side, but for those whose output is known.
pub(super) fn run_all(
    sources: &[Source],
    known: impl Fn(&Source) -> Option<String>,
    netns: Option<BorrowedFd<'_>>,
) -> Vec<Printed> {
    thread::scope(|scope| {
        let runs: Vec<_> = sources
            .iter()
            .map(|source| match known(source) {
                Some(text) => Err(text),
                None => Ok(scope.spawn(move || source.read(netns))),
            })
            .collect();
        runs.into_iter()
            .map(|run| match run {
                Err(text) => Some(Ok(text)),
                Ok(run) => run.join().ok(),
            })
            .collect()
    })
}

/// Parts what was printed from what went wrong.
pub(super) fn sort_out(
    sources: &[Source],
    results: Vec<Printed>,
) -> (Vec<(Source, String)>, Vec<String>) {
    let mut texts = Vec::new();
    let mut problems = Vec::new();
    let mut refused = Vec::new();
    for (source, result) in sources.iter().zip(results) {
        match result {
            Some(Ok(text)) if text.is_empty() && source.is_blind() => refused.push(source.program),
            Some(Ok(text)) => texts.push((source.clone(), text)),
            Some(Err(run::Error::NotPermitted { .. })) => refused.push(source.program),
            Some(Err(error)) => problems.push(chain(&error)),
            None => problems.push(format!("the reading of {} broke off", source.program)),
        }
    }
    if !refused.is_empty() {
        let program = refused.join(", ");
        problems.push(run::Error::NotPermitted { program }.to_string());
    }
    (texts, problems)
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A program that prints counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) program: &'static str,
    path: PathBuf,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A save program of one backend, or the plain one of an unknown backend (empty).
    Save {
        command: &'static str,
        family: &'static str,
        backend: &'static str,
    },
    Nft,
}

impl Source {
    fn read(&self, netns: Option<BorrowedFd<'_>>) -> Result<String, run::Error> {
        let arguments: &[&str] = match self.kind {
            Kind::Save { .. } => &["-c"],
            Kind::Nft => &["-j", "list", "ruleset"],
        };
        run::run(&self.path, arguments, "", netns)
    }

    /// Whether it reads nf_tables and nothing else.
    pub(super) fn is_nf_tables(&self) -> bool {
        matches!(self.kind, Kind::Nft | Kind::Save { backend: "nft", .. })
    }

    /// Without rights the legacy programs print nothing and succeed, as if there were no rules.
    fn is_blind(&self) -> bool {
        let names = match self.kind {
            Kind::Save { family: "ip", .. } => "/proc/thread-self/net/ip_tables_names",
            Kind::Save { .. } => "/proc/thread-self/net/ip6_tables_names",
            Kind::Nft => return false,
        };
        File::open(names).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The installed programs; plain `iptables-save` is nearly always a link to one of the other two.
pub(super) fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let save = |program, command, family, backend| {
        let kind = Kind::Save { command, family, backend };
        run::find(program).map(|path| Source { program, path, kind })
    };
    for (family, programs) in [
        (
            "ip",
            [
                ("iptables-nft-save", "nft"),
                ("iptables-legacy-save", "legacy"),
                ("iptables-save", ""),
            ],
        ),
        (
            "ip6",
            [
                ("ip6tables-nft-save", "nft"),
                ("ip6tables-legacy-save", "legacy"),
                ("ip6tables-save", ""),
            ],
        ),
    ] {
        let command = if family == "ip" { "iptables" } else { "ip6tables" };
        let mut seen: Vec<PathBuf> = Vec::new();
        for (program, backend) in programs {
            let Some(source) = save(program, command, family, backend) else { continue };
            let binary = source.path.canonicalize().unwrap_or_else(|_| source.path.clone());
            // One binary serves one backend, whatever it is called.
            if !seen.contains(&binary) {
                seen.push(binary);
                sources.push(source);
            }
        }
    }
    let nft = run::find("nft").map(|path| Source { program: "nft", path, kind: Kind::Nft });
    sources.extend(nft);
    sources
}

/// Makes one ruleset of what the programs printed. Pure.
pub(super) fn interpret(
    texts: &[(Source, String)],
    mut problems: Vec<String>,
    ports: &[ListeningPort],
) -> Reading {
    let mut ruleset = Ruleset::default();
    let mut programs = Vec::new();
    // (family, table) that a save program has shown in full.
    let mut shown: BTreeSet<(String, String)> = BTreeSet::new();
    for (source, text) in texts {
        let Kind::Save { command, family, backend } = source.kind else { continue };
        let saved = match iptables::parse(text, command, family) {
            Ok(saved) => saved,
            Err(malformed) => {
                problems.push(format!("{} printed something foreign, {malformed}", source.program));
                continue;
            }
        };
        programs.push(source.program.to_owned());
        let nft = if backend.is_empty() { saved.nf_tables == Some(true) } else { backend == "nft" };
        for mut table in saved.tables {
            table.backend = format!("{command}-{}", if nft { "nft" } else { "legacy" });
            if nft && saved.incompatible.contains(&table.name) {
                continue;
            }
            if nft {
                shown.insert((table.family.clone(), table.name.clone()));
            }
            table.chains.retain(|chain| !chain.name.starts_with(OWN_CHAIN));
            ruleset.tables.push(table);
        }
    }
    for (source, text) in texts.iter().filter(|(source, _)| source.kind == Kind::Nft) {
        let skip = |family: &str, name: &str| {
            name.starts_with(OWN_TABLE) || shown.contains(&(family.to_owned(), name.to_owned()))
        };
        match nft::parse(text, skip) {
            Ok(native) => {
                programs.push(source.program.to_owned());
                ruleset.tables.extend(native.tables);
            }
            Err(problem) => problems.push(format!("nft printed something foreign, {problem}")),
        }
    }
    Reading::of(ruleset, ports, programs, problems)
}

impl Reading {
    pub(super) fn of(
        ruleset: Ruleset,
        ports: &[ListeningPort],
        programs: Vec<String>,
        problems: Vec<String>,
    ) -> Self {
        let (candidates, coverage) = choice::choose(&ruleset, ports);
        let rules = candidates.into_iter().map(|candidate| candidate.counter).collect();
        Self { rules, coverage, programs, problems, ruleset, ports: ports.to_vec() }
    }

    /// The same reading, judged for other ports.
    pub fn for_ports(&self, ports: &[ListeningPort]) -> Self {
        Self::of(self.ruleset.clone(), ports, self.programs.clone(), self.problems.clone())
    }

    /// Absolute bytes of the counted rules; `None` where no rule counts the direction.
    pub fn bytes(&self, direction: Direction) -> Option<u64> {
        let counted = self.rules.iter().filter(|rule| rule.counted && rule.direction == direction);
        self.coverage
            .has(direction)
            .then(|| counted.map(|rule| rule.bytes).fold(0, u64::saturating_add))
    }

    /// Why there is nothing to sum up, if so.
    pub fn unavailable(&self) -> Option<String> {
        if self.rules.iter().any(|rule| rule.counted) {
            return None;
        }
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        Some(if !self.problems.is_empty() {
            self.problems.join("; ")
        } else if self.programs.is_empty() {
            "neither iptables nor nft is installed; hook-port gives the same figure without a rule"
                .to_owned()
        } else if ports.is_empty() {
            "the target listens on no port".to_owned()
        } else if let [rule, ..] = self.rules.as_slice() {
            format!(
                "no rule counts exactly port {} ({} {}: {}: {}); hook-port gives the same figure without a rule",
                ports.join(", "),
                rule.backend,
                rule.chain,
                rule.rule,
                rule.reason.as_deref().unwrap_or("not counted"),
            )
        } else {
            format!(
                "no rule counts port {}; hook-port gives the same figure without a rule, --add-rules adds some",
                ports.join(", ")
            )
        })
    }
}

/// What the rules counted between two readings.
#[derive(Debug)]
pub struct Measured {
    /// The counters with what they gained.
    pub rules: Vec<RuleReport>,
    /// Which parts of the client leg the counted rules stand for.
    pub coverage: Coverage,
    pub(super) ruleset: Ruleset,
    pub(super) candidates: Vec<Candidate>,
    pub(super) unavailable: Option<String>,
}

impl Measured {
    /// Bytes of the counted rules; `None` where no rule counts the direction.
    pub fn bytes(&self, direction: Direction) -> Option<u64> {
        let counted = self.rules.iter().filter(|rule| rule.counted && rule.direction == direction);
        self.coverage
            .has(direction)
            .then(|| counted.map(|rule| rule.bytes).fold(0, u64::saturating_add))
    }

    /// The row of the table of methods.
    pub fn report(&self) -> MethodReport {
        MethodReport {
            name: "iptables-port",
            covers: Covers::ClientLeg,
            layer: Layer::L3,
            available: self.unavailable.is_none(),
            reason: self.unavailable.clone(),
            ingress_bytes: self.bytes(Direction::Ingress),
            egress_bytes: self.bytes(Direction::Egress),
            rules: self.rules.clone(),
        }
    }
}

/// The same row for a firewall that cannot be used.
pub fn unavailable(reason: String) -> MethodReport {
    MethodReport {
        name: "iptables-port",
        covers: Covers::ClientLeg,
        layer: Layer::L3,
        available: false,
        reason: Some(reason),
        ingress_bytes: None,
        egress_bytes: None,
        rules: Vec::new(),
    }
}

/// What was counted between two readings of the same firewall.
///
/// Chooses the rules anew by what they gained, for the ports of both readings.
///
/// # Errors
///
/// In words, if a rule of the sum appeared, vanished or was set to zero in between (`iptables -Z`, a
/// reload of ufw): finding `rules-changed`. There is no difference then, least of all a negative one.
pub fn difference(start: &Reading, end: &Reading) -> Result<Measured, String> {
    if start.programs != end.programs {
        let problems: Vec<_> = start.problems.iter().chain(&end.problems).cloned().collect();
        return Err(format!("the rules could not be read both times: {}", problems.join("; ")));
    }
    let ports: BTreeSet<_> = start.ports.iter().chain(&end.ports).copied().collect();
    let ports: Vec<_> = ports.into_iter().collect();
    let mut gained = end.ruleset.clone();
    let mut appeared = BTreeSet::new();
    let mut fell = BTreeSet::new();
    for (t, table) in gained.tables.iter_mut().enumerate() {
        let before = same_table(&start.ruleset, table);
        for (c, chain) in table.chains.iter_mut().enumerate() {
            let before =
                before.and_then(|table| table.chain(&chain.name)).map(|(_, chain)| &chain.rules);
            for (r, rule) in chain.rules.iter_mut().enumerate() {
                let before = before.and_then(|rules| same_rule(rules, rule));
                if before.is_none() {
                    appeared.insert((t, c, r));
                }
                for (n, counter) in rule.counters.iter_mut().enumerate() {
                    let before = before.and_then(|rule| rule.counters.get(n));
                    match before
                        .map_or(Some((counter.packets, counter.bytes)), |b| grown(b, counter))
                    {
                        Some((packets, bytes)) => {
                            (counter.packets, counter.bytes) = (packets, bytes)
                        }
                        None => {
                            fell.insert((t, c));
                            (counter.packets, counter.bytes) = (0, 0);
                        }
                    }
                }
            }
        }
    }
    let (candidates, coverage) = choice::choose(&gained, &ports);
    for candidate in candidates.iter().filter(|candidate| candidate.counter.counted) {
        let RuleCounter { backend, chain, rule, .. } = &candidate.counter;
        for step in &candidate.steps {
            let own = gained.tables[step.table].name.starts_with(OWN_TABLE)
                || chain.starts_with(OWN_CHAIN);
            if appeared.contains(&(step.table, step.chain, step.rule)) && !own {
                return Err(format!("a rule was added while measuring: {backend} {chain}: {rule}"));
            }
            let passed = step.way.iter().map(|&(chain, _)| chain).chain([step.chain]);
            if let Some((_, reset)) = passed.map(|c| (step.table, c)).find(|at| fell.contains(at)) {
                let reset = &gained.tables[step.table].chains[reset].name;
                return Err(format!(
                    "counters of {backend} {reset} were set to zero while measuring (iptables -Z, or a \
                     reload of the firewall)"
                ));
            }
        }
    }
    for rule in start.rules.iter().filter(|rule| rule.counted) {
        let same = |other: &RuleCounter| {
            (&other.backend, &other.table, &other.chain, &other.rule, other.occurrence)
                == (&rule.backend, &rule.table, &rule.chain, &rule.rule, rule.occurrence)
        };
        if !candidates.iter().any(|candidate| same(&candidate.counter)) {
            let RuleCounter { backend, chain, rule, .. } = rule;
            return Err(format!("a rule vanished while measuring: {backend} {chain}: {rule}"));
        }
    }
    let rules: Vec<_> =
        candidates.iter().map(|candidate| rule_report(&candidate.counter)).collect();
    let unavailable = if rules.iter().any(|rule| rule.counted) { None } else { end.unavailable() };
    Ok(Measured { rules, coverage, unavailable, ruleset: gained, candidates })
}

fn same_table<'a>(ruleset: &'a Ruleset, table: &Table) -> Option<&'a Table> {
    let key = |table: &Table| (table.backend.clone(), table.family.clone(), table.name.clone());
    ruleset.tables.iter().find(|other| key(other) == key(table))
}

fn same_rule<'a>(rules: &'a [Rule], rule: &Rule) -> Option<&'a Rule> {
    rules.iter().find(|other| other.occurrence == rule.occurrence && other.text == rule.text)
}

fn grown(before: &Counter, after: &Counter) -> Option<(u64, u64)> {
    Some((after.packets.checked_sub(before.packets)?, after.bytes.checked_sub(before.bytes)?))
}

fn rule_report(counter: &RuleCounter) -> RuleReport {
    RuleReport {
        backend: counter.backend.clone(),
        table: counter.table.clone(),
        chain: counter.chain.clone(),
        rule: counter.rule.clone(),
        direction: counter.direction,
        bytes: counter.bytes,
        packets: counter.packets,
        counted: counter.counted,
        reason: counter.reason.clone(),
    }
}

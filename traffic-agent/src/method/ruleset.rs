//! What the parsers make of a firewall, whichever program printed it: tables, chains, rules, and of
//! each rule which packets it matches, where they go on, and what its counters say.
//!
//! Nothing here reads the system, and nothing here chooses: `choice` does.

use std::collections::BTreeSet;

use super::ports::PortSet;

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ruleset {
    pub(crate) tables: Vec<Table>,
}

/// A table of one backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    /// `iptables-nft`, `ip6tables-legacy`, `nft`, ...
    pub(crate) backend: String,
    /// `ip`, `ip6` or `inet`.
    pub(crate) family: String,
    pub(crate) name: String,
    pub(crate) chains: Vec<Chain>,
}

impl Table {
    pub(crate) fn families(&self) -> Families {
        Families { v4: self.family != "ip6", v6: self.family != "ip" }
    }

    pub(crate) fn chain(&self, name: &str) -> Option<(usize, &Chain)> {
        self.chains.iter().enumerate().find(|(_, chain)| chain.name == name)
    }
}

/// A chain; one with a hook is where packets come in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// Where netfilter calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) at: At,
    /// A chain of type nat sees the first packet of a connection only.
    pub(crate) nat: bool,
    /// Chains of one hook run in the order of their priorities.
    pub(crate) priority: i64,
}

/// The hooks of netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// A device's own hook, before or after all of these.
    Device,
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    /// As its program prints it, without counters.
    pub(crate) text: String,
    /// Tells equal rules apart: the rule's handle, or how many equal ones come before it.
    pub(crate) occurrence: usize,
    pub(crate) counters: Vec<Counter>,
    /// Where matching packets go; a packet that takes none of these ways goes on to the next rule.
    pub(crate) exits: Vec<(Matching, Verdict)>,
}

/// A counter of a rule, or a named one that rules point to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counter {
    /// What a packet must match before it is counted here.
    pub(crate) matching: Matching,
    /// Name of the shared counter, if it is one.
    pub(crate) name: Option<String>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No later rule of this base chain sees it.
    Accept,
    /// Nobody sees it any more.
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

/// Which packets a rule matches. All conditions hold at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matching {
    pub(crate) families: Families,
    pub(crate) tcp: bool,
    pub(crate) udp: bool,
    /// Any protocol but these two.
    pub(crate) other: bool,
    pub(crate) source: PortSet,
    pub(crate) destination: PortSet,
    /// `--ports`: one of the two ports is in here.
    pub(crate) either: Option<PortSet>,
    /// conntrack states; `None` where the rule does not look.
    pub(crate) states: Option<BTreeSet<State>>,
    /// The input or output interface, as written; `!` in front where negated.
    pub(crate) interface: Option<String>,
    /// Conditions that are not understood further, as written.
    pub(crate) narrowed: Vec<String>,
}

/// States of a connection: a packet is in exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
}

impl State {
    pub(crate) const ALL: [Self; 5] =
        [Self::New, Self::Established, Self::Related, Self::Invalid, Self::Untracked];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|state| format!("{state:?}").to_ascii_lowercase() == name)
    }
}

/// The states a list names, or all others if negated; `None` for one that is no state (DNAT).
pub(crate) fn states<'a>(
    names: impl IntoIterator<Item = &'a str>,
    negated: bool,
) -> Option<BTreeSet<State>> {
    let named = names.into_iter().map(State::parse).collect::<Option<BTreeSet<_>>>()?;
    Some(State::ALL.into_iter().filter(|state| named.contains(state) != negated).collect())
}

impl Matching {
    /// Every packet.
    pub(crate) fn everything() -> Self {
        Self {
            families: Families { v4: true, v6: true },
            tcp: true,
            udp: true,
            other: true,
            source: PortSet::all(),
            destination: PortSet::all(),
            either: None,
            states: None,
            interface: None,
            narrowed: Vec::new(),
        }
    }

    /// Keeps only the protocol of this number, or all but it.
    pub(crate) fn protocol(&mut self, number: u8, negated: bool) {
        let (tcp, udp) = (number == 6, number == 17);
        self.tcp &= tcp != negated;
        self.udp &= udp != negated;
        // "All but SCTP" leaves others, too.
        self.other &= negated || !(tcp || udp);
    }

    /// Packets that match both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let states = match (&self.states, &other.states) {
            (Some(a), Some(b)) => Some(a & b),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        let mut narrowed = self.narrowed.clone();
        narrowed.extend(other.narrowed.iter().cloned());
        let interface = match (&self.interface, &other.interface) {
            (Some(a), Some(b)) if a != b => {
                narrowed.push(format!("interface {b}"));
                Some(a.clone())
            }
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        let either = match (&self.either, &other.either) {
            (Some(a), Some(b)) => Some(a.and(b)),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        let mut both = Self {
            families: Families {
                v4: self.families.v4 && other.families.v4,
                v6: self.families.v6 && other.families.v6,
            },
            tcp: self.tcp && other.tcp,
            udp: self.udp && other.udp,
            other: self.other && other.other,
            source: self.source.and(&other.source),
            destination: self.destination.and(&other.destination),
            either,
            states,
            interface,
            narrowed,
        };
        // `--ports 443` adds nothing to `--dport 443`.
        if both.either.as_ref().is_some_and(|either| {
            both.source.is_subset(either) || both.destination.is_subset(either)
        }) {
            both.either = None;
        }
        both
    }

    /// Whether no packet matches both, as far as this can be proved.
    pub(crate) fn disjoint(&self, other: &Self) -> bool {
        let both = self.and(other);
        let plain = |interface: &Option<String>| {
            interface.as_ref().filter(|name| !name.contains(['!', '+', '*'])).cloned()
        };
        both.is_impossible()
            || matches!((plain(&self.interface), plain(&other.interface)), (Some(a), Some(b)) if a != b)
    }

    /// Whether no packet can match.
    pub(crate) fn is_impossible(&self) -> bool {
        !(self.families.v4 || self.families.v6)
            || !(self.tcp || self.udp || self.other)
            || self.source.is_empty()
            || self.destination.is_empty()
            || self.states.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

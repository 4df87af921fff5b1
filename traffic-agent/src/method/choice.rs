//! Chooses the rules whose counters make up the target's traffic, so that no packet counts twice.
//!
//! What an operator expects of "the bytes of port 443" is what the scripts read that made the
//! published estimate: the counters of the `--dport` rules of INPUT and the `--sport` rules of OUTPUT.
//! So:
//!
//! * A rule counts for ingress if packets reach it from INPUT (or, where no rule there does, from
//!   PREROUTING) and its destination ports are listening ports of the target; for egress if they
//!   reach it from OUTPUT (POSTROUTING) and its source ports are. It counts nothing if it matches
//!   other ports, too: its bytes cannot be divided.
//! * For each (family, direction, protocol, port) the rule that sees most is taken. Another rule for
//!   the same is added only if no packet can reach both: an earlier rule of the chain that accepts,
//!   two interfaces, two conntrack states. What is left is listed with the reason.
//! * A rule narrowed to one interface, or to states that include ESTABLISHED, is taken where no
//!   unnarrowed one sees more: the textbook's `--ctstate NEW,ESTABLISHED -j ACCEPT` and `-i eth0` are
//!   meant as the port's rule. Any other condition (an address, a limit, a mark, flags) makes a rule
//!   a part of the whole: it is added to a taken rule behind it, and never stands alone.
//! * Rules that drop count packets the target never gets; nat chains see the first packet of a
//!   connection; FORWARD sees what is not for a socket of this namespace (a container's own namespace
//!   must be read, where its packets pass INPUT and OUTPUT).

use std::collections::BTreeSet;

use crate::report::{Direction, Family, Protocol};

use super::ports::PortSet;
use super::reach::{Step, steps};
use super::ruleset::{At, Matching, Ruleset, State, Table, Verdict};
use super::{Coverage, ListeningPort, PortCell, RuleCounter};

/// A counter, everything that leads to it, and the judgement on it.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) steps: Vec<Step>,
    pub(super) counter: RuleCounter,
    /// What it counts of the target.
    pub(super) cells: BTreeSet<PortCell>,
    rank: Rank,
}

/// How much of the port's traffic the conditions may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Narrow {
    No,
    /// Interface or state: stands for the port.
    Mildly,
    /// Counts an unknown part.
    Badly,
}

#[derive(Clone, Copy, Debug)]
struct Rank {
    /// 0 for INPUT and OUTPUT, 1 for PREROUTING and POSTROUTING.
    hook: u8,
    narrow: Narrow,
    /// Position in the listing: the first of equals is taken.
    order: usize,
}

/// Judges every counter that has to do with the ports. Sorted as listed.
pub(super) fn choose(ruleset: &Ruleset, ports: &[ListeningPort]) -> (Vec<Candidate>, Coverage) {
    let mut candidates = Vec::new();
    for group in group(ruleset) {
        candidates.extend(judge(ruleset, group, ports, candidates.len()));
    }
    take(&mut candidates);
    let covered =
        candidates.iter().filter(|c| c.counter.counted).flat_map(|c| c.cells.clone()).collect();
    (candidates, Coverage::new(ports, covered))
}

/// The ways to each counter: rules are reached over several jumps, named counters from several rules.
fn group(ruleset: &Ruleset) -> Vec<Vec<Step>> {
    let mut groups: Vec<Vec<Step>> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for step in steps(ruleset) {
        for (number, counter) in step.rule(ruleset).counters.iter().enumerate() {
            let key = match &counter.name {
                Some(name) => (step.table, usize::MAX, 0, 0, name.clone()),
                None => (step.table, step.chain, step.rule, number, String::new()),
            };
            let slot = *index.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            let matching = step.matching.and(&counter.matching);
            groups[slot].push(Step { matching, counter: number, ..step.clone() });
        }
    }
    groups
}

fn judge(
    ruleset: &Ruleset,
    steps: Vec<Step>,
    ports: &[ListeningPort],
    order: usize,
) -> Option<Candidate> {
    let first = steps.first()?;
    let table = &ruleset.tables[first.table];
    let steps: Vec<_> = steps.into_iter().filter(|step| !step.matching.is_impossible()).collect();
    let touches: Vec<_> =
        steps.iter().filter(|step| !target_ports(step, ports).is_empty()).collect();
    let main = *touches.first()?;
    let direction = direction(main.hook.at).unwrap_or(Direction::Ingress);

    let mut cells = BTreeSet::new();
    let mut twice = false;
    for step in &steps {
        for cell in cells_of(step, table, ports) {
            twice |= !cells.insert(cell);
        }
    }
    let narrow = steps.iter().map(|step| narrowness(&step.matching, direction)).max()?;
    let reason = obstacle(&steps, main, ruleset, ports, direction).or_else(|| {
        twice.then(|| "packets reach it over two ways, and are counted twice".to_owned())
    });
    let rule = main.rule(ruleset);
    let counted = &rule.counters[main.counter];
    let hook =
        steps.iter().map(|s| u8::from(!matches!(s.hook.at, At::Input | At::Output))).max()?;
    Some(Candidate {
        counter: RuleCounter {
            backend: table.backend.clone(),
            table: if table.backend == "nft" {
                format!("{} {}", table.family, table.name)
            } else {
                table.name.clone()
            },
            chain: table.chains[main.chain].name.clone(),
            rule: rule.text.clone(),
            occurrence: rule.occurrence,
            direction,
            bytes: counted.bytes,
            packets: counted.packets,
            counted: reason.is_none(),
            reason,
        },
        rank: Rank { hook, narrow, order },
        cells,
        steps,
    })
}

fn direction(at: At) -> Option<Direction> {
    match at {
        At::Prerouting | At::Input => Some(Direction::Ingress),
        At::Output | At::Postrouting => Some(Direction::Egress),
        At::Forward | At::Device => None,
    }
}

/// The ports on the target's side of the packet, and on the other side.
fn sides(step: &Step) -> (&PortSet, &PortSet) {
    let Matching { source, destination, .. } = &step.matching;
    match direction(step.hook.at) {
        Some(Direction::Egress) => (source, destination),
        _ => (destination, source),
    }
}

/// Which listening ports a rule names, be it among others.
fn target_ports(step: &Step, ports: &[ListeningPort]) -> Vec<ListeningPort> {
    let Matching { tcp, udp, either, .. } = &step.matching;
    let (own, _) = sides(step);
    let own = either.as_ref().filter(|_| own.is_all()).unwrap_or(own);
    // A rule that does not look at the port is no port rule.
    let named = ports.iter().filter(|listening| match listening.protocol {
        Protocol::Tcp => *tcp && own.contains(listening.port),
        Protocol::Udp => *udp && own.contains(listening.port),
        _ => false,
    });
    if own.is_all() { Vec::new() } else { named.copied().collect() }
}

fn cells_of(step: &Step, table: &Table, ports: &[ListeningPort]) -> Vec<PortCell> {
    let Some(direction) = direction(step.hook.at) else { return Vec::new() };
    let families = [
        (table.families().v4 && step.matching.families.v4).then_some(Family::Ipv4),
        (table.families().v6 && step.matching.families.v6).then_some(Family::Ipv6),
    ];
    let families = families.into_iter().flatten();
    let listening = target_ports(step, ports);
    families
        .flat_map(|family| {
            listening.iter().map(move |&listening| PortCell { family, direction, listening })
        })
        .collect()
}

fn narrowness(matching: &Matching, direction: Direction) -> Narrow {
    let lacks_established =
        matching.states.as_ref().is_some_and(|states| !states.contains(&State::Established));
    let foreign = match direction {
        Direction::Ingress => &matching.source,
        Direction::Egress => &matching.destination,
    };
    if !matching.narrowed.is_empty()
        || lacks_established
        || !foreign.is_all()
        || matching.interface.as_deref() == Some("lo")
    {
        Narrow::Badly
    } else if matching.interface.is_some() || matching.states.is_some() {
        Narrow::Mildly
    } else {
        Narrow::No
    }
}

/// Why the counter cannot stand for the target's ports, whatever other rules there are.
fn obstacle(
    steps: &[Step],
    main: &Step,
    ruleset: &Ruleset,
    ports: &[ListeningPort],
    towards: Direction,
) -> Option<String> {
    if main.hook.nat {
        return Some("a nat chain sees only the first packet of each connection".to_owned());
    }
    if steps.iter().any(|step| step.hook.at == At::Forward) {
        return Some(
            "it counts forwarded packets, which no socket of this namespace gets".to_owned(),
        );
    }
    if steps.iter().any(|step| step.hook.at == At::Device) {
        return Some("it counts at a device, not at INPUT or OUTPUT".to_owned());
    }
    if steps.iter().any(|step| direction(step.hook.at) != Some(towards)) {
        return Some("it is reached from INPUT and from OUTPUT: it counts both legs".to_owned());
    }
    if steps.iter().any(|step| step.matching.either.is_some()) {
        return Some("it matches the port on either side: it counts both legs".to_owned());
    }
    for step in steps {
        let (own, _) = sides(step);
        for (protocol, name, allowed) in
            [(Protocol::Tcp, "tcp", step.matching.tcp), (Protocol::Udp, "udp", step.matching.udp)]
        {
            let listening = ports.iter().filter(|listening| listening.protocol == protocol);
            let listening =
                PortSet::of(listening.map(|listening| (listening.port, listening.port)));
            if allowed && !own.is_subset(&listening) {
                let foreign = own.without(&listening);
                return Some(format!(
                    "it also counts {name} port {foreign}, where the target does not listen"
                ));
            }
        }
    }
    let drops = |step: &Step| {
        let rule = step.rule(ruleset);
        rule.exits.iter().any(|(_, verdict)| *verdict == Verdict::Drop)
    };
    steps.iter().all(drops).then(|| "it drops what it counts: the target never gets it".to_owned())
}

/// Takes greedily; what shares packets with a taken rule is not counted.
fn take(candidates: &mut [Candidate]) {
    let mut order: Vec<usize> =
        (0..candidates.len()).filter(|&i| candidates[i].counter.counted).collect();
    order.sort_by_key(|&i| {
        let Rank { hook, narrow, order } = candidates[i].rank;
        let bytes = candidates[i].counter.bytes;
        (narrow == Narrow::Badly, hook, std::cmp::Reverse(bytes), narrow, order)
    });
    let mut taken: Vec<usize> = Vec::new();
    for i in order {
        let candidate = &candidates[i];
        let rivals: Vec<_> =
            taken.iter().filter(|&&j| !candidates[j].cells.is_disjoint(&candidate.cells)).collect();
        let twice = rivals.iter().find(|&&&j| !exclusive(candidate, &candidates[j]));
        let reason = if let Some(&&j) = twice {
            let RuleCounter { backend, chain, rule, .. } = &candidates[j].counter;
            Some(format!("the same packets are counted by {backend} {chain}: {rule}"))
        } else if candidate.rank.narrow == Narrow::Badly
            && !candidate
                .cells
                .iter()
                .all(|c| rivals.iter().any(|&&j| candidates[j].cells.contains(c)))
        {
            Some(format!("it counts only a part of the port's traffic: {}", conditions(candidate)))
        } else {
            None
        };
        match reason {
            None => taken.push(i),
            Some(reason) => {
                candidates[i].counter.counted = false;
                candidates[i].counter.reason = Some(reason);
            }
        }
    }
    for i in taken {
        if candidates[i].rank.narrow == Narrow::Mildly {
            candidates[i].counter.reason =
                Some(format!("limited to {}", conditions(&candidates[i])));
        }
    }
}

fn conditions(candidate: &Candidate) -> String {
    let mut words = Vec::new();
    for step in &candidate.steps {
        let Matching { states, interface, narrowed, .. } = &step.matching;
        words.extend(interface.as_ref().map(|name| format!("interface {name}")));
        words.extend(states.as_ref().map(|states| {
            let names: Vec<_> =
                states.iter().map(|s| format!("{s:?}").to_ascii_uppercase()).collect();
            format!("state {}", names.join(","))
        }));
        words.extend(narrowed.iter().cloned());
        let (_, other) = sides(step);
        if !other.is_all() {
            words.push(format!("the other side's port {other}"));
        }
    }
    words.sort();
    words.dedup();
    words.join(", ")
}

/// Whether no packet can pass both counters.
fn exclusive(a: &Candidate, b: &Candidate) -> bool {
    a.steps.iter().all(|one| {
        b.steps.iter().all(|two| {
            if one.matching.disjoint(&two.matching) {
                return true;
            }
            let (earlier, later) = if one.order <= two.order { (one, two) } else { (two, one) };
            let same_base = one.table == two.table && one.base == two.base;
            let same_way = same_base && one.chain == two.chain && one.way == two.way;
            same_base
                && earlier.order != later.order
                && (earlier.ends_base || (same_way && earlier.ends_chain))
        })
    })
}

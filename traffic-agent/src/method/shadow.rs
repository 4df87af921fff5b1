//! Finds the rule that takes a port's packets before the port's own rule sees them.

use crate::report::{Direction, Finding, Severity};

use super::firewall::Measured;
use super::reach::steps;
use super::ruleset::Verdict;

/// The earlier rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowedBy {
    /// The rule as its program prints it.
    pub rule: String,
    /// Its chain.
    pub chain: String,
    /// Where it was read, as in [`super::RuleCounter::backend`].
    pub backend: String,
    /// What it counted between the two readings, of all ports; `None` if it has no counter.
    pub bytes: Option<u64>,
    /// The rule of the sum that comes too late.
    pub shadowed: String,
    /// The chain of that rule.
    pub shadowed_chain: String,
}

/// Rules may lag behind the hook by what was in flight between the two readings, not by more.
const LAG_PERCENT: u64 = 5;

impl Measured {
    /// The rule that most packets of a counted rule's port meet first, if there is one.
    ///
    /// To be asked where the rules count less than `hook-port`. Looks at the rules which a packet
    /// meets on its way from the hook, through the jumps, to the counted rule.
    pub fn find_shadowing(&self, direction: Direction) -> Option<ShadowedBy> {
        let all = steps(&self.ruleset);
        let mut found: Vec<ShadowedBy> = Vec::new();
        let late = self
            .candidates
            .iter()
            .filter(|c| c.counter.counted && c.counter.direction == direction);
        for (candidate, step) in late.flat_map(|c| c.steps.iter().map(move |step| (c, step))) {
            let earlier = all.iter().filter(|other| {
                other.table == step.table && other.base == step.base && other.order < step.order
            });
            for other in earlier {
                let rule = other.rule(&self.ruleset);
                let on_the_way =
                    other.chain == step.chain || step.way.iter().any(|&(c, _)| c == other.chain);
                let takes = rule.exits.iter().any(|(matching, verdict)| {
                    let leaves = match verdict {
                        Verdict::Accept | Verdict::Drop => true,
                        Verdict::Return | Verdict::Goto(_) => on_the_way,
                        Verdict::Jump(_) => false,
                    };
                    leaves && !other.matching.and(matching).disjoint(&step.matching)
                });
                let itself = self.candidates.iter().any(|taken| {
                    taken.counter.counted
                        && taken
                            .steps
                            .iter()
                            .any(|s| (s.table, s.order) == (other.table, other.order))
                });
                if takes && !itself {
                    let table = &self.ruleset.tables[other.table];
                    found.push(ShadowedBy {
                        rule: rule.text.clone(),
                        chain: table.chains[other.chain].name.clone(),
                        backend: table.backend.clone(),
                        bytes: rule.counters.iter().map(|counter| counter.bytes).max(),
                        shadowed: candidate.counter.rule.clone(),
                        shadowed_chain: candidate.counter.chain.clone(),
                    });
                }
            }
        }
        // One without a counter is named only where no other took anything.
        found.into_iter().filter(|by| by.bytes != Some(0)).reduce(|best, next| {
            if next.bytes.unwrap_or(0) > best.bytes.unwrap_or(0) { next } else { best }
        })
    }

    /// The finding `rule-shadowed`, where the rules lack more than 5 % of what `hook-port` saw.
    ///
    /// `hook_bytes`: the client leg's `bytes` of the parts which the rules cover.
    pub fn shadow_finding(&self, direction: Direction, hook_bytes: u64) -> Option<Finding> {
        let seen = self.bytes(direction)?;
        if u128::from(seen) * 100 >= u128::from(hook_bytes) * u128::from(100 - LAG_PERCENT) {
            return None;
        }
        let ShadowedBy { rule, chain, backend, shadowed, shadowed_chain, .. } =
            self.find_shadowing(direction)?;
        let towards = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        Some(Finding {
            severity: Severity::Warning,
            code: "rule-shadowed",
            message: format!(
                "the rule `{shadowed}` of {shadowed_chain} counted {seen} of {hook_bytes} {towards} bytes: \
                 `{rule}` of {chain} ({backend}) takes the others before it"
            ),
            remedy: "count with a rule in front of it, as the first of INPUT and OUTPUT, or with \
                     `compare --add-rules`"
                .to_owned(),
            incomplete: false,
        })
    }
}

//! Walks from each hook through the chains in the order in which packets do.

use super::ruleset::{Hook, Matching, Rule, Ruleset, Verdict};

/// More than any real firewall has; a ruleset that jumps on every line would otherwise never end.
const STEPS: usize = 200_000;
const DEPTH: usize = 64;

/// One rule as reached from one hook over one way of jumps.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) table: usize,
    /// The chain with the hook.
    pub(super) base: usize,
    pub(super) chain: usize,
    /// Index in the chain.
    pub(super) rule: usize,
    /// Index of the counter in the rule, where one is meant.
    pub(super) counter: usize,
    pub(super) hook: Hook,
    /// What the jumps let through; with a counter meant, what is counted.
    pub(super) matching: Matching,
    /// The jumps on the way here: (chain, rule).
    pub(super) way: Vec<(usize, usize)>,
    /// Position in the walk: a packet meets lower ones first.
    pub(super) order: usize,
    /// Every packet that the rule counts is accepted or dropped.
    pub(super) ends_base: bool,
    /// Every packet that the rule counts leaves the chain.
    pub(super) ends_chain: bool,
}

impl Step {
    pub(super) fn rule<'a>(&self, ruleset: &'a Ruleset) -> &'a Rule {
        &ruleset.tables[self.table].chains[self.chain].rules[self.rule]
    }
}

/// All steps, hook by hook.
pub(super) fn steps(ruleset: &Ruleset) -> Vec<Step> {
    let mut found = Vec::new();
    for (table, content) in ruleset.tables.iter().enumerate() {
        for (base, chain) in content.chains.iter().enumerate() {
            if let Some(hook) = chain.hook {
                let mut walk = Walk { ruleset, table, base, hook, found: &mut found };
                walk.chain(base, &Matching::everything(), &mut Vec::new());
            }
        }
    }
    found
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    table: usize,
    base: usize,
    hook: Hook,
    found: &'a mut Vec<Step>,
}

impl Walk<'_> {
    fn chain(&mut self, chain: usize, incoming: &Matching, way: &mut Vec<(usize, usize)>) {
        let table = &self.ruleset.tables[self.table];
        for (index, rule) in table.chains[chain].rules.iter().enumerate() {
            if self.found.len() >= STEPS {
                return;
            }
            let ends = |wanted: fn(&Verdict) -> bool| {
                rule.counters.iter().all(|counter| {
                    rule.exits
                        .iter()
                        .any(|(matching, to)| wanted(to) && *matching == counter.matching)
                })
            };
            self.found.push(Step {
                table: self.table,
                base: self.base,
                chain,
                rule: index,
                counter: 0,
                hook: self.hook,
                matching: incoming.clone(),
                way: way.clone(),
                order: self.found.len(),
                ends_base: ends(|to| matches!(to, Verdict::Accept | Verdict::Drop)),
                ends_chain: ends(|to| !matches!(to, Verdict::Jump(_))),
            });
            for (matching, verdict) in &rule.exits {
                let (Verdict::Jump(target) | Verdict::Goto(target)) = verdict else { continue };
                let Some((next, _)) = table.chain(target) else { continue };
                let onward = incoming.and(matching);
                let circle = next == chain || way.iter().any(|&(passed, _)| passed == next);
                if !circle && way.len() < DEPTH && !onward.is_impossible() {
                    way.push((chain, index));
                    self.chain(next, &onward, way);
                    way.pop();
                }
            }
        }
    }
}

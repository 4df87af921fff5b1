//! Estimates in the background: what the firewall's rules and the interfaces counted of a target, minute by
//! minute, beside the exact bytes of the same span.
//!
//! A [`Background`] per target holds the last readings and takes differences. It reads nothing itself: an
//! [`Observer`] per network namespace does, on a thread of its own. The daemon, once a minute:
//!
//! 1. samples the cells, gives what each target's cells gained to [`Background::post`], and calls
//!    [`Background::begin`];
//! 2. lets the observer look ([`Observer::start`], [`Observer::finished`]), sampling on meanwhile;
//! 3. samples and posts again, and calls [`Background::finish`] for each target.
//!
//! # What becomes of counters that are set back
//!
//! A counter that is smaller than before, a rule that vanished or appeared, an interface made anew, another
//! network namespace: there is no difference then. The span has no reading of that method, an event says why
//! (`rules-changed`), and the next difference is taken from the reading that showed it. Nothing negative, wrapped
//! or doubled can come of it, and nothing is guessed.
//!
//! Counters that were set to zero in between and have already grown past their last value look like any others:
//! the difference is too small, by at most the traffic of that one span, because the counter has to catch up with
//! all that it held. Rules and hook count the same packets, so the difference is held against `hook-port`: the
//! cells are sampled before and after the rules are read, and what the rules gained must be between the two but
//! for packets in flight. Where it falls short by more than 5 % (some datagrams are split between rule and hook, and their
//! headers repeated), the span has no reading either. If the next one falls short as well, the rules lack
//! something all the time: then that is their error, and it is kept. What stays hidden is a reset that costs a
//! span less than 5 % of its bytes and 256 KiB.
//!
//! When the daemon is stopped nothing is read; the first look after a start only begins.

mod observer;
#[cfg(test)]
mod tests;
mod totals;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
pub use observer::{InterfaceReading, Look, Observer};
use totals::Totals;

use crate::history::{Event, EventKind, Method, MethodReading};
use crate::method::firewall::{self, Measured};
use crate::method::{ListeningPort, interface};
use crate::report::{CellReport, Direction, Finding, Severity};

/// What one look gave for one target.
#[derive(Debug, Default)]
pub struct Minute {
    /// What the methods counted since their last look.
    pub readings: Vec<MethodReading>,
    /// What changed, and why a method has no reading.
    pub events: Vec<Event>,
}

/// The background estimates of one target.
#[derive(Debug, Default)]
pub struct Background {
    /// All that was posted.
    totals: Totals,
    /// The same as the last look began.
    begun: Totals,
    rules: Option<Mark<firewall::Reading>>,
    interfaces: Option<Mark<InterfaceReading>>,
    hook: Option<Mark<()>>,
    /// The rules lacked bytes at the last look.
    short: bool,
    /// How many looks in a row could not read all that was read before.
    failures: u32,
    /// Why methods had no reading at the last look: said once.
    reasons: BTreeSet<(Method, String)>,
    findings: Vec<Finding>,
}

/// So often the counters that could be read before are waited for.
const PATIENCE: u32 = 3;

/// A reading to take differences from.
#[derive(Debug)]
struct Mark<T> {
    reading: T,
    namespace: u64,
    at: Timestamp,
    /// What was posted before it was read, and afterwards.
    before: Totals,
    after: Totals,
}

impl Background {
    /// Adds what a target's cells gained: the same that is posted to its history.
    pub fn post(&mut self, gained: &[CellReport]) {
        gained.iter().for_each(|cell| self.totals.add(cell));
    }

    /// A look begins: what it finds was counted after everything that is posted now.
    pub fn begin(&mut self) {
        self.begun = self.totals.clone();
    }

    /// A look has ended: what it found was counted before anything that is posted from now on.
    ///
    /// * `ports`: the listening ports of the target now.
    /// * `at`: when the look began.
    pub fn finish(&mut self, look: &Look, ports: &[ListeningPort], at: Timestamp) -> Minute {
        let mut minute = Minute::default();
        let reasons = std::mem::take(&mut self.reasons);
        let findings = std::mem::take(&mut self.findings);
        self.read_rules(look, ports, at, &mut minute);
        self.read_interfaces(look, at, &mut minute);
        if let Some(mark) = &self.hook {
            let seen = self.begun.client.since(mark.before.client);
            minute.readings.push(mark.reading_of(
                Method::HookPort,
                &self.begun,
                at,
                [Some(seen.ingress), Some(seen.egress)],
            ));
        }
        self.hook = Some(self.mark((), look, at));
        for (method, reason) in self.reasons.difference(&reasons) {
            minute.events.push(note(at, at, format!("{}: {reason}", method.name())));
        }
        for finding in &self.findings {
            if !findings.iter().any(|before| before.code == finding.code) {
                minute.events.push(note(at, at, format!("{}: {}", finding.code, finding.message)));
            }
        }
        minute
    }

    /// What is wrong with the rules, as of the last look.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn mark<T>(&self, reading: T, look: &Look, at: Timestamp) -> Mark<T> {
        let (before, after) = (self.begun.clone(), self.totals.clone());
        Mark { reading, namespace: look.namespace, at, before, after }
    }

    fn without(&mut self, method: Method, reason: impl Into<String>) {
        self.reasons.insert((method, reason.into()));
    }

    fn read_rules(
        &mut self,
        look: &Look,
        ports: &[ListeningPort],
        at: Timestamp,
        minute: &mut Minute,
    ) {
        let method = Method::IptablesPort;
        let reading = match &look.rules {
            Ok(Some(reading)) => reading.for_ports(ports),
            // Not looked at this time: the next difference is of a longer span.
            Ok(None) => return,
            Err(reason) => return self.without(method, reason),
        };
        let Some(mark) = self.rules.take() else {
            if let Some(reason) = reading.unavailable() {
                self.without(method, reason);
            }
            self.rules = Some(self.mark(reading, look, at));
            return;
        };
        let lacks = |one: &firewall::Reading, other: &firewall::Reading| {
            other.programs.iter().any(|program| !one.programs.contains(program))
        };
        let same_place = look.namespace == mark.namespace;
        if same_place
            && lacks(&reading, &mark.reading)
            && !reading.problems.is_empty()
            && self.failures < PATIENCE
        {
            // The counters go on all the same: the last reading still holds.
            self.failures += 1;
            self.without(method, reading.problems.join("; "));
            self.rules = Some(mark);
            return;
        }
        self.failures = 0;
        let compared = if !same_place {
            Err("the target moved to another network namespace".to_owned())
        } else if lacks(&reading, &mark.reading) {
            Err(format!("cannot be read any more: {}", reading.problems.join("; ")))
        } else if lacks(&mark.reading, &reading) {
            Err(format!("read for the first time: {}", reading.programs.join(", ")))
        } else {
            firewall::difference(&mark.reading, &reading)
                .inspect_err(|_| self.short = false)
                .and_then(|measured| self.hold_against_hook(measured, &mark))
        };
        match compared {
            Err(reason) => {
                let message = format!("rules-changed: {reason}");
                minute.events.push(note(mark.at, at, format!("{}: {message}", method.name())));
            }
            Ok(measured) => match measured.report().reason {
                Some(reason) => self.without(method, reason),
                None => {
                    let seen = [Direction::Ingress, Direction::Egress]
                        .map(|direction| self.comparable(&measured, direction, &mark));
                    minute.readings.push(mark.reading_of(method, &self.begun, at, seen));
                }
            },
        }
        self.rules = Some(self.mark(reading, look, at));
    }

    /// What the rules counted in a direction, if they stand for all ports that had traffic.
    fn comparable(
        &mut self,
        measured: &Measured,
        direction: Direction,
        mark: &Mark<firewall::Reading>,
    ) -> Option<u64> {
        let bytes = measured.bytes(direction)?;
        let missing = measured.coverage.uncovered_ports(direction);
        let left_out: Vec<String> = missing
            .into_iter()
            .filter(|port| {
                let of = |totals: &Totals| totals.of_port(*port, direction);
                of(&self.begun) > of(&mark.before)
            })
            .map(|port| port.to_string())
            .collect();
        if left_out.is_empty() {
            return Some(bytes);
        }
        self.findings.push(Finding {
            severity: Severity::Warning,
            code: "not-all-ports",
            message: format!("no rule counts {}, which had traffic", left_out.join(", ")),
            remedy: "add rules for every listening port; hook-port needs none".to_owned(),
            incomplete: false,
        });
        None
    }

    /// Holds what the rules gained against the hook; an error, in words, where they were set to zero meanwhile.
    fn hold_against_hook(
        &mut self,
        measured: Measured,
        mark: &Mark<firewall::Reading>,
    ) -> Result<Measured, String> {
        let mut short = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let Some(rules) = measured.bytes(direction) else { continue };
            // The least that passed: what was posted from after the last reading to before this one.
            let covered = |totals: &Totals| totals.covered(&measured.coverage, direction);
            let hook = covered(&self.begun).saturating_sub(covered(&mark.after));
            if !falls_short(rules, hook) {
                continue;
            }
            match measured.shadow_finding(direction, hook) {
                Some(finding) => self.findings.push(finding),
                None => short.push(format!("{rules} of {hook} {} bytes", name(direction))),
            }
        }
        let before = std::mem::replace(&mut self.short, !short.is_empty());
        if short.is_empty() {
            return Ok(measured);
        }
        let short = short.join(", ");
        if !before {
            return Err(format!(
                "the rules gained {short} that passed them: their counters were set to zero in between \
                 (iptables -Z, nft reset) and have grown past their last value"
            ));
        }
        self.findings.push(Finding {
            severity: Severity::Warning,
            code: "rules-fall-short",
            message: format!("the rules gained {short} that the hook saw, again and again"),
            remedy:
                "see whether something sets their counters to zero every minute, or another table \
                     takes the packets first"
                    .to_owned(),
            incomplete: false,
        });
        Ok(measured)
    }

    fn read_interfaces(&mut self, look: &Look, at: Timestamp, minute: &mut Minute) {
        let method = Method::Interface;
        let reading = match &look.interfaces {
            Ok(reading) => reading,
            Err(reason) => return self.without(method, reason),
        };
        if let Some(mark) = self.interfaces.take() {
            let difference = if mark.namespace == look.namespace {
                same_interfaces(&mark.reading.indexes, &reading.indexes)
                    .and_then(|()| interface::difference(&mark.reading.counters, &reading.counters))
            } else {
                Err("the target moved to another network namespace".to_owned())
            };
            match difference {
                Ok(row) => minute.readings.push(mark.reading_of(
                    method,
                    &self.begun,
                    at,
                    [row.ingress_bytes, row.egress_bytes],
                )),
                Err(reason) => {
                    let message = format!("{}: {reason}", method.name());
                    minute.events.push(note(mark.at, at, message));
                }
            }
        }
        self.interfaces = Some(self.mark(reading.clone(), look, at));
    }
}

impl<T> Mark<T> {
    fn reading_of(
        &self,
        method: Method,
        begun: &Totals,
        end: Timestamp,
        [ingress, egress]: [Option<u64>; 2],
    ) -> MethodReading {
        let exact = begun.exact.since(self.before.exact);
        // The clock may have been set back.
        MethodReading { method, start: self.at.min(end), end, ingress, egress, exact }
    }
}

/// Whether rules counted less than the hook, by more than can be explained.
///
/// `hook`: the least that passed the rules between their two readings.
fn falls_short(rules: u64, hook: u64) -> bool {
    u128::from(rules) + u128::from(IN_FLIGHT)
        < u128::from(hook) * u128::from(100 - LAG_PERCENT) / 100
}

/// A rule that reads 5 % less than the hook is said to miss packets; as in `method::shadow`. Datagrams that
/// the kernel split between rule and hook repeat their headers: up to 2.3 % with 1,200 bytes of payload.
const LAG_PERCENT: u64 = 5;

/// Between rule and hook a processor has one packet, of up to 64 KiB; here for four processors.
const IN_FLIGHT: u64 = 4 << 16;

fn same_interfaces(
    before: &BTreeMap<String, u32>,
    after: &BTreeMap<String, u32>,
) -> Result<(), String> {
    match before.iter().find(|(name, index)| after.get(*name).is_some_and(|now| now != *index)) {
        Some((name, _)) => Err(format!("interface {name} was made anew")),
        None => Ok(()),
    }
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn note(start: Timestamp, end: Timestamp, message: String) -> Event {
    Event { start: start.min(end), end, kind: EventKind::Note, message }
}

//! How wrong the estimates were: each estimator against the exact bytes of the very spans in which its counters were
//! read, and `calibrated` as it would have been told at the time. Pure.
//!
//! A span without readings has no estimate and no error; it is no error of 100 %. So the exact bytes of an
//! estimate can be less than the traffic of its row: [`PastEstimate::compared_seconds`] says of how much time they are.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::calendar::Span;
use crate::estimate::calibration::{Calibration, Calibrator, Hour, TooFew};
use crate::estimate::{self, PortBytes};
use crate::history::{Method, Quarter, ReadingSum};
use crate::report::{CalibrationReport, EstimateReport};

/// Quarters of an hour.
const HOUR: i64 = 4;

/// An estimate of one span, and how wrong it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastEstimate {
    /// The estimate, as in `compare`.
    #[serde(flatten)]
    pub estimate: EstimateReport,
    /// Billed wire bytes of the time in which the counters were read.
    pub exact_bytes: u64,
    /// That time.
    pub compared_seconds: f64,
}

/// What `calibrated` is worth to a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastCalibration {
    /// The method whose counters it is made of.
    pub source: &'static str,
    /// What the newest hours say; null where there are too few.
    #[serde(flatten)]
    pub calibration: Option<CalibrationReport>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Hours of the interval that were judged by the hours before them.
    pub hours_judged: usize,
    /// Those whose own factor was in the interval that these gave.
    pub hours_held: usize,
}

/// The readings of one method.
#[derive(Clone, Debug)]
struct Readings {
    method: Method,
    quarters: Vec<(Quarter, ReadingSum)>,
    /// What hours before it said of an hour, by its number since 1970; only of hours that were read.
    told: BTreeMap<i64, (Hour, Result<Calibration, TooFew>)>,
    last: Result<Calibration, TooFew>,
}

impl Readings {
    fn new(method: Method, quarters: Vec<(Quarter, ReadingSum)>) -> Self {
        let mut hours: BTreeMap<i64, Hour> = BTreeMap::new();
        for (quarter, sum) in &quarters {
            if let Some(read) = both(sum) {
                let hour = hours.entry(quarter.0.div_euclid(HOUR)).or_default();
                hour.read = hour.read.saturating_add(read);
                hour.exact = hour.exact.saturating_add(sum.exact.sum());
            }
        }
        let mut calibrator = Calibrator::default();
        let told = hours
            .into_iter()
            .map(|(number, hour)| (number, (hour, calibrator.learn(hour))))
            .collect();
        Self { method, quarters, told, last: calibrator.calibration() }
    }

    fn within(&self, span: Span) -> impl Iterator<Item = &(Quarter, ReadingSum)> {
        let range = span.quarters();
        self.quarters.iter().filter(move |(quarter, _)| range.contains(quarter))
    }

    /// The sum of a span's readings that have these directions.
    fn sum(&self, span: Span, has: fn(&ReadingSum) -> bool) -> Option<ReadingSum> {
        self.within(span).map(|(_, sum)| sum).filter(|sum| has(sum)).copied().reduce(added)
    }

    /// An estimator of [`estimate::estimates`] in a span; `None` where its counters were not read.
    fn estimate(&self, index: usize, span: Span) -> Option<PastEstimate> {
        let has: fn(&ReadingSum) -> bool = match index {
            0 => |sum| sum.ingress.is_some(),
            1 => |sum| sum.egress.is_some(),
            _ => |sum| sum.ingress.is_some() && sum.egress.is_some(),
        };
        let sum = self.sum(span, has)?;
        let port = PortBytes { ingress: sum.ingress.unwrap_or(0), egress: sum.egress.unwrap_or(0) };
        let exact_bytes = sum.exact.sum();
        let estimate = estimate::estimates(self.method.name(), port, Some(exact_bytes))
            .into_iter()
            .nth(index)?;
        Some(PastEstimate { estimate, exact_bytes, compared_seconds: seconds(&sum) })
    }

    /// `calibrated` in a span: each quarter by the factor that the hours before its own gave.
    fn calibrated(&self, span: Span) -> Option<PastEstimate> {
        let mut total = 0_u64;
        let mut whole: Option<ReadingSum> = None;
        let mut latest = None;
        for (quarter, sum) in self.within(span) {
            let Some(read) = both(sum) else { continue };
            let told = self.told.get(&quarter.0.div_euclid(HOUR));
            let Some((_, Ok(calibration))) = told else { continue };
            total = total.saturating_add(calibration.estimate(read));
            whole = Some(whole.map_or(*sum, |before| added(before, *sum)));
            latest = Some(*calibration);
        }
        let (whole, calibration) = (whole?, latest?);
        let exact_bytes = whole.exact.sum();
        let estimate =
            estimate::calibrated(self.method.name(), total, Some(exact_bytes), calibration);
        Some(PastEstimate { estimate, exact_bytes, compared_seconds: seconds(&whole) })
    }
}

/// How wrong the estimates of one target were.
#[derive(Clone, Debug)]
pub struct Errors {
    rules: Readings,
    hook: Readings,
}

impl Errors {
    /// Of all readings up to the end of the interval; those before its beginning are what the first hours are
    /// calibrated by.
    pub fn new(rules: Vec<(Quarter, ReadingSum)>, hook: Vec<(Quarter, ReadingSum)>) -> Self {
        Self {
            rules: Readings::new(Method::IptablesPort, rules),
            hook: Readings::new(Method::HookPort, hook),
        }
    }

    /// All estimates of a span, each of the rules where they were read, else of the hook.
    pub fn of(&self, span: Span) -> Vec<PastEstimate> {
        let recipes = (0..4).filter_map(|index| {
            self.rules.estimate(index, span).or_else(|| self.hook.estimate(index, span))
        });
        let calibrated = self.source().calibrated(span);
        recipes.chain(calibrated).collect()
    }

    /// What `calibrated` is made of: the rules if they have the history for it.
    fn source(&self) -> &Readings {
        if self.rules.last.is_ok() { &self.rules } else { &self.hook }
    }

    /// What `calibrated` is worth, of the hours in a span.
    pub fn calibration(&self, span: Span) -> PastCalibration {
        let source = self.source();
        let range = span.quarters();
        let mut judged = 0;
        let mut held = 0;
        for (number, (hour, told)) in &source.told {
            if let Ok(told) = told
                && hour.has_weight()
                && range.contains(&Quarter(number * HOUR))
            {
                judged += 1;
                held += usize::from(told.holds(*hour));
            }
        }
        PastCalibration {
            source: source.method.name(),
            calibration: source.last.as_ref().ok().copied().map(CalibrationReport::from),
            reason: source.last.as_ref().err().map(ToString::to_string),
            hours_judged: judged,
            hours_held: held,
        }
    }

    /// What the newest hours say, of the rules and of the hook.
    pub fn newest(&self) -> [(Method, Result<Calibration, TooFew>); 2] {
        [&self.rules, &self.hook].map(|readings| (readings.method, readings.last))
    }
}

/// In words, what `calibrated` is worth.
pub fn told(calibration: &PastCalibration) -> String {
    let Some(learnt) = calibration.calibration else {
        return calibration.reason.clone().unwrap_or_default();
    };
    let judged = match (calibration.hours_held, calibration.hours_judged) {
        (_, 0) => String::new(),
        (held, judged) => {
            format!("; of {judged} hours here, {held} were in what was told before them")
        }
    };
    format!("{learnt} of {}{judged}", calibration.source)
}

fn both(sum: &ReadingSum) -> Option<u64> {
    Some(sum.ingress?.saturating_add(sum.egress?))
}

fn seconds(sum: &ReadingSum) -> f64 {
    sum.milliseconds as f64 / 1000.0
}

fn added(a: ReadingSum, b: ReadingSum) -> ReadingSum {
    // Directions that only one of them has are not asked for.
    let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    ReadingSum {
        milliseconds: a.milliseconds.saturating_add(b.milliseconds),
        ingress: sum(a.ingress, b.ingress),
        egress: sum(a.egress, b.egress),
        exact: PortBytes {
            ingress: a.exact.ingress.saturating_add(b.exact.ingress),
            egress: a.exact.egress.saturating_add(b.exact.egress),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn sum(ingress: Option<u64>, egress: Option<u64>, exact: u64) -> ReadingSum {
        let exact = PortBytes { ingress: exact, egress: 0 };
        ReadingSum { milliseconds: 900_000, ingress, egress, exact }
    }

    /// A span of quarters.
    fn span(first: i64, after: i64) -> Span {
        Span { start: Quarter(first).start(), end: Quarter(after).start() }
    }

    fn totals(estimates: &[PastEstimate]) -> Vec<(&'static str, &'static str, u64, u64)> {
        let one = |PastEstimate { estimate, exact_bytes, .. }: &PastEstimate| {
            (estimate.name, estimate.source, estimate.total_bytes, *exact_bytes)
        };
        estimates.iter().map(one).collect()
    }

    #[test]
    fn each_estimate_is_held_against_the_time_in_which_its_counters_were_read() {
        let rules = vec![
            (Quarter(0), sum(Some(100), Some(900), 2000)),
            // Only the rule for the port's ingress was there.
            (Quarter(1), sum(Some(50), None, 1000)),
            (Quarter(2), sum(None, None, 4000)),
        ];
        let hook = vec![(Quarter(2), sum(Some(200), Some(1800), 4000))];
        let errors = Errors::new(rules, hook);
        assert_eq!(
            totals(&errors.of(span(0, 3))),
            [
                ("in-x2", "iptables-port", 300, 3000),
                ("out-x2", "iptables-port", 1800, 2000),
                ("sum-x1", "iptables-port", 1000, 2000),
                ("sum-x2", "iptables-port", 2000, 2000),
            ]
        );
        // Without a rule the hook takes their place.
        let [first, ..] = &errors.of(span(2, 3))[..] else { panic!("estimates") };
        assert_eq!(
            (first.estimate.source, first.estimate.error_percent),
            ("hook-port", Some(-90.0))
        );
        assert_eq!(first.compared_seconds, 900.0);
        assert!(errors.of(span(7, 9)).is_empty());
    }

    /// 20 hours: 19 with the factor 2.00 on 10 MB, and one with 3.00.
    fn twenty_hours() -> Vec<(Quarter, ReadingSum)> {
        (0..20)
            .map(|hour| {
                let exact = if hour == 19 { 30 * MB } else { 20 * MB };
                (Quarter(4 * hour), sum(Some(MB), Some(9 * MB), exact))
            })
            .collect()
    }

    #[test]
    fn an_hour_is_estimated_by_the_hours_before_it() {
        let errors = Errors::new(Vec::new(), twenty_hours());
        // The first 19 have too little before them.
        assert!(errors.of(span(0, 4 * 19)).iter().all(|past| past.estimate.name != "calibrated"));
        let last = errors.of(span(0, 4 * 20)).pop().unwrap();
        assert_eq!(last.estimate.name, "calibrated");
        // 2.00 x 10 MB of 30 MB.
        assert_eq!((last.estimate.total_bytes, last.exact_bytes), (20 * MB, 30 * MB));
        let calibration = errors.calibration(span(0, 80));
        assert_eq!((calibration.hours_judged, calibration.hours_held), (1, 0));
        // And the next would be told (19 x 20 + 30) / 200.
        assert_eq!(calibration.calibration.unwrap().factor, 2.05);
    }

    #[test]
    fn too_little_history_is_a_reason_and_not_a_factor() {
        let errors = Errors::new(Vec::new(), twenty_hours()[..5].to_vec());
        let calibration = errors.calibration(span(0, 80));
        assert_eq!(calibration.calibration, None);
        assert!(calibration.reason.unwrap().ends_with("there are 5"));
    }
}

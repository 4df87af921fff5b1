//! What people make of a port's counters, and how wrong it is. Pure.
//!
//! The published recipe counts the bytes that a rule for the listening port sees and doubles them,
//! because a proxy sends on what it receives. Each estimator here is such a recipe; each is held
//! against the exact figure and against what was claimed for it.

pub mod calibration;

use crate::report::{CaptureRate, Claim, Direction, EstimateReport, Ratio};
use calibration::Calibration;

/// The client leg as a port's rules, or the hook in their place, count it: L3 bytes, super-packets
/// as netfilter sees them, loopback included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortBytes {
    /// To the port.
    pub ingress: u64,
    /// From the port.
    pub egress: u64,
}

impl PortBytes {
    /// The bytes of one direction.
    pub fn of_mut(&mut self, direction: Direction) -> &mut u64 {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    /// Both directions.
    pub fn sum(self) -> u64 {
        self.ingress.saturating_add(self.egress)
    }

    /// What came since an earlier reading of the same; never less than nothing.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ingress: self.ingress.saturating_sub(earlier.ingress),
            egress: self.egress.saturating_sub(earlier.egress),
        }
    }
}

/// A recipe: which counters are added up, and how often the sum is taken.
struct Estimator {
    name: &'static str,
    formula: &'static str,
    base: fn(PortBytes) -> u64,
    factor: u64,
}

const ESTIMATORS: [Estimator; 4] = [
    Estimator { name: "in-x2", formula: "2 * dport", base: |port| port.ingress, factor: 2 },
    Estimator { name: "out-x2", formula: "2 * sport", base: |port| port.egress, factor: 2 },
    Estimator {
        name: "sum-x1",
        formula: "dport + sport",
        base: |port| port.ingress.saturating_add(port.egress),
        factor: 1,
    },
    Estimator {
        name: "sum-x2",
        formula: "2 * (dport + sport)",
        base: |port| port.ingress.saturating_add(port.egress),
        factor: 2,
    },
];

/// Returns all estimates that can be made of a port's counters.
///
/// * `source`: the method that read them.
/// * `exact`: billed wire bytes of the target, both directions; `None` where the counters do not stand
///   for all of it, so that there is no error to give.
///
/// An estimate beyond a u64 stands at the limit, and has no error either.
pub fn estimates(source: &'static str, port: PortBytes, exact: Option<u64>) -> Vec<EstimateReport> {
    ESTIMATORS
        .iter()
        .map(|estimator| {
            let base = (estimator.base)(port);
            let total_bytes = base.saturating_mul(estimator.factor);
            let exact = exact.filter(|exact| *exact != u64::MAX && total_bytes != u64::MAX);
            EstimateReport {
                name: estimator.name,
                formula: estimator.formula,
                source,
                total_bytes,
                error_percent: exact.and_then(|exact| error_percent(total_bytes, exact)),
                claims: claims(base, total_bytes, exact),
                calibration: None,
            }
        })
        .collect()
}

/// Returns the estimate `calibrated`, of which nothing was claimed.
pub fn calibrated(
    source: &'static str,
    total_bytes: u64,
    exact: Option<u64>,
    calibration: Calibration,
) -> EstimateReport {
    let exact = exact.filter(|exact| *exact != u64::MAX && total_bytes != u64::MAX);
    EstimateReport {
        name: "calibrated",
        formula: "factor * (dport + sport)",
        source,
        total_bytes,
        error_percent: exact.and_then(|exact| error_percent(total_bytes, exact)),
        claims: Vec::new(),
        calibration: Some(calibration.into()),
    }
}

/// Returns `100 x (estimate - exact) / exact`, or `None` where exact is 0.
pub fn error_percent(estimate: u64, exact: u64) -> Option<f64> {
    // In integers first: of two large numbers that differ little, floats lose the difference.
    let difference = i128::from(estimate) - i128::from(exact);
    (exact != 0).then(|| 100.0 * difference as f64 / exact as f64)
}

/// The three published claims, held against one estimate. For estimators other than the published
/// `in-x2` the third is read as one about what they are made of.
fn claims(base: u64, total: u64, exact: Option<u64>) -> Vec<Claim> {
    let per = |exact: u64, divisor: u64| {
        (exact != 0 && divisor != 0).then(|| exact as f64 / divisor as f64)
    };
    // Nothing estimated where something flowed: infinitely wrong, so no claim holds.
    let missed = exact.is_some_and(|exact| exact != 0) && base == 0;
    let claim = |claim, low: f64, high: f64, measured: Option<f64>| Claim {
        claim,
        low,
        high,
        measured,
        holds: measured
            .map(|measured| (low..=high).contains(&measured))
            .or(missed.then_some(false)),
    };
    vec![
        claim(
            "the estimate is within 20 %",
            -20.0,
            20.0,
            exact.and_then(|exact| error_percent(total, exact)),
        ),
        claim(
            "the truth is 10-20 % above the estimate",
            1.1,
            1.2,
            exact.and_then(|exact| per(exact, total)),
        ),
        claim(
            "the truth is 2.1-2.3 times what was counted",
            2.1,
            2.3,
            exact.and_then(|exact| per(exact, base)),
        ),
    ]
}

/// Returns how much of a reference a method saw, in both directions.
pub fn capture_rates(
    method: &'static str,
    seen: PortBytes,
    reference: &'static str,
    of: PortBytes,
) -> [CaptureRate; 2] {
    [(Direction::Ingress, seen.ingress, of.ingress), (Direction::Egress, seen.egress, of.egress)]
        .map(|(direction, seen, of)| CaptureRate {
            method,
            direction,
            reference,
            percent: (of != 0).then(|| 100.0 * seen as f64 / of as f64),
        })
}

/// Returns the relation of a port's directions.
pub fn ratio(port: PortBytes) -> Ratio {
    Ratio {
        egress_per_ingress: (port.ingress != 0).then(|| port.egress as f64 / port.ingress as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1024.0 * 1024.0;

    fn estimate(port: PortBytes, exact: u64, name: &str) -> EstimateReport {
        estimates("iptables-port", port, Some(exact))
            .into_iter()
            .find(|estimate| estimate.name == name)
            .expect("a known estimator")
    }

    /// The original measurement: 3.81 MB in and 2369 MB out by the rules, 5.88 GiB in and 6.02 GiB out
    /// on the interface. It gives capture rates of 0.06 % and 38.4 %, and a ratio of 1:620.
    #[test]
    fn the_original_measurement_gives_its_published_rates() {
        let rules = PortBytes { ingress: (3.81 * MIB) as u64, egress: (2369.0 * MIB) as u64 };
        let interface = PortBytes {
            ingress: (5.88 * 1024.0 * MIB) as u64,
            egress: (6.02 * 1024.0 * MIB) as u64,
        };
        let [ingress, egress] = capture_rates("iptables-port", rules, "interface", interface);
        assert_eq!(format!("{:.2}", ingress.percent.unwrap()), "0.06");
        assert_eq!(format!("{:.1}", egress.percent.unwrap()), "38.4");
        let ratio = ratio(rules).egress_per_ingress.unwrap();
        assert_eq!((ratio / 10.0).round() * 10.0, 620.0, "1:{ratio}");
        // 2 x 3.81 MB against 11.9 GiB.
        let exact = interface.ingress + interface.egress;
        let published = estimate(rules, exact, "in-x2");
        assert_eq!(format!("{:.2}", published.error_percent.unwrap()), "-99.94");
        assert!(published.claims.iter().all(|claim| claim.holds == Some(false)));
    }

    #[test]
    fn the_four_recipes_by_hand() {
        let port = PortBytes { ingress: 100, egress: 900 };
        let totals: Vec<_> = estimates("hook-port", port, Some(2000))
            .iter()
            .map(|estimate| (estimate.name, estimate.total_bytes, estimate.error_percent))
            .collect();
        assert_eq!(
            totals,
            [
                ("in-x2", 200, Some(-90.0)),
                ("out-x2", 1800, Some(-10.0)),
                ("sum-x1", 1000, Some(-50.0)),
                ("sum-x2", 2000, Some(0.0)),
            ]
        );
    }

    #[test]
    fn each_claim_is_held_against_its_own_bounds() {
        // 2 x 1000 against 2300: 13 % too low, truth 1.15 x the estimate and 2.3 x the ingress.
        let port = PortBytes { ingress: 1000, egress: 0 };
        let holds: Vec<_> =
            estimate(port, 2300, "in-x2").claims.iter().map(|claim| claim.holds).collect();
        assert_eq!(holds, [Some(true), Some(true), Some(true)]);
        // 2 x 1000 against 2000: right, so the truth is not above it.
        let holds: Vec<_> =
            estimate(port, 2000, "in-x2").claims.iter().map(|claim| claim.holds).collect();
        assert_eq!(holds, [Some(true), Some(false), Some(false)]);
    }

    #[test]
    fn nothing_to_compare_with_is_no_error_and_no_verdict() {
        let port = PortBytes { ingress: 10, egress: 10 };
        let none = estimates("hook-port", port, None);
        assert!(none.iter().all(|estimate| estimate.error_percent.is_none()));
        assert!(
            none.iter().flat_map(|estimate| &estimate.claims).all(|claim| claim.holds.is_none())
        );
        assert_eq!(estimate(port, 0, "in-x2").error_percent, None);
    }

    #[test]
    fn an_estimate_of_nothing_holds_no_claim() {
        let port = PortBytes { ingress: 0, egress: 5 };
        let estimate = estimate(port, 1000, "in-x2");
        assert_eq!(estimate.error_percent, Some(-100.0));
        assert!(estimate.claims.iter().all(|claim| claim.holds == Some(false)));
    }

    #[test]
    fn an_estimate_beyond_a_u64_stands_at_the_limit_and_has_no_error() {
        let port = PortBytes { ingress: (1 << 63) + 5, egress: 1 << 63 };
        let totals: Vec<_> = estimates("hook-port", port, Some(1 << 63))
            .iter()
            .map(|estimate| (estimate.total_bytes, estimate.error_percent.is_some()))
            .collect();
        assert_eq!(totals, [(u64::MAX, false); 4]);
        let half = PortBytes { ingress: (1 << 53) + 1, egress: 0 };
        assert_eq!(estimate(half, u64::MAX - 1, "in-x2").total_bytes, (1 << 54) + 2);
        assert_eq!(estimate(half, u64::MAX, "in-x2").error_percent, None);
    }

    #[test]
    fn errors_of_huge_totals_keep_their_sign() {
        let exact = (1u64 << 60) + 1;
        assert!(error_percent(1 << 60, exact).unwrap() < 0.0);
        assert_eq!(error_percent(u64::MAX, u64::MAX), Some(0.0));
    }
}

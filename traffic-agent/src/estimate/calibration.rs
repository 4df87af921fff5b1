//! `calibrated`: the factor from a port's counters to the traffic that is billed, learnt from this host's own
//! history, with the interval in which an hour's own factor is to be expected. Pure.
//!
//! # The factor
//!
//! The ratio of sums over the newest 720 hours that had traffic (30 days without a break): exact bytes by what the
//! port's counters read in both directions. Hours count by their bytes, which is what an estimate of bytes
//! needs: a mean of ratios would give an idle hour the weight of a busy one.
//!
//! # The interval
//!
//! Of the same hours, each has a factor of its own. With n of them in order of size, the factor of the next hour
//! lies between the r-th smallest and the r-th largest with probability 1 - 2r / (n + 1), if it is exchangeable
//! with them: whatever their distribution is, each of the n + 1 places among them is as likely as any other (Wilks,
//! Determination of sample sizes for setting tolerance limits, Ann. Math. Statist. 12, 1941; the same argument
//! is at the root of conformal prediction: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005). `r`
//! is the largest with at least 90 %. No distribution is assumed, because none fits: segmentation and what
//! users do make factors skewed, and an interval of mean and deviation would promise what it does not hold. For n
//! = 19 it is the smallest and the largest factor, and with fewer there is none at 90 %: so 19 hours are the least
//! history.
//!
//! Hours are not wholly exchangeable: users sleep, proxies change. So how often the interval held is
//! measured, out of sample: each hour is judged by what the hours before it say, never by itself
//! ([`Calibrator::learn`] returns the judgement first and learns then).
//!
//! Hours in which the counters read less than 1 MB are left out of all this: a few handshakes and keep-alives have a
//! factor of their own, and no weight.

use std::collections::VecDeque;

/// The share of next hours that the interval is made to hold.
pub const CONFIDENCE_PERCENT: u32 = 90;

/// The fewest hours of which the smallest and the largest factor are an interval of 90 %: 1 - 2 / 20.
pub const FEWEST: usize = 19;

/// The newest hours that are looked at.
pub const WINDOW: usize = 720;

/// Hours with less in the counters are left out.
pub const LEAST_BYTES: u64 = 1_000_000;

/// What the past says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Exact bytes per byte in the counters.
    pub factor: f64,
    /// The factor of the next hour is this at least ...
    pub low: f64,
    /// ... and this at most, in 90 of 100 hours.
    pub high: f64,
    /// Of how many hours.
    pub samples: usize,
}

impl Calibration {
    /// Returns the estimate that the factor makes of what counters read.
    pub fn estimate(&self, read: u64) -> u64 {
        // A cast from float to integer ends at the limit.
        (self.factor * read as f64).round() as u64
    }

    /// Whether an hour's own factor is in the interval.
    pub fn holds(&self, hour: Hour) -> bool {
        (self.low..=self.high).contains(&hour.factor())
    }
}

/// An hour of history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    /// What the port's counters read, both directions.
    pub read: u64,
    /// Billed wire bytes of the same time.
    pub exact: u64,
}

impl Hour {
    fn factor(self) -> f64 {
        self.exact as f64 / self.read as f64
    }

    /// Whether there is enough in it to learn from and to be judged by.
    pub fn has_weight(self) -> bool {
        self.read >= LEAST_BYTES
    }
}

/// There is too little history for `calibrated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`calibrated` needs {FEWEST} hours of history with at least 1 MB in the port's counters; there are {hours}"
)]
pub struct TooFew {
    /// Hours that there are.
    pub hours: usize,
}

/// Learns from hours in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Calibrator {
    hours: VecDeque<Hour>,
    /// Their factors by size.
    factors: Vec<f64>,
    read: u128,
    exact: u128,
}

impl Calibrator {
    /// Returns what the hours before say of this one (or that there are too few), and learns it then.
    pub fn learn(&mut self, hour: Hour) -> Result<Calibration, TooFew> {
        let before = self.calibration();
        if !hour.has_weight() {
            return before;
        }
        if self.hours.len() == WINDOW
            && let Some(oldest) = self.hours.pop_front()
        {
            self.read -= u128::from(oldest.read);
            self.exact -= u128::from(oldest.exact);
            let place = self.place(oldest.factor());
            self.factors.remove(place);
        }
        self.read += u128::from(hour.read);
        self.exact += u128::from(hour.exact);
        let place = self.place(hour.factor());
        self.factors.insert(place, hour.factor());
        self.hours.push_back(hour);
        before
    }

    /// Returns what all hours so far say of the next.
    ///
    /// # Errors
    ///
    /// [`TooFew`].
    pub fn calibration(&self) -> Result<Calibration, TooFew> {
        let samples = self.hours.len();
        if samples < FEWEST {
            return Err(TooFew { hours: samples });
        }
        let rank = rank(samples);
        Ok(Calibration {
            factor: self.exact as f64 / self.read as f64,
            low: self.factors[rank - 1],
            high: self.factors[samples - rank],
            samples,
        })
    }

    /// Where a factor stands, or belongs.
    fn place(&self, factor: f64) -> usize {
        self.factors.partition_point(|other| *other < factor)
    }
}

/// The largest r with 1 - 2r / (n + 1) >= 90 %.
fn rank(samples: usize) -> usize {
    (samples + 1) * (100 - CONFIDENCE_PERCENT as usize) / 200
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    /// An hour with so many hundredths as its factor.
    fn hour(read: u64, hundredths: u64) -> Hour {
        Hour { read, exact: read * hundredths / 100 }
    }

    fn learnt(hours: impl IntoIterator<Item = Hour>) -> Calibrator {
        let mut calibrator = Calibrator::default();
        for hour in hours {
            let _ = calibrator.learn(hour);
        }
        calibrator
    }

    #[test]
    fn nineteen_hours_are_the_least_and_give_their_smallest_and_largest() {
        // 1 - 2 / 20 = 90 %.
        let hours: Vec<Hour> = (0..19).map(|n| hour(MB, 201 + n)).collect();
        let calibrator = learnt(hours[..18].to_vec());
        assert_eq!(calibrator.calibration(), Err(TooFew { hours: 18 }));
        let calibration = learnt(hours).calibration().unwrap();
        assert_eq!((calibration.low, calibration.high), (2.01, 2.19));
        // All hours weigh the same here: the mean of 2.01 ... 2.19.
        assert_eq!((calibration.factor, calibration.samples), (2.10, 19));
        assert_eq!(calibration.estimate(1_000_000), 2_100_000);
    }

    #[test]
    fn ranks_by_hand() {
        // r / (n + 1) <= 5 %.
        for (samples, expected) in [(19, 1), (38, 1), (39, 2), (99, 5), (100, 5), (720, 36)] {
            assert_eq!(rank(samples), expected, "{samples} hours");
        }
        // 99 hours with the factors 1.01 to 1.99, in any order: 5th smallest, 5th largest.
        let calibration =
            learnt((0..99).map(|n| hour(MB, 101 + n * 37 % 99))).calibration().unwrap();
        assert_eq!((calibration.low, calibration.high), (1.05, 1.95));
    }

    #[test]
    fn hours_count_by_their_bytes() {
        // 18 hours of 1 MB with 3.00 and one of 82 MB with 2.00: (54 + 164) / 100.
        let hours = (0..18).map(|_| hour(MB, 300)).chain([hour(82 * MB, 200)]);
        assert_eq!(learnt(hours).calibration().unwrap().factor, 2.18);
    }

    #[test]
    fn an_idle_hour_teaches_nothing() {
        let idle = Hour { read: MB - 1, exact: 50 * MB };
        let hours = (0..19).flat_map(|_| [hour(MB, 200), idle]);
        let calibration = learnt(hours).calibration().unwrap();
        assert_eq!((calibration.high, calibration.samples), (2.0, 19));
    }

    #[test]
    fn an_hour_is_judged_by_the_hours_before_it_alone() {
        let mut calibrator = learnt((0..19).map(|_| hour(MB, 200)));
        let outlier = hour(MB, 900);
        let judged = calibrator.learn(outlier).unwrap();
        assert_eq!((judged.factor, judged.high), (2.0, 2.0));
        assert!(!judged.holds(outlier));
        assert!(calibrator.calibration().unwrap().factor > 2.0);
    }

    #[test]
    fn old_hours_are_forgotten() {
        let old = (0..WINDOW as u64).map(|_| hour(MB, 500));
        let new = (0..WINDOW as u64).map(|n| hour(MB, 200 + n % 3));
        let calibration = learnt(old.chain(new)).calibration().unwrap();
        assert_eq!((calibration.low, calibration.high), (2.0, 2.02));
        assert_eq!((calibration.factor, calibration.samples), (2.01, WINDOW));
    }

    #[test]
    fn estimates_beyond_a_u64_stand_at_the_limit() {
        let hours = (0..19).map(|_| Hour { read: u64::MAX / 2, exact: u64::MAX });
        let calibration = learnt(hours).calibration().unwrap();
        assert_eq!(calibration.estimate(u64::MAX), u64::MAX);
    }

    /// What the interval promises: of exchangeable hours it holds 90 %, whatever their distribution. Every
    /// order of n + 1 hours is tried in which each of them is the last once.
    #[test]
    fn the_interval_holds_ninety_of_a_hundred_whatever_the_distribution() {
        let skewed: Vec<Hour> = (0..100_u64).map(|n| hour(MB, 100 + n * n)).collect();
        let held = (0..skewed.len()).filter(|&last| {
            let before = skewed.iter().enumerate().filter(|(at, _)| *at != last);
            let calibration = learnt(before.map(|(_, hour)| *hour)).calibration().unwrap();
            calibration.holds(skewed[last])
        });
        assert_eq!(held.count(), 90);
    }

    proptest! {
        #[test]
        fn the_sliding_window_is_what_its_hours_are(
            hours in prop::collection::vec((0_u64..50 * MB, 100_u64..500), 0..900),
        ) {
            let hours: Vec<Hour> = hours.into_iter().map(|(read, factor)| hour(read, factor)).collect();
            let calibrator = learnt(hours.clone());
            let mut window: Vec<Hour> =
                hours.into_iter().rev().filter(|hour| hour.has_weight()).take(WINDOW).collect();
            window.reverse();
            prop_assert_eq!(&calibrator.hours, &VecDeque::from(window.clone()));
            if let Ok(Calibration { factor, low, high, .. }) = calibrator.calibration() {
                let mut factors: Vec<f64> = window.iter().map(|hour| hour.factor()).collect();
                factors.sort_by(f64::total_cmp);
                prop_assert_eq!(&calibrator.factors, &factors);
                let (exact, read) = window.iter().fold((0, 0), |(exact, read), hour| {
                    (exact + hour.exact, read + hour.read)
                });
                prop_assert_eq!(factor, exact as f64 / read as f64);
                // A ratio of sums lies between the extremes; 90 % of the hours need not contain it.
                prop_assert!(factors[0] <= factor * 1.000_001 && factor <= factors[factors.len() - 1] * 1.000_001);
                prop_assert!(low <= high);
            }
        }
    }
}

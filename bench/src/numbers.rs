//! Medians, and what a value is beside its baseline.

/// Returns the value below which `part` of the values lie: 0.5 is the median. Between two values, their
/// weighted mean.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = part.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// Returns the median.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Returns the median of what each round says of a value beside the same round's baseline.
///
/// By rounds, because a machine has better and worse moments, which a round's values share.
pub fn paired(values: &[f64], baseline: &[f64], beside: impl Fn(f64, f64) -> f64) -> f64 {
    let pairs: Vec<f64> =
        values.iter().zip(baseline).map(|(&value, &base)| beside(value, base)).collect();
    median(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_round_does_not_move_the_median() {
        assert_eq!(median(&[30.0, 31.0, 900.0, 29.0, 32.0]), 31.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0, 5.0], 0.25), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_slow_moment_of_the_machine_is_no_difference() {
        // The third round was three times as slow for both.
        let (ours, empty) = ([31.0, 32.0, 93.0], [26.0, 27.0, 78.0]);
        assert_eq!(paired(&ours, &empty, |ours, empty| ours - empty), 5.0);
        let ratio = paired(&ours, &empty, |ours, empty| ours / empty);
        assert!((ratio - 31.0 / 26.0).abs() < 0.01, "{ratio}");
    }
}

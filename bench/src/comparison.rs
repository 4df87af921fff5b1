//! The values of one question: subjects in scenarios, by rounds.

use serde::Serialize;

use crate::numbers::{median, paired, quantile};

/// How a subject is set beside the first one, the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// By how much more it is.
    Difference,
    /// How many times as much.
    Ratio,
    /// Not at all: there is nothing to compare with.
    Nothing,
}

/// One question, and what was measured.
#[derive(Debug)]
pub struct Comparison {
    /// The part of the bench: `a` to `g`.
    pub part: char,
    /// What was measured.
    pub title: String,
    /// Its unit.
    pub unit: &'static str,
    /// How subjects are set beside the first.
    pub against: Against,
    scenarios: Vec<String>,
    subjects: Vec<String>,
    /// By scenario, subject, round.
    values: Vec<Vec<Vec<f64>>>,
}

/// One cell of the table.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The subject.
    pub subject: String,
    /// How many values there are.
    pub rounds: usize,
    /// Of all rounds.
    pub median: f64,
    /// A quarter of the rounds is below.
    pub lower_quartile: f64,
    /// A quarter of the rounds is above.
    pub upper_quartile: f64,
    /// Median of the rounds' differences from the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
    /// Median of the rounds' ratios to the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Comparison {
    /// A question without values yet.
    pub fn new(
        part: char,
        title: impl Into<String>,
        unit: &'static str,
        against: Against,
        scenarios: Vec<String>,
        subjects: Vec<String>,
    ) -> Self {
        let values = vec![vec![Vec::new(); subjects.len()]; scenarios.len()];
        Self { part, title: title.into(), unit, against, scenarios, subjects, values }
    }

    /// Adds the value of a round.
    pub fn push(&mut self, scenario: usize, subject: usize, value: f64) {
        self.values[scenario][subject].push(value);
    }

    /// The scenarios, in order.
    pub fn scenarios(&self) -> &[String] {
        &self.scenarios
    }

    /// The subjects, in order; the first is the baseline.
    pub fn subjects(&self) -> &[String] {
        &self.subjects
    }

    /// What a scenario says of its subjects.
    pub fn summaries(&self, scenario: usize) -> Vec<Summary> {
        let of_scenario = &self.values[scenario];
        let compared = self.against != Against::Nothing;
        self.subjects
            .iter()
            .zip(of_scenario)
            .enumerate()
            .map(|(index, (subject, values))| {
                let beside = |beside: fn(f64, f64) -> f64| {
                    (compared && index > 0).then(|| paired(values, &of_scenario[0], beside))
                };
                Summary {
                    subject: subject.clone(),
                    rounds: values.len(),
                    median: median(values),
                    lower_quartile: quantile(values, 0.25),
                    upper_quartile: quantile(values, 0.75),
                    difference: beside(|value, base| value - base),
                    ratio: beside(|value, base| value / base),
                }
            })
            .collect()
    }
}

/// The order of `subjects` in a round: forwards, then backwards, so that none is always behind another.
pub fn order(round: usize, subjects: usize) -> Vec<usize> {
    let forwards = 0..subjects;
    if round.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_compared_with_nothing() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut question = Comparison::new(
            'a',
            "cost",
            "ns",
            Against::Difference,
            names(&["ACK"]),
            names(&["empty", "ours"]),
        );
        for (empty, ours) in [(26.0, 32.0), (27.0, 32.0), (26.0, 31.0)] {
            question.push(0, 0, empty);
            question.push(0, 1, ours);
        }
        let [empty, ours] = &question.summaries(0)[..] else { panic!("two subjects") };
        assert_eq!((empty.median, empty.difference), (26.0, None));
        assert_eq!((ours.median, ours.difference, ours.rounds), (32.0, Some(5.0), 3));
    }

    #[test]
    fn the_order_alternates() {
        assert_eq!([order(0, 3), order(1, 3)], [[0, 1, 2], [2, 1, 0]]);
    }
}

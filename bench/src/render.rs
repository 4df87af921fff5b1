//! The numbers as tables for people, and as JSON.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::comparison::{Against, Comparison, Summary};

/// Version of the JSON's shape.
const FORMAT: u32 = 1;

/// The machine that the numbers are of.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Processors online.
    pub cpus: usize,
    /// The processor's name.
    pub processor: String,
}

/// Returns all comparisons as tables: a row per subject, a column per scenario.
pub fn tables(machine: &Machine, comparisons: &[Comparison]) -> String {
    let mut text = format!("Linux {}, {} x {}\n", machine.kernel, machine.cpus, machine.processor);
    for comparison in comparisons {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{}\n", table(comparison));
    }
    text
}

fn table(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let head = std::iter::once(String::new()).chain(comparison.scenarios().iter().cloned());
    table.set_header(head);
    let columns: Vec<Vec<Summary>> =
        (0..comparison.scenarios().len()).map(|column| comparison.summaries(column)).collect();
    for (row, subject) in comparison.subjects().iter().enumerate() {
        let cells = columns.iter().map(|column| cell(&column[row], comparison.against));
        table.add_row(std::iter::once(subject.clone()).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let beside = match comparison.against {
        Against::Difference => format!("; in brackets: more than `{}`", comparison.subjects()[0]),
        Against::Ratio => format!("; in brackets: times `{}`", comparison.subjects()[0]),
        Against::Nothing => String::new(),
    };
    // The first column's padding goes; two columns before it set it off from its title.
    let text: String = table
        .lines()
        .map(|line| format!("  {}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end()))
        .collect();
    format!(
        "{}) {}, {} (medians{beside})\n{text}",
        comparison.part, comparison.title, comparison.unit
    )
}

fn cell(summary: &Summary, against: Against) -> String {
    let value = number(summary.median);
    match (against, summary.difference, summary.ratio) {
        (Against::Difference, Some(difference), _) => format!("{value} ({difference:+.1})"),
        (Against::Ratio, _, Some(ratio)) => format!("{value} ({ratio:.3})"),
        _ => value,
    }
}

/// Three digits are more than the machine is sure of.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    command: &'static str,
    machine: &'a Machine,
    comparisons: Vec<Question<'a>>,
}

#[derive(Serialize)]
struct Question<'a> {
    part: char,
    title: &'a str,
    unit: &'a str,
    scenarios: Vec<Scenario<'a>>,
}

#[derive(Serialize)]
struct Scenario<'a> {
    scenario: &'a str,
    subjects: Vec<Summary>,
}

/// Returns all comparisons as JSON.
pub fn json(machine: &Machine, comparisons: &[Comparison]) -> serde_json::Result<String> {
    let comparisons = comparisons
        .iter()
        .map(|comparison| Question {
            part: comparison.part,
            title: &comparison.title,
            unit: comparison.unit,
            scenarios: comparison
                .scenarios()
                .iter()
                .enumerate()
                .map(|(column, scenario)| Scenario {
                    scenario,
                    subjects: comparison.summaries(column),
                })
                .collect(),
        })
        .collect();
    serde_json::to_string_pretty(&Document {
        format: FORMAT,
        command: "bench",
        machine,
        comparisons,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(against: Against) -> Comparison {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut comparison =
            Comparison::new('b', "bulk", "Gbit/s", against, names(&["TCP"]), names(&["no", "we"]));
        comparison.push(0, 0, 8.0);
        comparison.push(0, 1, 7.96);
        comparison
    }

    #[test]
    fn a_table_has_medians_and_what_they_are_beside_the_baseline() {
        let text = table(&measured(Against::Ratio));
        assert!(text.starts_with("b) bulk, Gbit/s (medians; in brackets: times `no`)"), "{text}");
        assert!(text.contains("7.96 (0.995)"), "{text}");
        assert!(table(&measured(Against::Difference)).contains("7.96 (-0.0)"));
    }

    #[test]
    fn json_names_everything_by_its_unit() {
        let machine = Machine { kernel: "6.1".into(), cpus: 2, processor: "x".into() };
        let text = json(&machine, &[measured(Against::Ratio)]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let question = &value["comparisons"][0];
        assert_eq!(question["unit"], "Gbit/s");
        assert_eq!(question["scenarios"][0]["subjects"][1]["ratio"], 0.995);
        assert!(question["scenarios"][0]["subjects"][0].get("ratio").is_none());
    }
}

//! What the demo found: per workload the exact figure, the far ends' own, and every estimate.

use std::io::{self, Write};

use csv::WriterBuilder;

use super::Options;
use super::csv::io_error;
use super::table::{self, write_title};
use super::text::{Grid, Style, tame, write_labelled};
use crate::report::{DemoReport, DemoWorkload};
use crate::units::{NONE, format_bytes, format_count, format_signed_percent};

/// Writes a block per workload and a sentence at the end.
pub fn write(report: &DemoReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let proxy = tame(&report.proxy);
    writeln!(out, "Through the {proxy} in a counted cgroup, between two other hosts:")?;
    for workload in &report.workloads {
        write_title(&format!("{}: {}", workload.name, workload.description), options, out)?;
        write_workload(workload, options, out)?;
    }
    // What keeps rules from being read is the same for all of them.
    if let Some(first) = report.workloads.first() {
        let mut findings = first.target.findings.clone();
        for finding in report.workloads.iter().flat_map(|workload| &workload.target.findings) {
            if !findings.iter().any(|known| known.code == finding.code) {
                findings.push(finding.clone());
            }
        }
        if !findings.is_empty() {
            write_title("Findings", options, out)?;
            table::write_findings(&findings, options, out)?;
        }
    }
    writeln!(out)?;
    write_labelled(&[("Verdict:", Style::Bold, 9)], &verdict(report), options, out)
}

fn write_workload(
    workload: &DemoWorkload,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let bytes = |bytes| format_bytes(bytes, options.units);
    let plain = |text: String| (text, Style::Plain);
    let target = &workload.target;
    let billed = &target.totals.billed;
    let mut grid = Grid::new(&[("", '<'), ("bytes", '>'), ("error", '>'), ("", '<')], options);
    grid.styled_row([
        ("exact".to_owned(), Style::Bold),
        (bytes(target.total_wire_bytes), Style::Bold),
        plain(String::new()),
        plain(format!(
            "{} in, {} out",
            bytes(billed.ingress.wire_bytes),
            bytes(billed.egress.wire_bytes)
        )),
    ]);
    let apart = match workload.difference_bytes {
        0 => "0 B apart: the same to the byte".to_owned(),
        apart => format!(
            "{} B apart; the kernel reset closed connections by itself: {} B",
            format_signed(apart),
            format_count(workload.answered_by_kernel_bytes)
        ),
    };
    let far_ends = "far ends".to_owned();
    grid.row([far_ends, bytes(workload.far_ends_bytes), String::new(), apart]);
    for estimate in &target.estimates {
        let error = estimate.error_percent.map_or(NONE.to_owned(), format_signed_percent);
        let style = match estimate.error_percent {
            Some(error) if error.abs() <= 20.0 => Style::Green,
            Some(_) => Style::Red,
            None => Style::Dim,
        };
        let published = if estimate.name == "in-x2" { ", as published" } else { "" };
        grid.styled_row([
            plain(estimate.name.to_owned()),
            plain(bytes(estimate.total_bytes)),
            (error, style),
            plain(format!("{} from {}{published}", estimate.formula, estimate.source)),
        ]);
    }
    grid.write(out)
}

fn format_signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "+" };
    format!("{sign}{}", format_count(number.unsigned_abs()))
}

/// One sentence: how far the published estimate is off, from workload to workload.
fn verdict(report: &DemoReport) -> String {
    let errors: Vec<f64> = report
        .workloads
        .iter()
        .filter_map(|workload| workload.target.estimates.first()?.error_percent)
        .collect();
    let apart: u64 =
        report.workloads.iter().map(|workload| workload.difference_bytes.unsigned_abs()).sum();
    let held = errors.iter().filter(|error| error.abs() <= 20.0).count();
    let (Some(low), Some(high)) =
        (errors.iter().copied().reduce(f64::min), errors.iter().copied().reduce(f64::max))
    else {
        return "No workload could be judged.".to_owned();
    };
    format!(
        "the exact figure is {} B apart from what the far ends saw; the published estimate (2 x in, \
         \"within 20 %\") is off by {} to {}, and holds in {held} of {} workloads.",
        format_count(apart),
        format_signed_percent(low),
        format_signed_percent(high),
        errors.len()
    )
}

/// Writes one row per workload and figure: `workload,figure,source,bytes,error_percent`.
pub fn write_csv(report: &DemoReport, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = WriterBuilder::new().from_writer(out);
    let mut row = |cells: [&str; 5]| rows.write_record(cells).map_err(io_error);
    row(["workload", "figure", "source", "bytes", "error_percent"])?;
    for workload in &report.workloads {
        let name = workload.name;
        row([name, "exact", "ebpf", &workload.target.total_wire_bytes.to_string(), ""])?;
        row([name, "far-ends", "capture", &workload.far_ends_bytes.to_string(), ""])?;
        for estimate in &workload.target.estimates {
            let error = estimate.error_percent.map(|error| error.to_string()).unwrap_or_default();
            row([name, estimate.name, estimate.source, &estimate.total_bytes.to_string(), &error])?;
        }
    }
    rows.flush()
}

//! The part of the report that compares: what other methods read, and how wrong the estimates are.

use std::io::{self, Write};

use super::{
    Options,
    table::{word, write_title},
    text::{Grid, Style, tame, write_labelled},
};
use crate::{
    report::{Claim, Covers, EstimateReport, Layer, MethodReport, RuleReport, TargetReport},
    units::{
        NONE, Units, format_bytes, format_count, format_percent, format_ratio,
        format_signed_percent,
    },
};

/// Columns before the reason why a method has no reading.
const METHOD: usize = 17;

/// Writes the methods, their rules if verbose, the estimates, the capture rates and the ratio.
pub(super) fn write(
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    if !target.methods.is_empty() {
        write_methods(&target.methods, options, out)?;
    }
    // One table for each reading: an estimate means nothing without what it was made of.
    for estimates in target.estimates.chunk_by(|a, b| a.source == b.source) {
        write_estimates(estimates, options, out)?;
    }
    write_rates(target, options, out)
}

fn write_methods(
    methods: &[MethodReport],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    write_title("Methods", options, out)?;
    // Exact figures are long: without their sum a line still fits into 80 columns.
    let total = options.units != Units::Bytes;
    let mut headings = vec![("method", '<'), ("covers", '<'), ("layer", '<')];
    headings.extend([("ingress", '>'), ("egress", '>')]);
    headings.extend(total.then_some(("total", '>')));
    let mut grid = Grid::new(&headings, options);
    let (available, unavailable): (Vec<_>, Vec<_>) =
        methods.iter().partition(|method| method.available);
    for method in &available {
        let bytes = |bytes: Option<u64>| {
            bytes.map_or(NONE.to_owned(), |bytes| format_bytes(bytes, options.units))
        };
        let sum = method.ingress_bytes.zip(method.egress_bytes).map(|(a, b)| a.saturating_add(b));
        let mut row = vec![method.name.to_owned()];
        row.extend([covers(method.covers).to_owned(), layer(method.layer).to_owned()]);
        row.extend([bytes(method.ingress_bytes), bytes(method.egress_bytes)]);
        row.extend(total.then(|| bytes(sum)));
        grid.row(row);
    }
    if !available.is_empty() {
        grid.write(out)?;
    }
    for method in unavailable {
        let reason = method.reason.as_deref().unwrap_or("no reason was given");
        let labels = [("", Style::Plain, 2), (method.name, Style::Plain, METHOD - 2)];
        write_labelled(&labels, &format!("not available: {reason}"), options, out)?;
    }
    if options.verbose {
        methods.iter().try_for_each(|method| write_rules(method, options, out))?;
    }
    Ok(())
}

fn covers(covers: Covers) -> &'static str {
    match covers {
        Covers::Target => "target",
        Covers::ClientLeg => "client leg",
        Covers::Interfaces => "interfaces",
    }
}

fn layer(layer: Layer) -> &'static str {
    match layer {
        Layer::L3 => "L3",
        Layer::L3Wire => "L3 wire",
        Layer::L2 => "L2",
    }
}

fn write_rules(method: &MethodReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if method.rules.is_empty() {
        return Ok(());
    }
    write_title(&format!("Counters behind {}", method.name), options, out)?;
    let width = if options.units == Units::Bytes { 15 } else { 9 };
    for rule in &method.rules {
        let RuleReport { backend, table, chain, direction, bytes, packets, .. } = rule;
        let place: Vec<&str> =
            [table, chain].into_iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        writeln!(
            out,
            "  {:7}  {:>width$}  {:>11} packets  {} {}",
            word(direction),
            format_bytes(*bytes, options.units),
            format_count(*packets),
            tame(backend),
            tame(&place.join("/")),
        )?;
        let indent = ("", Style::Plain, 11);
        if !rule.rule.is_empty() {
            write_labelled(&[indent], &rule.rule, options, out)?;
        }
        let remark = match (rule.counted, &rule.reason) {
            (true, None) => continue,
            (true, Some(limit)) => limit.clone(),
            (false, None) => "not in the sum".to_owned(),
            (false, Some(reason)) => format!("not in the sum: {reason}"),
        };
        write_labelled(&[indent], &format!("({remark})"), options, out)?;
    }
    Ok(())
}

fn write_estimates(
    estimates: &[EstimateReport],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    // Estimates of one reading are held against the same claims: those are the columns.
    let mut claims: Vec<&'static str> = Vec::new();
    for claim in estimates.iter().flat_map(|estimate| &estimate.claims) {
        if !claims.contains(&claim.claim) {
            claims.push(claim.claim);
        }
    }
    let source = estimates.first().map_or("", |estimate| estimate.source);
    write_title(&format!("Estimates from {source}"), options, out)?;
    let numbers: Vec<String> = (1..=claims.len()).map(|number| format!("({number})")).collect();
    let mut headings = vec![("estimate", '<'), ("formula", '<'), ("total", '>'), ("error", '>')];
    headings.extend(numbers.iter().map(|number| (number.as_str(), '<')));
    let mut grid = Grid::new(&headings, options);
    for estimate in estimates {
        let error = estimate.error_percent.map_or(NONE.to_owned(), format_signed_percent);
        let mut row = vec![
            (estimate.name.to_owned(), Style::Plain),
            (estimate.formula.to_owned(), Style::Plain),
            (format_bytes(estimate.total_bytes, options.units), Style::Plain),
            (error, Style::Bold),
        ];
        row.extend(claims.iter().map(|wanted| {
            match estimate.claims.iter().find(|Claim { claim, .. }| claim == wanted) {
                Some(Claim { holds: Some(true), .. }) => ("yes".to_owned(), Style::Green),
                Some(Claim { holds: Some(false), .. }) => ("no".to_owned(), Style::Red),
                _ => (NONE.to_owned(), Style::Dim),
            }
        }));
        grid.styled_row(row);
    }
    grid.write(out)?;
    for calibration in estimates.iter().filter_map(|estimate| estimate.calibration) {
        let indent = [("", Style::Plain, 2)];
        write_labelled(&indent, &calibration.to_string(), options, out)?;
    }
    if claims.is_empty() {
        return Ok(());
    }
    let legend: Vec<String> =
        numbers.iter().zip(claims).map(|(number, claim)| format!("{number} {claim}")).collect();
    let labels = [("", Style::Plain, 2), ("claims held:", Style::Dim, 13)];
    write_labelled(&labels, &legend.join("; "), options, out)
}

fn write_rates(target: &TargetReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if target.capture_rates.is_empty() && target.ratio.is_none() {
        return Ok(());
    }
    write_title("Capture", options, out)?;
    let indent = [("", Style::Plain, 2)];
    for rates in
        target.capture_rates.chunk_by(|a, b| (a.method, a.reference) == (b.method, b.reference))
    {
        let shares: Vec<String> = rates
            .iter()
            .map(|rate| {
                let percent = rate.percent.map_or(NONE.to_owned(), format_percent);
                format!("{percent} of {}", word(&rate.direction))
            })
            .collect();
        if let [first, ..] = rates {
            let reference = match first.reference {
                "exact" => "the exact figure",
                other => other,
            };
            let text = format!("{} saw {} (of {reference})", first.method, shares.join(" and "));
            write_labelled(&indent, &text, options, out)?;
        }
    }
    if let Some(ratio) = target.ratio {
        let ratio = ratio.egress_per_ingress.map_or(NONE.to_owned(), format_ratio);
        let text = format!("client leg, ingress : egress = 1 : {ratio}");
        write_labelled(&indent, &text, options, out)?;
    }
    Ok(())
}

//! One target with every other way to measure it beside: the readings at both ends, and what they say
//! of each other.

use std::os::fd::AsFd as _;

use anyhow::Result;

use crate::estimate::calibration::Calibration;
use crate::estimate::{self, PortBytes};
use crate::history::Method;
use crate::kernel::Sample;
use crate::ledger;
use crate::measure::{Measurement, finding};
use crate::method::added::AddedRules;
use crate::method::firewall::{self, Firewall};
use crate::method::{ListeningPort, PortCell, interface};
use crate::netns::NetNs;
use crate::report::{
    CellReport, Counters, Covers, Direction, Directions, Finding, Layer, Leg, MethodReport, Scope,
    Severity, TargetReport,
};
use crate::target::PortFilter;
use crate::units::{self, Units};

/// Why rules and interfaces say nothing of a command that entered another network namespace.
const ELSEWHERE: &str = "the target runs in another network namespace than it did at the start";

/// How the estimate is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The ports that the estimate reads; all listening ones if none is named.
    pub estimate_ports: PortFilter,
    /// Count with rules of our own.
    pub add_rules: bool,
}

/// A running comparison of one target.
pub struct Comparison<'h> {
    measurement: Measurement<'h>,
    options: Options,
    network: NetNs,
    added: Option<AddedRules>,
    /// What the target's history says, by the method that it is of.
    calibrations: Vec<(Method, Calibration)>,
    rules: firewall::Reading,
    interfaces: Result<interface::Interfaces, interface::Error>,
    start: Sample,
}

impl<'h> Comparison<'h> {
    /// Takes the first readings. The hook's last, because it is the quickest to read: what the rules
    /// and the hook saw is then as nearly the same time as can be.
    pub fn start(mut measurement: Measurement<'h>, options: &Options) -> Result<Self> {
        let network = measurement.network()?;
        let ports = estimate_ports(&mut measurement, options);
        let added = match options.add_rules {
            true => Some(AddedRules::add(Some(network.as_fd()), &ports)?),
            false => None,
        };
        let rules = read_rules(added.as_ref(), &network, &ports)?;
        let interfaces = network.run(interface::read)?;
        let start = measurement.sample()?;
        Ok(Self {
            measurement,
            options: options.clone(),
            network,
            added,
            calibrations: Vec::new(),
            rules,
            interfaces,
            start,
        })
    }

    /// Makes `calibrated` one of the estimates, if it is made of one of these methods.
    pub fn calibrate(&mut self, calibrations: Vec<(Method, Calibration)>) {
        self.calibrations = calibrations;
    }

    /// The measurement behind it.
    pub fn measurement(&mut self) -> &mut Measurement<'h> {
        &mut self.measurement
    }

    /// Follows the target, and with it the rules that were added.
    pub fn follow(&mut self) {
        self.measurement.follow_or_note();
        if let Some(added) = &mut self.added {
            for port in estimate_ports(&mut self.measurement, &self.options) {
                if let Err(error) = added.ensure(port) {
                    self.measurement.note_once("rules-not-added", &error);
                }
            }
        }
    }

    /// What was counted since the start: the cells with their names.
    pub fn cells_so_far(&mut self) -> Result<Vec<CellReport>> {
        let now = self.measurement.sample()?;
        self.measurement.cells(&self.start, &now)
    }

    /// Billed wire bytes since the start.
    pub fn billed_so_far(&mut self) -> Result<u64> {
        Ok(ledger::totals(&self.cells_so_far()?).billed.wire_bytes())
    }

    /// Takes the last readings and holds them against each other.
    pub fn finish(mut self, units: Units) -> Result<TargetReport> {
        let ports = estimate_ports(&mut self.measurement, &self.options);
        // Whatever fails from here on is a row without figures: the exact ones are never lost.
        let rules = read_rules(self.added.as_ref(), &self.network, &ports);
        let interfaces = self.network.run(interface::read);
        let end = self.measurement.sample()?;
        if let Some(added) = self.added.take()
            && let Err(error) = added.remove()
        {
            self.measurement.note_once("rules-left-behind", &error);
        }
        let elsewhere =
            self.measurement.network().is_ok_and(|now| now.inode() != self.network.inode());
        let mut report = self.measurement.report(&self.start, &end)?;

        let client =
            |cell: &CellReport| cell.leg == Leg::Client && chosen(&self.options, cell, &ports);
        let hook = port_bytes(&ledger::sum(&report.cells, client));
        let rules = match rules {
            _ if elsewhere => Err(ELSEWHERE.to_owned()),
            Ok(rules) => firewall::difference(&self.rules, &rules),
            Err(error) => Err(format!("{error:#}")),
        };
        let (rules_row, by_rules) = match &rules {
            Ok(measured) => {
                report.findings.extend(rule_findings(measured, &report.cells, &client));
                let bytes = measured
                    .bytes(Direction::Ingress)
                    .zip(measured.bytes(Direction::Egress))
                    .map(|(ingress, egress)| PortBytes { ingress, egress });
                (measured.report(), bytes)
            }
            Err(reason) => {
                report.findings.push(rules_changed(reason));
                (firewall::unavailable(reason.clone()), None)
            }
        };
        let interface_row = match interfaces {
            _ if elsewhere => interface::unavailable(ELSEWHERE.to_owned()),
            Ok(interfaces) => interface_row(&self.interfaces, &interfaces),
            Err(error) => interface::unavailable(error.to_string()),
        };
        let exact = exact_bytes(&report);
        report.findings.extend(loopback_finding(&report.cells, &client));
        let used_rules = by_rules.and(rules.as_ref().ok());
        let left_out = ports_left_out(&report.cells, &self.options, &ports, used_rules);
        // Rules for one direction, as the published recipe has them: its estimate is theirs.
        let one_way = match (&rules, by_rules) {
            (Ok(measured), None) => {
                [measured.bytes(Direction::Ingress), measured.bytes(Direction::Egress)]
            }
            _ => [None, None],
        };
        let without_rule = match one_way {
            [None, None] => left_out.clone(),
            _ => ports_left_out(&report.cells, &self.options, &ports, rules.as_ref().ok()),
        };
        report.findings.extend(not_all_ports(&without_rule));

        let (source, seen) = match by_rules {
            Some(bytes) => ("iptables-port", bytes),
            None => ("hook-port", hook),
        };
        let comparable = left_out.is_empty().then_some(report.total_wire_bytes);
        report.estimates = estimate::estimates(source, seen, comparable);
        let comparable = without_rule.is_empty().then_some(report.total_wire_bytes);
        // `in-x2` and `out-x2`, in this order, are made of one direction each.
        for (recipe, bytes) in one_way.into_iter().enumerate() {
            if let Some(bytes) = bytes {
                let port = PortBytes { ingress: bytes, egress: bytes };
                report.estimates[recipe] =
                    estimate::estimates("iptables-port", port, comparable).swap_remove(recipe);
            }
        }
        // Learnt of all ports, so it says nothing of some of them.
        let of_source = |(method, _): &&(Method, Calibration)| method.name() == source;
        if left_out.is_empty()
            && let Some((_, calibration)) = self.calibrations.iter().find(of_source)
        {
            let total = calibration.estimate(seen.sum());
            let exact = Some(report.total_wire_bytes);
            report.estimates.push(estimate::calibrated(source, total, exact, *calibration));
        }
        if report.estimates.iter().any(|estimate| estimate.total_bytes == u64::MAX) {
            report.findings.push(finding::at_limit("estimates", false));
        }
        report.capture_rates = estimate::capture_rates(source, seen, "exact", exact).to_vec();
        if let (Some(ingress), Some(egress)) =
            (interface_row.ingress_bytes, interface_row.egress_bytes)
        {
            let interface = PortBytes { ingress, egress };
            report.capture_rates.extend(estimate::capture_rates(
                source,
                seen,
                "interface",
                interface,
            ));
        }
        report.ratio = Some(estimate::ratio(seen));
        report.methods = vec![
            method_row("ebpf", Covers::Target, Layer::L3Wire, exact),
            rules_row,
            method_row("hook-port", Covers::ClientLeg, Layer::L3, hook),
            interface_row,
        ];
        report.complete = !report.findings.iter().any(|finding| finding.incomplete);
        report.verdict = verdict(&report, units);
        Ok(report)
    }
}

/// The ports whose traffic the estimate is made of.
fn estimate_ports(measurement: &mut Measurement<'_>, options: &Options) -> Vec<ListeningPort> {
    let mut ports = measurement.client_ports();
    if !options.estimate_ports.0.is_empty() {
        ports.retain(|port| options.estimate_ports.adds(*port));
    }
    ports
}

/// Whether the estimate is to be made of this cell.
fn chosen(options: &Options, cell: &CellReport, ports: &[ListeningPort]) -> bool {
    options.estimate_ports.0.is_empty()
        || cell
            .port
            .is_some_and(|port| ports.contains(&ListeningPort { protocol: cell.protocol, port }))
}

fn read_rules(
    added: Option<&AddedRules>,
    network: &NetNs,
    ports: &[ListeningPort],
) -> Result<firewall::Reading> {
    Ok(match added {
        Some(added) => added.read()?,
        None => Firewall::read(Some(network.as_fd()), ports),
    })
}

fn port_bytes(sum: &Directions) -> PortBytes {
    PortBytes { ingress: sum.ingress.bytes, egress: sum.egress.bytes }
}

fn exact_bytes(report: &TargetReport) -> PortBytes {
    let billed = &report.totals.billed;
    PortBytes { ingress: billed.ingress.wire_bytes, egress: billed.egress.wire_bytes }
}

fn method_row(name: &'static str, covers: Covers, layer: Layer, bytes: PortBytes) -> MethodReport {
    MethodReport {
        name,
        covers,
        layer,
        available: true,
        reason: None,
        ingress_bytes: Some(bytes.ingress),
        egress_bytes: Some(bytes.egress),
        rules: Vec::new(),
    }
}

fn interface_row(
    start: &Result<interface::Interfaces, interface::Error>,
    end: &Result<interface::Interfaces, interface::Error>,
) -> MethodReport {
    let difference = match (start, end) {
        (Ok(start), Ok(end)) => interface::difference(start, end),
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
    };
    difference.unwrap_or_else(interface::unavailable)
}

/// What the rules say of themselves, held against the hook.
fn rule_findings(
    measured: &firewall::Measured,
    cells: &[CellReport],
    client: &dyn Fn(&CellReport) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let covered = ledger::sum(cells, |cell| {
            client(cell)
                && cell.direction == direction
                && part_of(cell).is_some_and(|part| measured.coverage.covers(&part))
        });
        let hook = covered.ingress.bytes.saturating_add(covered.egress.bytes);
        findings.extend(measured.shadow_finding(direction, hook));
    }
    let uncovered = |cell: &&CellReport| {
        client(cell)
            && cell.counters.bytes > 0
            && part_of(cell).is_some_and(|part| {
                measured.coverage.has(part.direction)
                    && !measured.coverage.covers(&part)
                    && !measured.coverage.uncovered_ports(part.direction).contains(&part.listening)
            })
    };
    let missed: Vec<&CellReport> = cells.iter().filter(uncovered).collect();
    if let Some(first) = missed.first().and_then(|cell| part_of(cell)) {
        let bytes = missed.iter().map(|cell| cell.counters).sum::<Counters>().bytes;
        findings.push(Finding {
            severity: Severity::Warning,
            code: "rules-incomplete",
            message: format!("no rule counts {first}, nor others: {bytes} bytes are in no counter"),
            remedy: "add the same rules with ip6tables, or use --add-rules".to_owned(),
            incomplete: false,
        });
    }
    findings
}

fn part_of(cell: &CellReport) -> Option<PortCell> {
    let listening = ListeningPort { protocol: cell.protocol, port: cell.port? };
    Some(PortCell { family: cell.family, direction: cell.direction, listening })
}

/// Listening ports with traffic that the estimate is not made of: then the exact figure is of more
/// than the estimate, and their difference is not its error.
fn ports_left_out(
    cells: &[CellReport],
    options: &Options,
    ports: &[ListeningPort],
    rules: Option<&firewall::Measured>,
) -> Vec<ListeningPort> {
    let mut left_out: Vec<ListeningPort> = cells
        .iter()
        .filter(|cell| cell.leg == Leg::Client && cell.scope != Scope::Loopback)
        .filter_map(|cell| {
            let listening = ListeningPort { protocol: cell.protocol, port: cell.port? };
            let without_rule = rules.is_some_and(|rules| {
                rules.coverage.has(cell.direction)
                    && rules.coverage.uncovered_ports(cell.direction).contains(&listening)
            });
            (without_rule || !chosen(options, cell, ports)).then_some(listening)
        })
        .collect();
    left_out.sort_unstable();
    left_out.dedup();
    left_out
}

fn not_all_ports(left_out: &[ListeningPort]) -> Option<Finding> {
    let ports: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    (!ports.is_empty()).then(|| Finding {
        severity: Severity::Warning,
        code: "not-all-ports",
        message: format!(
            "the estimate is made without {}, which had traffic: it has no error to give, because \
             the exact figure is of all ports",
            ports.join(", ")
        ),
        remedy: "add rules for them, use --add-rules, or take them away with --port '!...'"
            .to_owned(),
        incomplete: false,
    })
}

fn rules_changed(reason: &str) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "rules-changed",
        message: reason.to_owned(),
        remedy: "measure again while nobody changes the firewall; hook-port takes its place here"
            .to_owned(),
        incomplete: false,
    }
}

/// A front server on the same host comes in over loopback: the rules count it, nobody bills it.
fn loopback_finding(cells: &[CellReport], client: &dyn Fn(&CellReport) -> bool) -> Option<Finding> {
    let loopback = ledger::sum(cells, |cell| client(cell) && cell.scope == Scope::Loopback);
    let PortBytes { ingress, egress } = port_bytes(&loopback);
    (ingress > 0 || egress > 0).then(|| Finding {
        severity: Severity::Warning,
        code: "loopback-in-estimate",
        message: format!(
            "the port's counters contain loopback connections, as of a front server on this host: \
             {ingress} bytes in, {egress} bytes out, which nobody bills"
        ),
        remedy: "exclude them in the rules with `! -i lo` and `! -o lo`".to_owned(),
        incomplete: false,
    })
}

/// One sentence: what the published estimate is worth here.
fn verdict(report: &TargetReport, units: Units) -> String {
    let shared = report.findings.iter().any(|finding| finding.code == "cgroup-shared");
    let subject = match shared {
        true => "cgroup",
        false if report.selector.starts_with("exec:") => "command",
        false => "proxy",
    };
    let exact = units::format_bytes(report.total_wire_bytes, units);
    let qualifier = if report.complete { "" } else { "at least " };
    if report.total_wire_bytes == 0 {
        return match report.complete {
            true => format!("The {subject} used no billed traffic."),
            false => {
                format!("Nothing of the {subject}'s traffic was counted; the findings say why.")
            }
        };
    }
    let Some(published) = report.estimates.first() else {
        return format!("The {subject} used {qualifier}{exact}.");
    };
    let estimate = units::format_bytes(published.total_bytes, units);
    let Some(error) = published.error_percent else {
        return format!(
            "The {subject} used {qualifier}{exact}; the published estimate (2 x in) of some of its \
             ports says {estimate}."
        );
    };
    let judged = match error {
        error if error < -20.0 => "too low, beyond the 20 % that are claimed",
        error if error > 20.0 => "too high, beyond the 20 % that are claimed",
        error if error < 0.0 => "too low, within the 20 % that are claimed",
        0.0 => "off, just right",
        _ => "too high, within the 20 % that are claimed",
    };
    format!(
        "The {subject} used {qualifier}{exact}; the published estimate (2 x in) says {estimate}: \
         {} {judged}.",
        units::format_percent(error.abs())
    )
}

//! What is to be said of a target: what it resolves to, and what of its traffic will be counted.

use std::os::fd::AsFd;

use super::{attached, failed, host};
use crate::check::{Check, CheckStatus};
use crate::method::ListeningPort;
use crate::method::firewall::{Firewall, Reading};
use crate::netns::NetNs;
use crate::report::{Direction, Finding, Severity};
use crate::target::sockets::Which;
use crate::target::{
    self as targets, Host, Listening, PortFilter, Resolved, Survey, TargetSpec, ownership, resolve,
};

/// How many processes or ports a line names.
const LISTED: usize = 8;

/// Looks at each target, and at all of them together.
pub(super) fn look_all(host: &Host, specs: &[TargetSpec], ports: &PortFilter) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut found: Vec<(&str, Resolved)> = Vec::new();
    for spec in specs {
        match resolve(host, spec) {
            Err(error) => {
                let mut check = failed("target", &error, "name another one");
                check.message = format!("{}: {}", spec.name, check.message);
                checks.push(check);
            }
            Ok(resolved) => {
                checks.extend(look(host, spec, &resolved, ports));
                found.push((&spec.name, resolved));
            }
        }
    }
    let together: Vec<_> =
        found.iter().map(|(name, resolved)| (*name, resolved.cgroups.as_slice())).collect();
    checks.extend(
        resolve::overlaps(&together).iter().map(|finding| of_finding("overlap", None, finding)),
    );
    checks
}

fn look(host: &Host, spec: &TargetSpec, resolved: &Resolved, ports: &PortFilter) -> Vec<Check> {
    let name = &spec.name;
    let cgroups: Vec<_> = resolved
        .cgroups
        .iter()
        .map(|cgroup| format!("{} (id {})", cgroup.path, cgroup.id))
        .collect();
    let place = format!("{name}: {} is cgroup {}", spec.selector(), cgroups.join(", "));
    let mut checks = vec![Check::ok("target", place)];
    checks.extend(resolved.notes.iter().map(|note| Check::ok("target", format!("{name}: {note}"))));
    match Survey::take(host, &resolved.cgroups, Which::All) {
        Ok(survey) => checks.extend(surveyed(host, spec, &survey, ports)),
        Err(error) => {
            let mut check = failed("processes", &error, "run as root");
            check.message = format!("{name}: {}", check.message);
            checks.push(check);
        }
    }
    for cgroup in &resolved.cgroups {
        checks.extend(attached::look(host, name, cgroup));
    }
    checks
}

fn surveyed(host: &Host, spec: &TargetSpec, survey: &Survey, ports: &PortFilter) -> Vec<Check> {
    let name = &spec.name;
    let listening = survey.listening(ports);
    // Then what was looked at is another namespace than the target's, or none.
    let blind = survey.findings.iter().any(|finding| finding.code == "audit-limited");
    let mut checks = vec![processes(name, survey), listens(name, &listening, blind)];
    if !blind {
        checks.extend(network(name, survey));
    }
    checks.extend(survey.findings.iter().map(|finding| of_finding("network", Some(name), finding)));
    checks.extend(owners(host, spec, survey));
    checks.push(rules(host, name, survey, &listening));
    checks
}

/// A finding of a report as a line. What makes a report incomplete does not keep it from being made.
fn of_finding(check: &'static str, target: Option<&str>, finding: &Finding) -> Check {
    let target = target.map(|name| format!("{name}: ")).unwrap_or_default();
    let message = format!("{target}{}", finding.message);
    match finding.severity {
        Severity::Info => Check::ok(check, message),
        Severity::Warning | Severity::Error => {
            Check::warning(check, message, finding.remedy.as_str())
        }
    }
}

fn processes(name: &str, survey: &Survey) -> Check {
    const NAME: &str = "processes";
    let all = &survey.processes;
    if all.is_empty() {
        return Check::warning(
            NAME,
            format!("{name}: no process is in it that can be seen from here"),
            "start it; a cgroup that is made anew meanwhile is another one, to be measured again",
        );
    }
    let list =
        shortened(all.iter().map(|process| format!("{} (pid {})", process.name, process.pid)));
    Check::ok(NAME, format!("{name}: {list}"))
}

fn listens(name: &str, listening: &[Listening], blind: bool) -> Check {
    const NAME: &str = "ports";
    if listening.is_empty() && blind {
        return Check::warning(
            NAME,
            format!("{name}: whether it listens on a port cannot be seen"),
            "run as root; or name the ports with --port",
        );
    }
    if listening.is_empty() {
        return Check::warning(
            NAME,
            format!("{name}: listens on no port, so that all of its traffic is the upstream leg"),
            "start it; or name the ports with --port",
        );
    }
    let one = |listening: &Listening| {
        let by = match listening.processes.is_empty() {
            true if !listening.since_before => " (by --port, nobody listens)".to_owned(),
            true => String::new(),
            false => format!(" ({})", listening.processes.join(", ")),
        };
        let transparent = if listening.transparent { ", transparent" } else { "" };
        format!("{}{by}{transparent}", listening.port)
    };
    Check::ok(NAME, format!("{name}: listens on {}", shortened(listening.iter().map(one))))
}

/// Which network namespaces the target is in.
fn network(name: &str, survey: &Survey) -> Vec<Check> {
    const NAME: &str = "network";
    let own = NetNs::current().ok().map(|current| current.inode());
    let place = |namespace: &targets::survey::Namespace| match namespace.pid {
        Some(pid) if Some(namespace.inode) != own => {
            format!("network namespace net:[{}], reached through pid {pid}", namespace.inode)
        }
        _ => "the network namespace of the agent".to_owned(),
    };
    let places: Vec<_> = survey.namespaces.iter().map(place).collect();
    match survey.processes.is_empty() || places.is_empty() {
        true => Vec::new(),
        false => vec![Check::ok(NAME, format!("{name}: in {}", places.join(" and ")))],
    }
}

/// Whose sockets will be counted, and whose will not.
fn owners(host: &Host, spec: &TargetSpec, survey: &Survey) -> Vec<Check> {
    const NAME: &str = "ownership";
    let name = &spec.name;
    let findings = match ownership::audit(host, survey, &spec.selectors) {
        Ok(findings) => findings,
        Err(error) => {
            let mut check = failed(NAME, &error, "run as root");
            check.message = format!("{name}: {}", check.message);
            return vec![check];
        }
    };
    if findings.is_empty() {
        let owned = survey.sockets().filter(|socket| survey.owns(socket)).count();
        let message = format!(
            "{name}: all TCP and UDP sockets of its processes are counted, and no other program's ({owned} now)"
        );
        return vec![Check::ok(NAME, message)];
    }
    findings.iter().map(|finding| of_finding(NAME, Some(name), finding)).collect()
}

/// Whether rules of the firewall count the ports: the estimate as most people make it.
fn rules(host: &Host, name: &str, survey: &Survey, listening: &[Listening]) -> Check {
    const NAME: &str = "firewall";
    let network = match survey.network(host) {
        Ok(network) => network,
        Err(error) => {
            let mut check = failed(NAME, &error, "run as root");
            check.message = format!("{name}: {}", check.message);
            check.status = CheckStatus::Warning;
            return check;
        }
    };
    let mut ports: Vec<ListeningPort> = listening.iter().map(|listening| listening.port).collect();
    ports.dedup();
    // Entering even one's own namespace needs CAP_SYS_ADMIN.
    let elsewhere = NetNs::current().is_ok_and(|current| current.inode() != network.inode());
    let reading = Firewall::read(elsewhere.then(|| network.as_fd()), &ports);
    judge_rules(name, &reading)
}

fn judge_rules(name: &str, reading: &Reading) -> Check {
    const NAME: &str = "firewall";
    let problems = reading.problems.join("; ");
    if let Some(reason) = reading.unavailable() {
        let reason = if problems.is_empty() { &reason } else { &problems };
        let message = format!("{name}: iptables-port is not available: {reason}");
        return match problems.is_empty() {
            true => Check::ok(NAME, message),
            false => Check::warning(NAME, message, host::RULES_REMEDY),
        };
    }
    let counted: Vec<_> = reading.rules.iter().filter(|rule| rule.counted).collect();
    let rules =
        counted.iter().map(|rule| format!("{} {}: {}", rule.backend, rule.chain, rule.rule));
    let message = format!(
        "{name}: iptables-port is available, from {} rule{}: {}",
        counted.len(),
        if counted.len() == 1 { "" } else { "s" },
        shortened(rules)
    );
    let uncovered: Vec<_> = [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")]
        .into_iter()
        .filter_map(|(direction, word)| {
            let ports = reading.coverage.uncovered_ports(direction);
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            (!ports.is_empty()).then(|| format!("{word} of {}", ports.join(", ")))
        })
        .collect();
    if !problems.is_empty() {
        return Check::warning(
            NAME,
            format!("{message}; but not all rules can be read: {problems}"),
            host::RULES_REMEDY,
        );
    }
    match uncovered.is_empty() {
        true => Check::ok(NAME, message),
        false => Check::warning(
            NAME,
            format!("{message}; no rule counts {}", uncovered.join(" and ")),
            "`compare --add-rules` counts all ports in both directions",
        ),
    }
}

/// Joins the first few, and counts the rest.
fn shortened(items: impl Iterator<Item = String>) -> String {
    let mut list: Vec<_> = items.collect();
    if list.len() > LISTED + 1 {
        let more = list.len() - LISTED;
        list.truncate(LISTED);
        list.push(format!("{more} more"));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let list = |count: usize| shortened((1..=count).map(|n| n.to_string()));
        assert_eq!(list(0), "");
        assert_eq!(list(9), "1, 2, 3, 4, 5, 6, 7, 8, 9");
        assert_eq!(list(12), "1, 2, 3, 4, 5, 6, 7, 8, 4 more");
    }

    #[test]
    fn an_incomplete_figure_is_a_warning_of_the_doctor() {
        let finding = Finding {
            severity: Severity::Error,
            code: "socket-not-owned",
            message: "m".to_owned(),
            remedy: "r".to_owned(),
            incomplete: true,
        };
        let check = of_finding("ownership", Some("xray"), &finding);
        assert_eq!((check.status, check.message.as_str()), (CheckStatus::Warning, "xray: m"));
        assert_eq!(check.remedy.as_deref(), Some("r"));
    }
}

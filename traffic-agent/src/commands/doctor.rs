//! `doctor`: what stands in the way of counting, each line with its remedy.
//!
//! Every check that can run runs, whatever the others said. What is loaded or made for a check is gone
//! when the check ends.

mod attached;
mod cgroups;
mod counter;
mod host;
mod rights;
mod surroundings;
mod target;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

use self::rights::Rights;
use self::surroundings::Surroundings;
use super::{DONE, FAILED, output};
use crate::check::{Candidate, Check, CheckStatus, DoctorReport};
use crate::cli::Doctor;
use crate::render::{self, Options, Stream};
use crate::report::{CgroupReport, ProcessReport};
use crate::target::{self as targets, Host, PortFilter, Selector, TargetSpec, known};
use crate::units::Units;

/// Runs `doctor`; returns the exit status.
pub fn run(args: &Doctor) -> Result<i32> {
    let ports = output::port_filter(&args.targets.ports)?;
    let selectors: Vec<Selector> = args.targets.all().map(str::parse).collect::<Result<_, _>>()?;
    let specs = targets::group(selectors)?;

    let report = examine(&specs, &ports);

    let mut out = io::stdout().lock();
    match args.json || args.format == "json" {
        true => render::json::write(&report, &mut out),
        false => {
            let options = Options::detect(Stream::Stdout, Units::Iec, false);
            render::doctor::write(&report, &options, &mut out)
        }
    }
    .and_then(|()| out.flush())
    .context("cannot write the report")?;
    Ok(if report.status() == CheckStatus::Error { FAILED } else { DONE })
}

fn examine(specs: &[TargetSpec], ports: &PortFilter) -> DoctorReport {
    let rights = Rights::read();
    let kernel = host::Version::read();
    let found = Host::detect();
    let tree = found.as_ref().ok();

    let around = Surroundings::detect(Path::new("/"));

    let counted = counter::look(tree);
    let mut checks = vec![host::kernel(kernel, counted.works)];
    checks.push(surroundings::judge(&around, rights.suffice(), counted.refused));
    checks.extend(rights::look(rights, kernel, around.user_namespace));
    checks.extend(counted.checks);
    checks.push(match &found {
        Ok(host) => cgroups::tree(host, kernel),
        Err(error) => failed("cgroup2", error, "mount a cgroup v2 tree"),
    });
    checks.push(cgroups::bpffs());
    checks.push(host::sockets(tree));
    checks.push(host::clock());

    let mut candidates = Vec::new();
    match tree {
        // The line `cgroup2` has said why there is nothing to look at.
        None => {}
        Some(host) if specs.is_empty() => {
            checks.extend(without_target(host, ports));
            candidates = running(host);
        }
        Some(host) => checks.extend(target::look_all(host, specs, ports)),
    }
    DoctorReport::new(checks, candidates)
}

/// Looks at the target that other commands would take, if there is one.
fn without_target(host: &Host, ports: &PortFilter) -> Vec<Check> {
    match targets::default_target(host) {
        Ok(spec) => target::look_all(host, &[spec], ports),
        Err(error) => {
            let check = match error {
                targets::Error::NoProxy { .. } | targets::Error::NoDefault { .. } => {
                    let (message, remedy) = explain(&error);
                    // The candidates are listed at the end, as commands.
                    let several = matches!(error, targets::Error::NoDefault { .. });
                    let remedy = remedy.filter(|_| !several);
                    let remedy = remedy.unwrap_or_else(|| "name one of them: see below".to_owned());
                    Check::warning("target", message, remedy)
                }
                _ => failed("target", &error, "name the target"),
            };
            vec![check, host::firewall()]
        }
    }
}

fn running(host: &Host) -> Vec<Candidate> {
    // Why processes cannot be listed was said when the default target was looked for.
    let running = known::running(host).unwrap_or_default();
    let candidate = |running: &known::Running| Candidate {
        cgroup: CgroupReport::from(&running.cgroup),
        processes: running.processes.iter().map(ProcessReport::from).collect(),
        selector: running.value.as_ref().map(ToString::to_string),
        command: running.command(),
    };
    running.iter().map(candidate).collect()
}

/// An error line made of an error; `remedy` where the error has none.
fn failed(name: &'static str, error: &dyn Error, remedy: &str) -> Check {
    let (message, own) = explain(error);
    Check::error(name, message, own.unwrap_or_else(|| remedy.to_owned()))
}

/// Divides an error into what failed, with its causes, and what to do about it.
///
/// Messages have what to do behind a semicolon; the causes come after all of it, where they would read
/// as part of the remedy.
fn explain(error: &dyn Error) -> (String, Option<String>) {
    let mut messages: Vec<String> = Vec::new();
    let mut remedies = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let text = error.to_string();
        let (message, remedy) = match text.split_once("; ") {
            Some((message, remedy)) if !message.contains('\n') => {
                (message.to_owned(), Some(remedy.to_owned()))
            }
            _ => (condensed(&text), None),
        };
        // Some wrap an error and repeat its words.
        if !messages.iter().any(|said| said.contains(&message)) {
            messages.push(message);
        }
        remedies.extend(remedy);
    }
    (messages.join(": "), remedies.into_iter().next())
}

/// The first line of a text, and the last that says why: what the verifier prints is long, ends with its
/// objection and then with statistics.
fn condensed(text: &str) -> String {
    const STATISTICS: [&str; 3] = ["processed ", "verification time", "stack depth"];
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let statistics = |line: &str| STATISTICS.iter().any(|begin| line.starts_with(begin));
    match lines.rfind(|line| !statistics(line)) {
        Some(last) => format!("{first} ... {last}"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_does_not_read_as_part_of_the_remedy() {
        let error = targets::Error::Read {
            path: "/proc".into(),
            source: io::Error::from_raw_os_error(libc::EACCES),
        };
        let (message, remedy) = explain(&error);
        assert_eq!(message, "cannot read /proc: Permission denied (os error 13)");
        assert_eq!(remedy.as_deref(), Some("run as root"));
    }

    #[test]
    fn the_verifier_is_quoted_with_its_objection() {
        let log = "refused. Verifier output: 0: R1=ctx()\n; int x = 1; @ a.c:1\n9: (0f) r1 += r2\n\
                   R1 pointer arithmetic prohibited\nprocessed 9 insns (limit 1000000)\nstack depth 128\n\n";
        let (message, remedy) = explain(&io::Error::other(log));
        assert_eq!(
            message,
            "refused. Verifier output: 0: R1=ctx() ... R1 pointer arithmetic prohibited"
        );
        assert_eq!(remedy, None);
        assert_eq!(condensed(""), "");
    }

    #[test]
    fn candidates_stay_with_the_remedy() {
        let error = targets::Error::NoDefault {
            count: 2,
            candidates: targets::Candidates(vec!["a".to_owned(), "b".to_owned()]),
        };
        let (message, remedy) = explain(&error);
        assert_eq!(message, "no target was named, and 2 known proxies are running");
        assert_eq!(remedy.as_deref(), Some("try one of\n  a\n  b"));
    }

    #[test]
    fn an_error_without_a_remedy_keeps_all_its_words() {
        let error = io::Error::other("a: b");
        assert_eq!(explain(&error), ("a: b".to_owned(), None));
    }
}

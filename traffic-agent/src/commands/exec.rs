//! `exec -- CMD`: what one command used.

use anyhow::Result;
use jiff::ZonedDateTime;

use super::output::{self, Sink};
use super::subject::{self, Subject};
use super::{DONE, INCOMPLETE};
use crate::cli::Exec;
use crate::measure::Measurement;
use crate::report::{FORMAT, Interval, Report, TargetReport};
use crate::signals::Signals;
use crate::target::{Host, PortFilter};
use crate::units::{Units, format_bytes};

/// Runs `exec`; returns the exit status of the command, or the one that says why there is none.
pub async fn run(args: Exec) -> Result<i32> {
    match measured(args).await {
        Ok(code) => Ok(code),
        Err(error) => Ok(output::code_without_status(&error)),
    }
}

async fn measured(args: Exec) -> Result<i32> {
    let mut signals = Signals::take()?;
    let mut sink = Sink::open(&args.printing, output::Default::Stderr)?;
    let ports: PortFilter = output::port_filter(&args.ports)?;
    let host = Host::detect()?;
    let subject = Subject::prepare(&host, args.command, args.user.as_deref())?;
    let trace = args.measuring.trace_packets;
    let plan = subject.plan(&host, ports, args.measuring.unbilled, trace)?;

    let mut measurement = Measurement::start(&host, plan)?;
    let start = measurement.sample()?;
    let begun = ZonedDateTime::now();
    let mut running = subject.start(&signals)?;
    let mut tracer = output::Tracer::new(trace);
    let status = subject::wait(&mut running, &mut signals, || {
        measurement.follow_or_note();
        tracer.print(&mut measurement);
    })
    .await?;
    let reported = async {
        subject::drain(&mut measurement).await;
        let end = measurement.sample()?;
        tracer.print(&mut measurement);
        let mut target = measurement.report(&start, &end)?;
        target.findings.extend(subject.remove());
        target.complete = !target.findings.iter().any(|finding| finding.incomplete);
        target.verdict = verdict(&target, sink.units());
        let complete = target.complete;
        sink.report(&Report {
            format: FORMAT,
            command: "exec",
            interval: Interval {
                start: begun,
                end: ZonedDateTime::now(),
                seconds: target.observed_seconds,
            },
            targets: vec![target],
            exit_status: Some(status),
        })?;
        Ok(if args.printing.strict && !complete { INCOMPLETE } else { DONE })
    };
    Ok(output::code_after(status, reported.await))
}

fn verdict(target: &TargetReport, units: Units) -> String {
    format!(
        "`{}` used {}{} of billed traffic: {} in, {} out.",
        target.name,
        if target.complete { "" } else { "at least " },
        format_bytes(target.total_wire_bytes, units),
        format_bytes(target.totals.billed.ingress.wire_bytes, units),
        format_bytes(target.totals.billed.egress.wire_bytes, units),
    )
}

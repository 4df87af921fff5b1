//! Where reports and remarks go: stdout is data, stderr is talk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::ZonedDateTime;

use crate::child;
use crate::cli::{Format, Printing};
use crate::comparison::Comparison;
use crate::ledger;
use crate::measure::Measurement;
use crate::past::PastReport;
use crate::past::host::HostPast;
use crate::proof::SelftestReport;
use crate::render::interval::{Columns, IntervalReport};
use crate::render::{self, Stream};
use crate::report::{DemoReport, Directions, ExitStatus, Interval, Report};
use crate::target::PortFilter;
use crate::units::Units;

/// Where a report goes without `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// The command's result.
    Stdout,
    /// A remark beside the output of a measured command.
    Stderr,
}

/// Where and how the report is printed.
pub struct Sink {
    out: Box<dyn Write>,
    format: Format,
    options: render::Options,
    /// Whether something was printed as it went: the report is then one more line, or the rest.
    begun: bool,
}

impl Sink {
    /// Opens the output, so that a wrong path is an error before anything starts.
    pub fn open(printing: &Printing, default: Default) -> Result<Self> {
        let (out, stream): (Box<dyn Write>, Stream) = match (&printing.output, default) {
            (Some(path), _) => {
                let file: File = child::open_output(path)
                    .with_context(|| format!("cannot write the report to {}", path.display()))?;
                (Box::new(BufWriter::new(file)), Stream::File)
            }
            (None, Default::Stdout) => (Box::new(BufWriter::new(io::stdout())), Stream::Stdout),
            (None, Default::Stderr) => (Box::new(BufWriter::new(io::stderr())), Stream::Stderr),
        };
        let units = printing.units.units();
        let options = render::Options::detect(stream, units, printing.verbose);
        Ok(Self { out, format: printing.format(), options, begun: false })
    }

    /// In which units bytes are shown.
    pub fn units(&self) -> Units {
        self.options.units
    }

    /// Prints the report.
    pub fn report(&mut self, report: &Report) -> Result<()> {
        let out = &mut self.out;
        match (self.format, self.begun) {
            (Format::Table, _) => render::table::write(report, &self.options, out),
            (Format::Json, false) => render::json::write(report, out),
            (Format::Json, true) => render::json::write_line(report, out),
            (Format::Csv, false) => render::csv::write(report, out),
            (Format::Csv, true) => render::csv::write_rows(report, out),
        }
        .and_then(|()| self.out.flush())
        .context("cannot write the report")
    }

    /// Prints what the demo found.
    pub fn demo(&mut self, report: &DemoReport) -> Result<()> {
        let out = &mut self.out;
        match self.format {
            Format::Table => render::demo::write(report, &self.options, out),
            Format::Json => render::json::write(report, out),
            Format::Csv => render::demo::write_csv(report, out),
        }
        .and_then(|()| self.out.flush())
        .context("cannot write the report")
    }

    /// Prints what the self-test found.
    pub fn selftest(&mut self, report: &SelftestReport) -> Result<()> {
        let out = &mut self.out;
        match self.format {
            Format::Table => render::selftest::write(report, &self.options, out),
            Format::Json => render::json::write(report, out),
            Format::Csv => render::selftest::write_csv(report, out),
        }
        .and_then(|()| self.out.flush())
        .context("cannot write the report")
    }

    /// Prints what the history says.
    pub fn past(&mut self, report: &PastReport) -> Result<()> {
        let out = &mut self.out;
        match self.format {
            Format::Table => render::past::write(report, &self.options, out),
            Format::Json => render::json::write(report, out),
            Format::Csv => render::past_csv::write(report, out),
        }
        .and_then(|()| self.out.flush())
        .context("cannot write the report")
    }

    /// Prints what the host's cgroups used.
    pub fn host_past(&mut self, report: &HostPast) -> Result<()> {
        let out = &mut self.out;
        match self.format {
            Format::Table => render::past_host::write(report, &self.options, out),
            Format::Json => render::json::write(report, out),
            Format::Csv => render::past_host::write_csv(report, out),
        }
        .and_then(|()| self.out.flush())
        .context("cannot write the report")
    }

    /// Prints one interval of one target.
    fn interval(&mut self, report: &IntervalReport, columns: &Columns) -> Result<()> {
        let out = &mut self.out;
        let first = !std::mem::replace(&mut self.begun, true);
        match (self.format, first) {
            (Format::Table, true) => columns.write_header(out),
            (Format::Csv, true) => render::csv::write_header(out),
            _ => Ok(()),
        }
        .and_then(|()| match self.format {
            Format::Table => columns.write_line(report, out),
            Format::Json => render::json::write_line(report, out),
            Format::Csv => render::csv::write_interval(report, out),
        })
        .and_then(|()| self.out.flush())
        .context("cannot write the interval")
    }
}

/// Reads `--port` values.
pub fn port_filter(values: &[String]) -> Result<PortFilter> {
    Ok(PortFilter(values.iter().map(|value| value.parse()).collect::<Result<_, _>>()?))
}

/// A remark on stderr.
pub fn note(text: &str) {
    // A closed stderr is nobody to tell.
    let _ = writeln!(io::stderr(), "traffic-agent: {text}");
}

/// An error on stderr, with all its causes.
pub fn complain(error: &anyhow::Error) {
    note(&format!("{error:#}"));
}

/// Whether whoever reads the output has seen enough.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The exit status when a command has not ended, or never begun: the one that says why.
pub fn code_without_status(error: &anyhow::Error) -> i32 {
    complain(error);
    error.downcast_ref::<child::Error>().map_or(child::AGENT_FAILED, child::Error::exit_code)
}

/// The exit status when a command has ended, and what came after it: its own, whatever became of the
/// report, unless it was 0 and there is none.
pub fn code_after(status: ExitStatus, reported: Result<i32>) -> i32 {
    let own = child::exit_code(status);
    match reported {
        Ok(code) if own == 0 => code,
        Err(error) if !is_closed_pipe(&error) => {
            complain(&error);
            if own == 0 { child::AGENT_FAILED } else { own }
        }
        _ => own,
    }
}

/// Prints a line for each traced packet, and stops at the number that was asked for.
pub struct Tracer {
    left: usize,
}

impl Tracer {
    /// Traces the first `packets`.
    pub fn new(packets: u32) -> Self {
        Self { left: packets as usize }
    }

    /// Prints what was traced since the last call.
    pub fn print(&mut self, measurement: &mut Measurement<'_>) {
        if self.left == 0 {
            return;
        }
        let packets = measurement.take_packets();
        for packet in packets.iter().take(self.left) {
            let name = |index| measurement.interface_name(index);
            // A closed stderr is nobody to tell.
            let _ = render::trace::write(packet, &name, &mut io::stderr());
        }
        self.left = self.left.saturating_sub(packets.len());
    }
}

/// Prints a line per interval and target as it goes.
pub struct Intervals {
    length: Option<Duration>,
    next: Instant,
    columns: Columns,
    /// What each target had used at the end of the last interval.
    last: Vec<(ZonedDateTime, Instant, Directions)>,
}

impl Intervals {
    /// Begins the first interval.
    pub fn new(
        length: Option<Duration>,
        comparisons: &mut [Comparison<'_>],
        started: Instant,
        units: Units,
    ) -> Self {
        let names: Vec<String> =
            comparisons.iter_mut().map(|one| one.measurement().plan().name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let begin = (ZonedDateTime::now(), started, Directions::default());
        Self {
            length,
            next: started + length.unwrap_or_default(),
            columns: Columns::new(units, &names),
            last: vec![begin; comparisons.len()],
        }
    }

    /// How long until the next line is due.
    pub fn until_due(&self) -> Duration {
        match self.length {
            Some(_) => self.next.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        }
    }

    /// Prints the lines that are due.
    pub fn print_due(&mut self, comparisons: &mut [Comparison<'_>], sink: &mut Sink) -> Result<()> {
        let Some(length) = self.length else { return Ok(()) };
        if Instant::now() < self.next {
            return Ok(());
        }
        // Without drift; intervals that were slept through are one long one.
        while self.next <= Instant::now() {
            self.next += length;
        }
        for (comparison, last) in comparisons.iter_mut().zip(&mut self.last) {
            let billed = ledger::totals(&comparison.cells_so_far()?).billed;
            let now = (ZonedDateTime::now(), Instant::now(), billed);
            let (begin, begin_at, before) = std::mem::replace(last, now.clone());
            let interval = Interval {
                start: begin,
                end: now.0,
                seconds: now.1.duration_since(begin_at).as_secs_f64(),
            };
            let name = comparison.measurement().plan().name.clone();
            let gained = billed.since(&before);
            let total = billed.wire_bytes();
            sink.interval(&IntervalReport::new(name, interval, gained, total), &self.columns)?;
        }
        Ok(())
    }
}

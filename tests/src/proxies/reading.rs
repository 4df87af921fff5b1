//! `traffic-agent compare` as a child, and what its JSON says.

use std::ops::Add;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_lab::process::Place;
use traffic_lab::{CountedCgroup, Process};

/// How long the agent may take to begin, and to end.
const AGENT_WITHIN: Duration = Duration::from_secs(120);

/// A running `compare` of one cgroup.
pub struct Compare(Process);

impl Compare {
    /// Starts it, and waits until it counts: it prints a line per interval, the first one after the
    /// first readings.
    pub fn start(cgroup: &CountedCgroup) -> Result<Self> {
        let agent = std::env::var_os("TRAFFIC_AGENT").map(PathBuf::from).context(
            "TRAFFIC_AGENT does not name the agent: run `cargo xtask test`, which builds it",
        )?;
        let mut command = Command::new(agent);
        // Longer than any workload takes: what ends before the workload counts only a part of it.
        command.args(["compare", "--format", "json", "--interval", "100ms", "--duration", "1h"]);
        command.arg(format!("cgroup:{}", cgroup.cgroup_path()));
        let mut process = Process::spawn(command, Place::default())?;
        let begin = Instant::now();
        while !process.log().contains("}\n") {
            if let Some(status) = process.poll()? {
                bail!("traffic-agent has ended with {status}: {}", process.log());
            }
            if begin.elapsed() > AGENT_WITHIN {
                bail!("traffic-agent has not begun after {AGENT_WITHIN:?}: {}", process.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self(process))
    }

    /// Ends it as Ctrl-C does and takes its report.
    pub fn finish(mut self) -> Result<Reading> {
        self.0.signal(Signal::SIGINT)?;
        let output = self.0.output(AGENT_WITHIN)?;
        Reading::parse(&output).with_context(|| format!("no report in: {output}"))
    }
}

/// What cells say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
    pub wire_packets: u64,
    pub wire_bytes: u64,
    pub payload_bytes: u64,
}

impl Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            wire_packets: self.wire_packets + other.wire_packets,
            wire_bytes: self.wire_bytes + other.wire_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
        }
    }
}

/// A cell of the report.
#[derive(Debug, Clone)]
pub struct Cell {
    pub interface: String,
    pub scope: String,
    pub origin: String,
    pub direction: String,
    pub leg: String,
    pub protocol: String,
    pub port: Option<u16>,
    pub family: String,
    pub counted: Counted,
}

/// The report on one target.
pub struct Reading {
    target: Value,
    cells: Vec<Cell>,
}

impl Reading {
    /// Takes the last line: those before are of intervals.
    fn parse(output: &str) -> Result<Self> {
        let line = output.lines().rev().find(|line| line.starts_with('{'));
        let report: Value = serde_json::from_str(line.context("there is no JSON")?)?;
        let target = report.pointer("/targets/0").context("there is no target")?.clone();
        let cells = target.get("cells").and_then(Value::as_array).context("there are no cells")?;
        let cells = cells.iter().map(cell).collect::<Result<_>>()?;
        Ok(Self { target, cells })
    }

    /// Every cell that is not zero.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Sums the cells that `keep` selects.
    pub fn sum(&self, keep: impl Fn(&Cell) -> bool) -> Counted {
        let cells = self.cells.iter().filter(|cell| keep(cell));
        cells.fold(Counted::default(), |sum, cell| sum + cell.counted)
    }

    /// The exact figure.
    pub fn total(&self) -> Result<u64> {
        self.target["total_wire_bytes"].as_u64().context("there is no total")
    }

    /// Whether nothing is known or suspected to be missing.
    pub fn is_complete(&self) -> bool {
        self.target["complete"] == true
    }

    /// The findings, for a message.
    pub fn findings(&self) -> String {
        self.target["findings"].to_string()
    }

    /// What a method has read: ingress and egress bytes.
    pub fn method(&self, name: &str) -> Result<[u64; 2]> {
        let method = self.named("methods", name)?;
        let read = |key: &str| method[key].as_u64();
        let both = read("ingress_bytes").zip(read("egress_bytes"));
        let (ingress, egress) = both.with_context(|| format!("no reading: {method}"))?;
        Ok([ingress, egress])
    }

    /// An estimate made of the rules, and its error in percent.
    pub fn estimate(&self, name: &str) -> Result<(u64, f64)> {
        let estimate = self.named("estimates", name)?;
        if estimate["source"] != "iptables-port" {
            bail!("{name} is not made of the rules: {estimate}");
        }
        let total = estimate["total_bytes"].as_u64();
        let both = total.zip(estimate["error_percent"].as_f64());
        both.with_context(|| format!("no figures: {estimate}"))
    }

    fn named(&self, list: &str, name: &str) -> Result<&Value> {
        let rows = self.target[list].as_array();
        let row = rows.and_then(|rows| rows.iter().find(|row| row["name"] == name));
        row.with_context(|| format!("{name} is not among the {list}: {}", self.target[list]))
    }
}

fn cell(value: &Value) -> Result<Cell> {
    let text = |key: &str| -> Result<String> {
        Ok(value[key].as_str().with_context(|| format!("no {key} in {value}"))?.to_owned())
    };
    let number = |key: &str| value[key].as_u64().with_context(|| format!("no {key} in {value}"));
    Ok(Cell {
        interface: text("interface")?,
        scope: text("scope")?,
        origin: text("origin")?,
        direction: text("direction")?,
        leg: text("leg")?,
        protocol: text("protocol")?,
        port: value["port"].as_u64().map(u16::try_from).transpose()?,
        family: text("family")?,
        counted: Counted {
            packets: number("packets")?,
            bytes: number("bytes")?,
            wire_packets: number("wire_packets")?,
            wire_bytes: number("wire_bytes")?,
            payload_bytes: number("payload_bytes")?,
        },
    })
}

//! What counting costs, beside what others cost. `cargo xtask bench` builds and runs it.
//!
//! Everything alternates: in each round every subject has its turn, and figures are medians of what the
//! rounds say of a subject beside the baseline of the same round. So the numbers stand also on a machine
//! that has other things to do; only the throughput of part b needs it quiet.

mod bench;
mod clock;
mod comparison;
mod connections;
mod cost;
mod daemon;
mod growth;
mod history;
mod numbers;
mod packets;
mod progress;
mod render;
mod sockets;
mod subject;
mod throughput;
mod user_space;
mod year;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::bench::{Bench, Plan};
use crate::progress::Progress;
use crate::render::Machine;

/// Measures what counting costs.
#[derive(Parser)]
#[command(name = "traffic-bench")]
struct Arguments {
    /// The object with the programs of others
    #[arg(long)]
    programs: PathBuf,
    /// A release build of traffic-agent
    #[arg(long)]
    agent: PathBuf,
    /// Fewer and shorter rounds: about two minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_value = "a,b,c,d,e,f,g")]
    only: Vec<Part>,
    /// How to print the numbers
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// ns per packet
    A,
    /// Throughput
    B,
    /// Growth
    C,
    /// User space
    D,
    /// A year of history, reported
    E,
    /// The same, written
    F,
    /// The daemon
    G,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    // The relays of part g are this program, started again.
    traffic_lab::role::run_from_environment();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut bench = Bench {
        plan: if arguments.quick { Plan::QUICK } else { Plan::FULL },
        programs: arguments.programs.clone(),
        agent: arguments.agent.clone(),
        progress: Progress::new(),
    };
    let mut comparisons = Vec::new();
    for &part in &arguments.only {
        comparisons.extend(match part {
            Part::A => cost::run(&mut bench)?,
            Part::B => throughput::run(&mut bench)?,
            Part::C => growth::run(&mut bench)?,
            Part::D => user_space::run(&mut bench)?,
            Part::E => year::run(&mut bench)?,
            Part::F => history::run(&mut bench)?,
            Part::G => daemon::run(&mut bench)?,
        });
    }
    // The bar goes before the numbers come.
    drop(bench);
    let machine = machine()?;
    match arguments.format {
        Format::Table => print!("{}", render::tables(&machine, &comparisons)),
        Format::Json => println!("{}", render::json(&machine, &comparisons)?),
    }
    Ok(())
}

fn machine() -> Result<Machine> {
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = name.map_or("processor", |(_, name)| name).to_owned();
    Ok(Machine { kernel, cpus: thread::available_parallelism()?.get(), processor })
}

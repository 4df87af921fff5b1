//! `cargo xtask bench`: builds what is measured, and runs the package `traffic-bench`.
//!
//! What the bench compares with is installed (iptables, nethogs) or built here (its eBPF programs, which
//! are not committed). The numbers are the bench's own business.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    command, debian,
    ebpf::{self, Program},
    workspace::Workspace,
};

/// The eBPF programs that ours is compared with.
const PROGRAMS: Program =
    Program { package: "traffic-bench-programs", name: "bench-programs", features: "" };

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// Fewer and shorter rounds: about two minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts: a (ns per packet), b (throughput), c (growth), d (user space), e (a year
    /// of history, reported), f (the same, written), g (the daemon)
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<String>,
    /// How to print the numbers: table or json
    #[arg(long, default_value = "table")]
    format: String,
}

/// Builds everything and runs the bench.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if !debian::is_root() {
        bail!("the bench loads eBPF programs and makes network namespaces: run it as root");
    }
    tools()?;
    let programs = ebpf::object_of(workspace, &PROGRAMS)?;
    command::run(workspace.cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "traffic-bench",
        "--package",
        "traffic-agent",
    ]))?;
    let release = workspace.target().join("release");
    let mut bench = Command::new(release.join("traffic-bench"));
    bench.arg("--programs").arg(programs);
    bench.arg("--agent").arg(release.join("traffic-agent"));
    bench.args(["--format", &options.format]);
    if options.quick {
        bench.arg("--quick");
    }
    if !options.only.is_empty() {
        bench.args(["--only", &options.only.join(",")]);
    }
    let status = bench.status().context("cannot run the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes sure that the programs are there whose cost is measured beside ours.
fn tools() -> Result<()> {
    let wanted = [("iptables", "iptables"), ("nft", "nftables"), ("nethogs", "nethogs")];
    let there = |program| command::find(program, &["/usr/sbin", "/sbin"]);
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| there(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    debian::install(&missing, "by the bench")?;
    let absent: Vec<PathBuf> = wanted
        .iter()
        .filter(|(program, _)| there(program).is_none())
        .map(|&(program, _)| program.into())
        .collect();
    if !absent.is_empty() {
        bail!("installed, but not in $PATH: {absent:?}");
    }
    Ok(())
}

//! Tasks of this repository.
//!
//! `cargo xtask ebpf` builds the committed eBPF object, `cargo xtask ebpf --check` proves that it
//! belongs to the sources, `cargo xtask test` is the one test command, `cargo xtask bench` measures what
//! counting costs, `cargo xtask soak` lets the daemon run beside traffic and mishaps, `cargo xtask dist` makes the Debian package.

mod bench;
mod command;
mod debian;
mod dist;
mod ebpf;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF object and write it, with its manifest, to traffic-ebpf/prebuilt
    Ebpf(ebpf::Options),
    /// Run the unit tests, the kernel tests and the end-to-end tests (as root)
    Test(test::Options),
    /// Measure what counting costs, beside what others cost (as root)
    Bench(bench::Options),
    /// Let the daemon run under traffic, kills and changes, and compare its history with captures (as root)
    Soak(soak::Options),
    /// Build the Debian package, and print where it is
    Dist(dist::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::open()?;
    match arguments.task {
        Task::Ebpf(options) => ebpf::run(&workspace, &options),
        Task::Test(options) => test::run(&workspace, options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::Soak(options) => soak::run(&workspace, &options).map(|never| match never {}),
        Task::Dist(options) => dist::run(&workspace, &options),
    }
}

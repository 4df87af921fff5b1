//! The commands: each puts the rooms below together and returns the exit status.

mod compare;
pub mod config;
mod demo;
mod detach;
mod doctor;
mod exec;
mod install;
mod manual;
mod output;
mod report;
mod report_host;
mod run;
mod selftest;
mod service;
mod stage;
mod status;
mod subject;
mod uninstall;

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
pub use output::{complain, is_closed_pipe};

use crate::calendar;
use crate::cli::{Cli, Command};
use crate::method::classic;
use crate::target;

/// Exit status: done.
pub const DONE: i32 = 0;
/// Exit status: failed.
pub const FAILED: i32 = 1;
/// Exit status: wrong usage, as clap has it.
pub const WRONG_USAGE: i32 = 2;
/// Exit status: done, but incomplete, and `--strict` was given.
pub const INCOMPLETE: i32 = 3;

/// Returns the exit status that stands for an error: some words are only understood here, behind clap.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    let is_usage = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<target::ports::ParseError>()
            || cause.is::<target::selector::ParseError>()
            || cause.is::<crate::config::Invalid>()
            || cause.is::<service::NobodyToAsk>()
            || cause.is::<calendar::ParseError>()
            || matches!(
                cause.downcast_ref(),
                Some(
                    report::Error::TwoUnits(..)
                        | report::Error::CgroupAlone
                        | report::Error::Divided(..)
                )
            )
    };
    if error.chain().any(is_usage) { WRONG_USAGE } else { FAILED }
}

/// Runs a command; returns the exit status.
pub fn run(command: Command) -> Result<i32> {
    match command {
        Command::Compare(args) => on_runtime(compare::run(args)),
        Command::Exec(args) => on_runtime(exec::run(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Selftest(args) => on_runtime(selftest::run(args)),
        Command::Doctor(args) => doctor::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Classic { port } => {
            writeln!(io::stdout(), "{}", classic::run(port)?)?;
            Ok(DONE)
        }
        Command::Install(args) => install::run(&args),
        Command::Uninstall(args) => uninstall::run(&args),
        Command::Run(args) => on_runtime(run::run(&args.settings)),
        Command::Detach(args) => detach::run(&args),
        Command::Config { command } => config::run(&command),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "traffic-agent", &mut text);
            io::stdout().write_all(&text)?;
            Ok(DONE)
        }
        Command::Man { directory } => manual::run(directory.as_deref()),
    }
}

/// Measuring waits for a child, for signals and for time, and does one thing at a time.
fn on_runtime(work: impl Future<Output = Result<i32>>) -> Result<i32> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the tokio runtime")?
        .block_on(work)
}

//! The command: parses, dispatches, turns the outcome into an exit status.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use traffic_agent::{cli::Cli, commands};

fn main() -> ExitCode {
    // The demo and the lab start this program again in roles of their own.
    traffic_lab::role::run_from_environment();
    match commands::run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("traffic-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads the output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

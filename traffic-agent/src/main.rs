//! The command: parses, dispatches, turns the outcome into an exit status.

use std::process::ExitCode;

use clap::Parser as _;
use traffic_agent::{cli::Cli, commands};

fn main() -> ExitCode {
    // The demo and the lab start this program again in roles of their own.
    traffic_lab::role::run_from_environment();
    match commands::run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) if commands::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            commands::complain(&error);
            ExitCode::from(commands::exit_code(&error) as u8)
        }
    }
}

//! `config`: check, or print the default file.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

use super::{DONE, FAILED};
use crate::cli::run::{ConfigCheck, ConfigCommand, Settings};
use crate::config::report::ConfigReport;
use crate::config::{self, Invalid, Loaded};
use crate::render::{self, Stream};
use crate::units::Units;

/// The commented default file, which is the manual.
pub const DEFAULT_TEXT: &str = include_str!("../../../packaging/config.toml");

/// Runs `config`; returns the exit status.
pub fn run(command: &ConfigCommand) -> Result<i32> {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Default => {
            io::stdout().write_all(DEFAULT_TEXT.as_bytes())?;
            Ok(DONE)
        }
    }
}

fn check(args: &ConfigCheck) -> Result<i32> {
    let report = ConfigReport::new(&args.settings.file(), &load(&args.settings));
    let mut text = Vec::new();
    if args.json || args.format == "json" {
        render::json::write(&report, &mut text)
    } else {
        let options = render::Options::detect(Stream::Stdout, Units::default(), false);
        render::config::write(&report, &options, &mut text)
    }
    .and_then(|()| io::stdout().write_all(&text))
    .context("cannot write what was found")?;
    Ok(if report.valid { DONE } else { FAILED })
}

/// Reads the configuration that the settings mean, now: also for a reload.
pub fn load(settings: &Settings) -> Result<Loaded, Invalid> {
    let environment = |variable: &str| std::env::var(variable).ok();
    config::load(&settings.file(), &settings.given(&environment))
}

//! `run`: the daemon, with the configuration and the log that it needs.

use anyhow::Result;

use super::{DONE, config};
use crate::cli::run::Settings;
use crate::daemon;

/// Runs the daemon until it is told to end; returns the exit status.
pub async fn run(settings: &Settings) -> Result<i32> {
    let config = config::load(settings)?.config;
    let reload = || Ok(config::load(settings)?.config);
    daemon::run(config, &reload).await?;
    Ok(DONE)
}

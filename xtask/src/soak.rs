//! `cargo xtask soak`: builds the agent and the package `traffic-tests`, and lets it soak.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Result, bail};

use crate::{command, debian, workspace::Workspace};

/// Flags of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Options {
    /// How long
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
}

/// Builds everything, and becomes the soak: an interruption is its to clean up after. Returns only if that
/// does not work.
pub fn run(workspace: &Workspace, options: &Options) -> Result<std::convert::Infallible> {
    if !debian::is_root() {
        bail!("the soak loads eBPF programs and makes network namespaces: run it as root");
    }
    command::run(workspace.cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "traffic-agent",
    ]))?;
    command::run(workspace.cargo().args(["build", "--locked", "--package", "traffic-tests"]))?;
    let mut soak = Command::new(workspace.target().join("debug/traffic-tests"));
    soak.args(["soak", &(60 * options.minutes).to_string()]);
    soak.env("TRAFFIC_AGENT", workspace.target().join("release/traffic-agent"));
    Err(soak.exec().into())
}

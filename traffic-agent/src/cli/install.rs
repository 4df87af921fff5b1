//! `install` and `uninstall`.

use clap::Args;

/// `install`.
#[derive(Args, Clone, Debug)]
#[group(id = "what", required = true, multiple = false, args = ["unit", "container"])]
pub struct Install {
    /// The service to be counted without a gap, through all its restarts
    #[arg(long, value_name = "NAME.service")]
    pub unit: Option<String>,
    /// Print what to add to a container for the same, and change nothing
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// The slice to put it into, instead of one made of its name, a child of the one it is in
    #[arg(long, value_name = "NAME.slice", conflicts_with = "container")]
    pub slice: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub consent: Consent,
}

/// `uninstall`.
#[derive(Args, Clone, Debug)]
pub struct Uninstall {
    /// The service to put back; without it all that were installed
    #[arg(long, value_name = "NAME.service")]
    pub unit: Option<String>,
    /// Delete the history too, if nothing else is counted
    #[arg(long)]
    pub purge: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub consent: Consent,
}

/// How far to go, and whether to ask.
#[derive(Args, Clone, Copy, Debug)]
pub struct Consent {
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Let the service run on; it moves when it is restarted next
    #[arg(long)]
    pub no_restart: bool,
}

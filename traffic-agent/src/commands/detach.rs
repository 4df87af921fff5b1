//! `detach`: ends counting, with all that is pinned.

use std::io::{self, Write as _};

use anyhow::Result;

use super::{DONE, config};
use crate::cli::detach::Detach;
use crate::daemon;

/// Detaches; returns the exit status.
pub fn run(args: &Detach) -> Result<i32> {
    let config = config::load(&args.settings())?.config;
    let names = match args.discard {
        true => daemon::discard(&config)?,
        false => daemon::detach(&config)?,
    };
    let mut out = io::stdout();
    match names.as_slice() {
        [] => writeln!(out, "nothing was attached")?,
        names => writeln!(out, "not counted any more: {}", names.join(", "))?,
    }
    Ok(DONE)
}

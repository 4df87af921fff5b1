//! The daemon against faults: what was counted is what the far ends captured, to the byte, and where bytes
//! are missing the history says when.

mod disk;
mod pins;
mod reload;
mod restarts;

use std::time::Duration;

use anyhow::{Context as _, Result};
use traffic_agent::history::Event;
use traffic_lab::topology::LabTrace;
use traffic_tests::daemon::Home;
use traffic_tests::figures::{self, Books};
use traffic_tests::site::{RELAY_PORT, Site, tcp};

/// Between two rounds of a load that goes on for long.
const PAUSE: Duration = Duration::from_millis(150);

/// A daemon that counts the site's cgroup.
fn home(site: &Site) -> Result<Home> {
    Home::counting(&site.cgroup.cgroup_path())
}

/// The books of a capture of traffic through the relay.
fn captured(trace: &LabTrace) -> Result<Books> {
    trace.check()?;
    Ok(figures::of_capture(trace, &[tcp(RELAY_PORT)]))
}

/// The events that say that a figure is not what it seems.
fn doubts(home: &Home) -> Result<Vec<Event>> {
    home.doubts("counted")
}

/// Asserts that the whole history of the target is what was captured.
#[track_caller]
fn assert_history_is(home: &Home, captured: &Books) -> Result<()> {
    let counted = home.books("counted")?;
    assert!(!counted.is_empty(), "nothing was counted\n{}", home.log());
    assert_eq!(&counted, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

/// How often the log has these words.
fn times_in_log(home: &Home, words: &str) -> usize {
    home.log().matches(words).count()
}

/// What a command upon the history says, which must succeed.
fn said(home: &Home, command: &str) -> Result<String> {
    let output = home.command(command).output()?;
    anyhow::ensure!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).context("what it says is no UTF-8")
}

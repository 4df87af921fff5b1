//! A relay that a daemon accounts for, and its history held against captures.

use std::time::Duration;

use anyhow::{Result, ensure};
use traffic_agent::history::Event;
use traffic_lab::topology::LabTrace;
use traffic_lab::{Process, Stack};

use crate::daemon::Home;
use crate::figures::{self, Books};
use crate::load;
use crate::site::{RELAY_PORT, Site, tcp};

/// The name of the target.
pub const TARGET: &str = "counted";
/// Between two rounds of a load that goes on for long.
pub const PAUSE: Duration = Duration::from_millis(150);

/// A site whose cgroup a daemon counts as [`TARGET`]. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Accounted {
    /// Where the daemon lives. First, because it must end first.
    pub home: Home,
    _relay: Process,
    /// Where the traffic is.
    pub site: Site,
}

impl Accounted {
    /// Makes the site and the home; nothing counts yet.
    pub fn new() -> Result<Self> {
        Self::by(Home::counting)
    }

    /// The same with a home of the test's own, made for the cgroup that is to be counted.
    pub fn by(home: impl FnOnce(&str) -> Result<Home>) -> Result<Self> {
        let site = Site::new(Stack::default())?;
        let relay = site.relay()?;
        let home = home(&site.cgroup.cgroup_path())?;
        Ok(Self { home, _relay: relay, site })
    }

    /// The same, counted since before anything is said.
    pub fn started() -> Result<Self> {
        let mut accounted = Self::new()?;
        accounted.home.start_and_wait()?;
        Ok(accounted)
    }

    /// Drives traffic while something is done with the daemon, which tells how long. Returns what was
    /// captured.
    pub fn under_load(&mut self, meanwhile: impl FnOnce(&mut Home) -> Result<()>) -> Result<Books> {
        self.under_paced_load(Duration::ZERO, meanwhile)
    }

    /// The same with a pause between two rounds, for what takes long.
    pub fn under_paced_load(
        &mut self,
        pause: Duration,
        meanwhile: impl FnOnce(&mut Home) -> Result<()>,
    ) -> Result<Books> {
        let Self { home, site, .. } = self;
        let capture = site.lab.capture()?;
        load::under_paced_load(site, pause, || meanwhile(home))?;
        captured(&capture.stop()?)
    }

    /// The events that say that a figure is not what it seems.
    pub fn doubts(&self) -> Result<Vec<Event>> {
        self.home.doubts(TARGET)
    }

    /// Asserts that the whole history of the target is what was captured.
    #[track_caller]
    pub fn assert_history_is(&self, captured: &Books) -> Result<()> {
        self.home.assert_books(TARGET, captured)
    }

    /// Stops the daemon, and asserts that its history is what was captured, with nothing to doubt.
    #[track_caller]
    pub fn assert_ends_with(&mut self, captured: &Books) -> Result<()> {
        self.home.stop()?;
        assert_eq!(self.doubts()?, [], "{}", self.home.log());
        self.assert_history_is(captured)
    }
}

/// The books of a capture of traffic through the relay.
pub fn captured(trace: &LabTrace) -> Result<Books> {
    trace.check()?;
    Ok(figures::of_capture(trace, &[tcp(RELAY_PORT)]))
}

/// What a command upon the history says, which must succeed.
pub fn said(home: &Home, command: &str) -> Result<String> {
    let output = home.command(command).output()?;
    ensure!(output.status.success(), "{command}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

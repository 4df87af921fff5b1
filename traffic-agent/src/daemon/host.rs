//! The daemon's side of the host's ledger: sampled when the targets are flushed, and in the same transaction.
//!
//! Whatever fails here is logged, and the targets are counted all the same.

use std::time::Duration;

use anyhow::Result;
use log::{info, warn};
use tokio::time::Instant;

use super::account::quarter_of;
use super::clock::Now;
use crate::history::{Event, Flush, Quarter};
use crate::host::{HostFlush, HostLedger, HostTarget};
use crate::kernel::HostCounter;
use crate::kernel::pins::PinRoot;
use crate::netns::NetNs;
use crate::store::Store;
use crate::target::Host as Machine;

/// How often it is tried again after an error.
const RETRY: Duration = Duration::from_secs(60);

/// The host's ledger, if it is wanted and if it works.
pub struct Host {
    wanted: bool,
    root: PinRoot,
    boot_id: String,
    ledger: Option<HostLedger>,
    /// When the last sample that is in the history was taken.
    last: Now,
    /// The quarter of the last sample, in the history or not.
    tried: Quarter,
    retry: Instant,
    complaint: Option<String>,
}

impl Host {
    /// Nothing is counted before the history is open.
    pub fn new(wanted: bool, root: PinRoot, boot_id: String, now: Now) -> Self {
        let (tried, retry) = (Quarter::of(now.wall), Instant::now());
        Self { wanted, root, boot_id, ledger: None, last: now, tried, retry, complaint: None }
    }

    /// Takes a new configuration. What is not wanted any more ends when its last bytes are in the history.
    pub fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.retry = Instant::now();
    }

    /// The history is another one: what its ledger goes on from is to be read there.
    pub fn begin_again(&mut self) {
        self.ledger = None;
        self.retry = Instant::now();
    }

    /// The quarter is over: what comes from here on is of the next one. Once only: what could not be read or
    /// written then waits for the regular flush, and not for every look at the clock.
    pub fn is_due(&self, now: Now) -> bool {
        self.ledger.is_some() && self.tried != Quarter::of(now.wall)
    }

    /// Reads what is new, for a flush; `None` if there is nothing to flush, or if it does not work.
    pub fn sample(
        &mut self,
        store: &Store,
        machine: &Machine,
        targets: &[HostTarget],
        now: Now,
    ) -> Option<HostFlush> {
        self.tried = Quarter::of(now.wall);
        if self.ledger.is_none() && Instant::now() >= self.retry {
            self.retry = Instant::now() + RETRY;
            match self.begin(store, machine) {
                Ok(ledger) => self.ledger = ledger,
                Err(error) => self.complain(&error),
            }
        }
        match self.ledger.as_mut()?.sample(targets) {
            Ok(mut flush) => {
                flush.quarter = quarter_of(self.last.wall, now.wall);
                Some(flush)
            }
            Err(error) => {
                self.complain(&error.into());
                None
            }
        }
    }

    /// To be called when a sample is in the history.
    pub fn flushed(&mut self, flush: &HostFlush, now: Now) {
        self.last = now;
        let Some(ledger) = &mut self.ledger else { return };
        let committed = ledger.committed(flush).map_err(anyhow::Error::from);
        let ended = if self.wanted { Ok(()) } else { self.remove() };
        match committed.and(ended) {
            Ok(()) => {
                if self.complaint.take().is_some() {
                    info!("the host's cgroups are counted again");
                }
            }
            Err(error) => self.complain(&error),
        }
        for Event { message, .. } in &flush.events {
            info!("host: {message}");
        }
    }

    fn begin(&mut self, store: &Store, machine: &Machine) -> Result<Option<HostLedger>> {
        if self.wanted {
            let ledger = self.start(store, machine)?;
            info!("counting every cgroup of the host");
            return Ok(Some(ledger));
        }
        if !self.root.has_host() {
            return Ok(None);
        }
        // What an earlier configuration wanted: it is read to its end.
        match self.start(store, machine) {
            Ok(ledger) => Ok(Some(ledger)),
            Err(error) => {
                // It costs every packet of the host.
                self.remove()?;
                Err(error.context("what was counted last is lost"))
            }
        }
    }

    fn start(&self, store: &Store, machine: &Machine) -> Result<HostLedger> {
        let kept = store.host_absolute()?;
        let (root, tree) = (Some(&self.root), machine.cgroups.clone());
        Ok(HostLedger::start(root, tree, NetNs::current()?, &self.boot_id, kept)?)
    }

    /// Ends counting for good.
    fn remove(&mut self) -> Result<()> {
        self.ledger = None;
        HostCounter::remove_pins(&self.root)?;
        info!("the host's cgroups are not counted any more");
        Ok(())
    }

    /// Reads what is pinned to the end, writes it to the history and removes the pins, if there are any.
    pub fn end(
        mut self,
        store: &mut Store,
        machine: &Machine,
        targets: &[HostTarget],
    ) -> Result<()> {
        if !self.root.has_host() {
            return Ok(());
        }
        let mut ledger = self.start(store, machine)?;
        let flush = Flush { host: Some(ledger.sample(targets)?), ..Flush::default() };
        store.flush(&flush)?;
        drop(ledger);
        self.remove()
    }

    fn complain(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.complaint.as_ref() != Some(&text) {
            warn!("the host's cgroups are not counted: {text}");
            self.complaint = Some(text);
        }
    }
}

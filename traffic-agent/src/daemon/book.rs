//! What a target's history does not have yet: traffic, coverage and events since the last flush. Pure.
//!
//! A page is what one flush adds. It holds the traffic of one quarter of an hour and the counters that this
//! traffic is the difference to; both reach the disk in one transaction or not at all. When the disk takes
//! nothing, pages wait, one per quarter.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use traffic_ebpf::Cell;

use crate::history::{
    Absolute, Epoch, Event, EventKind, KnownInterface, MethodReading, Quarter, Series, TargetFlush,
    spread,
};
use crate::ledger;
use crate::report::{CellReport, Counters};

/// A page that waits to be flushed.
#[derive(Debug)]
struct Page {
    quarter: Quarter,
    taken_at: Timestamp,
    observed_until: Option<Duration>,
    postings: BTreeMap<Series, Counters>,
    observed: BTreeMap<Quarter, u32>,
    absolute: BTreeMap<Epoch, Absolute>,
    /// Whether it has a name that the history does not know.
    has_new_name: bool,
    closed: Vec<Epoch>,
    events: Vec<Event>,
    readings: Vec<MethodReading>,
}

impl Page {
    fn new(quarter: Quarter, taken_at: Timestamp) -> Self {
        Self {
            quarter,
            taken_at,
            observed_until: None,
            postings: BTreeMap::new(),
            observed: BTreeMap::new(),
            absolute: BTreeMap::new(),
            has_new_name: false,
            closed: Vec::new(),
            events: Vec::new(),
            readings: Vec::new(),
        }
    }

    /// Whether it has more to say than that time went by.
    fn has_news(&self) -> bool {
        !(self.postings.is_empty() && self.events.is_empty() && self.closed.is_empty())
    }
}

/// The book of one target.
#[derive(Debug)]
pub struct Book {
    target: String,
    selector: String,
    /// The counters of each epoch as posted last, flushed or not.
    posted: BTreeMap<Epoch, Absolute>,
    pages: VecDeque<Page>,
    /// Until when it was observed, since boot.
    observed_until: Option<Duration>,
}

impl Book {
    /// Goes on where the history ends: with the counters that are kept there, and the instant since boot until
    /// which it was observed.
    pub fn open(
        target: String,
        selector: String,
        kept: Vec<Absolute>,
        observed_until: Option<Duration>,
    ) -> Self {
        let posted = kept.into_iter().map(|absolute| (absolute.epoch.clone(), absolute)).collect();
        Self { target, selector, posted, pages: VecDeque::new(), observed_until }
    }

    /// The epochs whose counters were posted.
    pub fn epochs(&self) -> impl Iterator<Item = &Epoch> {
        self.posted.keys()
    }

    /// The page of a quarter: the last one, or a new one behind it.
    fn page(&mut self, quarter: Quarter, now: Timestamp) -> &mut Page {
        if self.pages.back().is_none_or(|page| page.quarter != quarter) {
            self.pages.push_back(Page::new(quarter, now));
        }
        let page = self.pages.back_mut().expect("just made sure of");
        page.taken_at = now;
        page.observed_until = self.observed_until;
        page
    }

    /// Posts what counters have counted since they were posted last: into a quarter, under the names that
    /// `name` gives to the difference. Returns it; nothing if there is nothing new.
    ///
    /// Counters that have become smaller are another map under the same name: all of theirs is new.
    pub fn post(
        &mut self,
        quarter: Quarter,
        now: Timestamp,
        epoch: &Epoch,
        cells: &[Cell],
        name: impl FnOnce(&[Cell]) -> Result<Vec<CellReport>>,
    ) -> Result<Vec<CellReport>> {
        let last = self.posted.get(epoch);
        let (new, backwards) = match ledger::post(last, epoch, cells) {
            Ok(new) => (new, false),
            Err(_) => (cells.to_vec(), true),
        };
        let nothing = new.iter().all(|cell| *cell == Cell::default());
        if nothing && last.is_some() {
            self.page(quarter, now);
            return Ok(Vec::new());
        }
        // Before anything changes: without names nothing is posted, and the next look has all of it.
        let named = name(&new)?;
        let mut absolute = ledger::absolute(epoch.clone(), cells);
        if let Some(last) = self.posted.remove(epoch) {
            absolute.interfaces = last.interfaces;
        }
        self.posted.insert(epoch.clone(), absolute.clone());
        let page = self.page(quarter, now);
        page.absolute.insert(epoch.clone(), absolute);
        for cell in &named {
            *page.postings.entry(Series::from(cell)).or_default() += cell.counters;
        }
        if backwards {
            page.events.push(Event {
                start: now,
                end: now,
                kind: EventKind::Gap,
                message: "counters were smaller than when they were last read: taken for new ones"
                    .to_owned(),
            });
        }
        Ok(named)
    }

    /// Learns what the interfaces are called that an epoch has counted at.
    pub fn know_interfaces(
        &mut self,
        now: Timestamp,
        epoch: &Epoch,
        interfaces: &[KnownInterface],
    ) {
        let Some(posted) = self.posted.get_mut(epoch) else { return };
        if posted.interfaces == interfaces {
            return;
        }
        let is_new = interfaces.iter().any(|one| !posted.interfaces.contains(one));
        posted.interfaces = interfaces.to_vec();
        let posted = posted.clone();
        let quarter = self.pages.back().map_or(Quarter::of(now), |page| page.quarter);
        let page = self.page(quarter, now);
        page.has_new_name |= is_new;
        page.absolute.insert(epoch.clone(), posted);
    }

    /// Whether there is a name of an interface that the history does not know yet.
    pub fn has_new_name(&self) -> bool {
        self.pages.iter().any(|page| page.has_new_name)
    }

    /// The counters were read at this time since boot: what went by until then is observed, or it is not.
    pub fn reached(&mut self, until: Duration) {
        self.observed_until = Some(until);
        if let Some(page) = self.pages.back_mut() {
            page.observed_until = Some(until);
        }
    }

    /// Counts a span as observed. `until`: its end since boot.
    pub fn observe(&mut self, from: Timestamp, to: Timestamp, until: Duration) {
        self.observed_until = Some(until);
        let page = self.page(Quarter::of(to), to);
        for (quarter, milliseconds) in spread(from, to) {
            *page.observed.entry(quarter).or_default() += milliseconds;
        }
    }

    /// Notes what happened.
    pub fn note(&mut self, now: Timestamp, event: Event) {
        let quarter = self.pages.back().map_or(Quarter::of(now), |page| page.quarter);
        self.page(quarter, now).events.push(event);
    }

    /// Adds what other methods counted.
    pub fn compare(&mut self, now: Timestamp, readings: Vec<MethodReading>) {
        let quarter = self.pages.back().map_or(Quarter::of(now), |page| page.quarter);
        self.page(quarter, now).readings.extend(readings);
    }

    /// Forgets the counters of an epoch: they are gone, or all of them is in the history.
    pub fn close(&mut self, now: Timestamp, epoch: &Epoch) {
        if self.posted.remove(epoch).is_some() {
            let quarter = self.pages.back().map_or(Quarter::of(now), |page| page.quarter);
            self.page(quarter, now).closed.push(epoch.clone());
        }
    }

    /// Goes on in a history that begins with the next flush: that one takes along all counters as they were
    /// posted last, or whoever opens it next would take all they have counted for new.
    pub fn begin_again(&mut self, now: Timestamp) {
        let posted: Vec<Absolute> = self.posted.values().cloned().collect();
        let quarter = self.pages.back().map_or(Quarter::of(now), |page| page.quarter);
        let page = self.page(quarter, now);
        for absolute in posted {
            page.absolute.insert(absolute.epoch.clone(), absolute);
        }
    }

    /// Takes the events out that were noted since the last flush.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.pages.iter_mut().flat_map(|page| std::mem::take(&mut page.events)).collect()
    }

    /// Whether there is more to flush than that time went by.
    pub fn has_news(&self) -> bool {
        self.pages.len() > 1 || self.pages.iter().any(Page::has_news)
    }

    /// The oldest page, to be flushed.
    pub fn oldest(&self) -> Option<TargetFlush> {
        let page = self.pages.front()?;
        Some(TargetFlush {
            target: self.target.clone(),
            selector: self.selector.clone(),
            taken_at: page.taken_at,
            observed_until: page.observed_until,
            quarter: page.quarter,
            postings: page.postings.iter().map(|(series, sum)| (series.clone(), *sum)).collect(),
            observed: page.observed.iter().map(|(quarter, ms)| (*quarter, *ms)).collect(),
            absolute: page.absolute.values().cloned().collect(),
            closed: page.closed.clone(),
            events: page.events.clone(),
            readings: page.readings.clone(),
        })
    }

    /// The oldest page is in the history.
    pub fn flushed(&mut self) {
        self.pages.pop_front();
    }
}

#[cfg(test)]
mod tests;

//! What a target's history does not have yet: traffic, coverage and events since the last flush. Pure.
//!
//! A page is what one flush adds. It holds the traffic of one quarter of an hour and the counters that this
//! traffic is the difference to; both reach the disk in one transaction or not at all. When the disk takes
//! nothing, pages wait, one per quarter.

use std::collections::{BTreeMap, VecDeque};

use anyhow::Result;
use jiff::Timestamp;
use traffic_ebpf::Cell;

use crate::history::{
    Absolute, Epoch, Event, EventKind, MethodReading, Quarter, Series, TargetFlush, spread,
};
use crate::ledger;
use crate::report::{CellReport, Counters};

/// A page that waits to be flushed.
#[derive(Debug)]
struct Page {
    quarter: Quarter,
    taken_at: Timestamp,
    postings: BTreeMap<Series, Counters>,
    observed: BTreeMap<Quarter, u32>,
    absolute: BTreeMap<Epoch, Absolute>,
    closed: Vec<Epoch>,
    events: Vec<Event>,
    readings: Vec<MethodReading>,
}

impl Page {
    fn new(quarter: Quarter, taken_at: Timestamp) -> Self {
        Self {
            quarter,
            taken_at,
            postings: BTreeMap::new(),
            observed: BTreeMap::new(),
            absolute: BTreeMap::new(),
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
}

impl Book {
    /// Goes on where the history ends: with the counters that are kept there.
    pub fn open(target: String, selector: String, kept: Vec<Absolute>) -> Self {
        let posted = kept.into_iter().map(|absolute| (absolute.epoch.clone(), absolute)).collect();
        Self { target, selector, posted, pages: VecDeque::new() }
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
        let absolute = ledger::absolute(epoch.clone(), cells);
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

    /// Counts a span as observed.
    pub fn observe(&mut self, from: Timestamp, to: Timestamp) {
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{Direction, Family, Leg, Origin, Protocol, Scope};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_540_500 + second).unwrap()
    }

    fn epoch(map_id: u32) -> Epoch {
        Epoch { boot_id: "boot".to_owned(), map_id }
    }

    fn cell(wire_bytes: u64) -> Cell {
        Cell { packets: 1, bytes: wire_bytes, wire_packets: 1, wire_bytes, ..Cell::default() }
    }

    fn name(cells: &[Cell]) -> Result<Vec<CellReport>> {
        let named = cells.iter().filter(|cell| **cell != Cell::default()).map(|cell| CellReport {
            interface: "eth0".to_owned(),
            scope: Scope::Billed,
            origin: Origin::Socket,
            direction: Direction::Ingress,
            leg: Leg::Client,
            protocol: Protocol::Tcp,
            port: Some(443),
            family: Family::Ipv4,
            counters: (*cell).into(),
        });
        Ok(named.collect())
    }

    fn book() -> Book {
        Book::open("xray".to_owned(), "unit:xray.service".to_owned(), Vec::new())
    }

    fn bytes(flush: &TargetFlush) -> u64 {
        flush.postings.iter().map(|(_, counters)| counters.wire_bytes).sum()
    }

    #[test]
    fn a_page_holds_one_quarter_and_the_counters_it_is_the_difference_to() {
        let mut book = book();
        let quarter = Quarter::of(at(0));
        book.post(quarter, at(10), &epoch(1), &[cell(100)], name).unwrap();
        book.post(quarter, at(20), &epoch(1), &[cell(150)], name).unwrap();
        book.post(quarter.next(), at(910), &epoch(1), &[cell(157)], name).unwrap();
        let first = book.oldest().unwrap();
        assert_eq!((first.quarter, bytes(&first), first.taken_at), (quarter, 150, at(20)));
        assert_eq!(first.absolute[0].cells, [(0, cell(150))]);
        book.flushed();
        let second = book.oldest().unwrap();
        assert_eq!((second.quarter, bytes(&second)), (quarter.next(), 7));
        assert_eq!(second.absolute[0].cells, [(0, cell(157))]);
        book.flushed();
        assert!(book.oldest().is_none());
    }

    #[test]
    fn without_names_nothing_is_posted_and_nothing_is_lost() {
        let mut book = book();
        let quarter = Quarter::of(at(0));
        let refused = |_: &[Cell]| anyhow::bail!("no names");
        assert!(book.post(quarter, at(1), &epoch(1), &[cell(100)], refused).is_err());
        book.post(quarter, at(2), &epoch(1), &[cell(120)], name).unwrap();
        assert_eq!(bytes(&book.oldest().unwrap()), 120);
    }

    #[test]
    fn a_book_goes_on_where_the_history_ends() {
        let kept = ledger::absolute(epoch(1), &[cell(100)]);
        let mut book = Book::open("xray".to_owned(), String::new(), vec![kept]);
        let quarter = Quarter::of(at(0));
        book.post(quarter, at(1), &epoch(1), &[cell(130)], name).unwrap();
        assert_eq!(bytes(&book.oldest().unwrap()), 30);
    }

    #[test]
    fn time_is_observed_by_quarter_and_is_no_news() {
        let mut book = book();
        book.observe(at(890), at(910));
        let flush = book.oldest().unwrap();
        let quarter = Quarter::of(at(0));
        assert_eq!(flush.observed, [(quarter, 10_000), (quarter.next(), 10_000)]);
        assert!(!book.has_news());
        book.note(
            at(911),
            Event { start: at(1), end: at(2), kind: EventKind::Note, message: String::new() },
        );
        assert!(book.has_news());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Count(u64),
        Post {
            seconds: i64,
        },
        Flush,
        /// The agent dies and opens its book again from what was flushed.
        Die,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..5000_u64).prop_map(Step::Count),
            (0..2000_i64).prop_map(|seconds| Step::Post { seconds }),
            Just(Step::Flush),
            Just(Step::Die),
        ];
        proptest::collection::vec(step, 0..80)
    }

    /// Both clocks, and what is done with them: as `Account::read` does it.
    #[derive(Clone, Debug)]
    enum Tick {
        /// So much time goes by, and so many bytes with it; then the counters are read.
        Read {
            milliseconds: u64,
            bytes: u64,
        },
        /// Somebody sets the wall clock by so much.
        Set {
            seconds: i64,
        },
        Flush,
    }

    fn ticks() -> impl Strategy<Value = Vec<Tick>> {
        let tick = prop_oneof![
            4 => (1..400_000_u64, 0..5000_u64)
                .prop_map(|(milliseconds, bytes)| Tick::Read { milliseconds, bytes }),
            1 => (-40_000..40_000_i64).prop_map(|seconds| Tick::Set { seconds }),
            2 => Just(Tick::Flush),
        ];
        proptest::collection::vec(tick, 0..120)
    }

    proptest! {
        /// However the clock is set: every byte is there once, no more time was observed than went by, and
        /// each time the clock was set is told.
        #[test]
        fn a_clock_that_is_set_moves_bytes_and_neither_loses_nor_invents_any(ticks in ticks()) {
            use crate::daemon::account::quarter_of;
            use crate::daemon::clock::Now;
            let mut book = book();
            let (mut now, mut passed, mut counted) = (
                Now { wall: at(0), boot: std::time::Duration::from_secs(1000) }, 0, 0
            );
            let (mut before, mut expected_steps, mut told_steps) = (now, 0, 0);
            let mut set = 0_i64;
            let (mut history, mut observed) = (0, 0);
            let last = [Tick::Read { milliseconds: 1, bytes: 1 }, Tick::Flush];
            for tick in ticks.into_iter().chain(last) {
                match tick {
                    Tick::Set { seconds } => set += seconds,
                    Tick::Read { milliseconds, bytes } => {
                        (passed, counted) = (passed + milliseconds, counted + bytes);
                        now.boot += std::time::Duration::from_millis(milliseconds);
                        let wall = milliseconds as i64 + set * 1000;
                        now.wall += jiff::SignedDuration::from_millis(wall);
                        expected_steps += u32::from(set != 0);
                        set = 0;
                        if let Some(step) = now.step_since(&before) {
                            prop_assert!(step.start <= step.end);
                            told_steps += 1;
                            book.note(now.wall, step);
                        }
                        let since = now.wall_at(&before);
                        let quarter = quarter_of(since, now.wall);
                        let cells = [Cell { wire_bytes: counted, ..Cell::default() }];
                        book.post(quarter, now.wall, &epoch(1), &cells, name).unwrap();
                        book.observe(since, now.wall);
                        before = now;
                    }
                    Tick::Flush => while let Some(flush) = book.oldest() {
                        history += bytes(&flush);
                        let milliseconds = flush.observed.iter().map(|(_, it)| u64::from(*it));
                        observed += milliseconds.sum::<u64>();
                        book.flushed();
                    },
                }
            }
            prop_assert_eq!(history, counted);
            prop_assert_eq!(told_steps, expected_steps);
            prop_assert_eq!(observed, passed);
        }
    }

    proptest! {
        /// Whenever the agent dies: at the end the history has what the counters say, once.
        #[test]
        fn what_was_counted_is_in_the_history_once(steps in steps()) {
            let (mut counted, mut seconds) = (0, 0);
            let (mut history, mut kept) = (0, Vec::new());
            let mut book = book();
            for step in steps.into_iter().chain([Step::Post { seconds: 1 }, Step::Flush]) {
                match step {
                    Step::Count(bytes) => counted += bytes,
                    Step::Post { seconds: passed } => {
                        seconds += passed;
                        let now = at(seconds);
                        let cells = [Cell { wire_bytes: counted, ..Cell::default() }];
                        book.post(Quarter::of(now), now, &epoch(1), &cells, name).unwrap();
                    }
                    Step::Flush => while let Some(flush) = book.oldest() {
                        history += bytes(&flush);
                        if !flush.absolute.is_empty() {
                            kept = flush.absolute;
                        }
                        book.flushed();
                    },
                    Step::Die => {
                        book = Book::open("xray".to_owned(), String::new(), kept.clone());
                    }
                }
            }
            prop_assert_eq!(history, counted);
        }
    }
}

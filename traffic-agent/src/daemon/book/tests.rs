//! Whatever happens to clocks and agents: every byte is in the history once.

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
    Book::open("xray".to_owned(), "unit:xray.service".to_owned(), Vec::new(), None)
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
    let mut book = Book::open("xray".to_owned(), String::new(), vec![kept], None);
    let quarter = Quarter::of(at(0));
    book.post(quarter, at(1), &epoch(1), &[cell(130)], name).unwrap();
    assert_eq!(bytes(&book.oldest().unwrap()), 30);
}

#[test]
fn time_is_observed_by_quarter_and_is_no_news() {
    let mut book = book();
    book.observe(at(890), at(910), Duration::from_secs(910));
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

#[test]
fn a_new_name_is_flushed_with_the_counters_and_stays_with_them() {
    let known =
        |name: &str| KnownInterface { number: 7, name: name.to_owned(), scope: Scope::Billed };
    let mut book = book();
    let quarter = Quarter::of(at(0));
    book.post(quarter, at(1), &epoch(1), &[cell(100)], name).unwrap();
    assert!(!book.has_new_name());
    book.know_interfaces(at(1), &epoch(1), &[known("ppp0")]);
    assert!(book.has_new_name());
    let flush = book.oldest().unwrap();
    assert_eq!(flush.absolute[0].interfaces, [known("ppp0")]);
    assert_eq!(flush.absolute[0].cells, [(0, cell(100))]);
    book.flushed();
    assert!(!book.has_new_name());
    // What is known already is no news, and goes along with the next counters.
    book.know_interfaces(at(2), &epoch(1), &[known("ppp0")]);
    assert!(book.oldest().is_none());
    book.post(quarter, at(3), &epoch(1), &[cell(120)], name).unwrap();
    assert_eq!(book.oldest().unwrap().absolute[0].interfaces, [known("ppp0")]);
    // One that is gone is no hurry.
    book.know_interfaces(at(4), &epoch(1), &[]);
    assert!(!book.has_new_name());
    assert_eq!(book.oldest().unwrap().absolute[0].interfaces, []);
    // Nor does anybody ask for the names of counters that are gone.
    book.know_interfaces(at(4), &epoch(2), &[known("ppp0")]);
    assert_eq!(book.oldest().unwrap().absolute.len(), 1);
}

#[test]
fn time_in_which_nothing_of_the_target_could_be_counted_is_behind_when_its_history_goes_on() {
    let mut book = book();
    book.observe(at(0), at(10), Duration::from_secs(10));
    // Read, and not covered.
    book.reached(Duration::from_secs(3600));
    assert_eq!(book.oldest().unwrap().observed_until, Some(Duration::from_secs(3600)));
    book.flushed();
    let event = Event { start: at(1), end: at(2), kind: EventKind::Gap, message: String::new() };
    book.note(at(3600), event);
    let page = book.oldest().unwrap();
    assert_eq!((page.observed_until, page.observed.len()), (Some(Duration::from_secs(3600)), 0));
}

#[test]
fn a_page_says_until_when_it_was_observed_whatever_the_clock_says() {
    let kept = ledger::absolute(epoch(1), &[cell(100)]);
    let until = Duration::from_secs(50);
    let mut book = Book::open("xray".to_owned(), String::new(), vec![kept], Some(until));
    // An event is no observation.
    let note = Event { start: at(1), end: at(1), kind: EventKind::Note, message: String::new() };
    book.note(at(1), note);
    assert_eq!(book.oldest().unwrap().observed_until, Some(until));
    let until = Duration::from_secs(60);
    book.observe(at(-3600), at(-3590), until);
    book.flushed();
    assert_eq!(book.oldest().unwrap().observed_until, Some(until));
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
            Now { wall: at(0), boot: Duration::from_secs(1000) }, 0, 0
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
                    now.boot += Duration::from_millis(milliseconds);
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
                    book.observe(since, now.wall, now.boot);
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
                    book = Book::open("xray".to_owned(), String::new(), kept.clone(), None);
                }
            }
        }
        prop_assert_eq!(history, counted);
    }
}

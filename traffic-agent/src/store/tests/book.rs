//! What is flushed is what is read.

use std::time::Duration;

use super::*;
use crate::history::{Event, EventKind, KnownInterface};

#[test]
fn a_flush_is_read_back_with_all_its_parts() {
    let directory = directory();
    let at_quarter = quarter("2026-11-24T17:15:00Z");
    let taken_at = at("2026-11-24T17:20:00Z");
    let other = Series { port: None, leg: Leg::Upstream, ..series(0) };
    let event = Event {
        start: at("2026-11-24T17:16:00Z"),
        end: at("2026-11-24T17:17:00Z"),
        kind: EventKind::Gap,
        message: "the cgroup was gone".to_owned(),
    };
    let absolute = Absolute {
        epoch: epoch(7),
        interfaces: vec![],
        cells: vec![(3, cell(1000)), (515, cell(u64::MAX))],
    };
    let mut store = open(directory.path());
    assert_eq!(store.last_flush("xray").unwrap(), None);
    store
        .flush(&one(TargetFlush {
            taken_at,
            postings: vec![(series(443), counters(1000)), (other.clone(), counters(2000))],
            observed: vec![(at_quarter, 240_000)],
            absolute: vec![absolute.clone()],
            events: vec![event.clone()],
            ..empty("xray", at_quarter)
        }))
        .unwrap();
    store
        .flush(&one(TargetFlush {
            postings: vec![(series(443), counters(5))],
            ..empty("xray", at_quarter)
        }))
        .unwrap();
    assert_eq!(store.absolutes("xray").unwrap(), [absolute]);
    assert_eq!(store.absolutes("other").unwrap(), []);
    assert_eq!(store.last_flush("xray").unwrap(), Some(at_quarter.start()));

    let reader = Reader::open(directory.path()).unwrap();
    let [target] = &reader.targets().unwrap()[..] else { panic!("one target") };
    assert_eq!((target.name.as_str(), target.selector.as_str()), ("xray", "unit:xray.service"));
    // The first flush was of four minutes.
    assert_eq!(target.since, at("2026-11-24T17:16:00Z"));
    assert_eq!(target.last_flush, at_quarter.start());
    let sum = Counters { packets: 2, wire_packets: 4, ..counters(1005) };
    let expected =
        [((at_quarter, series(443)), sum), ((at_quarter, other.clone()), counters(2000))];
    assert_eq!(quarters(&reader, "xray"), expected.into());
    let day = date(2026, 11, 24);
    let expected = [((day, series(443)), sum), ((day, other), counters(2000))];
    assert_eq!(days(&reader, "xray"), expected.into());
    assert_eq!(reader.observed("xray", ALL_QUARTERS).unwrap(), [(at_quarter, 240_000)]);
    assert_eq!(reader.observed_days("xray", ALL_DAYS).unwrap(), [(day, 240_000)]);
    assert_eq!(reader.events("xray", Timestamp::MIN..Timestamp::MAX).unwrap(), [event]);
    assert_eq!(reader.time_zone(), &TimeZone::UTC);
    assert_eq!(reader.store_id().unwrap().len(), 32);
}

#[test]
fn a_range_holds_its_start_and_not_its_end() {
    let directory = directory();
    let mut store = open(directory.path());
    let first = quarter("2026-11-24T00:00:00Z");
    for number in 0..4 * 24 * 3 {
        let quarter = Quarter(first.0 + number);
        let postings = vec![(series(443), counters(1))];
        store.flush(&one(TargetFlush { postings, ..empty("xray", quarter) })).unwrap();
        store.flush(&one(empty("other", quarter))).unwrap();
    }
    let reader = Reader::open(directory.path()).unwrap();
    let mut seen = Vec::new();
    let range = Quarter(first.0 + 5)..Quarter(first.0 + 8);
    reader.quarters("xray", range, |quarter, _, _| seen.push(quarter.0 - first.0)).unwrap();
    assert_eq!(seen, [5, 6, 7]);
    let mut seen = Vec::new();
    let range = date(2026, 11, 25)..date(2026, 11, 26);
    reader.days("xray", range, |day, _, counters| seen.push((day, counters.packets))).unwrap();
    assert_eq!(seen, [(date(2026, 11, 25), 96)]);
    assert!(quarters(&reader, "other").is_empty() && quarters(&reader, "unheard-of").is_empty());
}

#[test]
fn events_of_a_span_are_those_that_have_an_instant_in_it() {
    let directory = directory();
    let mut store = open(directory.path());
    let event = |start: i64, end: i64| Event {
        start: Timestamp::from_second(start).unwrap(),
        end: Timestamp::from_second(end).unwrap(),
        kind: EventKind::Note,
        message: format!("{start} to {end}"),
    };
    let events = vec![event(0, 10), event(10, 10), event(5, 15), event(19, 25), event(20, 20)];
    store.flush(&one(TargetFlush { events, ..empty("xray", Quarter(0)) })).unwrap();
    let reader = Reader::open(directory.path()).unwrap();
    let from_10_to_20 = Timestamp::from_second(10).unwrap()..Timestamp::from_second(20).unwrap();
    let seen = reader.events("xray", from_10_to_20).unwrap();
    let seen: Vec<_> = seen.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(seen, ["5 to 15", "10 to 10", "19 to 25"]);
}

#[test]
fn names_of_interfaces_are_kept_with_the_counters_and_forgotten_with_them() {
    let directory = directory();
    let mut store = open(directory.path());
    let known = |number, name: &str, scope| KnownInterface { number, name: name.to_owned(), scope };
    let both = vec![known(7, "ppp0", Scope::Billed), known(9, "wg0", Scope::Unbilled)];
    let one_left = vec![known(9, "wg1", Scope::Unbilled)];
    for interfaces in [both, one_left, vec![]] {
        let absolute = Absolute { epoch: epoch(1), interfaces, cells: vec![(0, cell(1))] };
        let absolute = vec![absolute];
        let flush = TargetFlush { absolute: absolute.clone(), ..empty("xray", Quarter(0)) };
        store.flush(&one(flush)).unwrap();
        assert_eq!(store.absolutes("xray").unwrap(), absolute);
    }
    let closed = vec![epoch(1)];
    store.flush(&one(TargetFlush { closed, ..empty("xray", Quarter(0)) })).unwrap();
    assert_eq!(store.absolutes("xray").unwrap(), []);
}

#[test]
fn an_interface_that_is_told_twice_stops_no_flush_and_is_kept_once() {
    let directory = directory();
    let mut store = open(directory.path());
    let known = |name: &str| KnownInterface { number: 7, name: name.into(), scope: Scope::Billed };
    let interfaces = vec![known("ppp0"), known("ppp1")];
    let absolute = vec![Absolute { epoch: epoch(1), interfaces, cells: vec![(0, cell(1))] }];
    store.flush(&one(TargetFlush { absolute, ..empty("xray", Quarter(0)) })).unwrap();
    let kept = store.absolutes("xray").unwrap();
    assert_eq!(kept[0].interfaces, [known("ppp1")]);
}

#[test]
fn until_when_a_target_was_observed_is_that_of_its_last_flush() {
    let directory = directory();
    let mut store = open(directory.path());
    assert_eq!(store.observed_until("xray").unwrap(), None);
    for observed_until in [None, Some(Duration::from_millis(1234)), Some(Duration::from_secs(9))] {
        store.flush(&one(TargetFlush { observed_until, ..empty("xray", Quarter(0)) })).unwrap();
        assert_eq!(store.observed_until("xray").unwrap(), observed_until);
    }
}

#[test]
fn kept_counters_are_those_of_the_last_flush_until_their_epoch_is_closed() {
    let directory = directory();
    let mut store = open(directory.path());
    let mut flush = |absolute: Vec<Absolute>, closed: Vec<Epoch>| {
        let flush = TargetFlush { absolute, closed, ..empty("xray", Quarter(0)) };
        store.flush(&one(flush)).unwrap();
        store.absolutes("xray").unwrap()
    };
    let of = |map_id, cells: &[(u32, u64)]| Absolute {
        epoch: epoch(map_id),
        interfaces: vec![],
        cells: cells.iter().map(|&(place, bytes)| (place, cell(bytes))).collect(),
    };
    assert_eq!(flush(vec![of(1, &[(0, 1), (9, 2)])], vec![]), [of(1, &[(0, 1), (9, 2)])]);
    // Both maps of an upgrade, one of them with nothing yet.
    assert_eq!(
        flush(vec![of(1, &[(0, 1), (9, 3)]), of(2, &[])], vec![]),
        [of(1, &[(0, 1), (9, 3)]), of(2, &[])]
    );
    // What is not in the list is not zero in it: it is gone.
    assert_eq!(flush(vec![of(2, &[(4, 4)])], vec![epoch(1)]), [of(2, &[(4, 4)])]);
    assert_eq!(flush(vec![of(2, &[(5, 4)])], vec![epoch(77)]), [of(2, &[(5, 4)])]);
}

#[test]
fn counters_stand_still_at_the_limit_and_are_marked() {
    let directory = directory();
    let limit = i64::MAX.cast_unsigned();
    let mut store = open(directory.path());
    let mut flush = |port, bytes| {
        let postings = vec![(series(port), counters(bytes))];
        store.flush(&one(TargetFlush { postings, ..empty("xray", Quarter(0)) })).unwrap();
        let reader = Reader::open(directory.path()).unwrap();
        let quarter = quarters(&reader, "xray")[&(Quarter(0), series(port))];
        assert_eq!(days(&reader, "xray")[&(date(1970, 1, 1), series(port))], quarter);
        quarter
    };
    assert_eq!(flush(1, limit - 2).wire_bytes, limit - 2);
    assert_eq!(flush(1, 1).wire_bytes, limit - 1);
    assert!(!flush(1, 0).at_limit());
    assert!(flush(1, 1).at_limit());
    assert!(flush(1, 1 << 40).at_limit());
    assert!(flush(2, u64::MAX).at_limit());
    // The other counters go on.
    assert_eq!(flush(2, u64::MAX).packets, 2);
    // A new zone sums the days up again, and no sum is beyond what a row can hold.
    let elsewhere = zone("Asia/Tokyo");
    for quarter in [1, 2] {
        let postings = vec![(series(2), counters(u64::MAX))];
        store.flush(&one(TargetFlush { postings, ..empty("xray", Quarter(quarter)) })).unwrap();
    }
    drop(store);
    drop(Store::open(directory.path(), &elsewhere).unwrap());
    let reader = Reader::open(directory.path()).unwrap();
    let day = days(&reader, "xray")[&(date(1970, 1, 1), series(2))];
    assert_eq!((day.wire_bytes, day.packets), (u64::MAX, 4));
}

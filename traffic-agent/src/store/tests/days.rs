//! Days are cut from quarters in the configured zone, and again when it is another one.

use std::fs;

use jiff::ToSpan as _;

use super::*;
use crate::history::Retention;

/// One posting of a byte, and one observed millisecond, in every quarter from `from` to before `to`.
fn fill(store: &mut Store, from: &str, to: &str) {
    let (from, to) = (quarter(from), quarter(to));
    let targets = (from.0..to.0).map(|quarter| TargetFlush {
        postings: vec![(series(443), counters(1))],
        observed: vec![(Quarter(quarter), 1)],
        ..empty("xray", Quarter(quarter))
    });
    store.flush(&Flush { targets: targets.collect(), ..Flush::default() }).unwrap();
}

/// Days and the number of their quarters, which counters and observed time agree upon.
fn lengths(directory: &Path) -> Vec<(Date, u64)> {
    let reader = Reader::open(directory).unwrap();
    let days = days(&reader, "xray");
    let days = days.iter().map(|((day, _), counters)| (*day, counters.wire_bytes)).collect();
    assert_eq!(reader.observed_days("xray", ALL_DAYS).unwrap(), days);
    days
}

#[test]
fn the_days_of_a_zone_have_the_quarters_that_its_clocks_show() {
    // 2026-03-28T00:00Z to 2026-03-31T00:00Z, 288 quarters; hand-cut.
    let cases: [(&str, [u64; 4]); 6] = [
        ("UTC", [96, 96, 96, 0]),
        // UTC+1, from 01:00Z on the 29th on UTC+2: the 28th has 92 from 00:00Z, the 29th 92 in all.
        ("Europe/Berlin", [92, 92, 96, 8]),
        // UTC+5:30: the 28th lasts until 18:30Z.
        ("Asia/Kolkata", [74, 96, 96, 22]),
        // UTC+5:45: until 18:15Z.
        ("Asia/Kathmandu", [73, 96, 96, 23]),
        // UTC+13:45, still summer time: until 10:15Z.
        ("Pacific/Chatham", [41, 96, 96, 55]),
        // UTC-3:30, before that -2:30 is summer time, since the 8th: the 27th lasts until 02:30Z.
        ("America/St_Johns", [10, 96, 96, 86]),
    ];
    for (name, expected) in cases {
        let directory = directory();
        let mut store = Store::open(directory.path(), &zone(name)).unwrap();
        fill(&mut store, "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
        let first = if name == "America/St_Johns" { 27 } else { 28 };
        let expected: Vec<_> = (0..)
            .zip(expected)
            .filter(|(_, quarters)| *quarters > 0)
            .map(|(number, quarters)| (date(2026, 3, first) + number.days(), quarters))
            .collect();
        assert_eq!(lengths(directory.path()), expected, "{name}");
    }
}

#[test]
fn a_day_of_25_hours_has_100_quarters() {
    let directory = directory();
    let mut store = Store::open(directory.path(), &zone("Europe/Berlin")).unwrap();
    // From 00:00+02:00 on 25 October to 00:00+01:00 on the 26th.
    fill(&mut store, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    assert_eq!(lengths(directory.path()), [(date(2026, 10, 25), 100)]);
}

#[test]
fn opening_in_another_zone_cuts_the_past_again() {
    let directory = directory();
    let mut store = open(directory.path());
    fill(&mut store, "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
    drop(store);
    let before = quarters(&Reader::open(directory.path()).unwrap(), "xray");
    for name in ["Asia/Kathmandu", "Europe/Berlin", "Europe/Berlin", "UTC"] {
        drop(Store::open(directory.path(), &zone(name)).unwrap());
        let again = lengths(directory.path());
        // As if it had always been that zone.
        let fresh = self::directory();
        let mut store = Store::open(fresh.path(), &zone(name)).unwrap();
        fill(&mut store, "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
        assert_eq!(again, lengths(fresh.path()), "{name}");
        let reader = Reader::open(directory.path()).unwrap();
        assert_eq!(reader.time_zone(), &zone(name));
        assert_eq!(quarters(&reader, "xray"), before);
    }
}

#[test]
fn a_zone_without_a_name_is_kept_by_its_offset() {
    let directory = directory();
    let fixed = TimeZone::fixed(jiff::tz::Offset::from_seconds(-12_600).unwrap());
    let mut store = Store::open(directory.path(), &fixed).unwrap();
    fill(&mut store, "2026-03-28T00:00:00Z", "2026-03-29T00:00:00Z");
    let expected = [(date(2026, 3, 27), 14), (date(2026, 3, 28), 82)];
    assert_eq!(lengths(directory.path()), expected);
    assert_eq!(Reader::open(directory.path()).unwrap().time_zone(), &fixed);
    drop(store);
    drop(Store::open(directory.path(), &fixed).unwrap());
    assert_eq!(lengths(directory.path()), expected);
}

#[test]
fn events_are_kept_for_the_newest_days() {
    let directory = directory();
    let mut store = open(directory.path());
    fill(&mut store, "2026-03-01T00:00:00Z", "2026-03-04T00:00:00Z");
    let event = |at_time: &str| crate::history::Event {
        start: at(at_time),
        end: at(at_time),
        kind: crate::history::EventKind::Note,
        message: at_time.to_owned(),
    };
    let times = ["2026-03-01T12:00:00Z", "2026-03-02T23:59:59Z", "2026-03-03T00:00:00Z"];
    let events = times.map(event).to_vec();
    store
        .flush(&one(TargetFlush {
            events: events.clone(),
            ..empty("xray", quarter("2026-03-03T23:45:00Z"))
        }))
        .unwrap();
    let kept = |store: &mut Store, days| {
        let events = Retention {
            quarters_days: None,
            days_days: None,
            events_days: days,
            estimates_minutes_days: None,
            estimates_quarters_days: None,
        };
        assert!(store.prune(&events).unwrap());
        let reader = Reader::open(directory.path()).unwrap();
        reader.events("xray", Timestamp::MIN..Timestamp::MAX).unwrap()
    };
    assert_eq!(kept(&mut store, None), events);
    assert_eq!(kept(&mut store, Some(2)), events[1..]);
    assert_eq!(kept(&mut store, Some(1)), events[2..]);
}

const KEEP_TWO: Retention = Retention {
    quarters_days: Some(2),
    days_days: Some(4),
    events_days: Some(1),
    estimates_minutes_days: None,
    estimates_quarters_days: None,
};

#[test]
fn what_is_more_than_is_to_be_kept_is_forgotten_and_days_stay_longer() {
    let directory = directory();
    let mut store = open(directory.path());
    fill(&mut store, "2026-03-01T00:00:00Z", "2026-03-11T00:00:00Z");
    let all = lengths(directory.path());
    assert!(store.prune(&KEEP_TWO).unwrap());
    assert_eq!(lengths(directory.path()), all[6..]);
    let reader = Reader::open(directory.path()).unwrap();
    let kept = quarters(&reader, "xray");
    assert_eq!(kept.len(), 2 * 96);
    assert_eq!(kept.first_key_value().unwrap().0.0, quarter("2026-03-09T00:00:00Z"));
    assert_eq!(reader.quarters_from().unwrap(), Some(quarter("2026-03-09T00:00:00Z")));
    assert_eq!(reader.observed("xray", ALL_QUARTERS).unwrap().len(), 2 * 96);
    // A clock that is wrong for an hour forgets one day, and not all of them.
    drop(reader);
    fill(&mut store, "2096-03-01T00:00:00Z", "2096-03-01T01:00:00Z");
    assert!(store.prune(&KEEP_TWO).unwrap());
    let after = lengths(directory.path());
    assert_eq!(after[..3], all[7..]);
    assert_eq!(after[3..], [(date(2096, 3, 1), 4)]);
}

#[test]
fn days_without_quarters_stay_as_they_were_cut_in_every_zone() {
    let directory = directory();
    let mut store = open(directory.path());
    fill(&mut store, "2026-03-01T00:00:00Z", "2026-03-05T00:00:00Z");
    let all = Retention {
        quarters_days: Some(2),
        days_days: None,
        events_days: None,
        estimates_minutes_days: None,
        estimates_quarters_days: None,
    };
    assert!(store.prune(&all).unwrap());
    drop(store);
    // Kept are the quarters from the 3rd, 00:00Z, on.
    let frozen = [(date(2026, 3, 1), 96), (date(2026, 3, 2), 96)];
    for (name, later) in [
        // UTC+9: the 3rd lasts until 15:00Z.
        ("Asia/Tokyo", &[(3, 60), (4, 96), (5, 36)][..]),
        // UTC-5: the 2nd would last until 05:00Z on the 3rd. It is no longer cut, so the 3rd has it.
        ("America/New_York", &[(3, 20 + 96), (4, 76)]),
        ("UTC", &[(3, 96), (4, 96)]),
    ] {
        drop(Store::open(directory.path(), &zone(name)).unwrap());
        let later = later.iter().map(|&(day, quarters)| (date(2026, 3, day), quarters));
        assert_eq!(lengths(directory.path()), frozen.into_iter().chain(later).collect::<Vec<_>>());
    }
    // And what comes for them later, by a clock that was set back, is in the book nevertheless.
    let mut store = open(directory.path());
    fill(&mut store, "2026-03-02T12:00:00Z", "2026-03-02T13:00:00Z");
    fill(&mut store, "2026-02-01T00:00:00Z", "2026-02-01T01:00:00Z");
    let sum = |days: Vec<(Date, u64)>| days.iter().map(|(_, quarters)| quarters).sum::<u64>();
    assert_eq!(sum(lengths(directory.path())), 4 * 96 + 8);
    assert!(store.prune(&all).unwrap());
    drop(store);
    drop(Store::open(directory.path(), &zone("Asia/Tokyo")).unwrap());
    assert_eq!(sum(lengths(directory.path())), 4 * 96 + 8);
}

#[test]
fn the_file_does_not_grow_while_old_quarters_make_room_for_new_ones() {
    let directory = directory();
    let mut store = open(directory.path());
    let size = || fs::metadata(directory.path().join(crate::store::DATABASE)).unwrap().len();
    let start = date(2026, 1, 1);
    let mut sizes = Vec::new();
    for day in 0..60 {
        let (from, to) = (start + day.days(), start + (day + 1).days());
        fill(&mut store, &format!("{from}T00:00:00Z"), &format!("{to}T00:00:00Z"));
        assert!(store.prune(&KEEP_TWO).unwrap());
        if day % 20 == 19 {
            drop(store);
            sizes.push(size());
            store = open(directory.path());
        }
    }
    assert!(sizes[2] <= sizes[0] + 4 * 4096, "{sizes:?}");
    // Fewer days to keep give space back.
    fill(&mut store, "2027-01-01T00:00:00Z", "2027-07-01T00:00:00Z");
    drop(store);
    let before = size();
    let mut store = open(directory.path());
    while !store.prune(&KEEP_TWO).unwrap() {}
    drop(store);
    assert!(size() < before / 2, "{before} B, then {} B", size());
}

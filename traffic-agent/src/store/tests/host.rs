//! The host's ledger goes in and comes out, stays bounded, and reaches the disk with the targets or not at all.

use super::*;
use crate::history::{Event, EventKind, Retention};
use crate::host::{HostAbsolute, HostFlush, HostSeries, ledger::Device};
use crate::kernel::HostSample;
use crate::method::interface::InterfaceCounters;
use crate::store::{MOST_CGROUPS, OTHERS};
use traffic_ebpf::HostKey;

fn host_series(cgroup: &str, target: Option<&str>) -> HostSeries {
    HostSeries {
        cgroup: cgroup.to_owned(),
        target: target.map(str::to_owned),
        interface: "eth0".to_owned(),
        direction: Direction::Egress,
    }
}

/// Without what the host's ledger does not count.
fn host_counters(wire_bytes: u64) -> Counters {
    Counters { packets: 1, bytes: wire_bytes, wire_packets: 1, wire_bytes, ..Counters::default() }
}

fn interface(bytes: u64) -> InterfaceCounters {
    InterfaceCounters { ingress_bytes: bytes, egress_packets: 3, ..InterfaceCounters::default() }
}

fn host_flush(quarter: Quarter, postings: Vec<(HostSeries, Counters)>) -> HostFlush {
    let absolute = HostAbsolute { boot_id: "boot".to_owned(), map_id: 9, ..Default::default() };
    HostFlush { quarter, postings, interfaces: Vec::new(), absolute, events: Vec::new() }
}

fn host_only(host: HostFlush) -> Flush {
    Flush { host: Some(host), ..Flush::default() }
}

/// Sums by cgroup and target.
fn by_cgroup(reader: &Reader) -> BTreeMap<(String, Option<String>), u64> {
    let mut sums = BTreeMap::new();
    let add = |_, series: &HostSeries, counters: Counters| {
        *sums.entry((series.cgroup.clone(), series.target.clone())).or_default() +=
            counters.wire_bytes;
    };
    reader.host_quarters(ALL_QUARTERS, add).unwrap();
    sums
}

#[test]
fn what_the_host_used_is_read_back_with_the_counters_it_is_the_difference_to() {
    let directory = directory();
    let mut store = open(directory.path());
    assert_eq!(store.host_absolute().unwrap(), None);
    let first = quarter("2026-11-24T17:15:00Z");
    let event = Event {
        start: at("2026-11-24T17:16:00Z"),
        end: at("2026-11-24T17:16:00Z"),
        kind: EventKind::Note,
        message: "interface eth0 was set back".to_owned(),
    };
    let cell =
        Cell { packets: 1, bytes: 7, wire_packets: 1, wire_bytes: u64::MAX, ..Cell::default() };
    let key = HostKey { cgroup: u64::MAX, namespace: u32::MAX, interface: 2 };
    let sample = HostSample {
        turn: 4,
        cells: [(key, [cell, Cell::default()])].into(),
        overflow: [Cell::default(), cell],
    };
    let next = HostSample { turn: 5, ..sample.clone() };
    let device = Device { index: 2, counters: interface(u64::MAX) };
    let absolute = HostAbsolute {
        turns: vec![sample, next],
        devices: [("eth0".to_owned(), device)].into(),
        ..host_flush(first, Vec::new()).absolute
    };
    let own = host_series("/proxy.slice", Some("xray"));
    store
        .flush(&host_only(HostFlush {
            interfaces: vec![("eth0".to_owned(), interface(70))],
            absolute: absolute.clone(),
            events: vec![event.clone()],
            ..host_flush(
                first,
                vec![(own.clone(), host_counters(40)), (host_series("/", None), host_counters(2))],
            )
        }))
        .unwrap();
    assert_eq!(store.host_absolute().unwrap(), Some(absolute));
    // The turn before is over, and was emptied.
    let mut after = store.host_absolute().unwrap().unwrap();
    after.turns.remove(0);
    store
        .flush(&host_only(HostFlush {
            interfaces: vec![("eth0".to_owned(), interface(5))],
            absolute: after.clone(),
            ..host_flush(first.next(), vec![(own, host_counters(9))])
        }))
        .unwrap();
    assert_eq!(store.host_absolute().unwrap(), Some(after));

    let reader = Reader::open(directory.path()).unwrap();
    let expected =
        [(("/".to_owned(), None), 2), (("/proxy.slice".to_owned(), Some("xray".to_owned())), 49)];
    assert_eq!(by_cgroup(&reader), expected.into());
    let sum = InterfaceCounters { egress_packets: 6, ..interface(75) };
    assert_eq!(reader.host_interfaces(ALL_QUARTERS).unwrap(), [("eth0".to_owned(), sum)].into());
    assert_eq!(reader.host_interfaces(first.next()..first.next()).unwrap(), BTreeMap::new());
    assert_eq!(reader.host_events(Timestamp::MIN..Timestamp::MAX).unwrap(), [event]);
    assert_eq!(reader.targets().unwrap(), []);
}

#[test]
fn cgroups_beyond_the_bound_are_folded_and_not_lost() {
    let directory = directory();
    let mut store = open(directory.path());
    let now = quarter("2026-11-24T17:15:00Z");
    // 150 of 1, 2, ... 150 bytes; then the same once more: those that have a row keep it.
    let many = || {
        let all =
            (1..=150).map(|n| (host_series(&format!("/run-{n}.scope"), None), host_counters(n)));
        host_flush(now, all.collect())
    };
    store.flush(&host_only(many())).unwrap();
    store.flush(&host_only(many())).unwrap();
    let sums = by_cgroup(&Reader::open(directory.path()).unwrap());
    assert_eq!(sums.len(), MOST_CGROUPS + 1);
    // The smallest fifty: 1 + 2 + ... + 50, twice.
    assert_eq!(sums[&(OTHERS.to_owned(), None)], 2 * 50 * 51 / 2);
    assert_eq!(sums.values().sum::<u64>(), 2 * 150 * 151 / 2);
    // A target stays told apart.
    let late = host_flush(now, vec![(host_series("/late", Some("xray")), host_counters(3))]);
    store.flush(&host_only(late)).unwrap();
    let sums = by_cgroup(&Reader::open(directory.path()).unwrap());
    assert_eq!(sums[&(OTHERS.to_owned(), Some("xray".to_owned()))], 3);
    // And the next quarter begins anew.
    let next = HostFlush { quarter: now.next(), ..many() };
    store.flush(&host_only(next)).unwrap();
    assert_eq!(by_cgroup(&Reader::open(directory.path()).unwrap()).len(), MOST_CGROUPS + 2);
}

#[test]
fn the_host_is_flushed_with_the_targets_or_not_at_all() {
    let directory = directory();
    let mut store = open(directory.path());
    let now = quarter("2026-11-24T17:15:00Z");
    let flush = Flush {
        targets: vec![TargetFlush {
            postings: vec![(series(443), counters(8))],
            ..empty("xray", now)
        }],
        host: Some(host_flush(now, vec![(host_series("/", None), host_counters(5))])),
    };
    let other = rusqlite::Connection::open(directory.path().join(crate::store::DATABASE)).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON host_interface
        BEGIN SELECT RAISE(ABORT, 'refused'); END";
    other.execute_batch(refuse).unwrap();
    let broken = HostFlush {
        interfaces: vec![("eth0".to_owned(), interface(1))],
        ..flush.host.clone().unwrap()
    };
    store.flush(&Flush { host: Some(broken), ..flush.clone() }).unwrap_err();
    let reader = Reader::open(directory.path()).unwrap();
    assert!(quarters(&reader, "xray").is_empty() && by_cgroup(&reader).is_empty());
    drop(reader);
    store.flush(&flush).unwrap();
    let reader = Reader::open(directory.path()).unwrap();
    assert_eq!(quarters(&reader, "xray").len(), 1);
    assert_eq!(by_cgroup(&reader).len(), 1);
}

#[test]
fn old_quarters_of_the_host_are_forgotten() {
    let directory = directory();
    let mut store = open(directory.path());
    let first = quarter("2026-11-20T00:00:00Z");
    for day in 0..5 {
        let now = Quarter(first.0 + 96 * day);
        let flush = Flush {
            targets: vec![TargetFlush { observed: vec![(now, 1000)], ..empty("xray", now) }],
            host: Some(host_flush(
                now,
                vec![(host_series(&format!("/{day}"), None), host_counters(1))],
            )),
        };
        store.flush(&flush).unwrap();
    }
    let retention = Retention {
        quarters_days: Some(2),
        days_days: None,
        events_days: None,
        estimates_minutes_days: None,
        estimates_quarters_days: None,
    };
    assert!(store.prune(&retention).unwrap());
    let sums = by_cgroup(&Reader::open(directory.path()).unwrap());
    let left: Vec<&str> = sums.keys().map(|(cgroup, _)| cgroup.as_str()).collect();
    assert_eq!(left, ["/3", "/4"]);
}

/// As many as are kept, and so many more.
const TOO_MANY: usize = crate::store::EVENTS as usize + 3000;

fn event(kind: EventKind, second: usize) -> Event {
    let start = Timestamp::from_second(1_700_000_000 + second as i64).unwrap();
    Event { start, end: start, kind, message: second.to_string() }
}

const FOREVER: Retention = Retention {
    quarters_days: None,
    days_days: None,
    events_days: None,
    estimates_minutes_days: None,
    estimates_quarters_days: None,
};

#[test]
fn no_gap_of_a_target_makes_room_for_what_is_noted_of_others() {
    let directory = directory();
    let mut store = open(directory.path());
    let now = quarter("2026-11-24T17:15:00Z");
    let gap = event(EventKind::Gap, 0);
    let of_target = TargetFlush { events: vec![gap.clone()], ..empty("xray", now) };
    store.flush(&one(of_target)).unwrap();
    let notes = |range: Range<usize>| range.map(|second| event(EventKind::Note, second)).collect();
    let host = HostFlush { events: notes(1..TOO_MANY + 1), ..host_flush(now, Vec::new()) };
    store.flush(&host_only(host)).unwrap();
    let other = TargetFlush { events: notes(0..10), ..empty("other", now) };
    store.flush(&one(other)).unwrap();
    assert!(store.prune(&FOREVER).unwrap());

    let reader = Reader::open(directory.path()).unwrap();
    let all = Timestamp::MIN..Timestamp::MAX;
    assert_eq!(reader.events("xray", all.clone()).unwrap(), [gap]);
    assert_eq!(reader.events("other", all.clone()).unwrap(), notes(0..10));
    // The newest of the host's.
    let kept = reader.host_events(all).unwrap();
    assert_eq!((kept.len(), &kept[0]), (TOO_MANY - 3000, &event(EventKind::Note, 3001)));
}

#[test]
fn of_too_many_events_notes_go_first_and_gaps_last() {
    let directory = directory();
    let mut store = open(directory.path());
    let now = quarter("2026-11-24T17:15:00Z");
    // Gaps alone, but for the second; the newest 2000 are notes.
    const GAPS_END: usize = TOO_MANY - 2000;
    let kind = |second| match second {
        1 => EventKind::Late,
        0..GAPS_END => EventKind::Gap,
        _ => EventKind::Note,
    };
    let events: Vec<Event> = (0..TOO_MANY).map(|second| event(kind(second), second)).collect();
    store.flush(&one(TargetFlush { events, ..empty("xray", now) })).unwrap();
    assert!(store.prune(&FOREVER).unwrap());
    let reader = Reader::open(directory.path()).unwrap();
    let kept = reader.events("xray", Timestamp::MIN..Timestamp::MAX).unwrap();
    // 3000 are too many: 2000 notes, what was late, and 999 gaps.
    assert_eq!(kept.len(), crate::store::EVENTS as usize);
    // The gaps 0 and 2 to 999 are the oldest 999.
    assert_eq!(kept[0], event(EventKind::Gap, 1000));
    assert_eq!(kept[kept.len() - 1], event(EventKind::Gap, GAPS_END - 1));
}

//! What other methods counted is kept beside what is exact, and adds up.

use proptest::prelude::*;

use super::*;
use crate::estimate::PortBytes;
use crate::history::{Method, MethodReading, ReadingSum, Retention};

fn reading(
    start: &str,
    seconds: i64,
    [ingress, egress]: [Option<u64>; 2],
    exact: u64,
) -> MethodReading {
    let start = at(start);
    MethodReading {
        method: Method::IptablesPort,
        start,
        end: start + jiff::SignedDuration::from_secs(seconds),
        ingress,
        egress,
        exact: PortBytes { ingress: exact, egress: 2 * exact },
    }
}

fn flush(store: &mut Store, readings: Vec<MethodReading>) {
    let target = TargetFlush { readings, ..empty("xray", quarter("2026-11-24T17:15:00Z")) };
    store.flush(&one(target)).unwrap();
}

fn sum(milliseconds: u64, ingress: Option<u64>, egress: Option<u64>, exact: u64) -> ReadingSum {
    let exact = PortBytes { ingress: exact, egress: 2 * exact };
    ReadingSum { milliseconds, ingress, egress, exact }
}

fn all(reader: &Reader, method: Method) -> Vec<(Quarter, ReadingSum)> {
    reader.readings("xray", method, ALL_QUARTERS).unwrap()
}

#[test]
fn minutes_are_added_up_by_the_quarter_they_began_in() {
    let directory = directory();
    let mut store = open(directory.path());
    let both = |start, ingress, exact| reading(start, 60, [Some(ingress), Some(10)], exact);
    flush(&mut store, vec![both("2026-11-24T17:13:30Z", 1, 5)]);
    // Reaches over the end of its quarter.
    flush(&mut store, vec![both("2026-11-24T17:14:30Z", 2, 7)]);
    flush(&mut store, vec![both("2026-11-24T17:15:30Z", 4, 11)]);
    // Rules of one direction only, then none: apart, because their exact bytes are of other spans.
    let one_way = reading("2026-11-24T17:16:30Z", 60, [Some(100), None], 13);
    let none = reading("2026-11-24T17:17:30Z", 60, [None, None], 17);
    flush(&mut store, vec![one_way.clone(), none.clone()]);
    let reader = Reader::open(directory.path()).unwrap();
    let (first, second) = (quarter("2026-11-24T17:00:00Z"), quarter("2026-11-24T17:15:00Z"));
    assert_eq!(
        all(&reader, Method::IptablesPort),
        [
            (first, sum(120_000, Some(3), Some(20), 12)),
            (second, sum(60_000, None, None, 17)),
            (second, sum(60_000, Some(100), None, 13)),
            (second, sum(60_000, Some(4), Some(10), 11)),
        ]
    );
    assert_eq!(all(&reader, Method::HookPort), []);
    let span = at("2026-11-24T17:16:00Z")..at("2026-11-24T18:00:00Z");
    assert_eq!(reader.minutes("xray", Method::IptablesPort, span).unwrap(), [one_way, none]);
}

#[test]
fn sums_beyond_63_bits_stand_at_the_limit() {
    let directory = directory();
    let mut store = open(directory.path());
    for start in ["2026-11-24T17:15:30Z", "2026-11-24T17:16:30Z"] {
        flush(&mut store, vec![reading(start, 60, [Some(1 << 62), Some(u64::MAX)], 1 << 61)]);
    }
    let reader = Reader::open(directory.path()).unwrap();
    let limit = (Some(u64::MAX), Some(u64::MAX));
    let [(_, sum)] = all(&reader, Method::IptablesPort)[..] else { panic!("one quarter") };
    assert_eq!((sum.ingress, sum.egress), limit);
    assert_eq!((sum.exact.ingress, sum.exact.egress), (1 << 62, u64::MAX));
}

#[test]
fn old_minutes_are_forgotten_and_their_sums_kept() {
    let directory = directory();
    let mut store = open(directory.path());
    for day in 1..=9 {
        let start = format!("2026-11-0{day}T12:00:00Z");
        let target = TargetFlush {
            postings: vec![(series(443), counters(1))],
            readings: vec![reading(&start, 60, [Some(1), Some(1)], 1)],
            ..empty("xray", quarter(&start))
        };
        store.flush(&one(target)).unwrap();
    }
    let mut retention = Retention {
        quarters_days: None,
        days_days: None,
        events_days: None,
        estimates_minutes_days: Some(3),
        estimates_quarters_days: None,
    };
    store.prune(&retention).unwrap();
    let kept = |directory: &Path| {
        let reader = Reader::open(directory).unwrap();
        let minutes =
            reader.minutes("xray", Method::IptablesPort, Timestamp::MIN..Timestamp::MAX).unwrap();
        (minutes.len(), all(&reader, Method::IptablesPort).len())
    };
    assert_eq!(kept(directory.path()), (3, 9));
    retention.estimates_quarters_days = Some(5);
    store.prune(&retention).unwrap();
    assert_eq!(kept(directory.path()), (3, 5));
}

/// The figures of the module's docs. `cargo test -p traffic-agent size_of_a_reading -- --nocapture` prints
/// them.
#[test]
fn size_of_a_reading_is_as_documented() {
    let directory = directory();
    let mut store = open(directory.path());
    let size = || fs::metadata(directory.path().join(crate::store::DATABASE)).unwrap().len();
    let minutes = 3 * 1440 * 10;
    let start = at("2026-11-01T00:00:00Z");
    let readings = Method::ALL.into_iter().flat_map(|method| {
        (0..1440 * 10).map(move |minute| {
            let exact = PortBytes { ingress: 40_000_000 + minute, egress: 41_000_000 + minute };
            let start = start + jiff::SignedDuration::from_mins(minute as i64);
            let end = start + jiff::SignedDuration::from_mins(1);
            let (ingress, egress) = (Some(2_000_000 + minute), Some(39_000_000 + minute));
            MethodReading { method, start, end, ingress, egress, exact }
        })
    });
    flush(&mut store, readings.collect());
    drop(store);
    let rows = minutes + minutes / 15;
    println!("{} B for {rows} rows", size());
    assert!((35..50).contains(&(size() / rows)), "{} B a row", size() / rows);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn sums_by_quarter_are_the_sums_of_their_minutes(
        minutes in prop::collection::vec(
            (0_i64..60, prop::option::of(0_u64..1000), prop::option::of(0_u64..1000), 0_u64..1000),
            0..40,
        ),
    ) {
        let directory = directory();
        let mut store = open(directory.path());
        let mut expected: BTreeMap<(Quarter, bool, bool), (u64, u64, u64)> = BTreeMap::new();
        for (number, (minute, ingress, egress, exact)) in minutes.into_iter().enumerate() {
            // A second of its own for each, so that none comes twice.
            let start = format!("2026-11-24T17:{minute:02}:{number:02}Z");
            flush(&mut store, vec![reading(&start, 60, [ingress, egress], exact)]);
            let key = (quarter(&start), ingress.is_some(), egress.is_some());
            let sum = expected.entry(key).or_default();
            sum.0 += ingress.unwrap_or(0);
            sum.1 += egress.unwrap_or(0);
            sum.2 += exact;
        }
        let reader = Reader::open(directory.path()).unwrap();
        let read: BTreeMap<_, _> = all(&reader, Method::IptablesPort)
            .into_iter()
            .map(|(quarter, sum)| {
                let key = (quarter, sum.ingress.is_some(), sum.egress.is_some());
                let (ingress, egress) = (sum.ingress.unwrap_or(0), sum.egress.unwrap_or(0));
                (key, (ingress, egress, sum.exact.ingress))
            })
            .collect();
        prop_assert_eq!(read, expected);
    }
}

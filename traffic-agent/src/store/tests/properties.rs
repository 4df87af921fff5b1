//! Whatever comes in whatever order: the quarters, the days and what was posted have the same sums.

use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::Connection;

use super::*;
use crate::history::Retention;
use crate::store::{DATABASE, Error};

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"];
const TARGETS: [&str; 2] = ["xray", "sing-box"];

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    /// A flush to a quarter.
    Flush { target: usize, quarter: i64, port: u16, wire_bytes: u64, map_id: u32 },
    /// A flush that cannot be written.
    Fail { target: usize, quarter: i64, port: u16, wire_bytes: u64, map_id: u32 },
    /// The agent starts again, in a zone.
    Open { zone: usize },
    /// What is too much is forgotten; days are kept for ever.
    Prune { quarters_days: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Around the change of clocks in 2026-03, six weeks; and now and then a clock that is wrong.
    let march = quarter("2026-03-01T00:00:00Z").0;
    let at = prop_oneof![20 => march..march + 6 * 7 * 96, 1 => -200..200_i64, 1 => Just(4_000_000)];
    let bytes = prop_oneof![8 => 0..1_000_000_u64, 1 => Just(1 << 56)];
    let what = || (0..TARGETS.len(), at.clone(), 0..4_u16, bytes.clone(), 1..3_u32);
    let step = prop_oneof![
        12 => what().prop_map(|(target, quarter, port, wire_bytes, map_id)| {
            Step::Flush { target, quarter, port, wire_bytes, map_id }
        }),
        2 => what().prop_map(|(target, quarter, port, wire_bytes, map_id)| {
            Step::Fail { target, quarter, port, wire_bytes, map_id }
        }),
        2 => (0..ZONES.len()).prop_map(|zone| Step::Open { zone }),
        1 => (1..10_u32).prop_map(|quarters_days| Step::Prune { quarters_days }),
    ];
    vec(step, 1..40)
}

/// Sums by target and series, as they should be.
#[derive(Default)]
struct Model {
    posted: BTreeMap<(usize, Series), Counters>,
    observed: BTreeMap<usize, u64>,
    absolutes: BTreeMap<(usize, Epoch), Vec<(u32, Cell)>>,
    pruned: bool,
}

impl Model {
    /// The absolute counters grow by what is posted, cell by cell.
    fn flush(&self, step: (usize, i64, u16, u64, u32)) -> (TargetFlush, Absolute) {
        let (target, at, port, wire_bytes, map_id) = step;
        let epoch = epoch(map_id);
        let mut cells: BTreeMap<u32, Cell> =
            self.absolutes.get(&(target, epoch.clone())).into_iter().flatten().copied().collect();
        let kept = cells.entry(port.into()).or_default();
        kept.wire_bytes = kept.wire_bytes.wrapping_add(wire_bytes);
        let absolute = Absolute { epoch, interfaces: vec![], cells: cells.into_iter().collect() };
        let flush = TargetFlush {
            postings: vec![(series(port), Counters { wire_bytes, ..Counters::default() })],
            observed: vec![(Quarter(at), 7), (Quarter(at + 1), 1)],
            absolute: vec![absolute.clone()],
            ..empty(TARGETS[target], Quarter(at))
        };
        (flush, absolute)
    }

    fn check(&self, directory: &Path, store: &Store) {
        let reader = Reader::open(directory).unwrap();
        for (number, target) in TARGETS.into_iter().enumerate() {
            let sum = |rows: Vec<(&Series, &Counters)>| {
                let mut sums: BTreeMap<Series, u64> = BTreeMap::new();
                for (series, counters) in rows {
                    let sum = sums.entry(series.clone()).or_default();
                    *sum = sum.saturating_add(counters.wire_bytes);
                }
                sums
            };
            let posted = self.posted.iter().filter(|((target, _), _)| *target == number);
            let posted = sum(posted.map(|((_, series), counters)| (series, counters)).collect());
            let by_day = days(&reader, target);
            let by_day = sum(by_day.iter().map(|((_, series), row)| (series, row)).collect());
            assert_eq!(by_day, posted, "{target}: the days");
            let observed = self.observed.get(&number).copied().unwrap_or(0);
            let by_day = reader.observed_days(target, ALL_DAYS).unwrap();
            assert_eq!(by_day.iter().map(|row| row.1).sum::<u64>(), observed);
            if !self.pruned {
                let by_quarter = quarters(&reader, target);
                let rows = by_quarter.iter().map(|((_, series), row)| (series, row)).collect();
                assert_eq!(sum(rows), posted, "{target}: the quarters");
                let by_quarter = reader.observed(target, ALL_QUARTERS).unwrap();
                assert_eq!(by_quarter.iter().map(|row| row.1).sum::<u64>(), observed);
            }
            let mut kept = store.absolutes(target).unwrap();
            kept.sort_by(|a, b| a.epoch.cmp(&b.epoch));
            let expected = self.absolutes.iter().filter(|((target, _), _)| *target == number);
            let expected: Vec<_> = expected
                .map(|((_, epoch), cells)| Absolute {
                    epoch: epoch.clone(),
                    interfaces: vec![],
                    cells: cells.clone(),
                })
                .collect();
            assert_eq!(kept, expected, "{target}");
        }
    }
}

/// Runs a flush that finds a trigger in its way.
fn fail(directory: &Path, store: &mut Store, flush: &Flush) {
    let other = Connection::open(directory.join(DATABASE)).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON absolute
             BEGIN SELECT raise(ABORT, 'refused'); END",
        )
        .unwrap();
    let failed = store.flush(flush);
    assert!(matches!(failed, Err(Error::Sqlite { .. })), "{failed:?}");
    other.execute_batch("DROP TRIGGER refuse").unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_those_of_the_postings_in_any_order_of_flushes_epochs_and_zones(steps in steps()) {
        let directory = directory();
        let mut store = open(directory.path());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Flush { target, quarter, port, wire_bytes, map_id } => {
                    let (flush, absolute) =
                        model.flush((target, quarter, port, wire_bytes, map_id));
                    store.flush(&one(flush)).unwrap();
                    if wire_bytes > 0 {
                        *model.posted.entry((target, series(port))).or_default() +=
                            Counters { wire_bytes, ..Counters::default() };
                    }
                    *model.observed.entry(target).or_default() += 8;
                    model.absolutes.insert((target, absolute.epoch), absolute.cells);
                }
                Step::Fail { target, quarter, port, wire_bytes, map_id } => {
                    let (mut flush, _) = model.flush((target, quarter, port, wire_bytes, map_id));
                    // A cell that is surely new, so that a row is inserted.
                    flush.absolute[0].cells.push((6000, cell(1)));
                    fail(directory.path(), &mut store, &one(flush));
                }
                Step::Open { zone: number } => {
                    drop(store);
                    store = Store::open(directory.path(), &zone(ZONES[number])).unwrap();
                }
                Step::Prune { quarters_days } => {
                    let retention = Retention {
                        quarters_days: Some(quarters_days),
                        days_days: None,
                        events_days: None,
                        estimates_minutes_days: None,
                        estimates_quarters_days: None,
                    };
                    while !store.prune(&retention).unwrap() {}
                    model.pruned = true;
                }
            }
            model.check(directory.path(), &store);
        }
    }
}

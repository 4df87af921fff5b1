//! From a sample to what the history does not have yet, across restarts of the agent and new counters.

use traffic_ebpf::Cell;

use super::{Backwards, cell_difference};
use crate::history::{Absolute, Epoch};

/// Returns what a sample counted that was not posted, by place.
///
/// * `last`: the counters as posted last, of whatever epoch; `None` before the first posting.
/// * `epoch`: that of the sample.
/// * `now`: the sample.
///
/// Within an epoch that is the difference. Another epoch began at zero, so all that it has counted is new;
/// what the epoch before counted after it was last posted is not known here.
///
/// # Errors
///
/// When a counter is smaller than it was in the same epoch, or when the sample has no place for it. Then
/// these are other counters under the same name: the caller takes them for a new epoch and says so in an
/// event. Nothing is ever negative.
pub fn post(last: Option<&Absolute>, epoch: &Epoch, now: &[Cell]) -> Result<Vec<Cell>, Backwards> {
    let Some(last) = last.filter(|last| last.epoch == *epoch) else { return Ok(now.to_vec()) };
    let mut new = now.to_vec();
    for (place, start) in &last.cells {
        let cell = new.get_mut(*place as usize).ok_or(Backwards)?;
        *cell = cell_difference(start, cell)?;
    }
    Ok(new)
}

/// Returns a sample as it is kept until the next posting.
pub fn absolute(epoch: Epoch, now: &[Cell]) -> Absolute {
    let cells = (0..).zip(now.iter().copied()).filter(|(_, cell)| *cell != Cell::default());
    Absolute { epoch, cells: cells.collect() }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PLACES: usize = 4;

    fn epoch(map_id: u32) -> Epoch {
        Epoch { boot_id: "boot".to_owned(), map_id }
    }

    fn cells(wire_bytes: [u64; PLACES]) -> Vec<Cell> {
        wire_bytes.map(|wire_bytes| Cell { wire_bytes, ..Cell::default() }).to_vec()
    }

    #[test]
    fn within_an_epoch_the_difference_is_new_and_in_another_one_everything() {
        let last = absolute(epoch(1), &cells([0, 10, 0, 30]));
        assert_eq!(last.cells.iter().map(|&(place, _)| place).collect::<Vec<_>>(), [1, 3]);
        let now = cells([5, 10, 0, 31]);
        assert_eq!(post(None, &epoch(1), &now), Ok(now.clone()));
        assert_eq!(post(Some(&last), &epoch(1), &now), Ok(cells([5, 0, 0, 1])));
        assert_eq!(post(Some(&last), &epoch(2), &now), Ok(now));
        // The same id of a map after a reboot.
        let rebooted = Epoch { boot_id: "another".to_owned(), ..epoch(1) };
        assert_eq!(post(Some(&last), &rebooted, &cells([1, 1, 1, 1])), Ok(cells([1, 1, 1, 1])));
    }

    #[test]
    fn what_is_smaller_or_has_no_place_is_not_posted() {
        let last = absolute(epoch(1), &cells([0, 10, 0, 30]));
        assert_eq!(post(Some(&last), &epoch(1), &cells([9, 9, 9, 30])), Err(Backwards));
        assert_eq!(post(Some(&last), &epoch(1), &cells([0, 10, 0, 0])), Err(Backwards));
        assert_eq!(post(Some(&last), &epoch(1), &cells([0, 10, 0, 30])[..3]), Err(Backwards));
    }

    /// What happens to counters and to the agent that reads them.
    #[derive(Clone, Debug)]
    enum Step {
        /// Traffic.
        Count { place: usize, bytes: u64 },
        /// The agent reads, posts and keeps.
        Post,
        /// The agent dies having read, and before it has posted.
        ReadAndDie,
        /// A reboot, or a new map: another epoch.
        Begin,
        /// Counters begin again, and nothing says that it is another epoch.
        BeginUnsaid,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = prop_oneof![0..2000_u64, Just(1 << 62)];
        let step = prop_oneof![
            6 => (0..PLACES, bytes).prop_map(|(place, bytes)| Step::Count { place, bytes }),
            4 => Just(Step::Post),
            1 => Just(Step::ReadAndDie),
            1 => Just(Step::Begin),
            1 => Just(Step::BeginUnsaid),
        ];
        vec(step, 0..60)
    }

    fn sum(cells: &[Cell]) -> u128 {
        cells.iter().map(|cell| u128::from(cell.wire_bytes)).sum()
    }

    proptest! {
        /// After each posting the book has all that the counters of this epoch have, and of each epoch
        /// before what it had at its last posting: no less, and no byte twice.
        #[test]
        fn totals_are_what_was_counted_whatever_happens(steps in steps()) {
            let (mut counters, mut map_id) = ([0_u64; PLACES], 1);
            let (mut last, mut book) = (None, 0_u128);
            let (mut posted_of_epoch, mut of_epochs_before) = (0_u128, 0_u128);
            for step in steps {
                match step {
                    Step::Count { place, bytes } => {
                        counters[place] = counters[place].saturating_add(bytes);
                    }
                    Step::ReadAndDie => drop(post(last.as_ref(), &epoch(map_id), &cells(counters))),
                    Step::Begin | Step::BeginUnsaid => {
                        counters = [0; PLACES];
                        if matches!(step, Step::Begin) {
                            map_id += 1;
                            of_epochs_before += posted_of_epoch;
                            posted_of_epoch = 0;
                        }
                    }
                    Step::Post => {
                        let now = cells(counters);
                        let before = book;
                        match post(last.as_ref(), &epoch(map_id), &now) {
                            Ok(delta) => book += sum(&delta),
                            Err(Backwards) => {
                                // Only what is really smaller is refused.
                                let kept: &Absolute = last.as_ref().unwrap();
                                let smaller = kept.cells.iter().any(|(place, cell)| {
                                    now[*place as usize].wire_bytes < cell.wire_bytes
                                });
                                prop_assert!(smaller);
                                map_id += 1;
                                of_epochs_before += posted_of_epoch;
                                book += sum(&post(last.as_ref(), &epoch(map_id), &now).unwrap());
                            }
                        }
                        posted_of_epoch = sum(&now);
                        last = Some(absolute(epoch(map_id), &now));
                        prop_assert!(book >= before);
                        prop_assert_eq!(book, of_epochs_before + posted_of_epoch);
                    }
                }
            }
        }

        /// Samples that come in any order: one that is older than the book is refused, and the book is the
        /// newest that was taken.
        #[test]
        fn samples_in_any_order_never_lower_the_book(samples in vec([0..50_u64, 0..50, 0..50, 0..50], 1..30)) {
            let (mut last, mut book) = (None, vec![0_u64; PLACES]);
            for sample in samples {
                let now = cells(sample);
                if let Ok(delta) = post(last.as_ref(), &epoch(1), &now) {
                    for (book, delta) in book.iter_mut().zip(&delta) {
                        *book += delta.wire_bytes;
                    }
                    last = Some(absolute(epoch(1), &now));
                    prop_assert_eq!(&book[..], &sample[..]);
                } else {
                    prop_assert!(book.iter().zip(&sample).any(|(book, sample)| sample < book));
                }
            }
        }
    }
}

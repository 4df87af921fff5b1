//! Interfaces that are gone, until their slots are given again.
//!
//! Counters are never set back, so a slot has two owners one after the other, and whose bytes a difference is must
//! be beyond doubt. In this order, each step of which may be the last one of an agent that is killed:
//!
//! 1. The interface is in none of the namespaces that were looked at: it is taken out of the table that the program
//!    looks into. A packet of it, if there is one, finds its old slot again, or a free one before that, and puts it
//!    back: then it is not gone. (It may have two slots then, both of its name, until one of them is given again.)
//! 2. When every program has ended that had looked into the table before ([`AT_REST`]), its counters are read,
//!    posted under its name, and written to the history.
//! 3. The owner is removed. Whoever claims the slot next begins with the difference to what was written.
//!
//! Up to 3. the slot is the old interface's, with everything that is counted in it; a later agent begins again
//! with 1. An interface that is there, and was not seen because its namespace could not be looked into, loses
//! nothing either: at most a slot while it is silent, and its next packet claims another.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Error, SlotTables};

/// Programs that had looked into the table before it was changed have ended after this: none takes a
/// millisecond.
const AT_REST: Duration = Duration::from_secs(2);

/// An interface that was taken out of the table, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    number: u32,
    since: Instant,
}

/// The interfaces that were taken out of the table.
#[derive(Debug, Default)]
pub struct Departed {
    since: BTreeMap<u32, Instant>,
    /// Whether a slot was given again at a moment at which its old owner may have come back.
    is_unsettled: bool,
}

impl Departed {
    /// Looks which owners of slots are gone.
    pub fn look(
        &mut self,
        slots: &mut SlotTables,
        is_present: impl Fn(u32) -> bool,
    ) -> Result<(), Error> {
        if std::mem::take(&mut self.is_unsettled) {
            slots.settle_interfaces()?;
        }
        let owners = slots.interfaces()?.into_iter().map(|(_, number)| number);
        let gone: Vec<u32> = owners.filter(|number| !is_present(*number)).collect();
        self.since.retain(|number, _| gone.contains(number));
        for number in gone {
            if self.since.contains_key(&number) && !slots.is_back(number) {
                continue;
            }
            slots.leave(number);
            // After it was taken out.
            self.since.insert(number, Instant::now());
        }
        Ok(())
    }

    /// Those whose counters are in a sample in full.
    pub fn at_rest(&self, taken_at: Instant) -> Vec<Absence> {
        let absences = self.since.iter().map(|(&number, &since)| Absence { number, since });
        absences.filter(|it| taken_at.duration_since(it.since) >= AT_REST).collect()
    }

    /// Gives the slots of these again, of which everything up to such a sample is in the history. Not of those
    /// that something has passed since.
    pub fn give_again(
        &mut self,
        slots: &mut SlotTables,
        absences: &[Absence],
    ) -> Result<(), Error> {
        if absences.is_empty() {
            return Ok(());
        }
        for (slot, number) in slots.interfaces()? {
            // One that was put back, and taken out once more, has been so since later.
            let absence = self.since.get(&number).map(|&since| Absence { number, since });
            if absence.is_some_and(|it| absences.contains(&it)) && !slots.is_back(number) {
                self.since.remove(&number);
                slots.free(slot)?;
                self.is_unsettled = true;
            }
        }
        slots.settle_interfaces()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_at_last_is_in_a_sample_that_was_taken_two_seconds_later() {
        let since = Instant::now();
        let departed = Departed { since: BTreeMap::from([(7, since)]), is_unsettled: false };
        assert_eq!(departed.at_rest(since), []);
        assert_eq!(departed.at_rest(since + AT_REST - Duration::from_millis(1)), []);
        assert_eq!(departed.at_rest(since + AT_REST), [Absence { number: 7, since }]);
    }
}

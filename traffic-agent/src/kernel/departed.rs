//! Interfaces that are gone, until their slots are given again.
//!
//! Counters are never set back, so a slot has two owners one after the other, and whose bytes a difference is must
//! be beyond doubt. In this order, each step of which may be the last one of an agent that is killed:
//!
//! 1. The interface is in none of the target's namespaces: it is taken out of the table that the program looks
//!    into. A packet of it, if there ever is one, finds its old slot again and puts it back: then it is not gone.
//! 2. When every program has ended that had looked into the table before ([`AT_REST`]), its counters are read,
//!    posted under its name, and written to the history.
//! 3. The owner is removed. Whoever claims the slot next begins with the difference to what was written.
//!
//! Up to 3. the slot is the old interface's, with everything that is counted in it; a later agent begins again
//! with 1.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Error, SlotTables};

/// Programs that had looked into the table before it was changed have ended after this: none takes a
/// millisecond.
const AT_REST: Duration = Duration::from_secs(2);

/// The interfaces that were taken out of the table, and when.
#[derive(Debug, Default)]
pub struct Departed {
    since: BTreeMap<u32, Instant>,
}

impl Departed {
    /// Looks which owners of slots are gone. `is_gone`: in none of the target's namespaces, all of which were
    /// looked at.
    pub fn look(
        &mut self,
        slots: &mut SlotTables,
        is_gone: impl Fn(u32) -> bool,
    ) -> Result<(), Error> {
        let gone: Vec<u32> = slots
            .interfaces()?
            .into_iter()
            .map(|(_, number)| number)
            .filter(|number| is_gone(*number))
            .collect();
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
    pub fn at_rest(&self, taken_at: Instant) -> Vec<u32> {
        let is_at_rest = |since: &Instant| taken_at.duration_since(*since) >= AT_REST;
        let at_rest = self.since.iter().filter(|(_, since)| is_at_rest(since));
        at_rest.map(|(number, _)| *number).collect()
    }

    /// Gives the slots of these again, of which everything up to such a sample is in the history. Not of those
    /// that something has passed since.
    pub fn give_again(&mut self, slots: &mut SlotTables, numbers: &[u32]) -> Result<(), Error> {
        if numbers.is_empty() {
            return Ok(());
        }
        for (slot, number) in slots.interfaces()? {
            if numbers.contains(&number)
                && self.since.remove(&number).is_some()
                && !slots.is_back(number)
            {
                slots.free(slot)?;
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
        let left = Instant::now();
        let departed = Departed { since: BTreeMap::from([(7, left)]) };
        assert_eq!(departed.at_rest(left), Vec::<u32>::new());
        assert_eq!(departed.at_rest(left + AT_REST - Duration::from_millis(1)), Vec::<u32>::new());
        assert_eq!(departed.at_rest(left + AT_REST), [7]);
    }
}

//! Interfaces that come and go: their names while they are needed, and what is told of those that are gone.
//! Pure.
//!
//! A host that runs containers makes and removes thousands a day: neither may pile up.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::history::{Event, EventKind, Quarter};

/// So many are named in one event.
const MOST_NAMED: usize = 5;

/// Names of interfaces by number, also of those that are gone.
#[derive(Debug, Default)]
pub struct Names {
    by_number: BTreeMap<u32, String>,
}

impl Names {
    /// Learns the names of the interfaces that are there.
    pub fn learn(&mut self, present: BTreeMap<u32, String>) {
        self.by_number.extend(present);
    }

    /// The name of an interface, if it was ever seen.
    pub fn of(&self, number: u32) -> Option<&str> {
        self.by_number.get(&number).map(String::as_str)
    }

    /// Forgets all but these. One that is there is learnt again by the next look.
    pub fn forget_all_but(&mut self, needed: impl Iterator<Item = u32>) {
        let needed: BTreeSet<u32> = needed.collect();
        self.by_number.retain(|number, _| needed.contains(number));
    }
}

/// Interfaces that are gone, told in two events a quarter of an hour at most: the first at once, those after it
/// together when the next quarter has begun. If the agent ends before, they are not told.
#[derive(Clone, Debug, Default)]
pub struct Departures {
    /// When the last event was.
    told: Option<Quarter>,
    /// Since when some wait to be told.
    since: Option<Timestamp>,
    count: usize,
    /// The first of them.
    names: Vec<String>,
}

impl Departures {
    /// Takes up those that are gone since the last look; returns what is to be told now.
    pub fn take(&mut self, now: Timestamp, gone: Vec<String>) -> Option<Event> {
        if !gone.is_empty() {
            self.since.get_or_insert(now);
        }
        self.count += gone.len();
        let room = MOST_NAMED - self.names.len();
        self.names.extend(gone.into_iter().take(room));
        let since = self.since?;
        if self.told == Some(Quarter::of(now)) {
            return None;
        }
        let told = std::mem::take(self);
        self.told = Some(Quarter::of(now));
        let (names, more) = (told.names.join(", "), told.count - told.names.len());
        let message = match (told.count, more) {
            (1, _) => format!("interface {names} is gone, and with it what it counted last"),
            (count, 0) => format!(
                "{count} interfaces are gone, and with them what they counted last: {names}"
            ),
            (count, more) => format!(
                "{count} interfaces are gone, and with them what they counted last: {names} and {more} more"
            ),
        };
        // The clock may have been set back meanwhile.
        Some(Event { start: since.min(now), end: now, kind: EventKind::Note, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_that_nothing_needs_are_forgotten() {
        let mut names = Names::default();
        // 5000 containers, one after the other, each with an interface of its own.
        for number in 10..5010 {
            let present = [(2, "eth0".to_owned()), (number, format!("veth{number}"))];
            names.learn(present.into());
            // Of the one before a counter is not read to its end yet.
            names.forget_all_but([2, number, number - 1].into_iter());
            assert!(names.by_number.len() <= 3);
        }
        assert_eq!([names.of(2), names.of(5008)], [Some("eth0"), Some("veth5008")]);
        assert_eq!(names.of(5007), None);
    }

    fn at(second: i64) -> Timestamp {
        // The beginning of a quarter.
        Timestamp::from_second(900 * 2_000_000 + second).unwrap()
    }

    fn gone(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn interfaces_that_go_all_day_long_are_told_once_a_quarter() {
        let mut departures = Departures::default();
        // One every 17 seconds, which is 5083 a day.
        let told: Vec<Event> = (0..86_400)
            .step_by(17)
            .filter_map(|second| departures.take(at(second), gone(&["veth1"])))
            .collect();
        assert_eq!(told.len(), 96);
        let first = "interface veth1 is gone, and with it what it counted last";
        assert_eq!(told[0].message, first);
        // The other 52 of the first quarter, and the first of the second.
        let names = ["veth1"; MOST_NAMED].join(", ");
        let second = format!(
            "53 interfaces are gone, and with them what they counted last: {names} and 48 more"
        );
        assert_eq!(told[1].message, second);
        assert_eq!((told[1].start, told[1].end), (at(17), at(901)));
    }

    #[test]
    fn an_interface_that_goes_once_a_day_is_told_at_once() {
        let mut departures = Departures::default();
        for day in 0..3 {
            let told = departures.take(at(86_400 * day), gone(&["ppp0"])).unwrap();
            assert_eq!((told.start, told.end), (at(86_400 * day), at(86_400 * day)));
            assert_eq!(departures.take(at(86_400 * day + 1), Vec::new()), None);
        }
        // Those that wait are told when the quarter is over, whether there are more or not.
        let now = |second: i64| at(86_400 * 3 + second);
        assert!(departures.take(now(0), gone(&["ppp0"])).is_some());
        assert_eq!(departures.take(now(10), gone(&["ppp0", "tun0"])), None);
        let told = departures.take(now(900), Vec::new()).unwrap();
        assert!(told.message.starts_with("2 interfaces are gone"), "{told:?}");
        assert!(told.message.ends_with(": ppp0, tun0"), "{told:?}");
        assert_eq!((told.start, told.end), (now(10), now(900)));
    }
}

//! What time it is: by the wall clock, which people set, and since boot, which nobody can.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use crate::history::{Event, EventKind};

/// The wall clock may be slewed by this much between two looks before it counts as set: adjtime(3) and NTP
/// correct by less than 500 ppm, which is 30 ms a minute.
const SLEWED: Duration = Duration::from_millis(500);
/// Two clocks that were read within this time were read at once.
const AT_ONCE: Duration = Duration::from_millis(10);

/// An instant by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Where it is put in the history.
    pub wall: Timestamp,
    /// Since boot, suspended time included.
    pub boot: Duration,
}

impl Now {
    /// Looks at the clocks.
    pub fn read() -> Self {
        // A clock that every kernel has.
        let boot = || clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let mut before = boot();
        loop {
            let wall = Timestamp::now();
            let after = boot();
            // Else this thread, or the whole machine, stood still in between, and it would look as if the clock
            // had been set.
            if after.saturating_sub(before) <= AT_ONCE {
                return Self { wall, boot: before };
            }
            before = after;
        }
    }

    /// Where the wall clock would have stood then if it had always been right: `earlier` by the time that
    /// has really gone by.
    pub fn wall_at(&self, earlier: &Self) -> Timestamp {
        let passed = self.boot.saturating_sub(earlier.boot);
        let passed = jiff::SignedDuration::try_from(passed).unwrap_or(jiff::SignedDuration::MAX);
        self.wall.checked_sub(passed).unwrap_or(Timestamp::MIN)
    }

    /// Says so if the wall clock was set since an earlier look.
    pub fn step_since(&self, earlier: &Self) -> Option<Event> {
        let expected = self.wall_at(earlier);
        let step = expected.duration_since(earlier.wall);
        if step.unsigned_abs() <= SLEWED {
            return None;
        }
        let direction = if step.is_negative() { "back" } else { "forward" };
        let seconds = step.unsigned_abs().as_secs_f64();
        // An event ends after it began, whichever way the clock went.
        let (start, end) = (earlier.wall.min(self.wall), earlier.wall.max(self.wall));
        Some(Event {
            start,
            end,
            kind: EventKind::ClockStep,
            message: format!("the clock was set {direction} by {seconds:.3} s"),
        })
    }
}

/// The first instant of the next quarter of an hour, from now.
pub fn until_next_quarter(now: Timestamp) -> Duration {
    let next = crate::history::Quarter::of(now).next().start();
    Duration::try_from(next.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(wall: &str, boot_ms: u64) -> Now {
        Now { wall: wall.parse().unwrap(), boot: Duration::from_millis(boot_ms) }
    }

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_drifts() {
        let before = now("2026-11-24T12:00:00Z", 1000);
        assert_eq!(now("2026-11-24T12:00:10.4Z", 11_000).step_since(&before), None);
        assert_eq!(now("2026-11-24T12:00:09.6Z", 11_000).step_since(&before), None);
        let forward = now("2026-11-24T13:00:10Z", 11_000).step_since(&before).unwrap();
        assert_eq!(forward.message, "the clock was set forward by 3600.000 s");
        let back = now("2026-11-24T11:00:10Z", 11_000).step_since(&before).unwrap();
        assert_eq!(back.message, "the clock was set back by 3600.000 s");
        assert_eq!(back.start.to_string(), "2026-11-24T11:00:10Z");
        assert_eq!(back.end.to_string(), "2026-11-24T12:00:00Z");
    }

    #[test]
    fn time_that_went_by_is_counted_back_from_now() {
        let before = now("2026-11-24T12:00:00Z", 1000);
        let after = now("2026-11-24T13:00:10Z", 11_000);
        assert_eq!(after.wall_at(&before).to_string(), "2026-11-24T13:00:00Z");
    }

    #[test]
    fn the_next_quarter_is_at_most_fifteen_minutes_away() {
        let at = |text: &str| until_next_quarter(text.parse().unwrap());
        assert_eq!(at("2026-11-24T12:14:59.75Z"), Duration::from_millis(250));
        assert_eq!(at("2026-11-24T12:15:00Z"), Duration::from_secs(900));
    }
}

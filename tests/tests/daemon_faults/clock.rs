//! A wall clock that is set by hours, under traffic: bytes are neither lost nor invented, and no more time
//! is said to be observed than has gone by.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use traffic_agent::history::{Event, EventKind, Quarter};
use traffic_agent::store::Reader;
use traffic_tests::accounted::{Accounted, PAUSE, TARGET, said};
use traffic_tests::clock::Clock;
use traffic_tests::daemon::Home;

const HOUR: i64 = 3600;

/// All the time that the history says was observed.
fn observed(home: &Home) -> Result<Duration> {
    let quarters =
        Reader::open(&home.state_dir())?.observed(TARGET, Quarter(0)..Quarter(i64::MAX))?;
    Ok(Duration::from_millis(quarters.into_iter().map(|(_, milliseconds)| milliseconds).sum()))
}

/// The events that tell that the clock was set, with what else is no note.
fn steps(home: &Home) -> Result<Vec<Event>> {
    let mut events = home.events(TARGET)?;
    // On a busy machine what was counted before a quarter ends may be read after it.
    events.retain(|event| !matches!(event.kind, EventKind::Note | EventKind::Late));
    Ok(events)
}

#[test]
fn a_clock_that_is_set_by_hours_loses_no_byte_and_invents_no_time() -> Result<()> {
    let mut counted = Accounted::new()?;
    let clock = Clock::of(&mut counted.home)?;
    let begin = Instant::now();
    counted.home.start_and_wait()?;
    // To each of them from the one before.
    let offsets = [5 * HOUR, 2 * HOUR, -7 * HOUR, -7 * HOUR + 600, 0];
    let captured = counted.under_paced_load(PAUSE, |home| {
        for (number, offset) in offsets.into_iter().enumerate() {
            thread::sleep(Duration::from_secs(2));
            clock.set(offset)?;
            home.wait_until("the daemon tells that the clock was set", |home| {
                home.times_in_log("the clock was set") > number
            })?;
            for command in ["status", "report"] {
                assert!(said(home, command)?.contains(TARGET));
            }
        }
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    counted.home.stop()?;
    counted.assert_history_is(&captured)?;
    let (observed, passed) = (observed(&counted.home)?, begin.elapsed());
    println!("{observed:?} observed of {passed:?}");
    assert!(observed <= passed, "{observed:?} observed in {passed:?}");
    assert!(observed > Duration::ZERO);
    let steps = steps(&counted.home)?;
    assert!(steps.iter().all(|event| event.kind == EventKind::ClockStep), "{steps:#?}");
    assert_eq!(steps.len(), offsets.len(), "{steps:#?}");
    Ok(())
}

#[test]
fn a_clock_that_is_set_while_the_daemon_is_killed_again_and_again_loses_no_byte() -> Result<()> {
    let mut counted = Accounted::new()?;
    let clock = Clock::of(&mut counted.home)?;
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        for offset in [3 * HOUR, -4 * HOUR, HOUR, -HOUR, 0] {
            // Before it is killed, and after.
            clock.set(offset)?;
            thread::sleep(Duration::from_millis(fastrand::u64(..2000)));
            home.kill()?;
            clock.set(offset + HOUR)?;
            home.start()?;
            thread::sleep(Duration::from_millis(fastrand::u64(..3000)));
        }
        Ok(())
    })?;
    let home = &mut counted.home;
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    counted.assert_history_is(&captured)
}

#[test]
fn a_clock_that_is_set_back_while_the_daemon_does_not_run_invents_no_time() -> Result<()> {
    let mut counted = Accounted::new()?;
    let clock = Clock::of(&mut counted.home)?;
    let begin = Instant::now();
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        home.stop()?;
        clock.set(-6 * HOUR)?;
        thread::sleep(Duration::from_secs(1));
        home.start_and_wait()?;
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    counted.home.stop()?;
    counted.assert_history_is(&captured)?;
    let (observed, passed) = (observed(&counted.home)?, begin.elapsed());
    assert!(observed <= passed, "{observed:?} observed in {passed:?}");
    Ok(())
}

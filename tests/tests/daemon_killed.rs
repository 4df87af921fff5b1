//! The daemon is killed and started again while traffic flows: history and counters together have what the
//! far ends captured, to the byte, each time.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use traffic_tests::accounted::{Accounted, PAUSE, TARGET};
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::figures;

/// Random moments; which, is printed, so that a failure can be had again.
fn moments() -> Rng {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    Rng::with_seed(seed)
}

/// Kills and starts the daemon `times` times under load, `prepare` before each start, and holds the history
/// against the captures.
fn kill_under_load(
    counted: &mut Accounted,
    times: u32,
    random: &mut Rng,
    mut prepare: impl FnMut(&mut Home),
) -> Result<()> {
    let before = counted.home.books(TARGET).unwrap_or_default();
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        for _ in 0..times {
            thread::sleep(Duration::from_millis(random.u64(..400)));
            home.kill()?;
            // Now and then it stays away for a while.
            thread::sleep(Duration::from_millis(random.u64(..50)));
            prepare(home);
            home.start()?;
        }
        Ok(())
    })?;
    // The last one may not have come as far as its first reading.
    let home = &mut counted.home;
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    let since = figures::since(&home.books(TARGET)?, &before);
    assert!(!since.is_empty(), "nothing was counted");
    assert_eq!(since, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

#[test]
fn a_hundred_kills_lose_and_double_nothing() -> Result<()> {
    let mut counted = Accounted::new()?;
    let mut random = moments();
    for _ in 0..10 {
        kill_under_load(&mut counted, 10, &mut random, |_| ())?;
    }
    assert_eq!(counted.doubts()?, []);
    Ok(())
}

#[test]
fn a_hundred_upgrades_to_another_abi_lose_and_double_nothing() -> Result<()> {
    let mut counted = Accounted::new()?;
    let mut random = moments();
    let mut abi = 1;
    for _ in 0..10 {
        kill_under_load(&mut counted, 10, &mut random, |home| {
            abi += 1;
            home.set("TRAFFIC_AGENT_ABI", abi);
        })?;
    }
    assert_eq!(abi, 101);
    Ok(())
}

#[test]
fn detaching_leaves_no_pin_and_the_history_whole() -> Result<()> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        home.kill()
    })?;
    let home = &counted.home;
    assert!(has_pins(home));
    let output = home.command("detach").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, format!("not counted any more: {TARGET}\n"));
    assert!(!has_pins(home));
    counted.assert_history_is(&captured)
}

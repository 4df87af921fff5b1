//! The daemon is killed and started again while traffic flows: history and counters together have what the
//! far ends captured, to the byte, each time.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use traffic_lab::Stack;
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::figures;
use traffic_tests::load::under_load;
use traffic_tests::site::{RELAY_PORT, Site, tcp};

/// Random moments; which, is printed, so that a failure can be had again.
fn moments() -> Rng {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    Rng::with_seed(seed)
}

/// Kills and starts the daemon `times` times under load, `prepare` before each start, and holds the history
/// against the captures.
fn kill_under_load(
    site: &Site,
    home: &mut Home,
    times: u32,
    random: &mut Rng,
    mut prepare: impl FnMut(&mut Home),
) -> Result<()> {
    let before = home.books("counted").unwrap_or_default();
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(site, || {
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
    let trace = capture.stop()?;
    trace.check()?;
    // The last one may not have come as far as its first reading.
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    let counted = figures::since(&home.books("counted")?, &before);
    assert!(!counted.is_empty(), "nothing was counted");
    let captured = figures::of_capture(&trace, &[tcp(RELAY_PORT)]);
    assert_eq!(counted, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

#[test]
fn a_hundred_kills_lose_and_double_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    let mut random = moments();
    for _ in 0..10 {
        kill_under_load(&site, &mut home, 10, &mut random, |_| ())?;
    }
    assert_eq!(home.doubts("counted")?, []);
    Ok(())
}

#[test]
fn a_hundred_upgrades_to_another_abi_lose_and_double_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    let mut random = moments();
    let mut abi = 1;
    for _ in 0..10 {
        kill_under_load(&site, &mut home, 10, &mut random, |home| {
            abi += 1;
            home.set("TRAFFIC_AGENT_ABI", abi);
        })?;
    }
    assert_eq!(abi, 101);
    Ok(())
}

#[test]
fn detaching_leaves_no_pin_and_the_history_whole() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        thread::sleep(Duration::from_secs(2));
        home.kill()
    })?;
    let trace = capture.stop()?;
    trace.check()?;
    assert!(has_pins(&home));
    let output = home.command("detach").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "not counted any more: counted\n");
    assert!(!has_pins(&home));
    let captured = figures::of_capture(&trace, &[tcp(RELAY_PORT)]);
    assert_eq!(home.books("counted")?, captured, "history (left), capture (right)");
    Ok(())
}

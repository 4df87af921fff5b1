//! Pins that vanish, machines that boot anew, and two agents at once.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use traffic_agent::history::EventKind;
use traffic_lab::Stack;
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::load::{under_load, under_paced_load};
use traffic_tests::site::Site;

use super::{PAUSE, assert_history_is, captured, doubts, home, times_in_log};

fn traffic_for(site: &Site, seconds: u64) -> Result<()> {
    under_paced_load(site, PAUSE, || {
        thread::sleep(Duration::from_secs(seconds));
        Ok(())
    })
}

#[test]
fn pins_are_made_again_when_the_bpf_filesystem_was_unmounted() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_paced_load(&site, PAUSE, || {
        home.unmount_bpf()?;
        let words = "is no bpf filesystem";
        home.wait_until(words, |home| home.log().contains(words))?;
        // Nothing was made below the mount point, where it would be in the way.
        assert_eq!(fs::read_dir(home.bpffs())?.count(), 0);
        home.mount_bpf()?;
        home.wait_until("pins are made again", |home| {
            let events = home.events("counted").unwrap_or_default();
            events.iter().any(|event| event.message.contains("its pins were gone"))
        })?;
        assert!(has_pins(&home));
        home.kill()?;
        thread::sleep(Duration::from_millis(300));
        home.start()
    })?;
    let trace = capture.stop()?;
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    assert_eq!(times_in_log(&home, "is no bpf filesystem"), 1, "{}", home.log());
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

/// Everything pinned is gone while the daemon does not run: what was exchanged then is missing, and the
/// history says so; the rest is whole.
fn lose_pins(
    mut home: Home,
    site: &Site,
    lose: impl FnOnce(&mut Home) -> Result<()>,
) -> Result<Home> {
    home.start_and_wait()?;
    let first = site.lab.capture()?;
    traffic_for(site, 2)?;
    let mut books = captured(&first.stop()?)?;
    home.stop()?;
    lose(&mut home)?;
    // Counted by nobody.
    traffic_for(site, 1)?;
    home.start_and_wait()?;
    let second = site.lab.capture()?;
    under_load(site, || {
        thread::sleep(Duration::from_secs(1));
        home.kill()?;
        home.start()
    })?;
    for (key, figures) in captured(&second.stop()?)? {
        let sum = books.entry(key).or_default();
        *sum = *sum + figures;
    }
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    assert_history_is(&home, &books)?;
    Ok(home)
}

#[test]
fn pins_removed_by_hand_leave_a_gap_that_is_told() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let home = lose_pins(home(&site)?, &site, |home| {
        Ok(fs::remove_dir_all(home.bpffs().join("traffic-agent"))?)
    })?;
    let doubts = doubts(&home)?;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].kind, EventKind::Gap);
    assert!(doubts[0].message.contains("its counters were gone"), "{doubts:?}");
    Ok(())
}

#[test]
fn links_removed_by_hand_leave_a_gap_that_is_told() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let home = lose_pins(home(&site)?, &site, |home| {
        let pins = traffic_tests::daemon::pins(home, abi(home)?, "counted")?;
        Ok(fs::remove_dir_all(pins.join("links"))?)
    })?;
    let doubts = doubts(&home)?;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].kind, EventKind::Gap);
    Ok(())
}

/// The version in the path of the pins.
fn abi(home: &Home) -> Result<u32> {
    let mut names = fs::read_dir(home.bpffs().join("traffic-agent"))?;
    let name = names.next().expect("something is pinned")?.file_name();
    Ok(name.to_string_lossy().trim_start_matches('v').parse()?)
}

#[test]
fn after_a_boot_the_history_says_what_is_missing_and_goes_on() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let home = lose_pins(home(&site)?, &site, |home| {
        home.unmount_bpf()?;
        home.mount_bpf()?;
        home.boot_anew()
    })?;
    let doubts = doubts(&home)?;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].kind, EventKind::Gap);
    assert!(doubts[0].message.contains("the host was started anew"), "{doubts:?}");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_told_who_has_the_state_directory() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        for command in ["run", "detach"] {
            let mut second = home.command(command);
            if command == "run" {
                second.arg("cgroup:/anything");
            }
            let output = second.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let holder = format!("process {} (`", home.pid()?);
            assert!(said.contains(&holder) && said.contains("--state-dir"), "{command}: {said}");
            assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        }
        Ok(())
    })?;
    let trace = capture.stop()?;
    home.stop()?;
    assert_history_is(&home, &captured(&trace)?)
}

#[test]
fn two_agents_count_the_same_target_side_by_side() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let (mut one, mut other) = (home(&site)?, home(&site)?);
    one.start_and_wait()?;
    other.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        thread::sleep(Duration::from_secs(1));
        one.kill()?;
        thread::sleep(Duration::from_secs(1));
        one.start()
    })?;
    let captured = captured(&capture.stop()?)?;
    one.kill()?;
    one.start_and_wait()?;
    one.stop()?;
    other.stop()?;
    assert_history_is(&one, &captured)?;
    assert_history_is(&other, &captured)?;
    // The one's pins are not the other's.
    let detached = one.command("detach").output()?;
    assert!(detached.status.success(), "{detached:?}");
    assert!(!has_pins(&one) && has_pins(&other));
    Ok(())
}

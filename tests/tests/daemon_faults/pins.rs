//! Pins that vanish, machines that boot anew, and two agents at once.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use traffic_agent::history::{Event, EventKind};
use traffic_tests::accounted::{Accounted, PAUSE, TARGET};
use traffic_tests::daemon::{Home, has_pins, pins, pins_of};
use traffic_tests::figures;

const NO_BPF: &str = "is no bpf filesystem";

#[test]
fn pins_are_made_again_when_the_bpf_filesystem_was_unmounted() -> Result<()> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        home.unmount_bpf()?;
        home.wait_for_log(NO_BPF)?;
        // Nothing was made below the mount point, where it would be in the way.
        assert_eq!(fs::read_dir(home.bpffs())?.count(), 0);
        home.mount_bpf()?;
        home.wait_until("pins are made again", |home| {
            let events = home.events(TARGET).unwrap_or_default();
            events.iter().any(|event| event.message.contains("its pins were gone"))
        })?;
        assert!(has_pins(home));
        home.kill()?;
        thread::sleep(Duration::from_millis(300));
        home.start()
    })?;
    counted.home.kill()?;
    counted.home.start_and_wait()?;
    counted.assert_ends_with(&captured)?;
    assert_eq!(counted.home.times_in_log(NO_BPF), 1, "{}", counted.home.log());
    Ok(())
}

#[test]
fn an_upgrade_that_was_killed_while_it_pinned_its_maps_is_followed_by_another() -> Result<()> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(1));
        home.kill()?;
        let first = pins_of(home, 1, TARGET)?;
        let second = first.to_string_lossy().replace("/traffic-agent/v1/", "/traffic-agent/v2/");
        fs::create_dir_all(Path::new(&second).join("links"))?;
        fs::hard_link(first.join("CELLS"), Path::new(&second).join("CELLS"))?;
        home.set("TRAFFIC_AGENT_ABI", 3);
        home.start_and_wait()?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    counted.assert_ends_with(&captured)
}

fn traffic_for(seconds: u64) -> impl FnOnce(&mut Home) -> Result<()> {
    move |_| {
        thread::sleep(Duration::from_secs(seconds));
        Ok(())
    }
}

/// Everything pinned is gone while the daemon does not run: what was exchanged then is missing, and the
/// history says so; the rest is whole. Returns what it says.
fn lose_pins(lose: impl FnOnce(&mut Home) -> Result<()>) -> Result<Event> {
    let mut counted = Accounted::started()?;
    let first = counted.under_paced_load(PAUSE, traffic_for(2))?;
    counted.home.stop()?;
    lose(&mut counted.home)?;
    // Counted by nobody.
    counted.under_paced_load(PAUSE, traffic_for(1))?;
    counted.home.start_and_wait()?;
    let second = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(1));
        home.kill()?;
        home.start()
    })?;
    counted.home.kill()?;
    counted.home.start_and_wait()?;
    counted.home.stop()?;
    counted.assert_history_is(&figures::together(&first, &second))?;
    let mut doubts = counted.doubts()?;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].kind, EventKind::Gap);
    Ok(doubts.remove(0))
}

#[test]
fn pins_removed_by_hand_leave_a_gap_that_is_told() -> Result<()> {
    let gap = lose_pins(|home| Ok(fs::remove_dir_all(home.bpffs().join("traffic-agent"))?))?;
    assert!(gap.message.contains("its counters were gone"), "{gap:?}");
    Ok(())
}

#[test]
fn links_removed_by_hand_leave_a_gap_that_is_told() -> Result<()> {
    lose_pins(|home| Ok(fs::remove_dir_all(pins(home, TARGET)?.join("links"))?)).map(drop)
}

#[test]
fn after_a_boot_the_history_says_what_is_missing_and_goes_on() -> Result<()> {
    let gap = lose_pins(|home| {
        home.unmount_bpf()?;
        home.mount_bpf()?;
        home.boot_anew()
    })?;
    assert!(gap.message.contains("the host was started anew"), "{gap:?}");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_told_who_has_the_state_directory() -> Result<()> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
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
    counted.assert_ends_with(&captured)
}

#[test]
fn two_agents_count_the_same_target_side_by_side() -> Result<()> {
    let mut counted = Accounted::started()?;
    let mut other = Home::counting(&counted.site.cgroup.cgroup_path())?;
    other.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |one| {
        thread::sleep(Duration::from_secs(1));
        one.kill()?;
        thread::sleep(Duration::from_secs(1));
        one.start()
    })?;
    let one = &mut counted.home;
    one.kill()?;
    one.start_and_wait()?;
    one.stop()?;
    other.stop()?;
    other.assert_books(TARGET, &captured)?;
    // The one's pins are not the other's.
    let detached = one.command("detach").output()?;
    assert!(detached.status.success(), "{detached:?}");
    assert!(!has_pins(one) && has_pins(&other));
    counted.assert_history_is(&captured)
}

//! A history that is damaged, deleted, moved or put back under the daemon.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use traffic_tests::accounted::{Accounted, PAUSE, TARGET};
use traffic_tests::daemon::{Home, cells_in, has_pins};
use traffic_tests::figures::{self, Books};

const DATABASE: [&str; 3] = ["history.db", "history.db-wal", "history.db-shm"];
const TAKEN_AWAY: &str = "were removed or moved away";

#[test]
fn a_damaged_history_is_replaced_without_a_restart_when_it_was_moved_away() -> Result<()> {
    let mut counted = Accounted::new()?;
    let home = &mut counted.home;
    let database = home.state_dir().join(DATABASE[0]);
    fs::write(&database, "no database at all".repeat(1000))?;
    fs::set_permissions(&database, Permissions::from_mode(0o640))?;
    home.start()?;
    home.wait_for_log("there is no history; counting goes on without")?;
    home.wait_until("it is attached", |home| {
        has_pins(home) && home.log().contains(": counting /")
    })?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        fs::rename(&database, home.file("damaged.db"))?;
        home.wait_until("a new history begins", |home| home.last_flush().is_some())
    })?;
    counted.home.stop()?;
    let log = counted.home.log();
    let remedy = format!("`mv {}", database.display());
    assert!(log.contains(&remedy) && !log.contains("Stop the agent"), "{log}");
    counted.assert_history_is(&captured)
}

/// Old and new history together are the capture, and the new one says that it is one.
fn assert_together(counted: &mut Accounted, old: &Books, captured: &Books) -> Result<()> {
    counted.home.stop()?;
    let together = figures::together(&counted.home.books(TARGET)?, old);
    let log = counted.home.log();
    assert_eq!(&together, captured, "history (left), capture (right)\n{log}");
    assert!(log.contains(TAKEN_AWAY), "{log}");
    let events = counted.home.events(TARGET)?;
    assert!(events.iter().any(|event| event.message.contains("begins here")), "{events:?}");
    assert_eq!(counted.doubts()?, []);
    Ok(())
}

/// A history with something in it, all of which is written.
fn with_a_history() -> Result<(Accounted, Books)> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |_| {
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    counted.home.wait_until("all of it is written", |home| {
        home.books(TARGET).is_ok_and(|books| books == captured)
    })?;
    Ok((counted, captured))
}

/// Deletes files of the history in the quiet, because what was written last to a deleted one is gone with
/// it, and kills the daemon as soon as a new one was begun.
fn delete(names: &[&str]) -> Result<()> {
    let (mut counted, first) = with_a_history()?;
    at_once(&counted.home, || remove(&counted.home, names))?;
    let home = &mut counted.home;
    home.wait_until("a new history begins", |home| home.last_flush().is_some())?;
    home.kill()?;
    home.start_and_wait()?;
    let second = counted.under_load(|_| {
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    assert_together(&mut counted, &first, &figures::together(&first, &second))
}

/// Does something to several files of the history that the daemon sees as one: between two of them it would begin
/// a new history, whose files the rest would hit.
fn at_once(home: &Home, change: impl FnOnce() -> Result<()>) -> Result<()> {
    home.signal(Signal::SIGSTOP)?;
    let stat = format!("/proc/{}/stat", home.pid()?);
    home.wait_until("the daemon stands still", |_| {
        // pid (name) state; a name may have anything in it.
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })?;
    let changed = change();
    home.signal(Signal::SIGCONT)?;
    changed
}

fn remove(home: &Home, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| Ok(fs::remove_file(home.state_dir().join(name))?))
}

#[test]
fn a_deleted_history_is_noticed_and_a_new_one_begins_where_it_ended() -> Result<()> {
    delete(&DATABASE)
}

#[test]
fn a_history_that_is_deleted_without_its_log_is_noticed() -> Result<()> {
    delete(&DATABASE[..1])
}

#[test]
fn a_history_that_is_moved_away_and_the_new_one_have_every_byte_once() -> Result<()> {
    let (mut counted, first) = with_a_history()?;
    let aside = counted.home.file("aside");
    let second = counted.under_paced_load(PAUSE, |home| {
        fs::create_dir(&aside)?;
        fs::set_permissions(&aside, Permissions::from_mode(0o750))?;
        at_once(home, || {
            DATABASE
                .iter()
                .try_for_each(|name| Ok(fs::rename(home.state_dir().join(name), aside.join(name))?))
        })?;
        home.wait_until("a new history begins", |home| home.last_flush().is_some())?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    let old = figures::of_cells(&cells_in(&aside, TARGET)?);
    assert_together(&mut counted, &old, &figures::together(&first, &second))
}

#[test]
fn a_log_that_is_deleted_under_the_daemon_takes_nothing_with_it() -> Result<()> {
    let mut counted = Accounted::started()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        remove(home, &DATABASE[1..])?;
        home.wait_for_log(TAKEN_AWAY)?;
        thread::sleep(Duration::from_secs(2));
        home.kill()?;
        home.start()
    })?;
    counted.home.wait_for_flush()?;
    counted.assert_ends_with(&captured)
}

#[test]
fn a_backup_that_is_put_back_under_the_daemon_gets_what_was_counted_since() -> Result<()> {
    let mut counted = Accounted::started()?;
    let backup = counted.home.state_dir().join("backup");
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        home.stop()?;
        fs::copy(home.state_dir().join(DATABASE[0]), &backup)?;
        home.start_and_wait()?;
        thread::sleep(Duration::from_secs(2));
        fs::rename(&backup, home.state_dir().join(DATABASE[0]))?;
        home.wait_for_log(TAKEN_AWAY)?;
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    counted.home.wait_for_flush()?;
    counted.assert_ends_with(&captured)
}

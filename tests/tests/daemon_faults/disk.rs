//! A disk that is full, that refuses writes, and a history that is damaged, deleted, moved or put back.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use traffic_lab::Stack;
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::figures::since;
use traffic_tests::figures::{self, Books};
use traffic_tests::load::{under_load, under_paced_load};
use traffic_tests::site::Site;

use super::{PAUSE, assert_history_is, captured, doubts, home, said, times_in_log};

const DATABASE: [&str; 3] = ["history.db", "history.db-wal", "history.db-shm"];
const REFUSED: &str = "cannot write the history";
const TAKEN_AGAIN: &str = "the history takes what was counted again";

/// Takes all the space that is left.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    // The last part may fit in half.
    for part in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; part]).is_ok() {}
    }
    Ok(())
}

fn wait_for_log(home: &Home, words: &str) -> Result<()> {
    home.wait_until(words, |home| home.log().contains(words))
}

/// Waits until what has been read by now is in the history.
fn wait_for_flush(home: &Home) -> Result<()> {
    let before = home.last_flush();
    home.wait_until("the daemon writes its history", |home| home.last_flush() > before)
}

fn sum(one: &Books, other: &Books) -> Books {
    let mut both = one.clone();
    for (key, figures) in other {
        let sum = both.entry(key.clone()).or_default();
        *sum = *sum + *figures;
    }
    both
}

#[test]
fn on_a_full_disk_counting_goes_on_and_nothing_is_lost_when_there_is_space_again() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.mount_state(2 << 20)?;
    home.start_and_wait()?;
    let ballast = home.state_dir().join("ballast");
    let capture = site.lab.capture()?;
    under_load(&site, || {
        fill(&ballast)?;
        wait_for_log(&home, REFUSED)?;
        thread::sleep(Duration::from_secs(3));
        for command in ["status", "report"] {
            let said = said(&home, command)?;
            ensure!(said.contains("counted"), "{command}: {said}");
        }
        fs::remove_file(&ballast)?;
        wait_for_log(&home, TAKEN_AGAIN)
    })?;
    let trace = capture.stop()?;
    home.stop()?;
    assert_eq!(times_in_log(&home, REFUSED), 1, "{}", home.log());
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

#[test]
fn a_daemon_that_is_killed_and_started_on_a_full_disk_loses_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.mount_state(2 << 20)?;
    home.start_and_wait()?;
    let ballast = home.state_dir().join("ballast");
    let capture = site.lab.capture()?;
    under_paced_load(&site, PAUSE, || {
        fill(&ballast)?;
        wait_for_log(&home, REFUSED)?;
        home.kill()?;
        home.start()?;
        thread::sleep(Duration::from_secs(3));
        home.kill()?;
        home.start()?;
        thread::sleep(Duration::from_secs(2));
        fs::remove_file(&ballast)?;
        wait_for_flush(&home)
    })?;
    let trace = capture.stop()?;
    home.stop()?;
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

/// Lets a file be changed, or not, whoever has it open.
fn set_immutable(home: &Home, immutable: bool) -> Result<()> {
    let change = if immutable { "+i" } else { "-i" };
    let files = ["history.db", "history.db-wal"].map(|name| home.state_dir().join(name));
    let status = Command::new("chattr").arg(change).args(files).status();
    let status = status.context("chattr is not there: apt-get install e2fsprogs")?;
    ensure!(status.success(), "chattr {change}: {status}");
    Ok(())
}

#[test]
fn a_disk_that_refuses_to_write_for_a_while_loses_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        set_immutable(&home, true)?;
        let refused = wait_for_log(&home, REFUSED);
        thread::sleep(Duration::from_secs(2));
        let status = said(&home, "status");
        set_immutable(&home, false)?;
        refused?;
        ensure!(status?.contains("counted"));
        wait_for_log(&home, TAKEN_AGAIN)
    })?;
    let trace = capture.stop()?;
    home.stop()?;
    assert_eq!(times_in_log(&home, REFUSED), 1, "{}", home.log());
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

#[test]
fn a_damaged_history_is_replaced_without_a_restart_when_it_was_moved_away() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    let database = home.state_dir().join(DATABASE[0]);
    fs::write(&database, "no database at all".repeat(1000))?;
    fs::set_permissions(&database, Permissions::from_mode(0o640))?;
    home.start()?;
    wait_for_log(&home, "there is no history; counting goes on without")?;
    home.wait_until("it is attached", has_pins_and_counts)?;
    let capture = site.lab.capture()?;
    under_paced_load(&site, PAUSE, || {
        thread::sleep(Duration::from_secs(2));
        fs::rename(&database, home.file("damaged.db"))?;
        home.wait_until("a new history begins", |home| home.last_flush().is_some())
    })?;
    let trace = capture.stop()?;
    home.stop()?;
    let log = home.log();
    let remedy = format!("`mv {}", database.display());
    assert!(log.contains(&remedy) && !log.contains("Stop the agent"), "{log}");
    assert_history_is(&home, &captured(&trace)?)
}

fn has_pins_and_counts(home: &Home) -> bool {
    has_pins(home) && home.log().contains(": counting /")
}

/// Takes the history away under the running daemon; `then_kill`: and kills the daemon as soon as the new one
/// was begun. Old and new history together are the capture.
fn take_away(site: &Site, take: impl FnOnce(&Home) -> Result<()>, then_kill: bool) -> Result<()> {
    let mut home = home(site)?;
    home.start_and_wait()?;
    // What is flushed before is in the old one.
    let first = site.lab.capture()?;
    under_load(site, || {
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let first = captured(&first.stop()?)?;
    home.wait_until("all of it is written", |home| {
        home.books("counted").is_ok_and(|books| books == first)
    })?;
    let second = site.lab.capture()?;
    let mut quiet = true;
    if !then_kill {
        under_load(site, || {
            take(&home)?;
            quiet = false;
            home.wait_until("a new history begins", |home| home.last_flush().is_some())?;
            thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
    } else {
        // Nothing is counted between the old history and the kill.
        take(&home)?;
        home.wait_until("a new history begins", |home| home.last_flush().is_some())?;
        home.kill()?;
        home.start_and_wait()?;
        under_load(site, || {
            thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
    }
    let second = captured(&second.stop()?)?;
    home.stop()?;
    let counted = home.books("counted")?;
    let old = home.file("aside");
    let together = match old.exists() {
        true => {
            sum(&counted, &figures::of_cells(&traffic_tests::daemon::cells_in(&old, "counted")?))
        }
        false => sum(&counted, &first),
    };
    assert_eq!(since(&together, &Books::new()), sum(&first, &second), "{}", home.log());
    assert!(home.log().contains("were removed or moved away"), "{}", home.log());
    let events = home.events("counted")?;
    assert!(events.iter().any(|event| event.message.contains("begins here")), "{events:?}");
    assert_eq!(doubts(&home)?, []);
    Ok(())
}

fn remove(home: &Home, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| Ok(fs::remove_file(home.state_dir().join(name))?))
}

#[test]
fn a_deleted_history_is_noticed_and_a_new_one_begins_where_it_ended() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    // In the quiet: what was written last to the deleted file is gone with it.
    take_away(&site, |home| remove(home, &DATABASE), true)
}

#[test]
fn a_history_that_is_deleted_without_its_log_is_noticed() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    take_away(&site, |home| remove(home, &DATABASE[..1]), true)
}

#[test]
fn a_history_that_is_moved_away_and_the_new_one_have_every_byte_once() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let aside = |home: &Home| -> Result<()> {
        let aside = home.file("aside");
        fs::create_dir(&aside)?;
        fs::set_permissions(&aside, Permissions::from_mode(0o750))?;
        for name in DATABASE {
            fs::rename(home.state_dir().join(name), aside.join(name))?;
        }
        Ok(())
    };
    take_away(&site, aside, false)
}

#[test]
fn a_log_that_is_deleted_under_the_daemon_takes_nothing_with_it() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        thread::sleep(Duration::from_secs(2));
        remove(&home, &DATABASE[1..])?;
        wait_for_log(&home, "were removed or moved away")?;
        thread::sleep(Duration::from_secs(2));
        home.kill()?;
        home.start()
    })?;
    let trace = capture.stop()?;
    wait_for_flush(&home)?;
    home.stop()?;
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

#[test]
fn a_backup_that_is_put_back_under_the_daemon_gets_what_was_counted_since() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut home = home(&site)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    let backup = home.state_dir().join("backup");
    under_load(&site, || {
        thread::sleep(Duration::from_secs(2));
        home.stop()?;
        fs::copy(home.state_dir().join(DATABASE[0]), &backup)?;
        home.start_and_wait()?;
        thread::sleep(Duration::from_secs(2));
        fs::rename(&backup, home.state_dir().join(DATABASE[0]))?;
        wait_for_log(&home, "were removed or moved away")?;
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let trace = capture.stop()?;
    wait_for_flush(&home)?;
    home.stop()?;
    assert_eq!(doubts(&home)?, []);
    assert_history_is(&home, &captured(&trace)?)
}

//! A disk that is full, that refuses writes, or that fails and turns read-only.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use traffic_agent::history::Quarter;
use traffic_tests::accounted::{Accounted, PAUSE, said};
use traffic_tests::clock::Clock;
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::disk::Disk;

const REFUSED: &str = "cannot write the history";
const TAKEN_AGAIN: &str = "the history takes what was counted again";
const NO_HISTORY: &str = "there is no history; counting goes on without";
const DISK_ERROR: &str = "the disk does not take it";
const READ_ONLY: &str = "the file system or the file is read-only";

/// Takes all the space that is left.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    // The last part may fit in half.
    for part in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; part]).is_ok() {}
    }
    Ok(())
}

/// `status` and `report` know the target, whatever the disk is like.
fn assert_can_be_read(home: &Home) -> Result<()> {
    for command in ["status", "report"] {
        let said = said(home, command)?;
        ensure!(said.contains("counted"), "{command}: {said}");
    }
    Ok(())
}

#[test]
fn on_a_full_disk_counting_goes_on_and_nothing_is_lost_when_there_is_space_again() -> Result<()> {
    let mut counted = Accounted::new()?;
    counted.home.mount_state(2 << 20)?;
    counted.home.start_and_wait()?;
    let ballast = counted.home.state_dir().join("ballast");
    let captured = counted.under_load(|home| {
        fill(&ballast)?;
        home.wait_for_log(REFUSED)?;
        thread::sleep(Duration::from_secs(3));
        assert_can_be_read(home)?;
        fs::remove_file(&ballast)?;
        home.wait_for_log(TAKEN_AGAIN)
    })?;
    counted.assert_ends_with(&captured)?;
    assert_eq!(counted.home.times_in_log(REFUSED), 1, "{}", counted.home.log());
    Ok(())
}

#[test]
fn a_daemon_that_is_killed_and_started_on_a_full_disk_loses_nothing() -> Result<()> {
    let mut counted = Accounted::new()?;
    counted.home.mount_state(2 << 20)?;
    counted.home.start_and_wait()?;
    let ballast = counted.home.state_dir().join("ballast");
    let captured = counted.under_paced_load(PAUSE, |home| {
        fill(&ballast)?;
        home.wait_for_log(REFUSED)?;
        home.kill()?;
        home.start()?;
        thread::sleep(Duration::from_secs(3));
        home.kill()?;
        home.start()?;
        thread::sleep(Duration::from_secs(2));
        fs::remove_file(&ballast)?;
        home.wait_for_flush()
    })?;
    counted.assert_ends_with(&captured)
}

#[test]
fn the_hosts_quarter_that_cannot_be_written_waits_for_the_regular_flush() -> Result<()> {
    // A regular flush is 60 s after the one before.
    let mut counted = Accounted::by(|cgroup| {
        let target = format!("counted=cgroup:{cgroup}");
        Home::new(&["--target", &target, "--interval", "1s", "--flush-interval", "1m", "--host"])
    })?;
    let home = &mut counted.home;
    home.mount_state(2 << 20)?;
    let (clock, manager) = (Clock::of(home)?, Manager::of(home)?);
    home.start_and_wait()?;
    home.wait_for_log("counting every cgroup of the host")?;
    fill(&home.state_dir().join("ballast"))?;
    // A quarter of an hour ends by its clock, which is written once at once.
    let now = Timestamp::now();
    clock.set(Quarter::of(now).next().start().as_second() - now.as_second() + 5)?;
    home.wait_for_log(REFUSED)?;
    let before = manager.statuses();
    thread::sleep(Duration::from_secs(10));
    let tried = manager.statuses() - before;
    assert!(tried <= 1, "a flush was tried {tried} times in 10 s\n{}", home.log());
    fs::remove_file(home.state_dir().join("ballast"))?;
    home.stop()
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
    let mut counted = Accounted::started()?;
    let captured = counted.under_load(|home| {
        set_immutable(home, true)?;
        let refused = home.wait_for_log(REFUSED);
        thread::sleep(Duration::from_secs(2));
        let read = assert_can_be_read(home);
        set_immutable(home, false)?;
        refused?;
        read?;
        home.wait_for_log(TAKEN_AGAIN)
    })?;
    counted.assert_ends_with(&captured)?;
    assert_eq!(counted.home.times_in_log(REFUSED), 1, "{}", counted.home.log());
    Ok(())
}

/// What `systemctl status` would show: what the daemon has said of how it is, the latest at the end.
struct Manager(Arc<Mutex<Vec<String>>>);

impl Manager {
    /// Listens to a daemon from its next start on, to the end of the test: one whom nobody listens to waits.
    fn of(home: &mut Home) -> Result<Self> {
        let path = home.file("notify");
        let socket = UnixDatagram::bind(&path)?;
        home.set("NOTIFY_SOCKET", path.display());
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::downgrade(&statuses);
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        thread::spawn(move || {
            let mut message = [0; 4096];
            while let Some(statuses) = heard.upgrade() {
                let Ok(end) = socket.recv(&mut message) else { continue };
                let message = String::from_utf8_lossy(&message[..end]).into_owned();
                if message.contains("STATUS=") {
                    statuses.lock().expect("nobody panics with it").push(message);
                }
            }
        });
        Ok(Self(statuses))
    }

    /// How often the daemon has said it: it does so after each flush, also one that failed.
    fn statuses(&self) -> usize {
        self.0.lock().map_or(0, |statuses| statuses.len())
    }

    fn wait_for_status(&self, home: &Home, words: &str) -> Result<()> {
        let is_said = |statuses: &Vec<String>| statuses.last().is_some_and(|it| it.contains(words));
        home.wait_until(words, |_| self.0.lock().is_ok_and(|statuses| is_said(&statuses)))
    }
}

#[test]
fn a_disk_that_turns_read_only_under_the_daemon_loses_nothing_when_it_is_repaired() -> Result<()> {
    let mut counted = Accounted::new()?;
    let disk = Disk::under(&mut counted.home)?;
    let manager = Manager::of(&mut counted.home)?;
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(2));
        disk.fail()?;
        home.wait_for_log(REFUSED)?;
        manager.wait_for_status(home, REFUSED)?;
        thread::sleep(Duration::from_secs(2));
        assert_can_be_read(home)?;
        // Nobody may use a disk that is repaired.
        home.kill()?;
        disk.repair()?;
        home.start_and_wait()
    })?;
    counted.assert_ends_with(&captured)?;
    let log = counted.home.log();
    assert_eq!(counted.home.times_in_log(REFUSED), 1, "{log}");
    assert!(log.contains(DISK_ERROR), "{log}");
    Ok(())
}

#[test]
fn a_daemon_that_starts_on_a_read_only_disk_counts_and_writes_when_it_is_writable() -> Result<()> {
    let mut counted = Accounted::new()?;
    counted.home.mount_state(2 << 20)?;
    let manager = Manager::of(&mut counted.home)?;
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        thread::sleep(Duration::from_secs(1));
        home.stop()?;
        home.remount_state(true)?;
        home.start()?;
        home.wait_for_log(NO_HISTORY)?;
        manager.wait_for_status(home, NO_HISTORY)?;
        thread::sleep(Duration::from_secs(1));
        assert_can_be_read(home)?;
        // Neither a kill nor an end in order on such a disk takes anything with it.
        home.kill()?;
        home.start()?;
        home.wait_until("it is told again", |home| home.times_in_log(NO_HISTORY) == 2)?;
        home.stop()?;
        home.start()?;
        home.wait_until("it is told again", |home| home.times_in_log(NO_HISTORY) == 3)?;
        home.remount_state(false)?;
        home.wait_for_flush()
    })?;
    counted.assert_ends_with(&captured)?;
    assert!(counted.home.log().contains(READ_ONLY), "{}", counted.home.log());
    Ok(())
}

#[test]
fn a_daemon_whose_disk_was_never_writable_counts_nothing_and_says_why() -> Result<()> {
    let mut counted = Accounted::new()?;
    counted.home.mount_state(2 << 20)?;
    counted.home.remount_state(true)?;
    counted.home.start()?;
    let status = counted.home.wait_for_end()?;
    assert_eq!(status.code(), Some(1));
    let log = counted.home.log();
    assert!(log.contains("cannot lock") && log.contains("Read-only file system"), "{log}");
    assert!(!has_pins(&counted.home), "{log}");
    Ok(())
}

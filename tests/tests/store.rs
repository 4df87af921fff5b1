//! The history on disk, where processes are killed, other users read, and disks are full or read-only.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use traffic_agent::store::{DATABASE, Error};
use traffic_tests::history::{self, Shared, Writer, check, flush, kept};
use traffic_tests::require_root;

#[test]
fn a_writer_killed_in_the_middle_of_a_flush_leaves_a_whole_book() -> Result<()> {
    let shared = Shared::new()?;
    let mut before = 0;
    for round in 0..20 {
        let mut writer = Writer::start(&shared.state())?;
        let first = writer.wait_for_flush()?;
        assert_eq!(first, before + 1, "it goes on where the book ended");
        // Anywhere in the flushes that come.
        thread::sleep(Duration::from_micros(3_700 * round % 20_000));
        let said = writer.kill()?.unwrap_or(first);
        let in_book = check(&shared.state())?;
        // The one that was not said yet may be in.
        ensure!(
            (said..=said + 1).contains(&in_book),
            "{said} were said, {in_book} are in the book"
        );
        assert_eq!(kept(&history::open(&shared.state())?)?, in_book);
        before = in_book;
    }
    Ok(())
}

/// What a power cut leaves of the log: its beginning, with whatever in the last sectors.
#[test]
fn a_log_torn_anywhere_leaves_the_book_of_some_flush_before() -> Result<()> {
    const FLUSHES: u64 = 30;
    const SECTOR: usize = 512;
    let shared = Shared::new()?;
    let mut store = history::open(&shared.state())?;
    for number in 1..=FLUSHES {
        store.flush(&flush(number, number))?;
    }
    let (database, log) = (shared.state().join(DATABASE), shared.state().join("history.db-wal"));
    let (database, log) = (fs::read(database)?, fs::read(log)?);
    let mut before = 0;
    // A prime, so that it is torn at every place of a page.
    for end in (0..log.len()).step_by(20_011).chain([log.len()]) {
        let torn = Shared::new()?;
        let mut rest = log[..end].to_vec();
        if end < log.len() {
            let whole = end.saturating_sub(SECTOR);
            rest[whole..].fill(0xa5);
        }
        fs::write(torn.state().join(DATABASE), &database)?;
        fs::write(torn.state().join("history.db-wal"), rest)?;
        let mut store = history::open(&torn.state())?;
        let in_book = kept(&store)?;
        assert_eq!(check(&torn.state())?, in_book, "torn at {end}");
        ensure!(in_book >= before, "torn at {end}: {in_book} flushes after {before}");
        before = in_book;
        // And it goes on from there.
        store.flush(&flush(in_book + 1, FLUSHES + 1))?;
        assert_eq!(check(&torn.state())?, FLUSHES + 1, "torn at {end}");
    }
    assert_eq!(before, FLUSHES);
    Ok(())
}

#[test]
fn a_member_of_the_group_reads_at_any_time_and_a_stranger_never() -> Result<()> {
    let shared = Shared::new()?;
    let absent = shared.read_as_member().unwrap_err().to_string();
    assert!(absent.contains("there is no history in"), "{absent}");
    let mut store = history::open(&shared.state())?;
    assert_eq!(shared.read_as_member()?, 0);
    // Each flush is seen at once, also by somebody who may not write the index of the log.
    for number in 1..=10 {
        store.flush(&flush(number, number))?;
        assert_eq!(shared.read_as_member()?, number);
    }
    let refused = shared.read_as_stranger().unwrap_err().to_string();
    assert!(refused.contains("no permission for"), "{refused}");
    // Closed, and nobody there.
    drop(store);
    assert_eq!(shared.read_as_member()?, 10);
    // Killed.
    let mut writer = Writer::start(&shared.state())?;
    writer.wait_for_flush()?;
    writer.kill()?;
    let read = shared.read_as_member()?;
    ensure!(read > 10, "{read} flushes");
    assert_eq!(check(&shared.state())?, read);
    // Copied without the files beside it: the database alone has all that a closed store had.
    drop(history::open(&shared.state())?);
    for beside in ["history.db-wal", "history.db-shm"] {
        fs::remove_file(shared.state().join(beside))?;
    }
    assert_eq!(shared.read_as_member()?, read);
    Ok(())
}

#[test]
fn readers_see_whole_flushes_while_a_writer_writes() -> Result<()> {
    let shared = Shared::new()?;
    let mut writer = Writer::start(&shared.state())?;
    let mut before = writer.wait_for_flush()?;
    for round in 0..60 {
        let read = match round % 4 {
            0 => shared.read_as_member()?,
            _ => check(&shared.state())?,
        };
        ensure!(read >= before, "{read} flushes after {before}");
        before = read;
    }
    Ok(())
}

/// A file system of its own, seen by this thread alone.
struct Disk<'a> {
    directory: &'a Path,
}

impl<'a> Disk<'a> {
    const BYTES: u64 = 16 << 20;

    fn mount(directory: &'a Path) -> Result<Self> {
        require_root()?;
        unshare(CloneFlags::CLONE_NEWNS).context("cannot get mounts of its own")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let options = format!("size={},mode=0750", Self::BYTES);
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self { directory })
    }

    fn remount(&self, flags: MsFlags) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | flags;
        Ok(mount(None::<&str>, self.directory, None::<&str>, flags, None::<&str>)?)
    }

    /// Takes all space but a number of bytes.
    fn fill_but(&self, bytes: u64) -> Result<()> {
        let path = self.directory.join("filler");
        let mut file = File::create(&path)?;
        // Whatever fits.
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(bytes))?;
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.directory.join("filler"))?)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // The mounts of this thread end with it in any case.
        let _ = umount2(self.directory, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_loses_nothing_and_doubles_nothing() -> Result<()> {
    let directory = tempfile::TempDir::with_prefix("ta-disk-")?;
    let disk = Disk::mount(directory.path())?;
    let mut store = history::open(directory.path())?;
    let (mut written, mut number) = (0, 0);
    // Each time with a page more of space, so that it ends at any place of a flush.
    for pages in 0..40 {
        disk.fill_but(pages * 4096)?;
        loop {
            number += 1;
            match store.flush(&flush(written + 1, number)) {
                Ok(()) => written = number,
                Err(error) => {
                    ensure!(matches!(error, Error::Full { .. }), "{error:?}");
                    break;
                }
            }
        }
        assert_eq!(check(directory.path())?, written, "with {pages} pages");
        assert_eq!(kept(&store)?, written);
        // A second attempt is as good as the first.
        let again = store.flush(&flush(written + 1, number));
        ensure!(matches!(again, Err(Error::Full { .. })), "{again:?}");
        if pages % 5 == 0 {
            // Restarted while there is no space: it cannot begin, and what is there is read.
            drop(store);
            let refused = history::open(directory.path());
            assert_eq!(check(directory.path())?, written);
            disk.free()?;
            store = match refused {
                Ok(store) => store,
                Err(Error::Full { .. }) => history::open(directory.path())?,
                Err(error) => return Err(error.into()),
            };
            assert_eq!(kept(&store)?, written);
        } else {
            disk.free()?;
        }
        number += 1;
        store.flush(&flush(written + 1, number))?;
        written = number;
        assert_eq!(check(directory.path())?, written);
    }
    Ok(())
}

#[test]
fn a_history_does_not_begin_where_there_is_no_space() -> Result<()> {
    let directory = tempfile::TempDir::with_prefix("ta-disk-")?;
    let disk = Disk::mount(directory.path())?;
    for pages in 0..20 {
        disk.fill_but(pages * 4096)?;
        if let Err(error) = history::open(directory.path()) {
            ensure!(matches!(error, Error::Full { .. }), "{pages} pages: {error:?}");
            let text = error.to_string();
            assert!(text.contains("no space is left for"), "{text}");
        }
        disk.free()?;
    }
    let mut store = history::open(directory.path())?;
    store.flush(&flush(1, 1))?;
    assert_eq!(check(directory.path())?, 1);
    Ok(())
}

#[test]
fn a_read_only_disk_is_read_and_not_written() -> Result<()> {
    let directory = tempfile::TempDir::with_prefix("ta-disk-")?;
    let disk = Disk::mount(directory.path())?;
    disk.remount(MsFlags::MS_RDONLY)?;
    let refused = history::open(directory.path()).unwrap_err();
    ensure!(matches!(refused, Error::Make { .. }), "{refused:?}");
    disk.remount(MsFlags::empty())?;

    let mut writer = Writer::start(directory.path())?;
    let said = writer.wait_for_flush()?;
    let said = writer.kill()?.unwrap_or(said);
    disk.remount(MsFlags::MS_RDONLY)?;
    // The log has what was not folded into the database.
    let read = check(directory.path())?;
    ensure!((said..=said + 1).contains(&read), "{read} flushes of {said}");
    let refused = history::open(directory.path()).unwrap_err();
    ensure!(matches!(refused, Error::ReadOnly { .. }), "{refused:?}");
    disk.remount(MsFlags::empty())?;

    drop(history::open(directory.path())?);
    disk.remount(MsFlags::MS_RDONLY)?;
    assert_eq!(check(directory.path())?, read);
    disk.remount(MsFlags::empty())?;
    Ok(())
}

#[test]
fn somebody_elses_directory_and_files_are_refused() -> Result<()> {
    require_root()?;
    let directory = tempfile::TempDir::with_prefix("ta-owner-")?;
    let open = || history::open(directory.path());
    drop(open()?);
    let database = directory.path().join(DATABASE);
    std::os::unix::fs::chown(&database, Some(12_345), None)?;
    let refused = open().unwrap_err().to_string();
    assert!(
        refused.contains("history.db belongs to uid 12345, and this runs as uid 0"),
        "{refused}"
    );
    std::os::unix::fs::chown(&database, Some(0), None)?;
    std::os::unix::fs::chown(directory.path(), Some(12_345), None)?;
    let refused = open().unwrap_err().to_string();
    assert!(refused.contains("belongs to uid 12345"), "{refused}");
    std::os::unix::fs::chown(directory.path(), Some(0), None)?;
    drop(open()?);
    Ok(())
}

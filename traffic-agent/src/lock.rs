//! One agent for a state directory: a lock that the kernel takes back however the holder ends.
//!
//! `flock` on a file in the directory. What stands in the file only tells a second agent who holds the
//! lock; whether it is held, the kernel knows. The file is never removed: whoever waited for a removed one
//! would hold a lock that nobody else can see.
//!
//! The group may read the file, as it may read the history, and could so hold the lock itself. That keeps an
//! agent from starting and changes no figure: counting goes on in the pinned maps.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use procfs::process::Process;

/// Name of the file in the state directory.
pub const FILE: &str = "lock";
/// Mode of a state directory that does not exist yet.
const DIRECTORY_MODE: u32 = 0o750;
/// Readable for the group, so that `status` can say who holds it.
const FILE_MODE: u32 = 0o640;
/// More than anything that is written into it.
const BYTES_MOST: u64 = 256;
/// How often the file may be replaced between opening and locking it.
const TRIES: u32 = 10;
/// How long one that cannot be seen is waited for. A child of an agent that was killed holds the lock, too, until it
/// has become the program that it was made for.
const INHERITED: Duration = Duration::from_secs(2);
/// How often it is asked for meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another one has it.
    #[error(
        "cannot use {}: {holder}; stop it (`systemctl stop traffic-agent`), or give this one a directory \
         of its own with --state-dir",
        state_dir.display()
    )]
    Held {
        /// The state directory.
        state_dir: PathBuf,
        /// Who, as far as it can be known.
        holder: HolderText,
    },
    /// The file cannot be opened or locked.
    #[error("cannot lock {}; it must be a plain file in a directory that the agent can write", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An agent that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: i32,
    /// Its command line, with spaces between the arguments.
    pub command: String,
    /// When it took the lock.
    pub since: Timestamp,
}

/// A holder in words, known or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderText(Option<Holder>);

impl fmt::Display for HolderText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(Holder { pid, command, since }) => {
                write!(f, "process {pid} (`{command}`) has used it since {since:.0}")
            }
            // In another pid namespace, or the lock file was locked by hand.
            None => f.write_str("another process has locked it that cannot be seen from here"),
        }
    }
}

/// The lock of a state directory, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or says who has it. Makes the directory if there is none.
    pub fn take(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(FILE);
        let unusable = |source| Error::Unusable { path: path.clone(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(state_dir)
            .map_err(unusable)?;
        let deadline = Instant::now() + INHERITED;
        let mut replaced = 0;
        while replaced < TRIES {
            let (file, read_only) = open(&path).map_err(unusable)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) if is_at(&file, &path) => {
                    if let Some(error) = read_only.or(sign(&mut file).err()) {
                        // A disk that is full or read-only is no reason not to count.
                        log::warn!("cannot write into the lock file who holds it: {error}");
                    }
                    return Ok(Self { _file: file });
                }
                // Somebody has put another file in its place: that one is to be locked.
                Ok(_) => replaced += 1,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let holder = holder(state_dir);
                    if holder.is_some() || Instant::now() >= deadline {
                        let (state_dir, holder) = (state_dir.to_owned(), HolderText(holder));
                        return Err(Error::Held { state_dir, holder });
                    }
                    thread::sleep(PAUSE);
                }
                Err((_, errno)) => return Err(unusable(errno.into())),
            }
        }
        Err(unusable(io::Error::other("it is replaced again and again")))
    }
}

/// The agent that uses a state directory now, if one does: found without touching the lock, so that it
/// disturbs none that is starting.
pub fn holder(state_dir: &Path) -> Option<Holder> {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(state_dir.join(FILE)).ok()?;
    file.take(BYTES_MOST).read_to_string(&mut text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let pid: i32 = words.next()?.parse().ok()?;
    let started: u64 = words.next()?.parse().ok()?;
    let since: Timestamp = words.next()?.parse().ok()?;
    // The number alone may be another process's by now.
    let process = Process::new(pid).ok()?;
    if process.stat().ok()?.starttime != started {
        return None;
    }
    let command = process.cmdline().ok()?.join(" ");
    Some(Holder { pid, command: command.replace(char::is_control, "\u{fffd}"), since })
}

/// Neither a link that leads elsewhere, nor a FIFO that makes the agent wait.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Opens the file, and makes it if there is none. The disk may be read-only for now: what is there can be
/// locked all the same, and the error says why it cannot be written.
fn open(path: &Path) -> io::Result<(File, Option<io::Error>)> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(FLAGS);
    let writable = options.clone().write(true).create(true).mode(FILE_MODE).open(path);
    let (file, read_only) = match writable {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            match options.open(path) {
                Ok(file) => (file, Some(error)),
                Err(_) => return Err(error),
            }
        }
        opened => (opened?, None),
    };
    match file.metadata()?.is_file() {
        true => Ok((file, read_only)),
        false => Err(io::Error::other("it is not a plain file")),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => id(open) == id(there),
        _ => false,
    }
}

/// Writes who holds it: process, start of the process in clock ticks since boot, and the time.
fn sign(file: &mut File) -> io::Result<()> {
    let started = Process::myself().and_then(|me| me.stat()).map_or(0, |stat| stat.starttime);
    let text = format!("{} {started} {:.0}\n", std::process::id(), Timestamp::now());
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Command, Stdio};

    use super::*;

    /// Where a test started again as a child is to hold the lock.
    const HOLD: &str = "TRAFFIC_TEST_HOLD_LOCK";

    fn in_use(state_dir: &Path) -> String {
        match Lock::take(state_dir) {
            Err(error @ Error::Held { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lock_is_released_by_drop_and_its_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let lock = Lock::take(&state).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&state) & !0o750, 0);
        assert_eq!(mode(&state.join(FILE)) & !0o640, 0);
        let me = holder(&state).unwrap();
        assert_eq!(me.pid, std::process::id() as i32);
        assert!(in_use(&state).contains(&format!("process {} (`", me.pid)));
        drop(lock);
        assert!(state.join(FILE).exists());
        Lock::take(&state).unwrap();
    }

    /// Not a test: the child of the next one.
    #[test]
    fn a_child_holds_the_lock_while_its_input_is_open() {
        let Some(state) = std::env::var_os(HOLD) else { return };
        let _lock = Lock::take(Path::new(&state)).unwrap();
        println!("locked");
        let _ = io::stdin().read(&mut [0]);
    }

    #[test]
    fn a_second_process_is_told_who_holds_it_and_kill_9_releases_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "a_child_holds_the_lock_while_its_input_is_open",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(HOLD, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = String::new();
        let mut out = child.stdout.take().unwrap();
        while !lines.contains("locked") {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "the child ended: {lines}");
            lines.push(char::from(byte[0]));
        }
        let message = in_use(dir.path());
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let since = text.split_whitespace().nth(2).unwrap();
        assert!(message.contains(&format!("process {} (`", child.id())), "{message}");
        assert!(message.contains("a_child_holds_the_lock"), "{message}");
        assert!(message.contains(&format!("has used it since {since}")), "{message}");

        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder(dir.path()), None);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_that_a_killed_agents_child_still_holds_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        // Of a process that is gone.
        std::fs::write(dir.path().join(FILE), "999999999 1 2026-01-01T00:00:00Z").unwrap();
        let file = File::open(dir.path().join(FILE)).unwrap();
        let inherited = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        thread::scope(|scope| {
            let taken = scope.spawn(|| Lock::take(dir.path()));
            thread::sleep(10 * PAUSE);
            assert!(!taken.is_finished());
            drop(inherited);
            taken.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_link_a_directory_and_a_fifo_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let refused = || match Lock::take(dir.path()) {
            Err(error @ Error::Unusable { .. }) => {
                assert!(error.to_string().contains("plain file"))
            }
            other => panic!("{other:?}"),
        };
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, &path).unwrap();
        refused();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "kept");
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused();
    }

    #[test]
    fn what_stands_in_the_file_is_believed_only_of_a_process_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            ["", "x", "1 0 2026-01-01T00:00:00Z", "-1 1 now", "999999999 1 2026-01-01T00:00:00Z"]
        {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(holder(dir.path()), None, "{text}");
        }
        // Locked by hand.
        let file = File::open(dir.path().join(FILE)).unwrap();
        let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(in_use(dir.path()).contains("cannot be seen from here"));
    }
}

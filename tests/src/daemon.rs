//! The built `traffic-agent run`, with a state directory and a bpf filesystem of its own, and what its
//! history holds.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use traffic_agent::history::{Event, EventKind, Quarter, Series};
use traffic_agent::report::{CellReport, Counters};
use traffic_agent::store::Reader;

use crate::agent::program;
use crate::figures::{self, Books};
use crate::require_root;

/// Nothing that is tested takes longer: what the daemon tries again, it does every 30 seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a daemon lives. Dropped, the daemon is killed, and its pins and files are gone.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    program: PathBuf,
    daemon: Option<Child>,
    /// Flags of every start.
    flags: Vec<String>,
    environment: BTreeMap<String, String>,
    /// What the daemon takes for the boot's id.
    boot_id: Option<PathBuf>,
    /// File systems of the test's own, to be unmounted.
    mounts: Vec<PathBuf>,
}

impl Home {
    /// Makes the state directory and the bpf filesystem. `flags`: what `run` is started with besides.
    pub fn new(flags: &[&str]) -> Result<Self> {
        require_root()?;
        let directory = TempDir::with_prefix("ta-test-")?;
        for name in ["state", "bpf"] {
            fs::create_dir(directory.path().join(name))?;
        }
        fs::set_permissions(directory.path().join("state"), Permissions::from_mode(0o750))?;
        let home = Self {
            directory,
            program: program()?,
            daemon: None,
            flags: flags.iter().map(ToString::to_string).collect(),
            environment: BTreeMap::new(),
            boot_id: None,
            mounts: Vec::new(),
        };
        home.mount_bpf()?;
        Ok(home)
    }

    /// Adds flags of every start from here on.
    pub fn add_flags<const N: usize>(&mut self, flags: [&str; N]) {
        self.flags.extend(flags.map(str::to_owned));
    }

    /// One whose daemon counts a cgroup as `counted`, and reads and writes as often as it can.
    pub fn counting(cgroup: &str) -> Result<Self> {
        let target = format!("counted=cgroup:{cgroup}");
        Self::new(&["--target", &target, "--interval", "1s", "--flush-interval", "1s"])
    }

    /// Mounts the bpf filesystem.
    pub fn mount_bpf(&self) -> Result<()> {
        let bpf = self.bpffs();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpf filesystem at {}", bpf.display()))
    }

    /// Hides it behind another file system, until that is unmounted: nothing can be pinned or found meanwhile.
    pub fn hide_bpf(&self) -> Result<()> {
        mount(Some("none"), &self.bpffs(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a tmpfs")
    }

    /// Unmounts it, with all pins.
    pub fn unmount_bpf(&self) -> Result<()> {
        Ok(umount2(&self.bpffs(), MntFlags::MNT_DETACH)?)
    }

    /// Puts the state directory on a file system of its own, of so many bytes, before the first start.
    pub fn mount_state(&mut self, bytes: usize) -> Result<()> {
        let state = self.state_dir();
        let options = format!("size={bytes},mode=0750");
        mount(Some("state"), &state, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .context("cannot mount a tmpfs")?;
        self.unmount_at_the_end(&state);
        Ok(())
    }

    /// Makes the file system of the state directory read-only, or writable again. The kernel refuses the first
    /// while a daemon writes.
    pub fn remount_state(&self, read_only: bool) -> Result<()> {
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let none = None::<&str>;
        mount(none, &self.state_dir(), none, MsFlags::MS_REMOUNT | flags, none)
            .context("cannot mount the state directory anew")
    }

    /// What is mounted there goes with this.
    pub fn unmount_at_the_end(&mut self, path: &Path) {
        self.mounts.push(path.to_owned());
    }

    /// Makes every start from here on one on a machine that has booted anew: the daemon sees another boot's
    /// id, in a mount namespace of its own. Its pins are to be removed besides.
    pub fn boot_anew(&mut self) -> Result<()> {
        let path = self.file("boot_id");
        fs::write(&path, format!("{:032x}\n", fastrand::u128(..)))?;
        self.boot_id = Some(path);
        Ok(())
    }

    /// Where history and lock are.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Where pins are.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sets a variable of the environment of every start from here on.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.environment.insert(name.to_owned(), value.to_string());
    }

    /// What `run` is started with besides, from the next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(ToString::to_string).collect();
    }

    /// A command of the agent upon this state directory.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).args(["--state-dir".as_ref(), self.state_dir().as_os_str()]);
        if matches!(name, "run" | "detach") {
            command.args(["--bpffs".as_ref(), self.bpffs().as_os_str()]);
        }
        command.envs(&self.environment).stdin(Stdio::null());
        command
    }

    /// Starts the daemon; does not wait for it.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.file("log"))?;
        let mut command = self.command("run");
        command.args(&self.flags).stdout(log.try_clone()?).stderr(log);
        if let Some(boot_id) = self.boot_id.clone() {
            let see = move || {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                let over = "/proc/sys/kernel/random/boot_id";
                mount(Some(&boot_id), over, none, MsFlags::MS_BIND, none)?;
                Ok(())
            };
            // SAFETY: between fork and exec the closure makes plain system calls only; paths this short
            // are not put on the heap.
            unsafe { command.pre_exec(see) };
        }
        self.daemon = Some(command.spawn().context("cannot start traffic-agent")?);
        Ok(())
    }

    /// Starts the daemon and waits until its first flush.
    pub fn start_and_wait(&mut self) -> Result<()> {
        let before = self.last_flush();
        self.start()?;
        self.wait_for_flush_after(before)
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        let daemon = self.daemon.as_ref().context("it does not run")?;
        Ok(Pid::from_raw(daemon.id() as i32))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Kills it, as the kernel does for want of memory.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_for_end().map(drop)
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait_for_end()?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Waits until it has ended.
    pub fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("it does not run")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = daemon.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                daemon.kill()?;
                daemon.wait()?;
                bail!("the daemon does not end:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until something is so.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            ensure!(Instant::now() < deadline, "waited in vain until {what}:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until the log has these words.
    pub fn wait_for_log(&self, words: &str) -> Result<()> {
        self.wait_until(words, |home| home.log().contains(words))
    }

    /// How often the log has these words.
    pub fn times_in_log(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    /// Waits until what has been read by now is in the history.
    pub fn wait_for_flush(&self) -> Result<()> {
        self.wait_for_flush_after(self.last_flush())
    }

    fn wait_for_flush_after(&self, before: Option<i64>) -> Result<()> {
        let is_later = |now: Option<i64>| now.is_some() && now != before;
        self.wait_until("the daemon writes its history", |home| is_later(home.last_flush()))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// When the history was written last, in milliseconds.
    pub fn last_flush(&self) -> Option<i64> {
        let reader = Reader::open(&self.state_dir()).ok()?;
        let targets = reader.targets().ok()?;
        targets.iter().map(|target| target.last_flush.as_millisecond()).max()
    }

    /// Everything that the history holds of a target.
    pub fn cells(&self, target: &str) -> Result<Vec<CellReport>> {
        cells_in(&self.state_dir(), target)
    }

    /// The same as books.
    pub fn books(&self, target: &str) -> Result<Books> {
        Ok(figures::of_cells(&self.cells(target)?))
    }

    /// Asserts that the whole history of a target is what was captured.
    #[track_caller]
    pub fn assert_books(&self, target: &str, captured: &Books) -> Result<()> {
        let counted = self.books(target)?;
        assert!(!counted.is_empty(), "nothing was counted\n{}", self.log());
        assert_eq!(&counted, captured, "history (left), capture (right)\n{}", self.log());
        Ok(())
    }

    /// All events of a target.
    pub fn events(&self, target: &str) -> Result<Vec<Event>> {
        let reader = Reader::open(&self.state_dir())?;
        Ok(reader.events(target, jiff::Timestamp::MIN..jiff::Timestamp::MAX)?)
    }

    /// Those that say that something is missing or not where it should be. That a quarter of an hour ended
    /// while the daemon was away is neither: it happens to any test that runs then.
    pub fn doubts(&self, target: &str) -> Result<Vec<Event>> {
        let in_passing = |event: &Event| {
            event.kind == EventKind::Late
                && event.message.contains("while the agent did not run")
                && Quarter::of(event.start) != Quarter::of(event.end)
        };
        let mut events = self.events(target)?;
        events.retain(|event| event.kind != EventKind::Note && !in_passing(event));
        Ok(events)
    }
}

/// Everything that the history in a directory holds of a target.
pub fn cells_in(directory: &Path, target: &str) -> Result<Vec<CellReport>> {
    let mut sums: BTreeMap<Series, Counters> = BTreeMap::new();
    let all: Range<Quarter> = Quarter(0)..Quarter(i64::from(u32::MAX));
    Reader::open(directory)?.quarters(target, all, |_, series, counters| {
        *sums.entry(series.clone()).or_default() += counters;
    })?;
    Ok(sums.into_iter().map(cell).collect())
}

fn cell((series, counters): (Series, Counters)) -> CellReport {
    let Series { interface, scope, origin, direction, leg, protocol, port, family } = series;
    CellReport { interface, scope, origin, direction, leg, protocol, port, family, counters }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let _ = self.kill();
        }
        // All mounts of this place, however often it was mounted.
        while self.unmount_bpf().is_ok() {}
        for mounted in &self.mounts {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
    }
}

/// Where the pins of a target are, whatever the version in their path.
pub fn pins(home: &Home, target: &str) -> Result<PathBuf> {
    let version = only_entry(&home.bpffs().join("traffic-agent"))?;
    Ok(only_entry(&version)?.join(target))
}

/// Where the pins of a target are, of one version.
pub fn pins_of(home: &Home, abi: u32, target: &str) -> Result<PathBuf> {
    let version = home.bpffs().join(format!("traffic-agent/v{abi}"));
    Ok(only_entry(&version)?.join(target))
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    Ok(fs::read_dir(directory)?.next().context("no pins")??.path())
}

/// Whether anything is pinned.
pub fn has_pins(home: &Home) -> bool {
    fn has_file(directory: &Path) -> bool {
        let Ok(entries) = fs::read_dir(directory) else { return false };
        entries.flatten().any(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => has_file(&entry.path()),
            _ => true,
        })
    }
    has_file(&home.bpffs().join("traffic-agent"))
}

//! The built `traffic-agent`, run as a program in a cgroup of its own, and what it reports.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use traffic_agent::report::{Direction, Family, Leg, Protocol};
use traffic_lab::{CountedCgroup, Namespace};

use crate::figures::{Books, Figures, Key};
use crate::require_root;

/// Nothing that is tested takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// The built program: `cargo xtask test` says where it is.
pub fn program() -> Result<PathBuf> {
    let path = std::env::var_os("TRAFFIC_AGENT")
        .context("TRAFFIC_AGENT does not name the built traffic-agent: run `cargo xtask test`")?;
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{} is not there: run `cargo xtask test`", path.display());
    Ok(path)
}

/// Where agents run: a cgroup in which they make theirs, and a directory for files. Dropped, both are
/// gone, with all that runs in the cgroup.
#[derive(Debug)]
pub struct Desk {
    cgroup: CountedCgroup,
    directory: TempDir,
    program: PathBuf,
}

impl Desk {
    /// Makes the cgroup and the directory.
    pub fn new() -> Result<Self> {
        require_root()?;
        Ok(Self {
            cgroup: CountedCgroup::new("agent")?,
            directory: TempDir::with_prefix("ta-test-")?,
            program: program()?,
        })
    }

    /// The same with a copy of the agent that every user can execute: the checkout may be root's own.
    pub fn for_everybody() -> Result<Self> {
        let mut desk = Self::new()?;
        fs::set_permissions(desk.directory.path(), fs::Permissions::from_mode(0o755))?;
        let copy = desk.file("traffic-agent");
        fs::copy(&desk.program, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        desk.program = copy;
        Ok(desk)
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the agent, in a namespace if one is given.
    pub fn start<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        namespace: Option<&Namespace>,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Running> {
        let (out, err) = (self.file("stdout"), self.file("stderr"));
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null());
        // Files, because a descendant that goes on would keep a pipe open.
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        prepare(&mut command);
        self.cgroup.enter(&mut command)?;
        if let Some(namespace) = namespace {
            namespace.command_in(&mut command)?;
        }
        // A shell that runs the tests in the background has these ignored, and so would the command.
        let heed = || {
            for heeded in [Signal::SIGINT, Signal::SIGQUIT] {
                // SAFETY: the default disposition refers to no handler.
                unsafe { signal(heeded, SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(heed) };
        let child = command.spawn().context("cannot start traffic-agent")?;
        Ok(Running { child, out, err })
    }

    /// Runs the agent to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
        self.start(arguments, None, |_| ())?.finish()
    }

    /// Runs a shell script under `exec`, with its report in [`Desk::report`].
    pub fn exec_shell(&self, options: &[&str], script: &str) -> Result<Finished> {
        self.start_exec(options, ["sh", "-c", script], None, |_| ())?.finish()
    }

    /// Starts `exec`, with its report in [`Desk::report`].
    pub fn start_exec<S: AsRef<OsStr>>(
        &self,
        options: &[&str],
        command: impl IntoIterator<Item = S>,
        namespace: Option<&Namespace>,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Running> {
        let report = self.file("report").into_os_string();
        let mut arguments = vec!["exec".into(), "--json".into(), "--output".into(), report];
        arguments.extend(options.iter().map(|option| option.into()));
        arguments.push("--".into());
        arguments.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        self.start(arguments, namespace, prepare)
    }

    /// What `exec` wrote last.
    pub fn report(&self) -> Result<Report> {
        let text = fs::read_to_string(self.file("report")).context("there is no report")?;
        Report::parse(&text)
    }

    /// Nothing runs any more, and no cgroup is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let begin = Instant::now();
        // A shell that was killed may leave a `sleep` of some milliseconds.
        while self.members().is_ok_and(|members| !members.is_empty()) {
            assert!(begin.elapsed() < GONE_WITHIN, "these go on: {:?}", self.members());
            thread::sleep(Duration::from_millis(5));
        }
        self.assert_no_cgroup_left();
    }

    /// No cgroup is left, whatever goes on.
    #[track_caller]
    pub fn assert_no_cgroup_left(&self) {
        let left: Vec<PathBuf> = subdirectories(self.cgroup.path());
        assert!(left.is_empty(), "these are left: {left:?}");
    }

    /// The processes that go on in the agent's own cgroup.
    pub fn members(&self) -> Result<Vec<u32>> {
        self.cgroup.members()
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// A running agent. Dropped, it is asked to end, and killed if it does not.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// An agent that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// Its stdout and that of its command.
    pub stdout: String,
    /// Its stderr and that of its command.
    pub stderr: String,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("cannot signal traffic-agent")
    }

    /// Waits until its stdout or stderr contains a text.
    pub fn wait_for_output(&mut self, text: &str) -> Result<()> {
        let begin = Instant::now();
        loop {
            let so_far = [&self.out, &self.err].map(|file| read_lossy(file));
            if so_far.iter().any(|output| output.contains(text)) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE || self.child.try_wait()?.is_some() {
                bail!("{text:?} does not come: {so_far:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Finished> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                bail!("traffic-agent still runs after {PATIENCE:?}: {}", read_lossy(&self.err));
            }
            thread::sleep(Duration::from_millis(2));
        };
        Ok(Finished { status, stdout: read_lossy(&self.out), stderr: read_lossy(&self.err) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        // All of it fails only if it has ended meanwhile.
        let _ = self.signal(Signal::SIGTERM);
        thread::sleep(Duration::from_millis(200));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Its exit code; an error with all it said if a signal ended it.
    pub fn code(&self) -> Result<i32> {
        self.status.code().with_context(|| format!("ended by a signal: {self:?}"))
    }

    /// The JSON on stdout.
    pub fn report(&self) -> Result<Report> {
        Report::parse(&self.stdout).with_context(|| format!("stderr: {}", self.stderr))
    }

    /// The last line of JSON on stdout: the report behind lines of intervals.
    pub fn last_report(&self) -> Result<Report> {
        let last = self.stdout.lines().last().unwrap_or_default();
        Report::parse(last).with_context(|| format!("stderr: {}", self.stderr))
    }

    /// An error that says nothing of a panic, and these words.
    #[track_caller]
    pub fn assert_complains(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
    }
}

fn read_lossy(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

/// A report of one target, as JSON.
#[derive(Clone, Debug)]
pub struct Report(pub Value);

impl Report {
    /// Parses it and checks what every report has.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?;
        ensure!(value["format"] == 1, "format {}", value["format"]);
        check_integers("", &value)?;
        Ok(Self(value))
    }

    /// The only target.
    pub fn target(&self) -> &Value {
        &self.0["targets"][0]
    }

    /// A number of the target by its JSON pointer.
    pub fn number(&self, pointer: &str) -> Result<u64> {
        let value = self.target().pointer(pointer);
        value.and_then(Value::as_u64).with_context(|| format!("{pointer} is no number: {value:?}"))
    }

    /// The codes of its findings.
    pub fn codes(&self) -> Vec<&str> {
        let findings = self.target()["findings"].as_array().into_iter().flatten();
        findings.filter_map(|finding| finding["code"].as_str()).collect()
    }

    /// The message of a finding.
    pub fn message(&self, code: &str) -> Result<&str> {
        let mut findings = self.target()["findings"].as_array().into_iter().flatten();
        let finding = findings.find(|finding| finding["code"] == code);
        let message = finding.and_then(|finding| finding["message"].as_str());
        message.with_context(|| format!("no finding {code} among {:?}", self.codes()))
    }

    /// The books of its cells.
    pub fn books(&self) -> Result<Books> {
        let cells = self.target()["cells"].as_array().context("there are no cells")?;
        cells.iter().map(read_cell).collect()
    }
}

fn read_cell(cell: &Value) -> Result<(Key, Figures)> {
    let word = |key: &str| cell[key].as_str().with_context(|| format!("{key} in {cell}"));
    let number = |key: &str| cell[key].as_u64().with_context(|| format!("{key} in {cell}"));
    let key = Key {
        interface: word("interface")?.to_owned(),
        direction: match word("direction")? {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            other => bail!("direction {other}"),
        },
        leg: match word("leg")? {
            "client" => Leg::Client,
            "upstream" => Leg::Upstream,
            other => bail!("leg {other}"),
        },
        protocol: match word("protocol")? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "other" => Protocol::Other,
            other => bail!("protocol {other}"),
        },
        port: cell["port"].as_u64().map(u16::try_from).transpose()?,
        family: match word("family")? {
            "ipv4" => Family::Ipv4,
            "ipv6" => Family::Ipv6,
            other => bail!("family {other}"),
        },
    };
    let figures = Figures {
        wire_packets: number("wire_packets")?,
        wire_bytes: number("wire_bytes")?,
        payload_bytes: number("payload_bytes")?,
    };
    Ok((key, figures))
}

/// Bytes and packets are integers, wherever they stand, or null where there are none.
fn check_integers(name: &str, value: &Value) -> Result<()> {
    let is_count = name == "packets" || name == "bytes" || name.ends_with("_packets");
    if is_count || name.ends_with("_bytes") {
        ensure!(value.is_null() || value.is_u64() || value.is_i64(), "{name} is {value}");
    }
    match value {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, one)| check_integers(name, one))
        }
        Value::Array(all) => all.iter().try_for_each(|one| check_integers(name, one)),
        _ => Ok(()),
    }
}

//! A history whose every figure follows from the number of flushes, written and read by processes of their
//! own: some are killed, some are other users.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use tempfile::TempDir;
use traffic_agent::history::{
    Absolute, Epoch, Event, EventKind, Flush, Quarter, Series, TargetFlush,
};
use traffic_agent::report::{Counters, Direction, Family, Leg, Origin, Protocol, Scope};
use traffic_agent::store::{self, Reader, Store};
use traffic_ebpf::Cell;

use crate::helper;

/// Tells the helper to write flushes until it is killed.
pub const WRITE: &str = "write-history";
/// Tells the helper to check a history.
pub const READ: &str = "read-history";

/// The group that may read.
const READERS: u32 = 23_456;
/// Somebody who is nobody here, in the group or not.
const SOMEBODY: u32 = 12_345;

const TARGETS: [&str; 2] = ["xray", "sing-box"];
const PORTS: [u16; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
/// Milliseconds that each flush observed.
const OBSERVED: u32 = 10_000;
/// Two flushes a quarter, so that a few hundred of them fill some days.
const FLUSHES_PER_QUARTER: u64 = 2;

const ALL_QUARTERS: Range<Quarter> = Quarter(i64::MIN)..Quarter(i64::MAX);
const ALL_DAYS: Range<Date> = Date::MIN..Date::MAX;

fn series(port: u16) -> Series {
    Series {
        interface: "eth0".to_owned(),
        scope: Scope::Billed,
        origin: Origin::Socket,
        direction: Direction::Egress,
        leg: Leg::Client,
        protocol: Protocol::Tcp,
        port: Some(port),
        family: Family::Ipv4,
    }
}

fn epoch() -> Epoch {
    Epoch { boot_id: "boot".to_owned(), map_id: 1 }
}

/// Opens the history for writing.
pub fn open(directory: &Path) -> Result<Store, store::Error> {
    Store::open(directory, &TimeZone::UTC)
}

/// The flushes from number `from` to number `to` as one, as the daemon would make it when those before `to`
/// could not be written. Each one adds its number, times the port, to each port's wire bytes.
pub fn flush(from: u64, to: u64) -> Flush {
    let quarter = Quarter((to / FLUSHES_PER_QUARTER) as i64);
    let posting = |port: u16| {
        let wire_bytes = (from..=to).sum::<u64>() * u64::from(port);
        let packets = to + 1 - from;
        (series(port), Counters { packets, wire_bytes, ..Counters::default() })
    };
    let kept = |port: u16| {
        let wire_bytes = (1..=to).sum::<u64>() * u64::from(port);
        (u32::from(port) * 13, Cell { packets: to, wire_bytes, ..Cell::default() })
    };
    let event = |number: u64| Event {
        start: quarter.start(),
        end: quarter.start(),
        kind: EventKind::Note,
        message: format!("flush {number}"),
    };
    let target = |name: &str| TargetFlush {
        target: name.to_owned(),
        selector: format!("unit:{name}.service"),
        taken_at: quarter.start(),
        observed_until: None,
        quarter,
        postings: PORTS.map(posting).to_vec(),
        observed: (from..=to).map(|_| (quarter, OBSERVED)).collect(),
        absolute: vec![Absolute {
            epoch: epoch(),
            interfaces: vec![],
            cells: PORTS.map(kept).to_vec(),
        }],
        closed: Vec::new(),
        events: (from..=to).map(event).collect(),
        readings: Vec::new(),
    };
    Flush { targets: TARGETS.map(target).to_vec(), ..Flush::default() }
}

/// How many flushes the kept counters are of.
pub fn kept(store: &Store) -> Result<u64> {
    let mut numbers = Vec::new();
    for target in TARGETS {
        let absolutes = store.absolutes(target)?;
        let Some(absolute) = absolutes.first() else {
            numbers.push(0);
            continue;
        };
        let number = absolute.cells.first().context("no cell is kept")?.1.packets;
        let expected = flush(number, number).targets.remove(0).absolute;
        ensure!(absolutes == expected, "{target} keeps {absolutes:?}");
        numbers.push(number);
    }
    ensure!(numbers[0] == numbers[1], "kept are the counters of flushes {numbers:?}");
    Ok(numbers[0])
}

/// Checks every figure, and returns how many flushes they are of.
pub fn check(directory: &Path) -> Result<u64> {
    let reader = Reader::open(directory)?;
    if reader.targets()?.is_empty() {
        return Ok(0);
    }
    let mut numbers = Vec::new();
    for target in TARGETS {
        let number = reader.events(target, Timestamp::MIN..Timestamp::MAX)?.len() as u64;
        let expected = |port: u16| Counters {
            packets: number,
            wire_bytes: (1..=number).sum::<u64>() * u64::from(port),
            ..Counters::default()
        };
        let expected: BTreeMap<_, _> =
            PORTS.into_iter().map(|port| (series(port), expected(port))).collect();
        let (mut by_quarter, mut by_day) = (BTreeMap::new(), BTreeMap::new());
        reader.quarters(target, ALL_QUARTERS, |_, series, counters| {
            *by_quarter.entry(series.clone()).or_default() += counters;
        })?;
        reader.days(target, ALL_DAYS, |_, series, counters| {
            *by_day.entry(series.clone()).or_default() += counters;
        })?;
        ensure!(by_quarter == expected, "{target}: {number} flushes, quarters {by_quarter:?}");
        ensure!(by_day == expected, "{target}: {number} flushes, days {by_day:?}");
        let observed: u64 = reader.observed(target, ALL_QUARTERS)?.iter().map(|row| row.1).sum();
        let by_day: u64 = reader.observed_days(target, ALL_DAYS)?.iter().map(|row| row.1).sum();
        let expected = number * u64::from(OBSERVED);
        ensure!(
            observed == expected && by_day == expected,
            "{target}: {observed} ms, {by_day} ms of {expected} ms"
        );
        numbers.push(number);
    }
    ensure!(numbers[0] == numbers[1], "the targets have {numbers:?} flushes");
    Ok(numbers[0])
}

/// What the writing helper does: goes on where the history ends, and says each flush that is in.
pub fn write(directory: &Path) -> Result<()> {
    let mut store = open(directory)?;
    let mut output = std::io::stdout().lock();
    for number in kept(&store)? + 1.. {
        store.flush(&flush(number, number))?;
        writeln!(output, "{number}")?;
        output.flush()?;
    }
    Ok(())
}

/// What the reading helper does.
pub fn read(directory: &Path) -> Result<()> {
    println!("{}", check(directory)?);
    Ok(())
}

/// A process that writes flushes as fast as it can, until it is killed.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    acknowledged: BufReader<ChildStdout>,
}

impl Writer {
    /// Starts one.
    pub fn start(directory: &Path) -> Result<Self> {
        let mut command = Command::new(helper()?);
        command.arg(WRITE).arg(directory).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the writer")?;
        let output = child.stdout.take().context("the writer has no output")?;
        Ok(Self { child, acknowledged: BufReader::new(output) })
    }

    /// Waits for a flush, and returns its number.
    pub fn wait_for_flush(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.acknowledged.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the writer says `{line}`"))
    }

    /// Kills it, wherever it is, and returns the last flush that it said was in, if it said one.
    pub fn kill(mut self) -> Result<Option<u64>> {
        self.child.kill()?;
        self.child.wait()?;
        let mut last = None;
        // A line that was cut off in the middle was not said.
        let mut line = String::new();
        while self.acknowledged.read_line(&mut line)? > 0 {
            if let Some(number) = line.strip_suffix('\n') {
                last = Some(number.parse()?);
            }
            line.clear();
        }
        Ok(last)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A state directory of a group, and a reader that everybody can execute.
#[derive(Debug)]
pub struct Shared {
    directory: TempDir,
}

impl Shared {
    /// Makes it.
    pub fn new() -> Result<Self> {
        crate::require_root()?;
        let directory = TempDir::with_prefix("ta-history-")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let shared = Self { directory };
        fs::create_dir(shared.state())?;
        fs::set_permissions(shared.state(), fs::Permissions::from_mode(0o750))?;
        chown(shared.state(), None, Some(READERS))?;
        fs::copy(helper()?, shared.program())?;
        fs::set_permissions(shared.program(), fs::Permissions::from_mode(0o755))?;
        Ok(shared)
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("reader")
    }

    /// Reads the history as somebody in the group, and returns the number of its flushes.
    pub fn read_as_member(&self) -> Result<u64> {
        self.read_as(READERS)
    }

    /// Reads the history as somebody who is not in the group.
    pub fn read_as_stranger(&self) -> Result<u64> {
        self.read_as(SOMEBODY)
    }

    fn read_as(&self, group: u32) -> Result<u64> {
        let mut command = Command::new(self.program());
        command.arg(READ).arg(self.state()).uid(SOMEBODY).gid(group);
        let output = command.output().context("cannot start the reader")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }
}

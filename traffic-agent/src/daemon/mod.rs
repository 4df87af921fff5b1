//! `run`: counts targets for months, beside them, and writes what they used to the history.
//!
//! Counting is the kernel's and goes on whether this runs or not ([`crate::kernel`]). This reads the
//! counters, posts the difference to a [`book`], and flushes the books to the [store](crate::store); it
//! follows targets whose cgroups come and go. One thread, one writer, and it sleeps as long as it can.

mod account;
mod book;
pub mod clock;
mod estimates;
mod host;
mod memory;
mod rights;
mod targets;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::{error, info, warn};
use tokio::time::{Instant, sleep_until};

use self::clock::{Now, until_next_quarter};
use self::estimates::Estimates;
use self::host::Host as HostSide;
use self::targets::{Entry, Targets};
use self::watch::{Changes, Watch};
use crate::config::Config;
use crate::kernel::pins::PinRoot;
use crate::lock::Lock;
use crate::logging;
use crate::notify;
use crate::signals::Signals;
use crate::store::Store;
use crate::target::Host;

/// How often ports, interfaces and processes are looked at. What begins to listen in between is noticed by
/// the program itself; what ends is taken out of the client leg with the second look after that. A process of a
/// target that is found by processes may come to another cgroup without an event, and is found then.
const FOLLOW: Duration = Duration::from_secs(30);
/// How soon they are looked at in a cgroup that was just made: its processes are still to come.
const FOLLOW_NEW: Duration = Duration::from_secs(1);
/// How often the owners of sockets are audited, and cgroups are looked for that no watch has told of.
const AUDIT: Duration = Duration::from_secs(300);
/// How often a target of which nothing is there is looked for where no watch would tell: a process may
/// appear in a cgroup that has been there all along. And how often all are where the watch does not see all.
const LOOK_FOR_ABSENT: Duration = Duration::from_secs(5);
/// How often in a row cgroups that came and went are looked at.
const MOST_ROUNDS: usize = 16;
/// How often the rules and interfaces are looked at.
const ESTIMATES: Duration = Duration::from_secs(60);
/// How often time alone is written: it is lost with the power, and the report says so.
const FLUSH_TIME: Duration = Duration::from_secs(60);
/// How often a history that cannot be opened is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Where a new configuration comes from at a reload.
pub type Reload<'a> = &'a dyn Fn() -> Result<Config>;

/// When things are due.
struct Due {
    read: Instant,
    flush: Instant,
    flush_time: Instant,
    follow: Instant,
    look: Instant,
    audit: Instant,
    estimates: Instant,
    store: Instant,
}

impl Due {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            read: now,
            flush: now,
            flush_time: now,
            follow: now + FOLLOW,
            look: now + LOOK_FOR_ABSENT,
            audit: now + Duration::from_secs(5),
            estimates: now,
            store: now + RETRY,
        }
    }
}

/// The daemon.
struct Daemon<'h> {
    config: Config,
    targets: Targets<'h>,
    host: HostSide,
    store: Option<Store>,
    watch: Watch,
    estimates: Estimates,
    due: Due,
    /// The pause between two readings, as it has adapted.
    pause: Duration,
    /// When the clocks were looked at last.
    last: Now,
    /// Until when no cgroup came or went that was not looked at.
    silent_since: Timestamp,
    /// Whether part of the tree could not be watched, when it was asked last.
    was_blind: bool,
    /// How often the service manager wants to hear of it, if it does.
    watchdog: Option<Duration>,
    /// What was complained about last, so that the log is not filled with it.
    complaint: Option<String>,
}

/// Runs until it is told to end. Counting goes on when it has ended.
pub async fn run(config: Config, reload: Reload<'_>) -> Result<()> {
    let mut signals = Signals::take()?;
    logging::start(config.log_level);
    rights::require()?;
    let host = Host::detect()?;
    rights::drop_others(config.look_into, &host, &config.targets);
    let _lock = Lock::take(&config.state_dir)?;
    let root = PinRoot::open(&config.bpffs, &config.state_dir)?;
    let boot_id = boot_id(&host.proc)?;
    // Before the first look, so that nothing happens in between.
    let watch = Watch::begin(host.cgroups.mount()).context("cannot watch the cgroup tree")?;
    let now = Now::read();
    let host_side = HostSide::new(config.host, root.clone(), boot_id.clone(), now);
    let targets = Targets::open(&host, root, boot_id, &config.targets, now)?;
    let pause = config.interval.least;
    let mut daemon = Daemon {
        config,
        targets,
        host: host_side,
        store: None,
        watch,
        estimates: Estimates::default(),
        due: Due::now(),
        pause,
        last: now,
        silent_since: now.wall,
        was_blind: false,
        watchdog: notify::watchdog_interval(),
        complaint: None,
    };
    daemon.open_store(now);
    daemon.targets.look(now, now.wall, None, |_| true);
    daemon.targets.tell_absent();
    daemon.read(Now::read());
    daemon.flush();
    notify::ready(&daemon.status());
    memory::give_back();
    daemon.follow_signals(&mut signals, reload).await
}

impl Daemon<'_> {
    async fn follow_signals(&mut self, signals: &mut Signals, reload: Reload<'_>) -> Result<()> {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                arrived = signals.next() => {
                    let arrived = arrived.context("cannot wait for signals")?;
                    if arrived.reloads() {
                        self.reload(reload);
                    } else if arrived.ends() {
                        break;
                    }
                }
                changes = self.watch.next() => {
                    let changes = changes.context("cannot watch the cgroup tree")?;
                    self.see(changes)?;
                    continue;
                }
                looked = self.estimates.next() => {
                    // What passed the rules until now is in the counters now.
                    self.read(Now::read());
                    self.targets.finish_look(&looked);
                    memory::give_back();
                    continue;
                }
                () = sleep_until(wake) => {}
            }
            self.tick()?;
        }
        notify::stopping();
        self.targets.hurry();
        self.read(Now::read());
        self.flush();
        if self.targets.has_pages() {
            warn!("what was counted since the last flush stays in the pinned counters");
        }
        Ok(())
    }

    /// Looks at cgroups that came or went, until nothing more has.
    fn see(&mut self, mut changes: Changes) -> Result<()> {
        const WATCH: &str = "cannot watch the cgroup tree";
        // Where there is always something new, the rest of the work must not wait for ever.
        for _ in 0..MOST_ROUNDS {
            let now = Now::read();
            // With that, all that came or went until now is known.
            changes.extend(self.watch.so_far().context(WATCH)?);
            let is_watched = !self.is_blind();
            let is_silent = changes.is_empty();
            if !is_silent {
                let made = (is_watched && !changes.overflowed).then_some(&changes.made[..]);
                let attached = self.targets.look(now, self.silent_since, made, |target| {
                    changes.overflowed || target.may_be_among(&changes.names)
                });
                if attached {
                    self.due.follow = self.due.follow.min(Instant::now() + FOLLOW_NEW);
                }
            }
            if is_watched {
                self.silent_since = now.wall;
            }
            if is_silent {
                break;
            }
            changes = Changes::default();
        }
        Ok(())
    }

    /// Whether cgroups may come and go without a word; says so when it begins and when it ends.
    fn is_blind(&mut self) -> bool {
        let blind = self.watch.blind();
        match blind {
            Some(why) if !self.was_blind => warn!(
                "not all of the cgroup tree can be watched: {why}; cgroups that come are found up to {} s later, and \
                 the history tells it as a gap",
                LOOK_FOR_ABSENT.as_secs()
            ),
            None if self.was_blind => info!("all of the cgroup tree is watched again"),
            _ => {}
        }
        self.was_blind = blind.is_some();
        self.was_blind
    }

    /// The next instant at which something is due.
    fn next_wake(&self) -> Instant {
        let due = &self.due;
        let quarter = Instant::now() + until_next_quarter(Timestamp::now());
        let mut wake = due.read.min(due.follow).min(due.audit).min(due.estimates).min(quarter);
        if let Some(interval) = self.watchdog {
            wake = wake.min(Instant::now() + interval);
        }
        if self.targets.any_sought() || self.was_blind {
            wake = wake.min(due.look);
        }
        wake
    }

    /// Does what is due.
    fn tick(&mut self) -> Result<()> {
        notify::alive();
        // They may have come while the timer woke this loop.
        self.see(Changes::default())?;
        let now = Now::read();
        if let Some(step) = now.step_since(&self.last) {
            warn!("{}", step.message);
            self.targets.note(&step);
        }
        let quarter = crate::history::Quarter::of;
        let is_new_quarter = quarter(now.wall) != quarter(self.last.wall);
        self.last = now;
        let instant = Instant::now();
        if self.store.is_none() && instant >= self.due.store {
            self.open_store(now);
            self.due.store = instant + RETRY;
        }
        if instant >= self.due.read || is_new_quarter {
            self.read(now);
        }
        if instant >= self.due.follow {
            let unsure = self.targets.follow();
            self.targets.look(now, self.silent_since, None, Entry::is_found_by_processes);
            self.due.follow = instant + if unsure { FOLLOW_NEW } else { FOLLOW };
            memory::give_back();
        }
        if instant >= self.due.audit {
            if self.was_blind {
                self.watch.whole();
            }
            self.targets.look(now, self.silent_since, None, |_| true);
            self.targets.try_again(&self.config.targets, self.store.as_mut(), now);
            self.targets.audit();
            self.prune();
            memory::give_back();
            self.due.audit = instant + AUDIT;
        } else if instant >= self.due.look {
            let all = self.was_blind;
            self.targets.look(now, self.silent_since, None, |target| all || target.is_sought());
            self.due.look = instant + LOOK_FOR_ABSENT;
        }
        if instant >= self.due.estimates {
            self.read(now);
            self.estimates.start(self.targets.begin_looks(), now.wall);
            self.due.estimates = instant + ESTIMATES;
        }
        let news = self.targets.has_news() && instant >= self.due.flush
            || self.targets.has_new_name() && self.complaint.is_none();
        if news || instant >= self.due.flush_time || self.host.is_due(now) {
            self.flush();
        }
        Ok(())
    }

    /// Reads all counters, and adapts the pause to what they say.
    fn read(&mut self, now: Now) {
        let moved = self.targets.read(now);
        let sampling = self.config.interval;
        self.pause = match moved {
            true => sampling.least,
            false => (self.pause * 2).clamp(sampling.least, sampling.most),
        };
        self.due.read = Instant::now() + self.pause;
    }

    /// Writes the books to the history. What it does not take stays in them.
    fn flush(&mut self) {
        let instant = Instant::now();
        self.due.flush = instant + self.config.flush_interval;
        self.due.flush_time = instant + FLUSH_TIME.max(self.config.flush_interval);
        let Some(store) = &mut self.store else { return };
        let now = Now::read();
        let (machine, cgroups) = (self.targets.machine(), self.targets.of_host());
        let host = self.host.sample(store, machine, &cgroups, now);
        let mut waiting = host.clone();
        let result = self.targets.flush(store, &mut waiting);
        if let (Some(flush), None) = (&host, &waiting) {
            self.host.flushed(flush, now);
        }
        match result {
            Ok(()) => {
                if self.targets.has_others_than(&self.config.targets) {
                    self.targets.end_all_but(&self.config.targets, store);
                }
                if self.complaint.take().is_some() {
                    info!("the history takes what was counted again: nothing is lost");
                }
            }
            Err(error) => {
                self.complain(&error.context(
                    "cannot write the history; counting goes on, and what was counted is kept",
                ));
                if self.store.as_ref().is_some_and(|store| !store.is_in_place()) {
                    self.store = None;
                    self.host.begin_again();
                    self.open_store(now);
                    self.due.flush = instant;
                    self.due.flush_time = instant;
                }
            }
        }
        notify::status(&self.status());
    }

    /// Opens the history; what cannot be opened is tried again, and counted meanwhile.
    fn open_store(&mut self, now: Now) {
        let opened = Store::open(&self.config.state_dir, &self.config.time_zone)
            .map_err(anyhow::Error::from)
            .and_then(|mut store| {
                store.keep_link_overhead(self.config.link_overhead)?;
                self.targets.open_books(&store, now).map(|()| store)
            });
        match opened {
            Ok(mut store) => {
                self.targets.end_all_but(&self.config.targets, &mut store);
                self.store = Some(store);
            }
            Err(error) => {
                self.complain(&error.context("there is no history; counting goes on without"))
            }
        }
    }

    fn prune(&mut self) {
        let Some(store) = &mut self.store else { return };
        if let Err(error) = store.prune(&self.config.retention) {
            self.complain(&anyhow::Error::from(error).context("cannot forget what is too old"));
        }
    }

    /// Logs an error, unless it was the last thing said.
    fn complain(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.complaint.as_ref() != Some(&text) {
            error!("{text}");
            self.complaint = Some(text);
        }
    }

    /// Takes a new configuration. One that is not valid changes nothing.
    fn reload(&mut self, reload: Reload<'_>) {
        notify::reloading();
        match reload() {
            Ok(new) => self.take_config(new),
            Err(error) => error!("{:#}", error.context("the configuration stays as it was")),
        }
        notify::ready(&self.status());
    }

    fn take_config(&mut self, new: Config) {
        let (new, changes) = self.config.reloaded(new);
        if let Some(message) = changes.restart_message() {
            warn!("{message}");
        }
        let now = Now::read();
        self.read(now);
        logging::set_level(new.log_level);
        // Another zone is cut, and another overhead kept, when the history is opened.
        let is_cut_anew = new.time_zone != self.config.time_zone
            || new.link_overhead != self.config.link_overhead;
        self.config = new;
        self.host.want(self.config.host);
        self.targets.change(&self.config.targets, self.store.as_mut(), now);
        if is_cut_anew {
            // Another zone is cut when the history is opened. Not before: what the targets were ends in this one.
            self.flush();
            self.store = None;
            self.host.begin_again();
        }
        if self.store.is_none() {
            self.open_store(now);
        }
        self.targets.look(now, self.silent_since, None, |_| true);
        self.read(Now::read());
        self.flush();
        info!("the configuration was read again");
    }

    /// One line for people: `systemctl status` shows it.
    fn status(&self) -> String {
        match &self.complaint {
            Some(complaint) => complaint.clone(),
            None => self.targets.status(),
        }
    }
}

/// The boot's id: counters of another are gone.
fn boot_id(proc: &Path) -> Result<String> {
    let path = proc.join("sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Reads what is counted to the end, writes it to the history, and removes all pins of this state directory:
/// nothing is counted any more. Returns the names of the targets.
pub fn detach(config: &Config) -> Result<Vec<String>> {
    let _lock = Lock::take(&config.state_dir)?;
    let host = Host::detect()?;
    let root = PinRoot::open(&config.bpffs, &config.state_dir)?;
    let names = root.names()?;
    if names.is_empty() && !root.has_host() {
        return remove_all(&root, names);
    }
    let boot_id = boot_id(&host.proc)?;
    let mut store = Store::open(&config.state_dir, &config.time_zone)
        .context("what was counted last cannot be written; without it: detach --discard")?;
    let has_host = root.has_host();
    let now = Now::read();
    let targets = Targets::open(&host, root.clone(), boot_id.clone(), &[], now)?;
    let ended = targets.end_others(&[], &mut store)?;
    HostSide::new(false, root.clone(), boot_id, now).end(&mut store, &host, &ended)?;
    remove_all(&root, with_host(names, has_host))
}

/// Removes all pins of this state directory. What was counted since the last flush is lost.
pub fn discard(config: &Config) -> Result<Vec<String>> {
    let _lock = Lock::take(&config.state_dir)?;
    let root = PinRoot::open(&config.bpffs, &config.state_dir)?;
    let names = with_host(root.names()?, root.has_host());
    remove_all(&root, names)
}

/// Names the host's ledger beside the targets, if there is one.
fn with_host(mut names: Vec<String>, has_host: bool) -> Vec<String> {
    names.extend(has_host.then(|| "the host's cgroups".to_owned()));
    names
}

/// Removes all pins, whatever is left of them.
fn remove_all(root: &PinRoot, names: Vec<String>) -> Result<Vec<String>> {
    root.remove_all()?;
    Ok(names)
}

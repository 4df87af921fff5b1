//! Which cgroups a target has, and since when one that is new was not counted.

use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};

use super::{Account, Begun, remark};
use crate::daemon::clock::Now;
use crate::history::{Event, EventKind};
use crate::store::Store;
use crate::target::{self, Cgroup, Host, TargetSpec, Value};

impl Account<'_> {
    /// Looks which cgroups the target has now, and hangs on those that are new. Returns what it did, in
    /// words, if it did something.
    ///
    /// * `silent_since`: until then no cgroup was made that this agent did not look at, as far as it knows.
    /// * `made`: those that were made from then on until now, where they are known.
    pub fn look(
        &mut self,
        now: Now,
        silent_since: Timestamp,
        made: Option<&[PathBuf]>,
    ) -> Result<Option<String>> {
        // After a look that went wrong, nothing is known of the time since the one before it; and who is found by
        // his processes may be anywhere, also where no cgroup was made.
        let tells = self.covered && self.target.spec.is_of_cgroups();
        let known = if tells { self.looked.wall.max(silent_since) } else { self.looked.wall };
        let made = made.filter(|_| tells);
        let looked = self.look_since(now, known, made);
        self.covered = looked.is_ok();
        looked
    }

    /// `known`: then the target had no cgroup that was not hung on.
    fn look_since(
        &mut self,
        now: Now,
        known: Timestamp,
        made: Option<&[PathBuf]>,
    ) -> Result<Option<String>> {
        let before = self.directories();
        let cgroups = present(self.host, &self.target.spec)?;
        let attached = self.measurement.attach(cgroups)?;
        self.measurement.counter().reap()?;
        let done = Timestamp::now();
        let (begun, looked) = (self.begun, self.looked.wall);
        (self.begun, self.looked) = (Begun::Looked, now);
        let now_its = self.directories();
        let is_own =
            |made: &&PathBuf| before.contains(made) || now_its.contains(made) || self.is_unit(made);
        let made = made.map(|made| made.iter().filter(is_own).count().saturating_sub(self.early));
        self.early = attached.len().saturating_sub(made.unwrap_or(0));
        if attached.is_empty() {
            if begun == Begun::Looked && made.is_some_and(|made| made > 0) {
                let message = "a cgroup was made, and removed before it could be counted: what it \
                               exchanged is missing";
                self.note(gap(known, done, message.to_owned()));
                return Ok(Some(message.to_owned()));
            }
            return Ok(None);
        }
        self.measurement.follow_or_note();
        let paths: Vec<String> =
            attached.iter().map(|cgroup| self.measurement.describe(cgroup)).collect();
        let paths = paths.join(", ");
        let uncounted_since = match begun {
            Begun::New | Begun::AfterGap => {
                if self.book.is_none() {
                    self.unexplained = Some((paths.clone(), done));
                }
                return Ok(Some(format!("counting {paths}")));
            }
            Begun::GoesOn => looked,
            // These and no others were made: an earlier one may have been gone when it was looked at.
            Begun::Looked if made == Some(attached.len()) => {
                let times = attached.iter().map(|cgroup| made_at(cgroup, known));
                times.min().unwrap_or(known).min(done)
            }
            Begun::Looked => known.min(done),
        };
        let (event, missed) = self.come(&paths, uncounted_since, done);
        self.missed += missed;
        let message = event.message.clone();
        self.note(event);
        Ok(Some(message))
    }

    /// The gap of cgroups that were attached some time after they had become the target's, and how long it is.
    pub(super) fn come(
        &self,
        paths: &str,
        since: Timestamp,
        done: Timestamp,
    ) -> (Event, SignedDuration) {
        let missed = done.duration_since(since);
        let how = match self.target.spec.is_of_cgroups() {
            true => "was made anew",
            false => "became the target's",
        };
        let message = format!(
            "{paths} {how}, and is counted since {} ms later at most: what it exchanged in between is missing",
            missed.as_millis()
        );
        (gap(since, done, message), missed)
    }

    /// The directories of its cgroups, and where it may get one.
    fn directories(&self) -> Vec<PathBuf> {
        let mount = self.host.cgroups.mount();
        let wanted = self.target.spec.selectors.iter().filter_map(|value| match value {
            Value::Cgroup(path) => Some(mount.join(path.trim_start_matches('/'))),
            _ => None,
        });
        self.cgroups().iter().map(|cgroup| cgroup.dir.clone()).chain(wanted).collect()
    }

    /// Whether a cgroup is that of a unit of the target, by its name.
    fn is_unit(&self, directory: &Path) -> bool {
        let name = directory.file_name().unwrap_or_default();
        let is = |value: &Value| matches!(value, Value::Unit(unit) if name == unit.as_str());
        self.target.spec.selectors.iter().any(is)
    }

    /// Detaches from what the target was by another selector, which may still be there and is not its own any
    /// more. In the history stands the other one until this is done.
    pub(super) fn leave_what_it_was(&mut self, store: &Store) -> Result<()> {
        let spec = &self.target.spec;
        let (before, now) = (store.selector(&spec.name)?, spec.selector());
        let Some(before) = before.filter(|it| !it.is_empty() && *it != now) else { return Ok(()) };
        if spec.selectors.is_empty() {
            return Ok(());
        }
        // What stands in the way is said by the next look.
        self.measurement.keep_only(&present(self.host, spec).unwrap_or_default())?;
        self.waiting.push(remark(format!("the target was {before}, and is {now} from here on")));
        Ok(())
    }
}

pub(super) fn gap(start: Timestamp, end: Timestamp, message: String) -> Event {
    Event { start: start.min(end), end, kind: EventKind::Gap, message }
}

/// The cgroups that the target has now: those of its selectors that there is something for. None is no
/// error: a unit is stopped, or a container not made yet.
pub(super) fn present(host: &Host, spec: &TargetSpec) -> Result<Vec<Cgroup>> {
    let mut found = Vec::new();
    for value in &spec.selectors {
        let one = TargetSpec { name: spec.name.clone(), selectors: vec![value.clone()] };
        match target::find(host, &one) {
            Ok(resolved) => found.extend(resolved.cgroups),
            Err(error) if error.is_absence() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(target::cgroup2::without_nested(found))
}

/// When a cgroup was made, at the earliest. The kernel gives its directory the time at which somebody first
/// looked at it, which whoever starts a process in it has to do; `known` is when it was certainly not there.
fn made_at(cgroup: &Cgroup, known: Timestamp) -> Timestamp {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = std::fs::symlink_metadata(&cgroup.dir) else { return known };
    let changed = Timestamp::new(metadata.ctime(), metadata.ctime_nsec() as i32);
    changed.map_or(known, |changed| changed.max(known))
}

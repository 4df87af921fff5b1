//! All targets of the daemon: what is done to each of them, and what one of them must not do to the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::{debug, error, info, warn};

use super::account::{Account, remark};
use super::clock::Now;
use super::estimates::{Looked, Place};
use crate::config::Target;
use crate::history::{Event, Flush};
use crate::host::{HostFlush, HostTarget};
use crate::kernel::pins::PinRoot;
use crate::network::BoundLooks;
use crate::report::{Scope, Severity};
use crate::store::Store;
use crate::target::{Host, PortFilter, TargetSpec, Value};
use crate::units::{self, Units};

/// The targets.
pub struct Targets<'h> {
    host: &'h Host,
    root: PinRoot,
    boot_id: String,
    accounts: Vec<Entry<'h>>,
    /// What stands in the way of targets that were to change and could not, by name.
    refused: BTreeMap<String, String>,
}

/// A target and what was complained about it last.
pub struct Entry<'h> {
    account: Account<'h>,
    complaint: Option<String>,
}

impl Entry<'_> {
    /// Whether nothing of it is there.
    pub fn is_absent(&self) -> bool {
        self.account.cgroups().is_empty()
    }

    /// Whether it is to be looked for soon.
    pub fn is_sought(&self) -> bool {
        self.account.is_sought()
    }

    /// Whether it is found by processes, which no watch on cgroups tells of.
    pub fn is_found_by_processes(&self) -> bool {
        !self.account.target().spec.is_of_cgroups()
    }

    /// Whether cgroups of these names may be its own.
    pub fn may_be_among(&self, names: &[OsString]) -> bool {
        let own = |name: &str| {
            self.account.cgroups().iter().any(|cgroup| cgroup.path.split('/').any(|it| it == name))
        };
        let wanted = |name: &str| {
            self.account.target().spec.selectors.iter().any(|value| match value {
                // systemd puts `_` in front of names that are a controller's too.
                Value::Unit(unit) => name.strip_prefix('_').unwrap_or(name) == unit,
                Value::Cgroup(path) => path.split('/').any(|it| it == name),
                Value::Container(_) | Value::Process(_) | Value::Pid(_) => true,
            })
        };
        names.iter().map(|name| name.to_string_lossy()).any(|name| own(&name) || wanted(&name))
    }

    fn is_among(&self, wanted: &[Target]) -> bool {
        wanted.iter().any(|target| target.spec.name == self.account.target().spec.name)
    }

    /// Logs what went wrong, unless it was the last thing said of this target.
    fn check<T: Default>(&mut self, what: &str, result: Result<T>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => {
                let text = format!("target {}: {what}: {error:#}", self.account.target().spec.name);
                if self.complaint.as_ref() != Some(&text) {
                    error!("{text}");
                    self.complaint = Some(text);
                }
                T::default()
            }
        }
    }
}

impl<'h> Targets<'h> {
    /// Opens the targets of a configuration, none of which needs to be there.
    pub fn open(
        host: &'h Host,
        root: PinRoot,
        boot_id: String,
        wanted: &[Target],
        now: Now,
    ) -> Result<Self> {
        let (accounts, refused) = (Vec::new(), BTreeMap::new());
        let mut targets = Self { host, root, boot_id, accounts, refused };
        for target in wanted {
            targets.add(target.clone(), now)?;
        }
        Ok(targets)
    }

    fn add(&mut self, target: Target, now: Now) -> Result<()> {
        let account = Account::open(self.host, &self.root, target, &self.boot_id, now)?;
        self.accounts.push(Entry { account, complaint: None });
        Ok(())
    }

    /// Opens the books of all targets, in a history that was just opened.
    pub fn open_books(&mut self, store: &Store, now: Now) -> Result<()> {
        self.accounts.iter_mut().try_for_each(|entry| entry.account.open_book(store, now))
    }

    /// The targets' cgroups, for the host's ledger.
    pub fn of_host(&self) -> Vec<HostTarget> {
        let of_entry = |entry: &Entry<'_>| HostTarget {
            name: entry.account.target().spec.name.clone(),
            cgroups: entry.account.cgroups().iter().map(|cgroup| cgroup.path.clone()).collect(),
        };
        self.accounts.iter().map(of_entry).collect()
    }

    /// The machine they are on.
    pub fn machine(&self) -> &'h Host {
        self.host
    }

    /// Looks which cgroups some of the targets have now; returns whether there were new ones.
    ///
    /// `made`: all that were made since `silent_since`, where that is known.
    pub fn look(
        &mut self,
        now: Now,
        silent_since: Timestamp,
        made: Option<&[PathBuf]>,
        which: impl Fn(&Entry<'h>) -> bool,
    ) -> bool {
        let mut attached = false;
        for entry in &mut self.accounts {
            if which(entry) {
                let looked = entry.account.look(now, silent_since, made);
                if let Some(done) = entry.check("cannot follow its cgroups", looked) {
                    attached = true;
                    info!("target {}: {done}", entry.account.target().spec.name);
                }
            }
        }
        attached
    }

    /// Says which targets are not there: one may be written wrong.
    pub fn tell_absent(&self) {
        for entry in self.accounts.iter().filter(|entry| entry.is_absent()) {
            let spec = &entry.account.target().spec;
            info!(
                "target {}: {} is not there; it is counted from when it is (`traffic-agent doctor {}` says \
                 what there is)",
                spec.name,
                spec.selector(),
                spec.selectors.first().map(ToString::to_string).unwrap_or_default(),
            );
        }
    }

    /// The next reading may be the last.
    pub fn hurry(&mut self) {
        self.accounts.iter_mut().for_each(|entry| entry.account.hurry());
    }

    /// Reads all counters; returns whether any has moved.
    pub fn read(&mut self, now: Now) -> bool {
        let mut moved = false;
        for entry in &mut self.accounts {
            let read = entry.account.read(now);
            moved |= entry.check("cannot read its counters", read);
        }
        moved
    }

    /// Looks at other methods begin; returns where.
    pub fn begin_looks(&mut self) -> Vec<Place> {
        let mut places = Vec::new();
        for entry in &mut self.accounts {
            let begun = entry.account.begin_look();
            places.extend(entry.check("cannot look at its firewall", begun));
        }
        places
    }

    /// A look has ended.
    pub fn finish_look(&mut self, looked: &Looked) {
        for entry in &mut self.accounts {
            if looked.targets.contains(&entry.account.target().spec.name) {
                entry.account.finish_look(&looked.look, looked.at);
            }
        }
    }

    /// Follows ports and interfaces; returns whether there is a cgroup whose processes are still to come.
    pub fn follow(&mut self) -> bool {
        let mut unsure = false;
        let mut looks = BoundLooks::default();
        for entry in &mut self.accounts {
            let followed = entry.account.follow(&mut looks);
            entry.check("cannot follow its ports", followed);
            let pinned = entry.account.pin_again();
            entry.check("its counters are not pinned, and end with this agent", pinned);
            unsure |= entry.account.is_unsure();
        }
        self.load_variants();
        unsure
    }

    /// Loads the programs again for targets that need a variant of them. Their counters and links stay.
    fn load_variants(&mut self) {
        for entry in &mut self.accounts {
            if entry.account.is_outdated() {
                let loaded = entry.account.load_again();
                entry.check("cannot load the variant for transparent listeners", loaded);
            }
        }
    }

    /// Audits whose sockets are counted.
    pub fn audit(&mut self) {
        for entry in &mut self.accounts {
            let audited = entry.account.audit();
            let name = entry.account.target().spec.name.clone();
            for finding in entry.check("cannot audit who owns its sockets", audited) {
                let text = format!("target {name}: {}: {}", finding.code, finding.message);
                match finding.severity {
                    Severity::Info => debug!("{text}"),
                    _ => warn!("{text} ({})", finding.remedy),
                }
            }
        }
    }

    /// Notes an event for all of them.
    pub fn note(&mut self, event: &Event) {
        for entry in &mut self.accounts {
            entry.account.note(event.clone());
        }
    }

    /// Whether a target is to be looked for soon.
    pub fn any_sought(&self) -> bool {
        self.accounts.iter().any(Entry::is_sought)
    }

    /// Whether there is more to flush than that time went by, or a slot waits for it.
    pub fn has_news(&self) -> bool {
        self.accounts.iter().any(|entry| entry.account.has_news())
    }

    /// Whether there is a name that the history does not know yet: what it is of may be gone soon.
    pub fn has_new_name(&mut self) -> bool {
        self.accounts
            .iter_mut()
            .any(|entry| entry.account.book().is_some_and(|it| it.has_new_name()))
    }

    /// Whether anything waits to be flushed.
    pub fn has_pages(&mut self) -> bool {
        self.accounts
            .iter_mut()
            .any(|entry| entry.account.book().is_some_and(|it| it.oldest().is_some()))
    }

    /// Writes all books, the oldest pages first.
    ///
    /// `host`: goes with them, and is taken when it is in the history.
    pub fn flush(&mut self, store: &mut Store, host: &mut Option<HostFlush>) -> Result<()> {
        loop {
            let mut books: Vec<_> =
                self.accounts.iter_mut().filter_map(|entry| entry.account.book()).collect();
            books.retain(|book| book.oldest().is_some());
            let targets = books.iter().filter_map(|book| book.oldest()).collect();
            if books.is_empty() && host.is_none() {
                break;
            }
            let flush = Flush { targets, host: host.take() };
            if let Err(error) = store.flush(&flush) {
                *host = flush.host;
                return Err(error.into());
            }
            books.into_iter().for_each(|book| book.flushed());
        }
        let now = Now::read();
        for entry in &mut self.accounts {
            let removed = entry.account.flushed(now);
            entry.check("cannot remove the counters of an earlier version", removed);
        }
        Ok(())
    }

    /// Makes these the targets: those that stay as they are are not touched, others are opened anew upon
    /// the same counters, and those that are wanted no more are read to the end and detached. What cannot be
    /// done is left to [`Targets::try_again`].
    pub fn change(&mut self, wanted: &[Target], mut store: Option<&mut Store>, now: Now) {
        self.refused.retain(|name, _| wanted.iter().any(|target| target.spec.name == *name));
        for target in wanted {
            let name = &target.spec.name;
            let Err(error) = self.take_over(target, store.as_deref_mut(), now) else {
                self.refused.remove(name);
                continue;
            };
            let text = format!("{error:#}");
            if self.refused.get(name) != Some(&text) {
                error!("target {name} is tried again with the next audit: {text}");
                self.refused.insert(name.clone(), text);
            }
        }
        if let Some(store) = store {
            self.end_all_but(wanted, store);
        }
    }

    fn take_over(
        &mut self,
        target: &Target,
        mut store: Option<&mut Store>,
        now: Now,
    ) -> Result<()> {
        let name = &target.spec.name;
        let known = self.accounts.iter().position(|it| it.account.target().spec.name == *name);
        let same = known.filter(|&index| self.accounts[index].account.target() == target);
        let index = match same {
            Some(index) => index,
            None => {
                // What it has read is flushed before, with the others.
                if let Some(store) = store.as_deref_mut() {
                    self.flush(store, &mut None).context("it stays as it was")?;
                }
                if let Some(index) = known {
                    self.accounts.remove(index);
                }
                self.add(target.clone(), now)?;
                info!("target {name}: now {}", target.spec.selector());
                self.accounts.len() - 1
            }
        };
        let account = &mut self.accounts[index].account;
        match store {
            Some(store) if account.book().is_none() => account.open_book(store, now),
            _ => Ok(()),
        }
    }

    /// Tries again what [`Targets::change`] could not do: what stood in the way may have been over at once, and
    /// as long as a target is not open, what its counters have is in no history.
    pub fn try_again(&mut self, wanted: &[Target], store: Option<&mut Store>, now: Now) {
        if self.refused.is_empty() {
            return;
        }
        let before = self.refused.clone();
        self.change(wanted, store, now);
        // Nobody has watched for them: what they know stands in the history.
        self.look(now, Timestamp::MIN, None, |entry| {
            before.contains_key(&entry.account.target().spec.name)
        });
    }

    /// Whether something is counted on that is not wanted any more, because the history has not taken the last
    /// of it.
    pub fn has_others_than(&self, wanted: &[Target]) -> bool {
        !self.accounts.iter().all(|entry| entry.is_among(wanted))
    }

    /// Ends what is counted and not wanted any more, if that can be done.
    pub fn end_all_but(&mut self, wanted: &[Target], store: &mut Store) {
        if self.has_others_than(wanted)
            && let Err(error) = self.flush(store, &mut None)
        {
            error!("cannot write the last of what is not wanted any more: {error:#}");
            return;
        }
        self.accounts.retain(|entry| entry.is_among(wanted));
        // Not those that are wanted and could not be opened: they go on counting.
        let names: Vec<&str> = wanted.iter().map(|target| target.spec.name.as_str()).collect();
        if let Err(error) = self.end_others(&names, store) {
            error!("cannot end what is not wanted any more: {error:#}");
        }
    }

    /// Reads what is pinned under other names to the end, writes it to the history and removes the pins.
    /// Returns what that was.
    pub fn end_others(&self, wanted: &[&str], store: &mut Store) -> Result<Vec<HostTarget>> {
        let mut ended = Vec::new();
        for name in self.root.names()? {
            if wanted.contains(&name.as_str()) {
                continue;
            }
            let end = self.end(&name, store);
            ended.extend(end.with_context(|| format!("cannot end counting target {name}"))?);
            info!("target {name} is not configured any more: it is not counted from now on");
        }
        Ok(ended)
    }

    fn end(&self, name: &str, store: &mut Store) -> Result<Vec<HostTarget>> {
        let kept = store.absolutes(name)?.into_iter().flat_map(|absolute| absolute.interfaces);
        let target = Target {
            spec: TargetSpec { name: name.to_owned(), selectors: Vec::new() },
            ports: PortFilter::default(),
            estimate_ports: PortFilter::default(),
            // Nobody says any more what is free: what was, is.
            unbilled: kept.filter(|it| it.scope == Scope::Unbilled).map(|it| it.name).collect(),
        };
        let now = Now::read();
        let mut account = Account::open(self.host, &self.root, target, &self.boot_id, now)?;
        account.open_book(store, now)?;
        account.wait_for_retired();
        account.read(Now::read())?;
        account.note(remark("counting ended".to_owned()));
        let mut last = Self {
            host: self.host,
            root: self.root.clone(),
            boot_id: self.boot_id.clone(),
            accounts: vec![Entry { account, complaint: None }],
            refused: BTreeMap::new(),
        };
        last.flush(store, &mut None)?;
        let cgroups = last.of_host();
        last.accounts.into_iter().try_for_each(|entry| entry.account.detach())?;
        Ok(cgroups)
    }

    /// One line: how many, and what they used since the agent was started.
    pub fn status(&self) -> String {
        let billed = |entry: &Entry<'_>| {
            let name = &entry.account.target().spec.name;
            let bytes = units::format_bytes(entry.account.billed(), Units::Iec);
            let absent = if entry.is_absent() { ", not there" } else { "" };
            format!("{name} {bytes}{absent}")
        };
        let refused = |(name, why): (&String, &String)| format!("{name} is tried again: {why}");
        let all = self.accounts.iter().map(billed).chain(self.refused.iter().map(refused));
        format!("counting since start: {}", all.collect::<Vec<_>>().join("; "))
    }
}

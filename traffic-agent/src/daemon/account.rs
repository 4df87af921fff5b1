//! One target: its pinned counters, the cgroups they hang on, and the book of what they have counted.

mod look;

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use self::look::{gap, present};
use super::book::Book;
use super::clock::Now;
use super::estimates::Place;
use crate::background::{Background, Look, Minute};
use crate::config::Target;
use crate::history::{Epoch, Event, EventKind, Quarter};
use crate::kernel::pins::PinRoot;
use crate::kernel::{Absence, Retired};
use crate::ledger;
use crate::measure::{Measurement, Plan};
use crate::method::ListeningPort;
use crate::network::BoundLooks;
use crate::report::Finding;
use crate::store::Store;
use crate::target::{Cgroup, Host};

/// A reading this soon after the end of a quarter still belongs to it: the reading itself is that late.
const STILL_THE_QUARTER: Duration = Duration::from_secs(1);

/// So long what was counted waits for a process of the target, whose network namespace says what the
/// interfaces are called. Then the agent's own is taken for it.
const GUESS_AFTER: Duration = Duration::from_secs(10);

/// What was before the first look at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// Nothing: its history begins.
    New,
    /// It was counted all the while, as far as its cgroups are still the same.
    GoesOn,
    /// It was not counted: that gap is noted.
    AfterGap,
    /// A look of this agent.
    Looked,
}

/// A target that is counted, whether the agent runs or not.
pub struct Account<'h> {
    host: &'h Host,
    root: PinRoot,
    target: Target,
    boot_id: String,
    measurement: Measurement<'h>,
    /// Counters of earlier versions, and whether each was read when nothing was added to it any more.
    retired: Vec<(Retired, bool)>,
    /// None until the history could be opened: the counters wait.
    book: Option<Book>,
    /// When the counters were read last.
    read: Now,
    /// When it was last known which cgroups the target has.
    looked: Now,
    /// Whether traffic since `read` is counted: the last look went well, and every cgroup of the target that
    /// it found is hung on.
    covered: bool,
    /// Time since `read` that lies in a gap.
    missed: SignedDuration,
    /// Whether the counters were there before this agent.
    inherited: bool,
    /// How many cgroups the last look has attached before the watch told of them.
    early: usize,
    /// When there was something to be named for the first time, by the clock since boot.
    guessing_since: Option<Duration>,
    begun: Begun,
    /// Cgroups that were attached before the history could say since when they were not counted, and until
    /// when that was so.
    unexplained: Option<(String, Timestamp)>,
    /// Interfaces that are gone, and whose last bytes were posted.
    departed: Vec<Absence>,
    /// Events that wait for the book.
    waiting: Vec<Event>,
    /// The findings that were told last, so that only news is told.
    told: Vec<&'static str>,
    /// Billed wire bytes since the agent was started.
    billed: u64,
    /// What other methods say.
    background: Background,
}

impl<'h> Account<'h> {
    /// Opens what is pinned for the target, or begins it. Its cgroups are not attached yet. One without
    /// selectors is only to be read to its end.
    pub fn open(
        host: &'h Host,
        root: &PinRoot,
        target: Target,
        boot_id: &str,
        now: Now,
    ) -> Result<Self> {
        let plan = Plan {
            name: target.spec.name.clone(),
            selector: target.spec.selector(),
            selectors: target.spec.selectors.clone(),
            // What stands in the way is said by the first look.
            cgroups: present(host, &target.spec).unwrap_or_default(),
            notes: Vec::new(),
            ports: target.ports.clone(),
            unbilled: target.unbilled.clone(),
            trace_packets: 0,
        };
        let inherited = root.names()?.contains(&target.spec.name);
        let (mut measurement, retired) = Measurement::open(host, plan, root)
            .with_context(|| format!("cannot count target {}", target.spec.name))?;
        // Interfaces have names in the network namespace of its processes only.
        if target.spec.selectors.is_empty() {
            measurement.keep_cgroups();
        }
        Ok(Self {
            host,
            root: root.clone(),
            target,
            boot_id: boot_id.to_owned(),
            measurement,
            retired: retired.into_iter().map(|retired| (retired, false)).collect(),
            book: None,
            read: now,
            looked: now,
            covered: true,
            missed: SignedDuration::ZERO,
            inherited,
            early: 0,
            guessing_since: None,
            begun: Begun::New,
            unexplained: None,
            departed: Vec::new(),
            waiting: Vec::new(),
            told: Vec::new(),
            billed: 0,
            background: Background::default(),
        })
    }

    /// What it was opened for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Billed wire bytes since the agent was started.
    pub fn billed(&self) -> u64 {
        self.billed
    }

    /// Whether it is to be looked for soon: nothing of it is there, or the last look went wrong.
    pub fn is_sought(&self) -> bool {
        self.cgroups().is_empty() || !self.covered
    }

    /// The cgroups that are counted now.
    pub fn cgroups(&self) -> &[Cgroup] {
        &self.measurement.plan().cgroups
    }

    /// Goes on where the history ends, and notes what is missing in between. To be called before the first
    /// [`Account::look`], or as soon as there is a history; and whenever it was opened again, because another
    /// may be at its place.
    pub fn open_book(&mut self, store: &Store, now: Now) -> Result<()> {
        self.leave_what_it_was(store)?;
        let name = &self.target.spec.name;
        let (kept, last) = (store.absolutes(name)?, store.last_flush(name)?);
        if let Some(book) = &mut self.book {
            if last.is_none() {
                // A new history: it begins where the one before ended.
                book.begin_again(now.wall);
                self.note(remark(
                    "this history begins here: what was flushed before is in the files that were taken away"
                        .to_owned(),
                ));
                return Ok(());
            }
            // What it had not flushed is in the counters still; only what they cannot tell is taken along.
            self.waiting.extend(book.take_events());
        }
        let known = (self.begun, self.looked);
        let maps = self.retired.iter().map(|(retired, _)| retired.map_id());
        let maps: Vec<u32> = maps.chain([self.measurement.counter().map_id()]).collect();
        let readable =
            |epoch: &Epoch| epoch.boot_id == self.boot_id && maps.contains(&epoch.map_id);
        let ours = || kept.iter().filter(|absolute| readable(&absolute.epoch));
        let goes_on = ours().next().is_some();
        let interfaces: Vec<_> = ours().flat_map(|it| it.interfaces.clone()).collect();
        self.measurement.remember_interfaces(interfaces);
        let selector = match self.target.spec.selectors.is_empty() {
            true => store.selector(name)?.unwrap_or_default(),
            false => self.target.spec.selector(),
        };
        let until = store.observed_until(name)?.filter(|_| goes_on);
        let mut book = Book::open(name.clone(), selector, kept, until);
        let gone: Vec<Epoch> = book.epochs().filter(|epoch| !readable(epoch)).cloned().collect();
        if let Some(last) = last {
            // A history of an earlier version has only the wall clock.
            let boot = until.unwrap_or(Duration::ZERO);
            self.read = Now { wall: last.min(now.wall), boot };
            self.begun = Begun::GoesOn;
            if !goes_on {
                (self.begun, self.read) = (Begun::AfterGap, now);
                let rebooted = gone.iter().any(|epoch| epoch.boot_id != self.boot_id);
                let reason = if rebooted {
                    "the host was started anew: what was counted after the last flush is lost"
                } else {
                    "its counters were gone: removed by `traffic-agent detach`, or with the bpf filesystem"
                };
                book.note(now.wall, gap(last, now.wall, reason.to_owned()));
            }
        }
        for epoch in &gone {
            book.close(now.wall, epoch);
        }
        if let (Some((paths, done)), Begun::GoesOn) = (self.unexplained.take(), self.begun) {
            let (event, missed) = self.come(&paths, self.read.wall, done);
            self.missed += missed;
            book.note(now.wall, event);
        }
        for event in std::mem::take(&mut self.waiting) {
            book.note(now.wall, event);
        }
        self.looked = self.read;
        if known.0 == Begun::Looked {
            (self.begun, self.looked) = known;
        }
        // What was posted of them was of the book before.
        self.departed.clear();
        self.book = Some(book);
        Ok(())
    }

    /// Reads the counters and posts what is new. Returns whether there was anything.
    pub fn read(&mut self, now: Now) -> Result<bool> {
        let Some(book) = &mut self.book else { return Ok(false) };
        let before = self.read;
        // By the clock as it is now, however it was set since. In a history of an earlier version stands only the
        // wall clock.
        let unknown = before.boot == Duration::ZERO;
        let since = if unknown { before.wall } else { now.wall_at(&before) };
        // Before the reading, so that what it reads can lie but before its end.
        let quarter = quarter_of(since, now.wall);
        let current =
            Epoch { boot_id: self.boot_id.clone(), map_id: self.measurement.counter().map_id() };
        let sample = self.measurement.sample()?;
        let is_zero = |cell: &traffic_ebpf::Cell| *cell == traffic_ebpf::Cell::default();
        // Not what is read for the last time.
        let may_wait = !self.target.spec.selectors.is_empty();
        if may_wait && !sample.cells.iter().all(is_zero) {
            let since = *self.guessing_since.get_or_insert(now.boot);
            if now.boot.saturating_sub(since) < GUESS_AFTER && self.measurement.is_guess()? {
                return Ok(false);
            }
        }
        let taken_at = sample.taken_at;
        let begins = self.inherited && book.epochs().next().is_none();
        let mut posted = Vec::new();
        for (retired, read_to_the_end) in &mut self.retired {
            let is_final = retired.is_final();
            let epoch = Epoch { boot_id: self.boot_id.clone(), map_id: retired.map_id() };
            let cells = retired.sample()?.cells;
            let measurement = &mut self.measurement;
            posted.extend(
                book.post(quarter, now.wall, &epoch, &cells, |new| named(measurement, new))?,
            );
            *read_to_the_end = is_final;
        }
        let measurement = &mut self.measurement;
        posted.extend(
            book.post(quarter, now.wall, &current, &sample.cells, |new| named(measurement, new))?,
        );
        if !posted.is_empty() {
            let retired = self.retired.iter().map(|(retired, _)| retired.map_id());
            let epoch = |map_id| Epoch { boot_id: self.boot_id.clone(), map_id };
            for epoch in retired.map(epoch).chain([current]) {
                book.know_interfaces(now.wall, &epoch, measurement.known_interfaces());
            }
        }
        // As long as there are counters of an earlier version, they are of the same slots.
        self.departed = match self.retired.is_empty() {
            true => measurement.departed_before(taken_at),
            false => Vec::new(),
        };
        self.read = now;
        book.reached(now.boot);
        if self.covered {
            let counted = since.checked_add(self.missed).unwrap_or(now.wall);
            book.observe(counted.min(now.wall), now.wall, now.boot);
        }
        self.missed = SignedDuration::ZERO;
        let bytes = ledger::totals(&posted).billed.wire_bytes();
        if begins && !posted.is_empty() {
            let booted = Now { wall: now.wall, boot: Duration::ZERO };
            book.note(now.wall, Event {
                start: now.wall_at(&booted).min(now.wall),
                end: now.wall,
                kind: EventKind::Late,
                message: format!(
                    "the counters are older than this history: {bytes} billed bytes that they have \
                     counted since they were made are kept in the quarter of an hour in which it began"
                ),
            });
        }
        let spanned = Quarter::of(since) != quarter;
        if spanned && !posted.is_empty() && since < now.wall {
            book.note(now.wall, Event {
                start: since,
                end: now.wall,
                kind: EventKind::Late,
                message: format!(
                    "{bytes} billed bytes were counted while the agent did not run, or could not read them in time, \
                     and are kept in the quarter of an hour in which it read them"
                ),
            });
        }
        self.background.post(&posted);
        self.billed = self.billed.saturating_add(bytes);
        Ok(!posted.is_empty())
    }

    /// A look at other methods begins; returns where. To be called after [`Account::read`]. `None` as long as
    /// there is no book: what was counted before it would all be of the first minute.
    pub fn begin_look(&mut self) -> Result<Option<Place>> {
        if self.book.is_none() {
            return Ok(None);
        }
        let network = self.measurement.network()?;
        self.background.begin();
        let (target, ports) = (self.target.spec.name.clone(), self.estimate_ports());
        Ok(Some(Place { target, network, ports }))
    }

    /// A look has ended. To be called after [`Account::read`].
    pub fn finish_look(&mut self, look: &Look, at: Timestamp) {
        let ports = self.estimate_ports();
        let Minute { readings, events } = self.background.finish(look, &ports, at);
        for event in events {
            self.note(event);
        }
        if let Some(book) = &mut self.book {
            book.compare(Timestamp::now(), readings);
        }
    }

    /// The ports whose rules are read.
    fn estimate_ports(&mut self) -> Vec<ListeningPort> {
        let mut ports = self.measurement.client_ports();
        if !self.target.estimate_ports.0.is_empty() {
            ports.retain(|port| self.target.estimate_ports.adds(*port));
        }
        ports
    }

    /// The next reading may be the last: it does not wait for better names.
    pub fn hurry(&mut self) {
        self.guessing_since = Some(Duration::ZERO);
    }

    /// Whether it has a cgroup of which it is not sure in which network namespace its processes are.
    pub fn is_unsure(&self) -> bool {
        self.measurement.is_unsure() && !self.is_sought()
    }

    /// Follows ports, interfaces and processes. `looks`: where other targets have looked just now.
    pub fn follow(&mut self, looks: &mut BoundLooks) -> Result<()> {
        self.measurement.counter().reap()?;
        self.measurement.follow_with(looks)
    }

    /// Pins again what somebody has unpinned.
    pub fn pin_again(&mut self) -> Result<()> {
        let name = self.target.spec.name.clone();
        if self.measurement.counter().pin_again(&self.root, &name)? {
            self.note(remark(
                "its pins were gone, and were made again: counting went on".to_owned(),
            ));
        }
        Ok(())
    }

    /// Audits who owns the target's sockets, and returns what is newly wrong.
    pub fn audit(&mut self) -> Result<Vec<Finding>> {
        let findings = self.measurement.findings()?;
        let codes = findings.iter().map(|finding| finding.code).collect();
        let told = std::mem::replace(&mut self.told, codes);
        let news: Vec<Finding> =
            findings.into_iter().filter(|finding| !told.contains(&finding.code)).collect();
        for finding in &news {
            self.note(remark(format!("{}: {}", finding.code, finding.message)));
        }
        Ok(news)
    }

    /// Whether the programs must be loaded again, because the target needs a variant of them.
    pub fn is_outdated(&self) -> bool {
        !self.measurement.is_up_to_date()
    }

    /// Loads the programs again, for what the target is now. Counters and links stay.
    pub fn load_again(&mut self) -> Result<()> {
        let plan = self.measurement.plan().clone();
        let known = self.measurement.known_interfaces().to_vec();
        (self.measurement, _) = Measurement::open(self.host, plan, &self.root)?;
        self.measurement.remember_interfaces(known);
        Ok(())
    }

    /// Notes an event, in the book or for it.
    pub fn note(&mut self, event: Event) {
        match &mut self.book {
            Some(book) => book.note(Timestamp::now(), event),
            None => self.waiting.push(event),
        }
    }

    /// Whether there is more to flush than that time went by, or a slot waits for it.
    pub fn has_news(&self) -> bool {
        self.book.as_ref().is_some_and(|book| book.has_news() || !self.departed.is_empty())
    }

    /// What waits to be flushed.
    pub fn book(&mut self) -> Option<&mut Book> {
        self.book.as_mut()
    }

    /// Waits until nothing is added any more to counters of an earlier version: the next reading has all of
    /// them, and the flush after it removes them.
    pub fn wait_for_retired(&self) {
        let longest = self.retired.iter().map(|(retired, _)| retired.final_in()).max();
        std::thread::sleep(longest.unwrap_or_default());
    }

    /// To be called after a flush: when it has taken all of the book, counters of an earlier version that were
    /// read to the end are removed, and slots of interfaces that are gone are given again.
    pub fn flushed(&mut self, now: Now) -> Result<()> {
        let Some(book) = &mut self.book else { return Ok(()) };
        if book.oldest().is_some() {
            return Ok(());
        }
        for (retired, _) in self.retired.extract_if(.., |(_, read_to_the_end)| *read_to_the_end) {
            let epoch = Epoch { boot_id: self.boot_id.clone(), map_id: retired.map_id() };
            retired.remove()?;
            book.close(now.wall, &epoch);
        }
        self.measurement.give_slots_again(&std::mem::take(&mut self.departed))
    }

    /// Ends counting for good: removes the pins. What was read is to be flushed before.
    pub fn detach(self) -> Result<()> {
        let pins = self.root.target(&self.target.spec.name);
        drop(self.measurement);
        pins.remove()?;
        Ok(())
    }
}

fn named(
    measurement: &mut Measurement<'_>,
    new: &[traffic_ebpf::Cell],
) -> Result<Vec<crate::report::CellReport>> {
    Ok(ledger::name_cells(new, &measurement.names()?))
}

/// An event that explains a figure and takes nothing from it.
pub fn remark(message: String) -> Event {
    let now = Timestamp::now();
    Event { start: now, end: now, kind: EventKind::Note, message }
}

/// The quarter that traffic between two readings is kept in: that of the later one, unless it came on time
/// at the end of the one before.
pub(super) fn quarter_of(before: Timestamp, now: Timestamp) -> Quarter {
    let quarter = Quarter::of(now);
    let into = Duration::try_from(now.duration_since(quarter.start())).unwrap_or_default();
    let is_next = Quarter::of(before).next() == quarter;
    if is_next && into < STILL_THE_QUARTER { Quarter::of(before) } else { quarter }
}

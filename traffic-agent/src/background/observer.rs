//! Looks at the firewall and the interfaces of a network namespace, on a thread of its own: programs have to
//! run, and one that waits for a lock must not stop the sampling.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nameindex;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::method::ListeningPort;
use crate::method::firewall::Reading;
use crate::method::interface::{self, Interfaces};
use crate::method::watch::{Facts, Watch};
use crate::netns::NetNs;

/// Longer than each of the programs may take (`method::run`), which run side by side.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Looking at the rules may take this part of a core: 0.03 %, of the 0.1 % that the daemon has.
const SHARE: u32 = 3_000;

/// But it is done this often at least.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What was found at one instant.
#[derive(Clone, Debug)]
pub struct Look {
    /// Inode of the network namespace.
    pub namespace: u64,
    /// The rules, judged for all ports that were asked for; `None` if it was not time to look at them. An error
    /// is in words.
    pub rules: Result<Option<Reading>, String>,
    /// The interfaces, likewise.
    pub interfaces: Result<InterfaceReading, String>,
}

/// The interfaces of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceReading {
    /// What they counted.
    pub counters: Interfaces,
    /// Their numbers: one that is made anew has another.
    pub indexes: BTreeMap<String, u32>,
}

/// Looks at one network namespace, one look at a time.
#[derive(Debug, Default)]
pub struct Observer {
    /// `None` while a look has it.
    memory: Option<Memory>,
    running: Option<Running>,
    /// Whatever the rules cost.
    tireless: bool,
}

#[derive(Debug, Default)]
struct Memory {
    watch: Watch,
    /// The rules are to be looked at from here on.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    answer: oneshot::Receiver<(Memory, Look)>,
    deadline: Instant,
    namespace: u64,
    /// It was given up; its thread has not ended.
    late: bool,
}

impl Observer {
    /// Looks at the rules each time, whatever that costs.
    pub fn tireless() -> Self {
        Self { tireless: true, ..Self::default() }
    }

    /// Begins a look at a namespace; `ports` are those of all targets in it.
    ///
    /// Returns whether it did: while a thread of an earlier look hangs no other one is started.
    pub fn start(&mut self, network: NetNs, ports: Vec<ListeningPort>) -> bool {
        if let Some(running) = &mut self.running {
            match running.answer.try_recv() {
                Ok((memory, _)) => self.memory = Some(memory),
                Err(oneshot::error::TryRecvError::Closed) => {}
                Err(oneshot::error::TryRecvError::Empty) => return false,
            }
        }
        let (send, answer) = oneshot::channel();
        let mut memory = self.memory.take().unwrap_or_default();
        if self.tireless {
            memory.due = None;
        }
        let namespace = network.inode();
        let started = thread::Builder::new().name("look".to_owned()).spawn(move || {
            let look = look(&mut memory, &network, &ports);
            // Nobody waits any more if the agent ends.
            let _ = send.send((memory, look));
        });
        self.running = None;
        if started.is_ok() {
            let deadline = Instant::now() + TIME_LIMIT;
            self.running = Some(Running { answer, deadline, namespace, late: false });
        }
        started.is_ok()
    }

    /// Whether a look is under way that [`Observer::finished`] would return.
    pub fn is_looking(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.late)
    }

    /// Waits for the look; waits for ever if there is none. May be dropped and called again.
    pub async fn finished(&mut self) -> Look {
        let Some(running) = self.running.as_mut().filter(|running| !running.late) else {
            return std::future::pending().await;
        };
        let failed = |reason: String| Look {
            namespace: running.namespace,
            rules: Err(reason.clone()),
            interfaces: Err(reason),
        };
        match timeout_at(running.deadline.into(), &mut running.answer).await {
            Ok(Ok((memory, look))) => {
                self.memory = Some(memory);
                self.running = None;
                look
            }
            Ok(Err(_)) => {
                let look = failed("the look broke off".to_owned());
                self.running = None;
                look
            }
            Err(_) => {
                let seconds = TIME_LIMIT.as_secs();
                let look = failed(format!("no answer within {seconds} s: a program hangs"));
                running.late = true;
                look
            }
        }
    }
}

/// Looks now, in the calling thread.
fn look(memory: &mut Memory, network: &NetNs, ports: &[ListeningPort]) -> Look {
    let namespace = network.inode();
    let due = memory.due.is_none_or(|due| Instant::now() >= due);
    // Facts first: a change between them and the programs is seen by the next look at the latest.
    let seen = network.run(|| (due.then(Facts::read), interfaces()));
    let (facts, interfaces) = match seen {
        Ok(seen) => seen,
        Err(error) => {
            let reason = error.to_string();
            return Look { namespace, rules: Err(reason.clone()), interfaces: Err(reason) };
        }
    };
    let rules = facts.map(|facts| {
        let before = processor_time();
        // Entering a namespace, even one's own, takes a right that is not needed otherwise.
        let own = NetNs::current().is_ok_and(|own| own.inode() == namespace);
        let netns = (!own).then(|| network.as_fd());
        let reading = memory.watch.read(netns, &facts, ports);
        let pause = pause_after(processor_time().saturating_sub(before));
        memory.due = (!pause.is_zero()).then(|| Instant::now() + pause);
        reading
    });
    Look { namespace, rules: Ok(rules), interfaces }
}

/// How long the rules are left alone after a look at them.
fn pause_after(cost: Duration) -> Duration {
    let pause = (cost * SHARE).min(LONGEST_PAUSE);
    // The daemon asks once a minute anyway.
    if pause <= Duration::from_secs(60) { Duration::ZERO } else { pause }
}

/// Processor time of the programs that were run, and of this thread.
fn processor_time() -> Duration {
    let of = |who| {
        let usage = getrusage(who).ok()?;
        let times = [usage.user_time(), usage.system_time()];
        let micros = times.iter().map(|time| time.num_microseconds()).sum::<i64>();
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
    };
    let whose = [UsageWho::RUSAGE_CHILDREN, UsageWho::RUSAGE_THREAD];
    whose.into_iter().filter_map(of).sum()
}

/// The interfaces of the calling thread's namespace.
fn interfaces() -> Result<InterfaceReading, String> {
    // Numbers first and again: an interface made anew in between would have the counters of one and the
    // number of the other.
    for _ in 0..3 {
        let before = indexes()?;
        let counters = interface::read().map_err(|error| error.to_string())?;
        let indexes = indexes()?;
        if before == indexes && counters.keys().all(|name| indexes.contains_key(name)) {
            return Ok(InterfaceReading { counters, indexes });
        }
    }
    Err("interfaces come and go faster than they can be read".to_owned())
}

fn indexes() -> Result<BTreeMap<String, u32>, String> {
    let interfaces =
        if_nameindex().map_err(|errno| format!("cannot list the interfaces: {errno}"))?;
    let names = interfaces.iter();
    Ok(names.map(|one| (one.name().to_string_lossy().into_owned(), one.index())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_much_is_done_less_often() {
        // 20 ms of 60 s are 0.033 %.
        assert_eq!(pause_after(Duration::from_millis(20)), Duration::ZERO);
        assert_eq!(pause_after(Duration::from_millis(100)), Duration::from_secs(300));
        assert_eq!(pause_after(Duration::from_secs(5)), LONGEST_PAUSE);
    }

    #[test]
    fn the_agents_own_namespace_has_a_loopback_interface_with_a_number() {
        let reading = interfaces().expect("any Linux");
        assert!(reading.indexes.contains_key(interface::LOOPBACK));
        assert!(reading.counters.keys().eq(reading.indexes.keys()));
    }
}

//! What is measured: pairs of programs, ours with each feature and those of others.
//!
//! aya is used here only, for the programs of the bench; ours are loaded by the library, as the agent
//! does it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, loaded_programs};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use traffic_agent::kernel::{Counter, HostCounter, Options};

use crate::clock::ThreadClock;
use crate::packets::TestPacket;

/// Something that counts, or does not.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// For tables.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A pair of programs of the bench, by the beginning of their names.
    Bench(&'static str),
    Ours(Options),
    Selected,
    Host,
}

/// Returns PASS and does nothing else: the baseline.
pub const EMPTY: Subject = Subject { name: "empty program", kind: Kind::Bench("empty") };
/// A shared array, two lookups, two adds.
pub const SYSTEMD: Subject = Subject { name: "systemd-like", kind: Kind::Bench("shared") };
/// Helpers, hashes, a fixed MTU.
pub const ANDROID: Subject = Subject { name: "android-like", kind: Kind::Bench("android") };
/// Counting, and nothing that is chosen at load.
pub const OURS: Subject = Subject { name: "ours", kind: Kind::Ours(PLAIN) };

/// The lean instance on the root of the cgroup tree: what every other service of the host pays.
pub const HOST: Subject = Subject { name: "host ledger", kind: Kind::Host };

/// As `compare` and `exec` load it.
pub const COMPARE: Subject = Subject {
    name: "ours, as compare",
    kind: Kind::Ours(Options { retransmissions: true, answered: true, ..PLAIN }),
};

/// By hooks on the cgroup above, which select: what a packet of a target costs of which another program holds
/// the cgroup. What a neighbour's costs is less: it is not counted.
pub const SELECTED: Subject = Subject { name: "ours, selected", kind: Kind::Selected };

const PLAIN: Options =
    Options { trace_packets: 0, transparent: false, retransmissions: false, answered: false };

/// Ours with each feature that is chosen at load. A new feature gets a line here.
pub fn features() -> Vec<Subject> {
    let ours = |name, options| Subject { name, kind: Kind::Ours(options) };
    vec![
        OURS,
        ours("ours, transparent", Options { transparent: true, ..PLAIN }),
        ours("ours, retransmissions", Options { retransmissions: true, ..PLAIN }),
        ours("ours, no socket", Options { answered: true, ..PLAIN }),
        COMPARE,
        // One packet is traced, all others pass the question whether to trace.
        ours("ours, traced", Options { trace_packets: 1, ..PLAIN }),
        HOST,
    ]
}

/// All of them, the baseline first.
pub fn all() -> Vec<Subject> {
    [EMPTY, SYSTEMD, ANDROID].into_iter().chain(features()).collect()
}

/// All that real traffic can pass: a test run has no socket in a cgroup that could be selected.
pub fn under_traffic() -> Vec<Subject> {
    all().into_iter().chain([SELECTED]).collect()
}

/// The names of subjects.
pub fn names(subjects: &[Subject]) -> Vec<String> {
    subjects.iter().map(|subject| subject.name.to_owned()).collect()
}

/// The two hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// How often a program ran, and how long together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Runs {
    /// Runs.
    pub count: u64,
    /// Their time, while statistics were on.
    pub time: Duration,
}

impl Runs {
    /// ns per run since `earlier`; `None` if there was none.
    pub fn nanoseconds_since(self, earlier: Self) -> Option<f64> {
        let count = self.count - earlier.count;
        (count > 0).then(|| (self.time - earlier.time).as_nanos() as f64 / count as f64)
    }
}

/// A loaded pair of programs. Dropped, it is detached and gone.
pub struct Loaded {
    owner: Owner,
    programs: Programs,
}

/// Handles of a pair of programs, by direction.
pub struct Programs([CgroupSkb; 2]);

/// Keeps the maps and programs.
enum Owner {
    Bench(#[expect(dead_code, reason = "keeps the programs loaded")] Ebpf),
    Ours(Box<Counter>),
    Selected(Box<Counter>),
    Host(Box<HostCounter>),
}

impl Subject {
    /// Loads it. `object` has the programs of the bench.
    pub fn load(&self, object: &Path) -> Result<Loaded> {
        let loaded = match self.kind {
            Kind::Bench(pair) => load_bench(pair, object),
            Kind::Ours(options) => load_ours(&options, Owner::Ours),
            Kind::Selected => load_ours(&PLAIN, Owner::Selected),
            Kind::Host => load_host(),
        };
        loaded.with_context(|| format!("cannot load `{}`", self.name))
    }
}

fn load_ours(options: &Options, owner: fn(Box<Counter>) -> Owner) -> Result<Loaded> {
    let mut counter = Counter::load(options)?;
    let programs = programs_of(&mut counter)?;
    Ok(Loaded { owner: owner(Box::new(counter)), programs })
}

/// Those that packets pass as it is attached now.
fn programs_of(counter: &mut Counter) -> Result<Programs> {
    handles(counter.program_ids().context("the kernel names no ids of programs")?)
}

fn load_host() -> Result<Loaded> {
    let mut counter = HostCounter::load()?;
    let ids = counter.program_ids().context("the kernel names no ids of programs")?;
    Ok(Loaded { owner: Owner::Host(Box::new(counter)), programs: handles(ids)? })
}

fn load_bench(pair: &str, object: &Path) -> Result<Loaded> {
    let bytes = fs::read(object)
        .with_context(|| format!("cannot read {}; run `cargo xtask bench`", object.display()))?;
    let mut ebpf = EbpfLoader::new().btf(None).load(&bytes)?;
    let mut ids = [0; 2];
    for (id, direction) in ids.iter_mut().zip(["ingress", "egress"]) {
        let name = format!("{pair}_{direction}");
        let program = ebpf.program_mut(&name).with_context(|| format!("no program {name}"))?;
        let program: &mut CgroupSkb = program.try_into()?;
        program.load()?;
        *id = program.info()?.id();
    }
    Ok(Loaded { owner: Owner::Bench(ebpf), programs: handles(ids)? })
}

/// Opens programs by their ids.
fn handles(ids: [u32; 2]) -> Result<Programs> {
    let open = |id, direction| -> Result<CgroupSkb> {
        let info = loaded_programs()
            // Programs of others come and go meanwhile.
            .flatten()
            .find(|info| info.id() == id)
            .context("a program is gone that was just loaded")?;
        Ok(CgroupSkb::from_program_info(info, "measured".into(), Some(direction))?)
    };
    let ingress = open(ids[0], CgroupSkbAttachType::Ingress)?;
    Ok(Programs([ingress, open(ids[1], CgroupSkbAttachType::Egress)?]))
}

impl Loaded {
    /// Attaches it to a cgroup right below the root, until it is dropped.
    pub fn attach(&mut self, cgroup: &Path) -> Result<()> {
        match &mut self.owner {
            Owner::Ours(counter) => return Ok(counter.attach(cgroup)?),
            Owner::Selected(counter) => {
                let above = cgroup.parent().context("the root has nothing above it")?;
                counter.attach_above(cgroup, above, &[1])?;
                self.programs = programs_of(counter)?;
                return Ok(());
            }
            Owner::Host(counter) => return Ok(counter.attach(cgroup)?),
            Owner::Bench(_) => {}
        }
        let directory = File::open(cgroup)?;
        let hooks = [CgroupSkbAttachType::Ingress, CgroupSkbAttachType::Egress];
        for (program, hook) in self.programs.0.iter_mut().zip(hooks) {
            program.attach(&directory, hook, CgroupAttachMode::Single)?;
        }
        Ok(())
    }

    /// Ours, to be configured.
    pub fn counter(&mut self) -> Option<&mut Counter> {
        match &mut self.owner {
            Owner::Ours(counter) | Owner::Selected(counter) => Some(counter),
            Owner::Bench(_) | Owner::Host(_) => None,
        }
    }

    /// Its programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }
}

impl Programs {
    /// Runs a program on a packet, `repeat` times; ns per run.
    ///
    /// The interface is one of the calling thread's network namespace.
    pub fn test_run(
        &self,
        direction: Direction,
        packet: &TestPacket,
        ifindex: u32,
        repeat: u32,
    ) -> Result<f64> {
        let context = packet.context(ifindex);
        let options = TestRunOptions {
            data_in: Some(packet.data()),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        // Not what the kernel says, which is whole ns and includes whoever else ran meanwhile.
        let clock = ThreadClock::start();
        self.0[direction as usize]
            .test_run(options)
            .with_context(|| format!("a test run with `{}` was refused", packet.name))?;
        Ok(clock.elapsed().as_nanos() as f64 / f64::from(repeat))
    }

    /// How often and how long it ran.
    pub fn runs(&self, direction: Direction) -> Result<Runs> {
        let info = self.0[direction as usize].info()?;
        Ok(Runs { count: info.run_count(), time: info.run_time() })
    }
}

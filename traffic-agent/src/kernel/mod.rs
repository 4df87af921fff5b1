//! The eBPF program as seen from user space: load, attach, read, detach. The only room that knows aya.
//!
//! A [`Counter`] is one instance of the program with maps of its own: one per target. One that is
//! [loaded](Counter::load) counts from [`Counter::attach`] until it is dropped; the kernel detaches it too
//! when the process dies. One that is [pinned](Counter::open) goes on counting, and whoever opens it next
//! takes over without a packet counted twice or not at all.

mod answered;
pub mod attached;
mod bpf;
mod btf;
mod cells;
mod departed;
mod error;
mod figures;
mod generation;
mod glance;
mod host;
mod links;
mod object;
mod pinned;
pub mod pins;
pub mod probe;
mod selection;
mod slots;
mod trace;

use std::{
    cell::Cell,
    fs::File,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::Instant,
};

use answered::Layout;
use attached::Hook;
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{CgroupSkb, CgroupSockAddr, ProgramError},
};
use cells::{Cells, Slots};
use error::errno;
use generation::Generations;
use links::Links;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use pinned::PinnedMaps;
use pins::Pins;
use selection::Selection;
use traffic_ebpf::{ANSWERED_ELEMENTS, CELLS_PER_INTERFACE, INTERFACE_SLOTS};

pub use self::{
    answered::{Answered, Unavailable},
    departed::{Absence, Departed},
    error::Error,
    figures::{LoadedFigures, ProgramFigures},
    glance::{Glance, Seen},
    host::{HostCells, HostCounter, HostSample},
    pinned::Retired,
    slots::{Owner, SlotTables},
    trace::Trace,
};

/// What is decided when the program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Describe each of the first so many packets.
    pub trace_packets: u32,
    /// Accepted sockets inherit the port slot of their listener (TPROXY).
    pub transparent: bool,
    /// Count TCP payload that is carried again.
    pub retransmissions: bool,
    /// Count what the kernel exchanges for the target without its socket, if this kernel lets us.
    pub answered: bool,
}

/// Elements of a [`Sample`], of all cells of an interface slot each.
pub const ELEMENTS: usize = INTERFACE_SLOTS + ANSWERED_ELEMENTS;

/// All counters of one instance, summed over CPUs.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was read.
    pub taken_at: Instant,
    /// [`ELEMENTS`] x `CELLS_PER_INTERFACE` cells, one interface slot after the other: first those of the
    /// hook, then those of the map `ANSWERED`.
    pub cells: Vec<traffic_ebpf::Cell>,
}

impl Sample {
    /// What an instance that has counted nothing would give.
    pub fn zero(taken_at: Instant) -> Self {
        Self {
            taken_at,
            cells: vec![traffic_ebpf::Cell::default(); ELEMENTS * CELLS_PER_INTERFACE],
        }
    }
}

/// One instance of the program: its maps, its links, its log.
pub struct Counter {
    ebpf: Ebpf,
    links: Links,
    cells: Cells,
    /// Interface slots in which something may have been counted, whoever has them now.
    counted: Cell<Slots>,
    answered: Answered,
    selection: Selection,
    slots: SlotTables,
    trace: Trace,
    /// Empty for one that ends with the agent.
    pinned_maps: PinnedMaps,
}

impl Counter {
    /// Loads the programs and creates the maps. Nothing is attached yet.
    pub fn load(options: &Options) -> Result<Self, Error> {
        with_locked_memory(|| {
            let (ebpf, layout) = Self::load_programs(options, 0, None)?;
            Self::assemble(ebpf, layout, 0, |_| Ok(Links::held()))
        })
    }

    /// Loads the programs upon maps: those that are pinned, or new ones.
    fn load_programs(
        options: &Options,
        generation: u32,
        pins: Option<&Pins>,
    ) -> Result<(Ebpf, Result<&'static Layout, Unavailable>), Error> {
        let object = object::bytes()?;
        let transparent = u32::from(options.transparent);
        let retransmissions = u32::from(options.retransmissions);
        let delivered_again = u32::from(probe::may_read_packets());
        let layout = match options.answered {
            true => Layout::of_running_kernel(),
            false => Err(Unavailable::NotWanted),
        };
        let mut loader = EbpfLoader::new();
        answered::size_maps(&mut loader, layout.is_ok());
        host::size_maps(&mut loader);
        if let Ok(layout) = &layout {
            layout.set(&mut loader);
        }
        for name in pinned::SHARED.into_iter().chain(pinned::COUNTERS) {
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader
            // Nothing is to be relocated against the types of the running kernel.
            .btf(None)
            .map_max_entries(trace::PACKET_RECORDS, trace::ring_bytes(options.trace_packets))
            .map_max_entries(generation::MAP, Generations::possible_cpus())
            .override_global("TRACE_PACKETS", &options.trace_packets, true)
            .override_global("TRANSPARENT", &transparent, true)
            .override_global("RETRANSMISSIONS", &retransmissions, true)
            .override_global("DELIVERED_AGAIN", &delivered_again, true)
            .override_global("GENERATION", &generation, true)
            .load(&object)
            .map_err(|source| Error::Load { source })?;
        drop(loader);

        for (hook, name) in PROGRAMS {
            match hook {
                Hook::Ingress | Hook::Egress => load_skb(&mut ebpf, name)?.load(),
                _ => load_bind(&mut ebpf, name)?.load(),
            }
            .map_err(load_error)?;
        }
        Ok((ebpf, layout))
    }

    /// Puts the parts together. `links`: what to attach with.
    fn assemble(
        mut ebpf: Ebpf,
        layout: Result<&'static Layout, Unavailable>,
        generation: u32,
        links: impl FnOnce(&Ebpf) -> Result<Links, Error>,
    ) -> Result<Self, Error> {
        let cells = ebpf.take_map(CELLS).ok_or(Error::Foreign { kind: "map", name: CELLS })?;
        let cells = Cells::new(cells, CELLS)?;
        // Nothing is known of what was counted before.
        let counted = Cell::new(Slots::ALL);
        let answered = Answered::open(&mut ebpf, layout, generation)?;
        let selection = Selection::open(&mut ebpf)?;
        let slots = SlotTables::open(&mut ebpf)?;
        let trace = Trace::open(&mut ebpf)?;
        let links = links(&ebpf)?;
        let pinned_maps = Vec::new();
        Ok(Self { ebpf, links, cells, counted, answered, selection, slots, trace, pinned_maps })
    }

    /// Attaches to a cgroup: from now on the packets of its sockets, and of those of its descendants,
    /// are counted. Several cgroups feed the same cells; none of them may contain another.
    pub fn attach(&mut self, cgroup: &Path) -> Result<(), Error> {
        let directory = open_directory(cgroup)?;
        let id = directory_id(&directory, cgroup)?;
        // What hangs here counts all of it, and an anchor above would count it once more: whoever attached it
        // before may have been killed on the way.
        self.deselect(id)?;
        for (hook, name) in PROGRAMS {
            self.attach_hook((id, hook), name, &directory, cgroup)?;
        }
        // Last, because it takes longest, and what it counts is rare.
        self.answered.attach(&mut self.ebpf, &mut self.links, &directory, id)
    }

    fn attach_hook(
        &mut self,
        place: (u64, Hook),
        name: &'static str,
        directory: &File,
        path: &Path,
    ) -> Result<(), Error> {
        let program = descriptor(&self.ebpf, name)?;
        let attached = self.links.attach(place, program, directory.as_fd());
        attached.map_err(|error| error.of(name, path))
    }

    /// Whether it is attached to the cgroup with this id, or to one above that selects it, in full: whoever
    /// attached it may have been killed.
    pub fn is_attached(&self, cgroup: u64) -> bool {
        self.counts(cgroup) && self.answered.is_attached(&self.links, cgroup)
    }

    /// Whether the packets of its sockets are counted: what else there is to be attached comes after that.
    pub fn counts(&self, cgroup: u64) -> bool {
        self.links.has((cgroup, Hook::Egress)) || self.is_selected(cgroup)
    }

    /// Ids of the cgroups that it counts, those that were removed included as long as sockets of
    /// them still send.
    pub fn attached_cgroups(&self) -> Vec<u64> {
        self.links.cgroups()
    }

    /// Detaches from a cgroup.
    pub fn detach(&mut self, cgroup: u64) -> Result<(), Error> {
        self.links.detach(cgroup)?;
        self.deselect(cgroup)?;
        self.answered.forget_cgroup(cgroup)
    }

    /// Lets go of cgroups that are gone with their last socket.
    pub fn reap(&mut self) -> Result<(), Error> {
        for id in self.links.reap()? {
            self.deselect(id)?;
            self.answered.forget_cgroup(id)?;
        }
        Ok(())
    }

    /// Id of the map of the counters, unique until reboot: these counters only grow.
    pub fn map_id(&self) -> u32 {
        self.cells.id()
    }

    /// Reads every counter once, summed over CPUs.
    ///
    /// Each counter is read at once, but not all at the same time: under load, packets and bytes may
    /// differ by what passed in between.
    pub fn sample(&self) -> Result<Sample, Error> {
        // The program counts in a slot when it has an owner, not before.
        let slots = self.counted.get().with(self.slots.owned_interfaces()?);
        let mut sample = Sample::zero(Instant::now());
        let (own, answered) = sample.cells.split_at_mut(INTERFACE_SLOTS * CELLS_PER_INTERFACE);
        let counted = self.answered.sample(slots, answered)?;
        self.counted.set(counted.with(self.cells.read(slots, own)?));
        Ok(sample)
    }

    /// What is counted without the target's socket.
    pub fn answered(&mut self) -> &mut Answered {
        &mut self.answered
    }

    /// How many events of packets without a socket were missed; `None` where the kernel does not say.
    pub fn missed(&self) -> Option<u64> {
        self.answered.missed(&self.ebpf)
    }

    /// The tables that say which port and which interface has which slot.
    pub fn slots(&mut self) -> &mut SlotTables {
        &mut self.slots
    }

    /// Bytes of machine code that the ingress program was compiled to: 0 where the kernel interprets it.
    /// `None` where the kernel does not say.
    pub fn compiled_bytes(&mut self) -> Option<u32> {
        let info = load_skb(&mut self.ebpf, INGRESS_PROGRAM).ok()?.info().ok()?;
        Some(info.size_jitted())
    }

    /// Ids of the programs that packets pass, ingress and egress: for whoever measures what they cost.
    /// `None` where the kernel does not say.
    pub fn program_ids(&mut self) -> Option<[u32; 2]> {
        let names = match self.anchors().is_empty() {
            true => [INGRESS_PROGRAM, EGRESS_PROGRAM],
            false => selection::SELECTING.map(|(_, name)| name),
        };
        let mut id = |name| Some(load_skb(&mut self.ebpf, name).ok()?.info().ok()?.id());
        Some([id(names[0])?, id(names[1])?])
    }

    /// What the program tells beyond numbers.
    pub fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }
}

const INGRESS_PROGRAM: &str = "count_ingress";
const EGRESS_PROGRAM: &str = "count_egress";
/// The programs that every kernel attaches, in the order of attaching: the announcers first, so that a port
/// bound from here on is known before its first packet.
const PROGRAMS: [(Hook, &str); 4] = [
    (Hook::Bind4, "announce_bind4"),
    (Hook::Bind6, "announce_bind6"),
    (Hook::Ingress, INGRESS_PROGRAM),
    (Hook::Egress, EGRESS_PROGRAM),
];
const CELLS: &str = "CELLS";

/// Does something while the process may lock as much memory as it likes: before 5.11 maps count against
/// that. Where the limit cannot be raised it may still suffice; if not, loading fails and says so.
fn with_locked_memory<T>(load: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK);
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let loaded = load();
    if let (Ok((soft, hard)), Ok(())) = (limit, raised) {
        // A measured command must not inherit it. Lowering is always permitted.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    }
    loaded
}

/// Returns the descriptor of a loaded program.
fn descriptor<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).ok_or(Error::Foreign { kind: "program", name })?;
    Ok(program.fd().map_err(load_error)?.as_fd())
}

fn open_directory(cgroup: &Path) -> Result<File, Error> {
    File::open(cgroup).map_err(|source| Error::OpenCgroup { path: cgroup.to_owned(), source })
}

/// Returns the id of a cgroup that is open.
fn directory_id(directory: &File, path: &Path) -> Result<u64, Error> {
    let metadata = directory.metadata();
    let metadata =
        metadata.map_err(|source| Error::OpenCgroup { path: path.to_owned(), source })?;
    Ok(metadata.ino())
}

fn load_error(source: ProgramError) -> Error {
    Error::Load { source: EbpfError::ProgramError(source) }
}

fn load_skb<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, Error> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Foreign { kind: "program", name })
}

fn load_bind<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Foreign { kind: "program", name })
}

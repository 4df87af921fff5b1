//! Counting what the kernel exchanges for the target without its socket, where the kernel lets us.
//!
//! The programs hang on tracepoints, which are the same for the whole host: they are told the target's
//! cgroups and network namespaces, and look away from everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::OnceLock,
    time::Duration,
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, MapData, MapError},
    programs::{BtfTracePoint, CgroupSock},
};
use nix::time::{ClockId, clock_gettime};
use traffic_ebpf::{Cell, MOST_CGROUPS, MOST_CONNECTIONS, MOST_NAMESPACES, OFFSETS};

use super::{
    Error,
    attached::Hook,
    btf::{self, Btf, Tracepoint},
    cells::{Cells, Slots},
    descriptor,
    generation::{self, Generations},
    links::{AttachError, LinkError, Links},
    pins::Pins,
    slots::NOEXIST,
};

/// Programs and the tracepoints that they hang on.
const PROGRAMS: [(&str, &str); 3] = [
    ("remember_connection", "inet_sock_set_state"),
    ("count_reset", "tcp_send_reset"),
    ("count_dropped", "kfree_skb"),
];
/// Since 6.11, as `tcp_send_reset` for packets without a socket; without it ICMP answers are not counted.
const ICMP: (&str, &str) = ("note_icmp", "icmp_send");
pub(super) const NAMESPACES: &str = "TARGET_NAMESPACES";

/// Programs that hang on the cgroup: nobody else tells of its sockets.
pub(super) const OF_SOCKETS: [(Hook, &str); 2] =
    [(Hook::Create, "note_namespace"), (Hook::Release, "remember_udp")];

/// For so long after the last socket, a namespace in which the program saw the target make one stays its own,
/// although no process was found there: as long as its connections are remembered.
const STAYS: Duration = Duration::from_secs(300);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why it is not counted on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// It was not asked for.
    #[error("it was not asked for")]
    NotWanted,
    /// The kernel's structures are not known.
    #[error(transparent)]
    Types(#[from] btf::Error),
    /// `kfree_skb` tells the socket since 6.11.
    #[error("its tracepoints do not say for which socket a packet was; Linux 6.11 or later does")]
    NoSocketArgument,
    /// The target is made of more cgroups or network namespaces than the maps have room for.
    #[error("the target has more than {0} cgroups or network namespaces")]
    TooMany(u32),
    /// The kernel refused a program.
    #[error("the kernel refused {program}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What the kernel or aya says.
        #[source]
        source: Cause,
    },
}

impl Unavailable {
    /// The reason and what caused it, in one line.
    pub fn with_causes(&self) -> String {
        let causes: Vec<String> = anyhow::Chain::new(self).map(ToString::to_string).collect();
        causes.join(": ")
    }
}

/// The kernel's answer without the verifier's log, which is of no use to who reads a report.
fn refused(program: &'static str, source: Cause) -> Unavailable {
    let source = match super::errno(&*source) {
        Some(errno) => io::Error::from_raw_os_error(errno).into(),
        None => source,
    };
    Unavailable::Refused { program, source }
}

/// What the programs must know of the running kernel: constants at load.
pub(super) struct Layout {
    offsets: Vec<(&'static str, u32)>,
    reasons: [(&'static str, u32); 3],
    reset_has_owner: u32,
    /// Those of [`PROGRAMS`], and that of [`ICMP`] if there is one.
    tracepoints: Vec<(&'static str, Tracepoint)>,
}

/// There is one running kernel: its types are looked at once, whatever many targets there are.
static RUNNING: OnceLock<Layout> = OnceLock::new();

impl Layout {
    /// Looks it up in the kernel's BTF, if that was not done before.
    pub(super) fn of_running_kernel() -> Result<&'static Self, Unavailable> {
        match RUNNING.get() {
            Some(known) => Ok(known),
            None => Self::read().map(|read| RUNNING.get_or_init(|| read)),
        }
    }

    fn read() -> Result<Self, Unavailable> {
        let btf = Btf::of_running_kernel()?;
        // skb, location, reason and, since 6.11, the socket.
        let says_socket = |tracepoint: Tracepoint| tracepoint.arguments >= 4;
        if !btf.tracepoint("kfree_skb").is_some_and(says_socket) {
            return Err(Unavailable::NoSocketArgument);
        }
        let find = |name| {
            let missing = || btf::Error::Missing(format!("tracepoint `{name}`"));
            Ok((name, btf.tracepoint(name).ok_or_else(missing)?))
        };
        let tracepoints = PROGRAMS.into_iter().map(|(_, name)| find(name));
        let mut tracepoints = tracepoints.collect::<Result<Vec<_>, btf::Error>>()?;
        tracepoints.extend(find(ICMP.1).ok());
        let offsets = OFFSETS
            .iter()
            .map(|&(name, structure, member)| Ok((name, btf.offset(structure, member)?)))
            .collect::<Result<_, btf::Error>>()?;
        let reason = |name| btf.enumerator("skb_drop_reason", name);
        Ok(Self {
            offsets,
            reasons: [
                ("REASON_NO_SOCKET", reason("SKB_DROP_REASON_NO_SOCKET")?),
                ("REASON_TCP_CSUM", reason("SKB_DROP_REASON_TCP_CSUM")?),
                ("REASON_XFRM_POLICY", reason("SKB_DROP_REASON_XFRM_POLICY")?),
            ],
            reset_has_owner: btf.has_parameter("ip_send_unicast_reply", "orig_sk")?.into(),
            tracepoints,
        })
    }

    /// The programs to hang on tracepoints, each with its own.
    fn programs(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_there = |tracepoint| self.tracepoints.iter().any(|(name, _)| *name == tracepoint);
        let all = PROGRAMS.into_iter().chain([ICMP]);
        all.filter(move |(_, tracepoint)| is_there(*tracepoint))
    }

    /// Sets the constants.
    pub(super) fn set(&'static self, loader: &mut EbpfLoader<'_>) {
        for (name, number) in self.offsets.iter().chain(&self.reasons) {
            loader.override_global(name, number, true);
        }
        loader.override_global("RESET_HAS_OWNER", &self.reset_has_owner, true);
    }
}

/// Makes the map of connections small where nobody uses it.
pub(super) fn size_maps(loader: &mut EbpfLoader<'_>, wanted: bool) {
    loader.map_max_entries("CONNECTIONS", if wanted { MOST_CONNECTIONS } else { 1 });
}

/// The programs of one instance, and what they are told.
pub struct Answered {
    cells: Cells,
    namespaces: HashMap<MapData, u32, u64>,
    cgroups: HashMap<MapData, u64, u32>,
    generations: Generations,
    /// Of the programs of this instance.
    generation: u32,
    layout: Result<&'static Layout, Unavailable>,
    is_attached: bool,
}

impl Answered {
    pub(super) fn open(
        ebpf: &mut Ebpf,
        layout: Result<&'static Layout, Unavailable>,
        generation: u32,
    ) -> Result<Self, Error> {
        let generations = Array::try_from(take(ebpf, generation::MAP)?);
        Ok(Self {
            generations: Generations::new(generations.map_err(map_error(generation::MAP))?),
            generation,
            cells: Cells::new(take(ebpf, "ANSWERED")?, "ANSWERED")?,
            namespaces: HashMap::try_from(take(ebpf, NAMESPACES)?)
                .map_err(map_error(NAMESPACES))?,
            cgroups: HashMap::try_from(take(ebpf, "CGROUPS")?).map_err(map_error("CGROUPS"))?,
            layout,
            is_attached: false,
        })
    }

    /// Why nothing is counted here, if so.
    pub fn unavailable(&self) -> Option<&Unavailable> {
        self.layout.as_ref().err()
    }

    /// Takes the sockets of a cgroup and of those below it for the target's. Not for the root: there the hook
    /// itself sees what the kernel answers in nobody's name.
    ///
    /// What the kernel refuses is remembered as the reason and no error: the hook counts without it.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        links: &mut Links,
        directory: &fs::File,
        id: u64,
    ) -> Result<(), Error> {
        if self.layout.is_err() {
            return Ok(());
        }
        if let Err(source) = self.cgroups.insert(id, 1, 0) {
            self.refuse(source, "CGROUPS", MOST_CGROUPS)?;
            // As below.
            return Ok(self.give_up(ebpf, links)?);
        }
        let attached = match self.is_attached {
            true => Ok(()),
            false => self.attach_tracepoints(ebpf, links),
        };
        let attached = attached.and_then(|()| {
            OF_SOCKETS.into_iter().try_for_each(|(hook, name)| {
                let program = descriptor(ebpf, name).map_err(|_| not_loaded(name))?;
                match links.attach((id, hook), program, directory.as_fd()) {
                    // Another program lets none in beside it, as `ip vrf exec` attaches its own: the namespaces
                    // are those that the agent finds then, a moment later.
                    Err(AttachError::Refused(error))
                        if hook == Hook::Create && error.raw_os_error() == Some(libc::EPERM) =>
                    {
                        Ok(())
                    }
                    attached => attached.map_err(|error| refused_link(name, error)),
                }
            })
        });
        if let Err(refused) = attached {
            self.layout = Err(refused);
            // Nobody would read what the others count.
            self.give_up(ebpf, links)?;
        }
        Ok(())
    }

    /// Takes over from the generation before: the programs that hang on the tracepoints stop, and these begin.
    pub(super) fn take_over(
        &mut self,
        ebpf: &mut Ebpf,
        links: &mut Links,
        earlier: &[Pins],
    ) -> Result<(), Error> {
        if self.layout.is_ok()
            && let Err(refused) = self.attach_tracepoints(ebpf, links)
        {
            self.layout = Err(refused);
            self.give_up(ebpf, links)?;
        }
        links.remove_earlier_tracepoints(earlier)
    }

    /// Loads what hangs on tracepoints, attaches it, and puts it in force.
    fn attach_tracepoints(
        &mut self,
        ebpf: &mut Ebpf,
        links: &mut Links,
    ) -> Result<(), Unavailable> {
        self.is_attached = true;
        // Where they are not known, nothing is loaded.
        let Ok(layout) = self.layout else { return Ok(()) };
        load(ebpf, layout)?;
        for (name, _) in layout.programs() {
            let program = descriptor(ebpf, name).map_err(|_| not_loaded(name))?;
            links
                .attach_to_tracepoint(self.generation, name, program)
                .map_err(|error| refused_link(name, error))?;
        }
        self.generations
            .put_in_force(self.generation)
            .map_err(|error| refused(PROGRAMS[0].0, error.into()))
    }

    /// Detaches and unloads everything of this kind.
    fn give_up(&self, ebpf: &mut Ebpf, links: &mut Links) -> Result<(), LinkError> {
        links.leave_tracepoints()?;
        unload(ebpf);
        Ok(())
    }

    /// Forgets all cgroups but these: others ended while no agent ran, and the map has room for few.
    pub(super) fn keep_cgroups(&mut self, ids: &[u64]) -> Result<(), Error> {
        let known: Vec<u64> =
            self.cgroups.keys().collect::<Result<_, _>>().map_err(map_error("CGROUPS"))?;
        known.into_iter().filter(|id| !ids.contains(id)).try_for_each(|id| self.forget_cgroup(id))
    }

    /// Whether [`Answered::attach`] came to its end for a cgroup, or has nothing to do.
    pub(super) fn is_attached(&self, links: &Links, id: u64) -> bool {
        let is_told = || self.cgroups.get(&id, 0).is_ok();
        // The last one that hangs on it.
        self.layout.is_err() || (links.has((id, Hook::Release)) && is_told())
    }

    /// Forgets a cgroup that is gone.
    pub(super) fn forget_cgroup(&mut self, id: u64) -> Result<(), Error> {
        match self.cgroups.remove(&id) {
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            other => other.map_err(map_error("CGROUPS")),
        }
    }

    /// Takes these network namespaces, by their inodes, for the target's: what comes there may be for it. Of
    /// others only those stay in which the program has seen it make a socket lately.
    pub fn set_namespaces(&mut self, inodes: &[u64]) -> Result<(), Error> {
        // They are 32-bit numbers. Source: `struct ns_common`, include/linux/ns_common.h.
        let wanted: BTreeSet<u32> =
            inodes.iter().filter_map(|&inode| u32::try_from(inode).ok()).collect();
        let known: BTreeMap<u32, u64> =
            self.namespaces.iter().collect::<Result<_, _>>().map_err(map_error(NAMESPACES))?;
        let now = monotonic();
        let is_recent = |noted_ns: u64| {
            noted_ns != 0 && now.saturating_sub(Duration::from_nanos(noted_ns)) < STAYS
        };
        let (mut noted, gone): (Vec<_>, Vec<_>) = known
            .iter()
            .filter(|(inode, _)| !wanted.contains(inode))
            .map(|(&inode, &noted_ns)| (noted_ns, inode))
            .partition(|(noted_ns, _)| is_recent(*noted_ns));
        // The oldest make room for those with a process, and for what the program will note next.
        let most = MOST_NAMESPACES as usize;
        let room = (most / 2).min(most.saturating_sub(wanted.len()));
        noted.sort_unstable();
        noted.truncate(noted.len().saturating_sub(room));
        for (_, inode) in noted.into_iter().chain(gone) {
            self.namespaces.remove(&inode).map_err(map_error(NAMESPACES))?;
        }
        for inode in wanted {
            if known.contains_key(&inode) {
                continue;
            }
            match self.namespaces.insert(inode, 0, NOEXIST) {
                // The program was faster.
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return self.refuse(source, NAMESPACES, MOST_NAMESPACES),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// A full map is no error: the hook counts without it.
    fn refuse(&mut self, source: MapError, map: &'static str, most: u32) -> Result<(), Error> {
        let error = map_error(map)(source);
        if error.errno() != Some(libc::E2BIG) {
            return Err(error);
        }
        self.layout = Err(Unavailable::TooMany(most));
        Ok(())
    }

    /// Adds what was counted in interface slots to the end of a sample: [`ANSWERED_ELEMENTS`] elements, of which
    /// the last goes with slot 0. Returns the slots in which something was counted.
    ///
    /// [`ANSWERED_ELEMENTS`]: traffic_ebpf::ANSWERED_ELEMENTS
    pub(super) fn sample(&self, slots: Slots, cells: &mut [Cell]) -> Result<Slots, Error> {
        // Also where nothing is counted now: what was counted before stays.
        self.cells.read(slots, cells)
    }

    /// How often a program was not run because it was running on that CPU already; `None` where the kernel
    /// does not say.
    pub(super) fn missed(&self, ebpf: &Ebpf) -> Option<u64> {
        let misses = self.layout.as_ref().ok()?.programs().map(|(name, _)| {
            let program: &BtfTracePoint = ebpf.program(name)?.try_into().ok()?;
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            // Since 5.12. Source: `bpf_prog_show_fdinfo()`, kernel/bpf/syscall.c.
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
            line.trim().parse::<u64>().ok()
        });
        misses.sum()
    }
}

/// Loads the programs of the tracepoints, and those of sockets.
fn load(ebpf: &mut Ebpf, layout: &Layout) -> Result<(), Unavailable> {
    let btf = AyaBtf::parse(&btf::of_tracepoints(&layout.tracepoints), Endianness::default())
        .map_err(|error| refused(PROGRAMS[0].0, error.into()))?;
    for (name, tracepoint) in layout.programs() {
        let mut load = || -> Result<(), Cause> {
            let program = ebpf.program_mut(name).ok_or("it is not in the object")?;
            let program: &mut BtfTracePoint = program.try_into()?;
            Ok(program.load(tracepoint, &btf)?)
        };
        load().map_err(|error| refused(name, error))?;
    }
    load_of_sockets(ebpf)
}

/// Loads the programs of sockets, if they are not loaded yet.
pub(super) fn load_of_sockets(ebpf: &mut Ebpf) -> Result<(), Unavailable> {
    for (_, name) in OF_SOCKETS {
        let mut load = || -> Result<(), Cause> {
            let program = ebpf.program_mut(name).ok_or("it is not in the object")?;
            let program: &mut CgroupSock = program.try_into()?;
            if program.fd().is_err() {
                program.load()?;
            }
            Ok(())
        };
        load().map_err(|error| refused(name, error))?;
    }
    Ok(())
}

/// The clock of `bpf_ktime_get_ns()`.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

fn not_loaded(program: &'static str) -> Unavailable {
    refused(program, "it is not loaded".into())
}

fn refused_link(program: &'static str, error: AttachError) -> Unavailable {
    match error {
        AttachError::Refused(source) => refused(program, source.into()),
        AttachError::Pin(source) => refused(program, source.into()),
    }
}

fn unload(ebpf: &mut Ebpf) {
    for (name, _) in PROGRAMS.into_iter().chain([ICMP]) {
        let program: Option<&mut BtfTracePoint> =
            ebpf.program_mut(name).and_then(|program| program.try_into().ok());
        if let Some(program) = program {
            // It fails only for one that was not loaded.
            let _ = program.unload();
        }
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, Error> {
    ebpf.take_map(name).ok_or(Error::Foreign { kind: "map", name })
}

fn map_error(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { action: "use", map, source }
}

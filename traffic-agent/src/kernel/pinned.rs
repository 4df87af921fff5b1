//! Counting that outlives the agent: an instance whose maps and links are pinned.
//!
//! Whoever opens the pins loads the programs anew upon the pinned maps and puts them in the place of those
//! that run: so a start, a restart and an upgrade are the same thing, and the programs are always this
//! agent's. Only a changed ABI needs counters of its own: then the earlier ones are [`Retired`] and read
//! to the end.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use traffic_ebpf::{
    ANSWERED_ELEMENTS, CELLS_PER_INTERFACE, INTERFACE_SLOTS, InterfaceSums, SLOT_OWNERS_ENTRIES,
    TABLE_BYTES, TABLES,
};

use super::{
    CELLS, Counter, Error, Options, PROGRAMS, Sample, answered,
    attached::Hook,
    bpf,
    cells::{Cells, Slots},
    descriptor,
    generation::{self, Generations},
    links::{self, Links, Reach},
    pins::{self, PinRoot, Pins},
    selection, with_locked_memory,
};

const ANSWERED: &str = "ANSWERED";

/// The maps whose layout is the ABI's: an agent of another begins new ones.
pub(super) const COUNTERS: [&str; 2] = [CELLS, ANSWERED];

/// The maps that an agent of another ABI takes over. Whoever changes the layout of one gives it another name: it
/// begins empty then.
pub(super) const SHARED: [&str; 11] = [
    "SLOTS",
    "SLOT_OWNERS",
    "INHERITED",
    "RECEIVED",
    answered::NAMESPACES,
    "CGROUPS",
    "CONNECTIONS",
    "LAST",
    generation::MAP,
    selection::MAPS[0],
    selection::MAPS[1],
];

/// How long the counters of an earlier version are read on. Programs that were running when the links were
/// switched have ended then: none takes a millisecond.
const READ_ON: Duration = Duration::from_secs(2);

/// `MEMBARRIER_CMD_GLOBAL`, include/uapi/linux/membarrier.h: returns when every CPU has left what it was
/// doing in the kernel, eBPF programs included. Source: `synchronize_rcu()` in kernel/sched/membarrier.c.
const MEMBARRIER_GLOBAL: libc::c_long = 1;

/// The pinned maps, held open so that they can be pinned again.
pub(super) type PinnedMaps = Vec<(&'static str, OwnedFd)>;

/// Counters of an earlier version, which nothing adds to any more.
pub struct Retired {
    pins: Pins,
    cells: Cells,
    answered: Cells,
    since: Instant,
}

impl Counter {
    /// Opens what is pinned for a target, or begins it. Nothing new is attached; what was attached goes on
    /// counting, from here on by this agent's programs.
    ///
    /// Every packet is counted by the programs before or by these, never by both. Counters of an earlier
    /// ABI come with it: they are to be read until [`Retired::is_final`].
    pub fn open(
        options: &Options,
        root: &PinRoot,
        name: &str,
    ) -> Result<(Self, Vec<Retired>), Error> {
        let pins = root.target(name);
        let earlier = root.earlier(name)?;
        pins.create()?;
        for earlier in &earlier {
            take_over_maps(earlier, &pins, SHARED)?;
        }
        check_layouts(&pins)?;
        let generation = next_generation(&pins, &earlier)?;
        let counter = with_locked_memory(|| {
            let (mut ebpf, mut layout) = Self::load_programs(options, generation, Some(&pins))?;
            if layout.is_ok()
                && let Err(refused) = answered::load_of_sockets(&mut ebpf)
            {
                layout = Err(refused);
            }
            for pins in earlier.iter().chain([&pins]) {
                if links::any_selects(pins)? {
                    selection::load(&mut ebpf)?;
                }
            }
            let of_sockets = if layout.is_ok() { &answered::OF_SOCKETS[..] } else { &[] };
            let mut counter = Self::assemble(ebpf, layout, generation, |ebpf| {
                let program = |reach, wanted: Hook| {
                    let programs = match reach {
                        Reach::Whole => &PROGRAMS[..],
                        Reach::Selected => &selection::SELECTING,
                    };
                    let mut known = programs.iter().chain(of_sockets);
                    let (_, name) = known.find(|(hook, _)| *hook == wanted)?;
                    descriptor(ebpf, name).ok()
                };
                Links::adopt(pins.clone(), &earlier, program)
            })?;
            counter.keep_selected(&counter.links.cgroups())?;
            let Self { ebpf, links, answered, .. } = &mut counter;
            answered.keep_cgroups(&links.cgroups())?;
            // Nothing to take over from: they are attached with the first cgroup.
            if !links.cgroups().is_empty() {
                answered.take_over(ebpf, links, &earlier)?;
            }
            for name in COUNTERS.into_iter().chain(SHARED) {
                let path = pins.map(name);
                let map = bpf::open_pinned(&path).map_err(pin_error(&path))?;
                counter.pinned_maps.push((name, map));
            }
            Ok::<_, Error>(counter)
        })?;
        let mut retired = Vec::new();
        for earlier in earlier {
            if COUNTERS.iter().all(|name| earlier.map(name).exists()) {
                retired.push(Retired::open(earlier)?);
            } else {
                // Begun, and killed before all was pinned, and so before it counted; or read to the end, and killed
                // when it was removed.
                earlier.remove()?;
            }
        }
        Ok((counter, retired))
    }

    /// Pins again what is pinned no longer, because somebody has unmounted the bpf filesystem or removed
    /// the files. Returns whether that was so.
    pub fn pin_again(&self, root: &PinRoot, name: &str) -> Result<bool, Error> {
        let pins = root.target(name);
        if pins.exist() {
            return Ok(false);
        }
        // Below the mount point of another one directories would be made.
        root.require_bpffs()?;
        pins.create()?;
        self.links.pin_again()?;
        // The cells last: they say that all of it is pinned.
        for (name, map) in self.pinned_maps.iter().rev() {
            let path = pins.map(name);
            if !path.exists() {
                bpf::pin(map, &path).map_err(pin_error(&path))?;
            }
        }
        Ok(true)
    }
}

fn pin_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| pins::Error::File { action: "pin a map at", path, source }.into()
}

/// Pins the maps that both versions use in the later one's place too.
pub(super) fn take_over_maps(
    earlier: &Pins,
    pins: &Pins,
    names: impl IntoIterator<Item = &'static str>,
) -> Result<(), Error> {
    for name in names {
        let (from, to) = (earlier.map(name), pins.map(name));
        if from.exists() && !to.exists() {
            let map = bpf::open_pinned(&from).map_err(pin_error(&from))?;
            bpf::pin(map, &to).map_err(pin_error(&to))?;
        }
    }
    Ok(())
}

/// Compares pinned maps with what this agent expects: a map of another layout opens without an error.
fn check_layouts(pins: &Pins) -> Result<(), Error> {
    let expected = [
        (CELLS, size_of::<InterfaceSums>(), INTERFACE_SLOTS),
        (ANSWERED, size_of::<InterfaceSums>(), ANSWERED_ELEMENTS),
        ("SLOTS", TABLES * TABLE_BYTES, 1),
        ("SLOT_OWNERS", 4, SLOT_OWNERS_ENTRIES as usize),
        (generation::MAP, 4, Generations::possible_cpus() as usize),
    ];
    for (name, value_size, entries) in expected {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|source| Error::Map {
            action: "open",
            map: name,
            source,
        })?;
        let found = (info.value_size() as usize, info.max_entries() as usize);
        if found != (value_size, entries) {
            let words = |(bytes, entries)| format!("{entries} values of {bytes} bytes");
            return Err(pins::Error::Layout {
                path,
                found: words(found),
                expected: words((value_size, entries)),
            }
            .into());
        }
    }
    Ok(())
}

/// Returns a number that no generation on the tracepoints has that is in force, or may come into force: also none
/// of a version before, which was killed before it came into force.
fn next_generation(pins: &Pins, earlier: &[Pins]) -> Result<u32, Error> {
    let path = pins.map(generation::MAP);
    if !path.exists() {
        return Ok(0);
    }
    let map = open_array(&path, generation::MAP)?;
    let mut hanging = pins.link_names()?;
    for earlier in earlier {
        hanging.extend(earlier.link_names()?);
    }
    let hanging = hanging
        .iter()
        .filter_map(|name| name.strip_prefix('t')?.split_once('_')?.0.parse::<u32>().ok());
    let latest = hanging.chain([generation::of_pinned(&map)?]).max().unwrap_or(0);
    Ok(latest.wrapping_add(1))
}

fn open_array<V: aya::Pod>(path: &Path, name: &'static str) -> Result<Array<MapData, V>, Error> {
    let map_error = |source: MapError| Error::Map { action: "open", map: name, source };
    let data = MapData::from_pin(path).map_err(map_error)?;
    Array::try_from(Map::Array(data)).map_err(map_error)
}

impl Retired {
    /// Opens the counters of an earlier version. All of them had the layout of today.
    fn open(pins: Pins) -> Result<Self, Error> {
        let open = |map| {
            MapData::from_pin(pins.map(map)).map_err(|source| Error::Map {
                action: "open",
                map,
                source,
            })
        };
        let cells = Cells::new(Map::PerCpuArray(open(CELLS)?), CELLS)?;
        let answered = Cells::new(Map::Array(open(ANSWERED)?), ANSWERED)?;
        // Where it is refused, because the kernel serves its ticks to some CPUs only, time does it alone.
        // SAFETY: takes three numbers.
        unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
        Ok(Self { pins, cells, answered, since: Instant::now() })
    }

    /// Id of the map of these counters.
    pub fn map_id(&self) -> u32 {
        self.cells.id()
    }

    /// Reads them. Their places stand for what the same places of the [`Counter`] stand for.
    pub fn sample(&self) -> Result<Sample, Error> {
        let mut sample = Sample::zero(Instant::now());
        let (own, answered) = sample.cells.split_at_mut(INTERFACE_SLOTS * CELLS_PER_INTERFACE);
        self.answered.read(Slots::ALL, answered)?;
        self.cells.read(Slots::ALL, own)?;
        Ok(sample)
    }

    /// Whether what a sample gives now will not change any more.
    pub fn is_final(&self) -> bool {
        self.final_in().is_zero()
    }

    /// How long it may still change.
    pub fn final_in(&self) -> Duration {
        READ_ON.saturating_sub(self.since.elapsed())
    }

    /// Removes their pins. To be called when a sample taken after [`Retired::is_final`] is safe.
    pub fn remove(self) -> Result<(), Error> {
        Ok(self.pins.remove()?)
    }
}

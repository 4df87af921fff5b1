//! The instance on the root of the cgroup tree, which counts what every cgroup of the host uses.
//!
//! It counts into one of two hash maps at a time. [`HostCounter::turn`] makes it count into the other one, and
//! waits until no program is left that adds to the first: from then on that one is at rest, so that it can be
//! read for good and emptied. Nothing is ever taken out of the map that is in use.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use traffic_ebpf::{Cell, DIRECTIONS, HOST_ENTRIES, HostKey, HostSums, OFFSETS};

use super::{
    Error, answered,
    attached::Hook,
    btf::Btf,
    descriptor, directory_id,
    generation::{self, Generations},
    links::{Links, Reach},
    load_error, load_skb, object, open_directory,
    pinned::{COUNTERS, take_over_maps},
    pins::{self, PinRoot, Pins},
    probe, with_locked_memory,
};

const PROGRAMS: [(Hook, &str); 2] =
    [(Hook::Ingress, "count_host_ingress"), (Hook::Egress, "count_host_egress")];
const MAPS: [&str; 2] = ["HOST_EVEN", "HOST_ODD"];
const OVERFLOW: &str = "HOST_OVERFLOW";
const TURN: &str = "HOST_TURN";
const BARRIER: &str = "HOST_BARRIER";
/// The maps that outlive the agent. An agent of another ABI takes them over: whoever changes the layout of one
/// must read the old ones to their end.
const PINNED: [&str; 4] = [MAPS[0], MAPS[1], OVERFLOW, TURN];
/// The name beside the targets' in the pins.
const PINS: &str = pins::HOST;

/// Both directions of a key.
pub type HostCells = [Cell; DIRECTIONS];

/// A key; a type of our own, so that it can be aya's `Pod`.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Key(HostKey);

// SAFETY: `repr(transparent)` over a `HostKey`, which is `repr(C)`, one `u64` and two `u32`s, no padding; every
// bit pattern is a valid value.
unsafe impl aya::Pod for Key {}

/// A value, likewise.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value([HostSums; DIRECTIONS]);

// SAFETY: `repr(transparent)` over an array of `HostSums`, which is `repr(C)`, four `u64`s, no padding; every bit
// pattern is a valid value.
unsafe impl aya::Pod for Value {}

/// The counters of one turn: they only grow until the turn is over, and are at rest then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSample {
    /// How often was turned before.
    pub turn: u64,
    /// By cgroup, namespace and interface.
    pub cells: BTreeMap<HostKey, HostCells>,
    /// What found no place.
    pub overflow: HostCells,
}

impl HostSample {
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.overflow == HostCells::default()
    }
}

/// The instance. It counts from [`HostCounter::attach`] on: until it is dropped, or as long as it is pinned.
pub struct HostCounter {
    /// Owns the programs.
    ebpf: Ebpf,
    links: Links,
    maps: [PerCpuHashMap<MapData, Key, Value>; 2],
    overflow: PerCpuArray<MapData, Value>,
    turn: Array<MapData, u64>,
    barrier: ArrayOfMaps<MapData, Array<MapData, u64>>,
    tells_namespaces: bool,
    map_id: u32,
    /// Capacity of each map.
    entries: usize,
}

impl HostCounter {
    /// Loads the programs and creates the maps. Nothing is attached yet.
    pub fn load() -> Result<Self, Error> {
        Self::load_with(HOST_ENTRIES)
    }

    /// The same with room for so many keys in each map: a test fills them.
    pub fn load_with(entries: u32) -> Result<Self, Error> {
        with_locked_memory(|| Self::assemble(load_programs(entries, None)?, |_| Ok(Links::held())))
    }

    /// Opens what is pinned, or begins it: counting goes on when the agent ends. What was attached goes on
    /// counting, from here on by this agent's programs.
    pub fn open(root: &PinRoot) -> Result<Self, Error> {
        let pins = root.target(PINS);
        let earlier = root.earlier(PINS)?;
        pins.create()?;
        for earlier in &earlier {
            take_over_maps(earlier, &pins, PINNED)?;
        }
        let counter = with_locked_memory(|| {
            let ebpf = load_programs(HOST_ENTRIES, Some(&pins))?;
            Self::assemble(ebpf, |ebpf| {
                let program = |reach, wanted: Hook| {
                    let of_hook = |(hook, _): &&(Hook, _)| *hook == wanted && reach == Reach::Whole;
                    let (_, name) = PROGRAMS.iter().find(of_hook)?;
                    descriptor(ebpf, name).ok()
                };
                Links::adopt(pins.clone(), &earlier, program)
            })
        })?;
        for earlier in earlier {
            earlier.remove()?;
        }
        Ok(counter)
    }

    /// Ends what is pinned, if there is anything.
    pub fn remove_pins(root: &PinRoot) -> Result<(), Error> {
        Ok(root.target(PINS).remove()?)
    }

    fn assemble(
        mut ebpf: Ebpf,
        links: impl FnOnce(&Ebpf) -> Result<Links, Error>,
    ) -> Result<Self, Error> {
        let links = links(&ebpf)?;
        let [even, odd] = MAPS;
        let entries = match ebpf.map(even) {
            Some(Map::PerCpuHashMap(map)) => map.info().map_err(map_error("read", even))?,
            _ => return Err(foreign(even)),
        };
        let Map::Array(turn) = take(&mut ebpf, TURN)? else { return Err(foreign(TURN)) };
        let map_id = turn.info().map_err(map_error("read", TURN))?.id();
        Ok(Self {
            maps: [open(&mut ebpf, even)?, open(&mut ebpf, odd)?],
            overflow: open(&mut ebpf, OVERFLOW)?,
            turn: Map::Array(turn).try_into().map_err(map_error("open", TURN))?,
            barrier: open(&mut ebpf, BARRIER)?,
            tells_namespaces: namespace_offsets().is_some(),
            map_id,
            entries: entries.max_entries() as usize,
            links,
            ebpf,
        })
    }

    /// Attaches to the root of the cgroup tree, if it is not yet: from now on every packet of every socket is
    /// counted.
    pub fn attach(&mut self, root: &Path) -> Result<(), Error> {
        let directory = open_directory(root)?;
        let id = directory_id(&directory, root)?;
        for (hook, name) in PROGRAMS {
            let program = descriptor(&self.ebpf, name)?;
            let attached = self.links.attach((id, hook), program, directory.as_fd());
            attached.map_err(|error| error.of(name, root))?;
        }
        Ok(())
    }

    /// Whether packets are told apart by network namespace. If not, the numbers of interfaces are all that is
    /// known: those of several namespaces are mixed up.
    pub fn tells_namespaces(&self) -> bool {
        self.tells_namespaces
    }

    /// Id of the map that holds the number of turns, unique until reboot: it stands for all of them.
    pub fn map_id(&self) -> u32 {
        self.map_id
    }

    /// Ids of the programs, ingress and egress. `None` where the kernel does not say.
    pub fn program_ids(&mut self) -> Option<[u32; 2]> {
        let mut id = |(_, name)| Some(load_skb(&mut self.ebpf, name).ok()?.info().ok()?.id());
        let [ingress, egress] = PROGRAMS;
        Some([id(ingress)?, id(egress)?])
    }

    /// Whether so many keys are taken that it is time to turn to the other map.
    pub fn is_filling(&self, sample: &HostSample) -> bool {
        sample.cells.len() >= self.entries / 2
    }

    /// Reads the counters that are in use.
    pub fn sample(&self) -> Result<HostSample, Error> {
        self.read(self.current_turn()?)
    }

    /// Reads those of the turn before, if there was one: at rest, and empty once [`Self::clear_previous`] has
    /// run.
    pub fn previous(&self) -> Result<Option<HostSample>, Error> {
        self.current_turn()?.checked_sub(1).map(|turn| self.read(turn)).transpose()
    }

    /// Makes the programs count into the other map. On return no program adds to the one before any more.
    ///
    /// The other one must be empty ([`Self::clear_previous`]).
    pub fn turn(&mut self) -> Result<(), Error> {
        let next = self.current_turn()? + 1;
        self.turn.set(0, next, 0).map_err(map_error("write", TURN))?;
        // The kernel waits for all programs that may have read the turn before; what is written does not matter.
        let any = Array::create(1, 0).map_err(map_error("create", BARRIER))?;
        self.barrier.set(0, &any, 0).map_err(map_error("write", BARRIER))
    }

    /// Empties the map of the turn before, which is at rest.
    pub fn clear_previous(&mut self) -> Result<(), Error> {
        let Some(turn) = self.current_turn()?.checked_sub(1) else { return Ok(()) };
        let index = parity(turn);
        let (map, name) = (&mut self.maps[index], MAPS[index]);
        // Collected first, because taking out what the walk has just shown makes it begin anew.
        let keys: Vec<Key> =
            map.keys().collect::<Result<_, _>>().map_err(map_error("read", name))?;
        for key in keys {
            map.remove(&key).map_err(map_error("write", name))?;
        }
        let io_error = |source: io::Error| map_error("write", OVERFLOW)(source.into());
        let cpus = nr_cpus().map_err(|(_, source)| io_error(source))?;
        let zero = vec![Value([HostSums::ZERO; DIRECTIONS]); cpus];
        let zero = PerCpuValues::try_from(zero).map_err(io_error)?;
        self.overflow.set(index as u32, zero, 0).map_err(map_error("write", OVERFLOW))
    }

    fn current_turn(&self) -> Result<u64, Error> {
        self.turn.get(&0, 0).map_err(map_error("read", TURN))
    }

    fn read(&self, turn: u64) -> Result<HostSample, Error> {
        let index = parity(turn);
        let mut cells = BTreeMap::new();
        for entry in self.maps[index].iter() {
            let (Key(key), values) = entry.map_err(map_error("read", MAPS[index]))?;
            cells.insert(key, sum(&values));
        }
        let overflow =
            self.overflow.get(&(index as u32), 0).map_err(map_error("read", OVERFLOW))?;
        Ok(HostSample { turn, cells, overflow: sum(&overflow) })
    }
}

/// Loads the programs upon maps: those that are pinned, or new ones.
fn load_programs(entries: u32, pins: Option<&Pins>) -> Result<Ebpf, Error> {
    let object = object::bytes()?;
    let offsets = namespace_offsets();
    let delivered_again = u32::from(probe::may_read_packets());
    let mut loader = EbpfLoader::new();
    answered::size_maps(&mut loader, false);
    loader.btf(None).map_max_entries(generation::MAP, Generations::possible_cpus());
    for map in COUNTERS {
        loader.map_max_entries(map, 1);
    }
    for map in MAPS {
        loader.map_max_entries(map, entries);
    }
    for (name, offset) in offsets.iter().flatten() {
        loader.override_global(name, offset, true);
    }
    loader.override_global("DELIVERED_AGAIN", &delivered_again, true);
    if let Some(pins) = pins {
        for name in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(&object).map_err(|source| Error::Load { source })?;
    drop(loader);
    for (_, name) in PROGRAMS {
        load_skb(&mut ebpf, name)?.load().map_err(load_error)?;
    }
    Ok(ebpf)
}

fn parity(turn: u64) -> usize {
    (turn & 1) as usize
}

fn sum(values: &PerCpuValues<Value>) -> HostCells {
    let mut sums = [HostSums::ZERO; DIRECTIONS];
    for Value(value) in values.iter() {
        for (sum, one) in sums.iter_mut().zip(value) {
            sum.add(one);
        }
    }
    sums.map(|sums| sums.cell())
}

/// Makes the maps small in an instance that does not use them.
pub(super) fn size_maps(loader: &mut EbpfLoader<'_>) {
    for map in MAPS {
        loader.map_max_entries(map, 1);
    }
}

/// Where the running kernel keeps a socket's namespace, and that its number.
fn namespace_offsets() -> Option<[(&'static str, u32); 2]> {
    let btf = Btf::of_running_kernel().ok()?;
    let find = |wanted| {
        let &(name, structure, member) = OFFSETS.iter().find(|(name, ..)| *name == wanted)?;
        Some((name, btf.offset(structure, member).ok()?))
    };
    let (socket, net) = (find("SOCK_NET")?, find("NET_INUM")?);
    // The program reads the beginning of the socket, up to here.
    (socket.1 <= 56 && socket.1 % 8 == 0).then_some([socket, net])
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or(foreign(name))
}

fn open<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    take(ebpf, name)?.try_into().map_err(map_error("open", name))
}

fn foreign(name: &'static str) -> Error {
    Error::Foreign { kind: "map", name }
}

fn map_error(action: &'static str, map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { action, map, source }
}

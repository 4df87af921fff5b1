//! The maps of a running agent, opened a second time: to count what nobody can send in a test's time.
//!
//! What is added here stands where the program would have added it, so whatever reads it is the agent as
//! it is. There must be no traffic meanwhile: a value is read, changed and written back.

use std::fs;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use traffic_ebpf::{
    ANSWERED_SEEN, Cell, INTERFACE_SLOTS, InterfaceSums, Sums, TABLE_INTERFACE, owner_parts,
    slot_key, slot_owner,
};

/// An element of the maps `CELLS` and `ANSWERED`; a type of our own, so that it can be aya's `Pod`.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Element(InterfaceSums);

// SAFETY: `repr(transparent)` over `InterfaceSums`, which is `repr(C)` and made of `u64`s.
unsafe impl Pod for Element {}

/// The maps of one agent with one target.
pub struct Seeds {
    cells: PerCpuArray<MapData, Element>,
    answered: Array<MapData, Element>,
    owners: HashMap<MapData, u32, u32>,
}

impl Seeds {
    /// Opens the maps of a process.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            cells: PerCpuArray::try_from(open(pid, "CELLS")?)?,
            answered: Array::try_from(open(pid, "ANSWERED")?)?,
            owners: HashMap::try_from(open(pid, "SLOT_OWNERS")?)?,
        })
    }

    /// The slot that a port has claimed.
    pub fn port_slot(&self, table: u32, port: u16) -> Result<u8> {
        let owners: Vec<(u32, u32)> = self.owners.iter().collect::<Result<_, MapError>>()?;
        let found = owners.iter().find(|(_, owner)| owner_parts(*owner) == (table, port));
        let (slot, _) =
            found.with_context(|| format!("port {port} of table {table} has no slot"))?;
        Ok(u8::try_from(*slot)?)
    }

    /// Gives an interface a free slot, as its first packet does.
    pub fn give_slot(&mut self, slot: u8, interface: u16) -> Result<()> {
        let owner = slot_owner(TABLE_INTERFACE, interface);
        // BPF_NOEXIST
        Ok(self.owners.insert(slot_key(TABLE_INTERFACE, slot), owner, 1)?)
    }

    /// Counts in one cell of the hook: as much on each CPU as is said of it, nothing on the others.
    pub fn count(&mut self, interface_slot: u8, index: usize, per_cpu: &[Cell]) -> Result<()> {
        let slot = u32::from(interface_slot);
        let mut elements: Vec<Element> = self.cells.get(&slot, 0)?.to_vec();
        ensure!(per_cpu.len() <= elements.len(), "there are only {} CPUs", elements.len());
        for (Element(InterfaceSums { cells, .. }), added) in elements.iter_mut().zip(per_cpu) {
            ensure!(cells[index] == Sums::default(), "something was counted there already");
            cells[index] = sums(added);
        }
        Ok(self.cells.set(slot, PerCpuValues::try_from(elements)?, 0)?)
    }

    /// The same in a cell of what the kernel exchanged without a socket, and a tracepoint showed: all
    /// CPUs share it.
    pub fn count_answered(&mut self, interface_slot: u8, index: usize, added: Cell) -> Result<()> {
        let element = u32::try_from(ANSWERED_SEEN * INTERFACE_SLOTS)? + u32::from(interface_slot);
        let mut of_slot = self.answered.get(&element, 0)?;
        let Element(InterfaceSums { cells, .. }) = &mut of_slot;
        ensure!(cells[index] == Sums::default(), "something was counted there already");
        cells[index] = sums(&added);
        Ok(self.answered.set(element, of_slot, 0)?)
    }
}

/// What the program would have added up for a cell.
fn sums(cell: &Cell) -> Sums {
    Sums {
        packets: cell.packets,
        bytes: cell.bytes,
        payload_bytes: cell.payload_bytes,
        split_packets: cell.wire_packets - cell.packets,
        split_bytes: cell.wire_bytes.wrapping_sub(cell.bytes),
        retransmitted_bytes: cell.retransmitted_bytes,
    }
}

/// The number of CPUs that there can be: of the values in a per-CPU map.
pub fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))
}

/// The map of this name among the descriptors of a process.
fn open(pid: u32, name: &str) -> Result<Map> {
    let directory = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        if let Some(id) = id {
            let map = MapData::from_id(id.trim().parse()?)?;
            if map.info()?.name_as_str() == Some(name) {
                return Ok(Map::from_map_data(map)?);
            }
        }
    }
    anyhow::bail!("process {pid} has no map {name}")
}

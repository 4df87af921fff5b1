//! Reading the counters out of their maps.
//!
//! It is done every second for months, so without aya, which gives each element memory of its own and copies it
//! three times more. All go through one buffer, and what nobody can have counted in is not read.

use std::{cell::RefCell, io, os::fd::AsFd as _};

use aya::{
    maps::{Map, MapData, MapError},
    util::nr_cpus,
};
use traffic_ebpf::{CELLS_PER_INTERFACE, Cell, INTERFACE_SLOTS, InterfaceSums, Sums};

use super::{Error, bpf};

/// An array of counters, whose elements each CPU has for itself or which all of them share.
pub(super) struct Cells {
    map: MapData,
    id: u32,
    name: &'static str,
    /// One element as the kernel gives it.
    buffer: RefCell<Vec<InterfaceSums>>,
}

impl Cells {
    /// Takes a map. One of another layout is refused.
    pub(super) fn new(map: Map, name: &'static str) -> Result<Self, Error> {
        let failed = |source| Error::Map { action: "read", map: name, source };
        let (map, copies) = match map {
            Map::PerCpuArray(map) => {
                let cpus = nr_cpus().map_err(|(_, source)| failed(MapError::IoError(source)))?;
                (map, cpus)
            }
            Map::Array(map) => (map, 1),
            _ => return Err(Error::Foreign { kind: "array", name }),
        };
        let info = map.info().map_err(failed)?;
        if info.value_size() as usize != size_of::<InterfaceSums>() {
            return Err(Error::Foreign { kind: "array of cells", name });
        }
        Ok(Self {
            map,
            id: info.id(),
            name,
            buffer: RefCell::new(vec![InterfaceSums::ZERO; copies]),
        })
    }

    /// Id of the map, unique until reboot.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Reads one element after the other, those of the given slots, into cells that are zero. Returns the slots
    /// in which something was counted.
    pub(super) fn read(&self, slots: Slots, cells: &mut [Cell]) -> Result<Slots, Error> {
        let mut counted = Slots::NONE;
        let buffer = &mut *self.buffer.borrow_mut();
        for (element, cells) in (0_u32..).zip(cells.chunks_exact_mut(CELLS_PER_INTERFACE)) {
            let slot = (element as usize % INTERFACE_SLOTS) as u8;
            if !slots.has(slot) {
                continue;
            }
            let read = |error| self.failed(error);
            // SAFETY: the map's values have the size of an element, and there is one for each CPU that there can
            // be, or one for all.
            unsafe { bpf::look_up(self.map.fd().as_fd(), element, buffer) }.map_err(read)?;
            if sum(buffer, cells) {
                counted.add(slot);
            }
        }
        Ok(counted)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Map { action: "read", map: self.name, source: MapError::IoError(error) }
    }
}

/// Sums up what CPUs have counted; returns whether that is anything.
fn sum(copies: &[InterfaceSums], cells: &mut [Cell]) -> bool {
    let is_zero = |copy: &InterfaceSums| copy.cells.iter().all(|sums| *sums == Sums::default());
    if copies.iter().all(is_zero) {
        return false;
    }
    for (index, cell) in cells.iter_mut().enumerate() {
        let mut sum = Sums::default();
        copies.iter().for_each(|copy| sum.add(&copy.cells[index]));
        *cell = sum.cell();
    }
    true
}

/// A set of interface slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots(u8);

const _: () = assert!(INTERFACE_SLOTS <= u8::BITS as usize);

impl Slots {
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(u8::MAX);

    pub(super) fn has(self, slot: u8) -> bool {
        self.0 >> slot & 1 != 0
    }

    pub(super) fn add(&mut self, slot: u8) {
        self.0 |= 1 << slot;
    }

    pub(super) fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed_and_nothing_is_told_from_something() {
        let mut copies = vec![InterfaceSums::ZERO; 2];
        let mut cells = vec![Cell::default(); CELLS_PER_INTERFACE];
        assert!(!sum(&copies, &mut cells));
        let last = CELLS_PER_INTERFACE - 1;
        copies[0].cells[last] = Sums { packets: 1, bytes: 100, ..Sums::default() };
        copies[1].cells[last] = Sums { packets: 2, bytes: 50, ..Sums::default() };
        assert!(sum(&copies, &mut cells));
        assert_eq!((cells[last].packets, cells[last].wire_bytes), (3, 150));
        assert_eq!(cells[0], Cell::default());
    }

    #[test]
    fn slots_are_a_set() {
        let mut slots = Slots::NONE;
        slots.add(7);
        assert!(slots.has(7) && !slots.has(0) && Slots::ALL.has(0));
        assert_eq!(slots.with(Slots::ALL), Slots::ALL);
    }
}

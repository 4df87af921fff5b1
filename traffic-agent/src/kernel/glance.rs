//! A look into the pinned counters of a target, by whoever may read them: nothing is loaded, nothing changed.

use std::time::Instant;

use aya::maps::{Map, MapData};
use traffic_ebpf::{
    CELLS_PER_INTERFACE, Cell, DIRECTIONS, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOTS,
};

use super::{
    CELLS, Error,
    cells::{Cells, Slots},
    pins::PinRoot,
};

/// The counters of a running target.
pub struct Glance {
    cells: Cells,
}

/// Wire bytes of all interfaces but loopback, since the counters began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// Delivered to sockets of the target.
    pub ingress_wire_bytes: u64,
    /// Sent by sockets of the target.
    pub egress_wire_bytes: u64,
}

impl Glance {
    /// Opens the counters; `None` if nothing is pinned for this target.
    pub fn open(root: &PinRoot, name: &str) -> Result<Option<Self>, Error> {
        let pins = root.target(name);
        if !pins.try_exist()? {
            return Ok(None);
        }
        let data = MapData::from_pin(pins.map(CELLS)).map_err(|source| Error::Map {
            action: "open",
            map: CELLS,
            source,
        })?;
        Ok(Some(Self { cells: Cells::new(Map::PerCpuArray(data), CELLS)? }))
    }

    /// Reads them.
    pub fn look(&self) -> Result<Seen, Error> {
        let mut cells = vec![Cell::default(); INTERFACE_SLOTS * CELLS_PER_INTERFACE];
        let at = Instant::now();
        self.cells.read(Slots::ALL, &mut cells)?;
        let mut sums = [0_u64; DIRECTIONS];
        let elements = cells.chunks_exact(CELLS_PER_INTERFACE);
        for element in elements.skip(usize::from(INTERFACE_SLOT_LOOPBACK) + 1) {
            let directions = element.chunks_exact(CELLS_PER_INTERFACE / DIRECTIONS);
            for (sum, cells) in sums.iter_mut().zip(directions) {
                *sum = cells.iter().fold(*sum, |sum, cell| sum.saturating_add(cell.wire_bytes));
            }
        }
        let [ingress_wire_bytes, egress_wire_bytes] = sums;
        Ok(Seen { at, ingress_wire_bytes, egress_wire_bytes })
    }
}

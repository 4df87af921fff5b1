//! What the programs tell beyond numbers: traced packets, and a log of what should never happen.

use std::{
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use traffic_ebpf::PacketRecord;

use super::Error;

/// Name of the ring buffer of traced packets.
pub(super) const PACKET_RECORDS: &str = "PACKET_RECORDS";

/// Bytes of a ring buffer in which `packets` records have room at once, so that none is lost between
/// two looks: each has a header of 8 bytes and is rounded up to 8; a power of two of at least a page.
/// Source: `__bpf_ringbuf_reserve()`, kernel/bpf/ringbuf.c.
pub(super) fn ring_bytes(packets: u32) -> u32 {
    const MOST: u32 = 1 << 26;
    let record = (size_of::<PacketRecord>() as u32).next_multiple_of(8) + 8;
    // One record more than asked for: a ring buffer is never filled to its last byte.
    packets.saturating_add(1).saturating_mul(record).clamp(4096, MOST).next_power_of_two()
}

/// Collects what aya-log reads, so that the caller decides where it goes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// The log and the traced packets of one instance.
pub struct Trace {
    logger: EbpfLogger<Lines>,
    lines: Lines,
    packets: RingBuf<MapData>,
}

impl Trace {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let lines = Lines::default();
        let logger = EbpfLogger::init_with_logger(ebpf, lines.clone())?;
        let packets = ebpf
            .take_map(PACKET_RECORDS)
            .ok_or(Error::Foreign { kind: "map", name: PACKET_RECORDS })?;
        let packets = RingBuf::try_from(packets).map_err(|source| Error::Map {
            action: "read",
            map: PACKET_RECORDS,
            source,
        })?;
        Ok(Self { logger, lines, packets })
    }

    /// Returns what was logged since the last call: each line is a packet that could not be parsed.
    pub fn take_log(&mut self) -> Vec<String> {
        self.logger.flush();
        std::mem::take(&mut self.lines.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the packets that were traced since the last call.
    pub fn take_packets(&mut self) -> Vec<PacketRecord> {
        let mut packets = Vec::new();
        while let Some(item) = self.packets.next() {
            if item.len() == size_of::<PacketRecord>() {
                // SAFETY: of the right length, as just checked; `PacketRecord` is plain integers
                // without padding, and the read needs no alignment.
                packets.push(unsafe { ptr::read_unaligned(item.as_ptr().cast::<PacketRecord>()) });
            }
        }
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_holds_every_record_at_once() {
        // 68 bytes are 72 in the ring, and 80 with the header: 50 of them fit in a page, 51 do not.
        assert_eq!(ring_bytes(0), 4096);
        assert_eq!(ring_bytes(50), 4096);
        assert_eq!(ring_bytes(51), 8192);
        assert_eq!(ring_bytes(u32::MAX), 1 << 26);
    }
}

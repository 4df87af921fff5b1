//! Which port and which interface has which slot: the tables that the program looks into.
//!
//! The tables are memory shared with the program, so that both write single bytes; a map update would
//! write all 65,536 and undo what the program wrote meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use traffic_ebpf::{
    INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER, PORT_EXCLUDED, SLOT_NONE, TABLE_BYTES,
    TABLE_INTERFACE, TABLE_TCP, TABLE_UDP, TABLES, owner_parts, slot_key, slot_owner, slot_range,
};

use super::{Error, cells::Slots};
use crate::{method::ListeningPort, report::Protocol};

/// `BPF_NOEXIST`, include/uapi/linux/bpf.h: insert only where there is nothing.
pub(super) const NOEXIST: u64 = 1;

/// Who holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A listening port.
    Port(ListeningPort),
    /// An interface number.
    Interface(u32),
}

/// The slot tables of one instance.
pub struct SlotTables {
    owners: HashMap<MapData, u32, u32>,
    /// `TABLES` tables of `TABLE_BYTES` bytes, shared with the program.
    tables: NonNull<AtomicU8>,
    /// Keeps the map alive while it is mapped.
    _map: MapData,
}

// SAFETY: the shared memory is only accessed through atomics, and stays mapped as long as `self`.
unsafe impl Send for SlotTables {}

const MAPPED_BYTES: NonZeroUsize = NonZeroUsize::new(TABLES * TABLE_BYTES).expect("not zero");

impl SlotTables {
    /// Takes the maps out of a loaded object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let owners = ebpf
            .take_map("SLOT_OWNERS")
            .ok_or(Error::Foreign { kind: "map", name: "SLOT_OWNERS" })?;
        let owners = HashMap::try_from(owners).map_err(|source| Error::Map {
            action: "read",
            map: "SLOT_OWNERS",
            source,
        })?;
        let Some(Map::Array(map)) = ebpf.take_map("SLOTS") else {
            return Err(Error::Foreign { kind: "map", name: "SLOTS" });
        };
        // SAFETY: a fresh mapping of the whole map at an address of the kernel's choice.
        let tables = unsafe {
            mmap(
                None,
                MAPPED_BYTES,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd(),
                0,
            )
        }
        .map_err(|source| Error::MapMemory { map: "SLOTS", source })?;
        Ok(Self { owners, tables: tables.cast(), _map: map })
    }

    /// Gives a listening port its slot, if it has none: from now on its packets are the client leg.
    /// An excluded port stays excluded.
    pub fn claim_port(&mut self, port: ListeningPort) -> Result<(), Error> {
        let table = table_of(port.protocol);
        if self.entry(table, port.port).load(Ordering::Relaxed) == SLOT_NONE {
            self.claim(table, port.port)?;
        }
        Ok(())
    }

    /// Makes a port part of the upstream leg, whatever listens there.
    pub fn exclude_port(&mut self, port: ListeningPort) {
        self.entry(table_of(port.protocol), port.port).store(PORT_EXCLUDED, Ordering::Relaxed);
    }

    /// Makes these ports, and no others, part of the upstream leg whatever listens there.
    pub fn set_excluded(&mut self, excluded: &BTreeSet<ListeningPort>) {
        for port in all_ports().filter(|port| !excluded.contains(port)) {
            let entry = self.entry(table_of(port.protocol), port.port);
            if entry.load(Ordering::Relaxed) == PORT_EXCLUDED {
                entry.store(SLOT_NONE, Ordering::Relaxed);
            }
        }
        for port in excluded {
            self.exclude_port(*port);
        }
    }

    /// Takes a port that nobody listens on any more out of the client leg. Its slot, and what was
    /// counted there, stays its own.
    pub fn release_port(&mut self, port: ListeningPort) {
        let entry = self.entry(table_of(port.protocol), port.port);
        if entry.load(Ordering::Relaxed) != PORT_EXCLUDED {
            entry.store(SLOT_NONE, Ordering::Relaxed);
        }
    }

    /// Returns whether packets of this port are the client leg now.
    pub fn is_client_port(&self, port: ListeningPort) -> bool {
        let slot = self.entry(table_of(port.protocol), port.port).load(Ordering::Relaxed);
        slot != SLOT_NONE && slot != PORT_EXCLUDED
    }

    /// Returns the ports whose packets are the client leg now, also those without a slot of their own.
    pub fn client_ports(&self) -> Vec<ListeningPort> {
        all_ports().filter(|port| self.is_client_port(*port)).collect()
    }

    /// Returns who holds which slot: `(slot, owner)`.
    pub fn owners(&self) -> Result<Vec<(u8, Owner)>, Error> {
        self.owners
            .iter()
            .map(|entry| {
                let (key, owner) = entry.map_err(|source| Error::Map {
                    action: "read",
                    map: "SLOT_OWNERS",
                    source,
                })?;
                let (table, number) = owner_parts(owner);
                let owner = match table {
                    TABLE_INTERFACE => Owner::Interface(u32::from(number)),
                    TABLE_UDP => {
                        Owner::Port(ListeningPort { protocol: Protocol::Udp, port: number })
                    }
                    _ => Owner::Port(ListeningPort { protocol: Protocol::Tcp, port: number }),
                };
                Ok((key as u8, owner))
            })
            .collect()
    }

    /// The interfaces that have slots of their own: `(slot, number)`.
    pub fn interfaces(&self) -> Result<Vec<(u8, u32)>, Error> {
        let owners = self.owners()?.into_iter();
        Ok(owners
            .filter_map(|(slot, owner)| match owner {
                Owner::Interface(number) => Some((slot, number)),
                Owner::Port(_) => None,
            })
            .collect())
    }

    /// Takes an interface out of the table, as long as nothing passes it. Its slot stays its own: the next
    /// packet puts it back.
    pub(super) fn leave(&mut self, number: u32) {
        if let Ok(number) = u16::try_from(number) {
            self.entry(TABLE_INTERFACE, number).store(SLOT_NONE, Ordering::Relaxed);
        }
    }

    /// Whether an interface that was taken out has been put back.
    pub(super) fn is_back(&self, number: u32) -> bool {
        u16::try_from(number).is_ok_and(|number| {
            self.entry(TABLE_INTERFACE, number).load(Ordering::Relaxed) != SLOT_NONE
        })
    }

    /// Takes a slot from the interface that has it: the next one that comes may claim it.
    pub(super) fn free(&mut self, slot: u8) -> Result<(), Error> {
        match self.owners.remove(&slot_key(TABLE_INTERFACE, slot)) {
            Ok(()) => Ok(()),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(Error::Map { action: "write", map: "SLOT_OWNERS", source }),
        }
    }

    /// Makes the table of interfaces agree with who has which slot. One that found none may claim one as soon as
    /// one is free. One that claimed its slot while it was taken from it keeps it, or claims another if the slot
    /// has a new owner by now.
    pub fn settle_interfaces(&mut self) -> Result<(), Error> {
        let mut owners: BTreeMap<u8, u32> = self.interfaces()?.into_iter().collect();
        let range = slot_range(TABLE_INTERFACE);
        for number in 0..=u16::MAX {
            let slot = self.entry(TABLE_INTERFACE, number).load(Ordering::Relaxed);
            let is_right = match slot {
                SLOT_NONE => true,
                INTERFACE_SLOT_OTHER => owners.len() > usize::from(range.last - range.first),
                own => match owners.entry(own) {
                    Entry::Occupied(owner) => *owner.get() == u32::from(number),
                    Entry::Vacant(vacant) => {
                        vacant.insert(number.into());
                        let owner = slot_owner(TABLE_INTERFACE, number);
                        self.own(slot_key(TABLE_INTERFACE, own), owner)?
                    }
                },
            };
            if !is_right {
                let entry = self.entry(TABLE_INTERFACE, number);
                // Not what somebody has written meanwhile.
                let relaxed = Ordering::Relaxed;
                let _ = entry.compare_exchange(slot, SLOT_NONE, relaxed, relaxed);
            }
        }
        Ok(())
    }

    /// Returns the interface slots that somebody has, those included that nobody needs to claim.
    pub(super) fn owned_interfaces(&self) -> Result<Slots, Error> {
        let mut slots = Slots::NONE;
        slots.add(INTERFACE_SLOT_LOOPBACK);
        slots.add(INTERFACE_SLOT_OTHER);
        let range = slot_range(TABLE_INTERFACE);
        for slot in range.first..=range.last {
            match self.owners.get(&slot_key(TABLE_INTERFACE, slot), 0) {
                Ok(_) => slots.add(slot),
                Err(MapError::KeyNotFound) => {}
                Err(source) => {
                    return Err(Error::Map { action: "read", map: "SLOT_OWNERS", source });
                }
            }
        }
        Ok(slots)
    }

    /// The same rule as the program's: who inserts the owner has the slot.
    fn claim(&mut self, table: u32, number: u16) -> Result<(), Error> {
        let range = slot_range(table);
        let owner = slot_owner(table, number);
        let mut found = range.rest;
        for slot in range.first..=range.last {
            if self.own(slot_key(table, slot), owner)? {
                found = slot;
                break;
            }
        }
        self.entry(table, number).store(found, Ordering::Relaxed);
        Ok(())
    }

    /// Makes it the owner of a slot that has none; returns whether it is the owner.
    fn own(&mut self, key: u32, owner: u32) -> Result<bool, Error> {
        match self.owners.insert(key, owner, NOEXIST) {
            Ok(()) => Ok(true),
            // Taken: perhaps by this very number.
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let holder = self.owners.get(&key, 0).map_err(|source| Error::Map {
                    action: "read",
                    map: "SLOT_OWNERS",
                    source,
                })?;
                Ok(holder == owner)
            }
            Err(source) => Err(Error::Map { action: "write", map: "SLOT_OWNERS", source }),
        }
    }

    /// Returns the byte of a table that belongs to a number.
    fn entry(&self, table: u32, number: u16) -> &AtomicU8 {
        let offset = table as usize * TABLE_BYTES + usize::from(number);
        // SAFETY: a `u16` is an index into a table, `table` is one of the three: inside the mapping.
        let entry = unsafe { self.tables.add(offset) };
        // SAFETY: mapped as long as `self`; one byte, so every address is aligned.
        unsafe { entry.as_ref() }
    }
}

impl Drop for SlotTables {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.tables.cast(), MAPPED_BYTES.get()) };
        debug_assert!(unmapped.is_ok(), "unmapping one's own mapping cannot fail");
    }
}

fn all_ports() -> impl Iterator<Item = ListeningPort> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .flat_map(|protocol| (1..=u16::MAX).map(move |port| ListeningPort { protocol, port }))
}

fn table_of(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Udp => TABLE_UDP,
        _ => TABLE_TCP,
    }
}

//! The host's ledger in the history: rows by cgroup, the interfaces' counters, and what both were when they
//! were last committed.
//!
//! It is bounded: [`MOST_CGROUPS`] cgroups have rows of their own in a quarter, all further ones are folded into
//! [`OTHERS`]; what is kept is what [`DAYS`] days with a row are long, or as long as the targets' quarters, if
//! that is shorter. A row takes some 28 bytes. 20 cgroups on one interface and loopback: 7,700 rows, 220 kB a
//! day; the most there can be there, 1.1 MB a day.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use traffic_ebpf::{Cell, HostKey};

use super::names::Named as _;
use super::read::Reader;
use super::{Error, LIMIT, Store, write};
use crate::{
    history::{Event, Quarter},
    host::{HostAbsolute, HostFlush, HostSeries, ledger::Device},
    kernel::HostSample,
    method::interface::InterfaceCounters,
    report::{Counters, Direction},
};

/// Cgroups that have rows of their own in one quarter.
pub const MOST_CGROUPS: usize = 100;
/// Stands for all others.
pub const OTHERS: &str = "(others)";
/// Days with a row for which the host's are kept.
pub const DAYS: u32 = 100;
/// In `event`: no target's.
const NO_TARGET: i64 = 0;
/// In `host_absolute`: what found no place.
const OVERFLOW: i64 = -1;

const ADD_TO_QUARTER: &str = "INSERT INTO host_quarter VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT DO UPDATE SET
        packets = packets + min(excluded.packets, 9223372036854775807 - packets),
        bytes = bytes + min(excluded.bytes, 9223372036854775807 - bytes),
        wire_packets =
            wire_packets + min(excluded.wire_packets, 9223372036854775807 - wire_packets),
        wire_bytes = wire_bytes + min(excluded.wire_bytes, 9223372036854775807 - wire_bytes)";
const ADD_TO_INTERFACE: &str = "INSERT INTO host_interface VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT DO UPDATE SET
        ingress_bytes =
            ingress_bytes + min(excluded.ingress_bytes, 9223372036854775807 - ingress_bytes),
        ingress_packets =
            ingress_packets + min(excluded.ingress_packets, 9223372036854775807 - ingress_packets),
        egress_bytes =
            egress_bytes + min(excluded.egress_bytes, 9223372036854775807 - egress_bytes),
        egress_packets =
            egress_packets + min(excluded.egress_packets, 9223372036854775807 - egress_packets)";

/// Writes all of a flush.
pub(super) fn write(transaction: &Transaction<'_>, flush: &HostFlush) -> rusqlite::Result<()> {
    write_postings(transaction, flush)?;
    let mut add = transaction.prepare_cached(ADD_TO_INTERFACE)?;
    for (name, counters) in &flush.interfaces {
        let [a, b, c, d] = of_interface(counters).map(at_most);
        add.execute((flush.quarter.0, name, a, b, c, d))?;
    }
    write_absolute(transaction, &flush.absolute)?;
    for event in &flush.events {
        write::write_event(transaction, NO_TARGET, event)?;
    }
    Ok(())
}

fn at_most(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(LIMIT)
}

fn write_postings(transaction: &Transaction<'_>, flush: &HostFlush) -> rusqlite::Result<()> {
    let quarter = flush.quarter.0;
    let mut known: BTreeSet<String> = transaction
        .prepare_cached(
            "SELECT DISTINCT cgroup FROM host_quarter JOIN host_series ON id = series
             WHERE quarter = ?1",
        )?
        .query_map([quarter], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    // The largest first: they are to have rows of their own.
    let mut postings: Vec<&(HostSeries, Counters)> = flush.postings.iter().collect();
    postings.sort_by_key(|(_, counters)| std::cmp::Reverse(counters.wire_bytes));
    let mut id_of = transaction.prepare_cached(
        "INSERT INTO host_series (cgroup, target, interface, direction) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET cgroup = cgroup
         RETURNING id",
    )?;
    let mut add = transaction.prepare_cached(ADD_TO_QUARTER)?;
    for (series, counters) in postings {
        let has_row = known.contains(&series.cgroup) || known.len() < MOST_CGROUPS;
        let cgroup = if has_row { series.cgroup.as_str() } else { OTHERS };
        if has_row {
            known.insert(series.cgroup.clone());
        }
        let target = series.target.as_deref().unwrap_or_default();
        let id: i64 = id_of
            .query_row((cgroup, target, &series.interface, series.direction.name()), |row| {
                row.get(0)
            })?;
        let Counters { packets, bytes, wire_packets, wire_bytes, .. } = *counters;
        let [a, b, c, d] = [packets, bytes, wire_packets, wire_bytes].map(at_most);
        add.execute((quarter, id, a, b, c, d))?;
    }
    Ok(())
}

/// A place in `host_absolute`: turn, cgroup, namespace, interface, direction.
type Place = (i64, i64, i64, i64, i64);

fn write_absolute(transaction: &Transaction<'_>, absolute: &HostAbsolute) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("REPLACE INTO host_epoch VALUES (1, ?1, ?2)")?
        .execute((&absolute.boot_id, absolute.map_id))?;
    let mut kept: BTreeMap<Place, Cell> = read_cells(transaction)?.into_iter().collect();
    let mut replace = transaction
        .prepare_cached("REPLACE INTO host_absolute VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for sample in &absolute.turns {
        let turn = sample.turn.cast_signed();
        let of_keys = sample.cells.iter().map(|(key, cells)| {
            let HostKey { cgroup, namespace, interface } = *key;
            ((cgroup.cast_signed(), i64::from(namespace), i64::from(interface)), cells)
        });
        for ((cgroup, namespace, interface), cells) in
            of_keys.chain([((0, OVERFLOW, 0), &sample.overflow)])
        {
            for (direction, cell) in (0_i64..).zip(cells) {
                let before = kept.remove(&(turn, cgroup, namespace, interface, direction));
                if before.unwrap_or_default() == *cell {
                    continue;
                }
                let Cell { packets, bytes, wire_packets, wire_bytes, .. } = *cell;
                let [a, b, c, d] = [packets, bytes, wire_packets, wire_bytes].map(u64::cast_signed);
                replace.execute((turn, cgroup, namespace, interface, direction, a, b, c, d))?;
            }
        }
    }
    let mut forget = transaction.prepare_cached(
        "DELETE FROM host_absolute WHERE turn = ?1 AND cgroup = ?2 AND namespace = ?3
            AND interface = ?4 AND direction = ?5",
    )?;
    for place in kept.into_keys() {
        forget.execute(place)?;
    }

    transaction.prepare_cached("DELETE FROM host_device")?.execute(())?;
    let mut insert =
        transaction.prepare_cached("INSERT INTO host_device VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for (name, device) in &absolute.devices {
        let [a, b, c, d] = of_interface(&device.counters).map(u64::cast_signed);
        insert.execute((name, device.index, a, b, c, d))?;
    }
    Ok(())
}

fn of_interface(counters: &InterfaceCounters) -> [u64; 4] {
    let InterfaceCounters { ingress_bytes, ingress_packets, egress_bytes, egress_packets } =
        *counters;
    [ingress_bytes, ingress_packets, egress_bytes, egress_packets]
}

/// Four columns from one on.
fn numbers(row: &Row<'_>, first: usize) -> rusqlite::Result<[i64; 4]> {
    Ok([row.get(first)?, row.get(first + 1)?, row.get(first + 2)?, row.get(first + 3)?])
}

fn read_cells(connection: &Connection) -> rusqlite::Result<Vec<(Place, Cell)>> {
    let read = |row: &Row<'_>| {
        let place = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        let [packets, bytes, wire_packets, wire_bytes] = numbers(row, 5)?.map(i64::cast_unsigned);
        Ok((place, Cell { packets, bytes, wire_packets, wire_bytes, ..Cell::default() }))
    };
    connection.prepare_cached("SELECT * FROM host_absolute")?.query_map((), read)?.collect()
}

fn read_absolute(connection: &Connection) -> rusqlite::Result<Option<HostAbsolute>> {
    let epoch = connection
        .query_row("SELECT boot_id, map_id FROM host_epoch", (), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((boot_id, map_id)) = epoch else { return Ok(None) };
    let mut turns: BTreeMap<i64, HostSample> = BTreeMap::new();
    for ((turn, cgroup, namespace, interface, direction), cell) in read_cells(connection)? {
        let sample = turns
            .entry(turn)
            .or_insert_with(|| HostSample { turn: turn.cast_unsigned(), ..Default::default() });
        let cells = match namespace {
            OVERFLOW => &mut sample.overflow,
            _ => {
                let cgroup = cgroup.cast_unsigned();
                // As they were written: 32 bits each.
                let (namespace, interface) = (namespace as u32, interface as u32);
                sample.cells.entry(HostKey { cgroup, namespace, interface }).or_default()
            }
        };
        cells[usize::from(direction != 0)] = cell;
    }
    let read = |row: &Row<'_>| {
        let counters = interface_counters(numbers(row, 2)?.map(i64::cast_unsigned));
        Ok((row.get(0)?, Device { index: row.get(1)?, counters }))
    };
    let devices = connection
        .prepare_cached("SELECT * FROM host_device")?
        .query_map((), read)?
        .collect::<Result<_, _>>()?;
    Ok(Some(HostAbsolute { boot_id, map_id, turns: turns.into_values().collect(), devices }))
}

fn interface_counters(columns: [u64; 4]) -> InterfaceCounters {
    let [ingress_bytes, ingress_packets, egress_bytes, egress_packets] = columns;
    InterfaceCounters { ingress_bytes, ingress_packets, egress_bytes, egress_packets }
}

/// Forgets what is older than a quarter.
pub(super) fn forget(connection: &Connection, before: Quarter) -> rusqlite::Result<()> {
    let mut forgotten = 0;
    for table in ["host_quarter", "host_interface"] {
        forgotten +=
            connection.execute(&format!("DELETE FROM {table} WHERE quarter < ?1"), [before.0])?;
    }
    if forgotten > 0 {
        connection.execute(
            "DELETE FROM host_series WHERE id NOT IN (SELECT DISTINCT series FROM host_quarter)",
            (),
        )?;
    }
    Ok(())
}

impl Store {
    /// The host's counters as the last flush took them; `None` before the first.
    pub fn host_absolute(&self) -> Result<Option<HostAbsolute>, Error> {
        read_absolute(self.connection()).map_err(|source| self.failed(source))
    }
}

/// A counter as it is kept: at the limit the truth may be more.
fn counter(kept: i64) -> u64 {
    if kept == LIMIT { u64::MAX } else { kept.cast_unsigned() }
}

impl Reader {
    /// Shows what cgroups used by quarter, in the order of time.
    pub fn host_quarters(
        &self,
        range: Range<Quarter>,
        mut visit: impl FnMut(Quarter, &HostSeries, Counters),
    ) -> Result<(), Error> {
        const QUARTERS: &str = "SELECT quarter, cgroup, target, interface, direction,
                packets, bytes, wire_packets, wire_bytes
             FROM host_quarter JOIN host_series ON id = series
             WHERE quarter >= ?1 AND quarter < ?2 ORDER BY quarter, series";
        let read = |row: &Row<'_>| {
            let names: (String, String, String, String) =
                (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok((Quarter(row.get(0)?), names, numbers(row, 5)?.map(counter)))
        };
        for (quarter, (cgroup, target, interface, direction), counted) in
            self.all(QUARTERS, (range.start.0, range.end.0), read)?
        {
            let direction: Direction = self.named(&direction)?;
            let target = Some(target).filter(|target| !target.is_empty());
            let [packets, bytes, wire_packets, wire_bytes] = counted;
            let counters =
                Counters { packets, bytes, wire_packets, wire_bytes, ..Counters::default() };
            visit(quarter, &HostSeries { cgroup, target, interface, direction }, counters);
        }
        Ok(())
    }

    /// What the interfaces counted, by name.
    pub fn host_interfaces(
        &self,
        range: Range<Quarter>,
    ) -> Result<BTreeMap<String, InterfaceCounters>, Error> {
        const INTERFACES: &str = "SELECT interface, ingress_bytes, ingress_packets, egress_bytes,
                egress_packets
             FROM host_interface WHERE quarter >= ?1 AND quarter < ?2";
        let read = |row: &Row<'_>| Ok((row.get(0)?, numbers(row, 1)?.map(counter)));
        let mut sums: BTreeMap<String, [u64; 4]> = BTreeMap::new();
        for (name, counted) in self.all(INTERFACES, (range.start.0, range.end.0), read)? {
            let sum = sums.entry(name).or_default();
            for (sum, counted) in sum.iter_mut().zip(counted) {
                *sum = sum.saturating_add(counted);
            }
        }
        Ok(sums.into_iter().map(|(name, sum)| (name, interface_counters(sum))).collect())
    }

    /// What happened to the host's ledger in a span of time.
    pub fn host_events(&self, range: Range<jiff::Timestamp>) -> Result<Vec<Event>, Error> {
        self.events_of(NO_TARGET, range)
    }
}

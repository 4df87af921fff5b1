//! The counters that the last flush took, and what the interfaces were called that they are of.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction};
use traffic_ebpf::Cell;

use super::names::Named as _;
use crate::{
    history::{Absolute, Epoch, KnownInterface},
    report::Scope,
};

/// Lets the counters of an epoch take the place of those kept; only those that changed are written.
pub(super) fn write(
    transaction: &Transaction<'_>,
    target: i64,
    absolute: &Absolute,
) -> rusqlite::Result<()> {
    let epoch: i64 = transaction
        .prepare_cached(
            "INSERT INTO epoch (target, boot_id, map_id) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET target = target
             RETURNING id",
        )?
        .query_row((target, &absolute.epoch.boot_id, absolute.epoch.map_id), |row| row.get(0))?;
    write_interfaces(transaction, epoch, &absolute.interfaces)?;
    let mut kept: BTreeMap<u32, Cell> = read_cells(transaction, epoch)?.into_iter().collect();
    let mut replace = transaction
        .prepare_cached("REPLACE INTO absolute VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    for (place, cell) in &absolute.cells {
        if kept.remove(place).as_ref() == Some(cell) {
            continue;
        }
        let Cell { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
            *cell;
        let [a, b, c, d, e, f] =
            [packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]
                .map(u64::cast_signed);
        replace.execute((epoch, place, a, b, c, d, e, f))?;
    }
    let mut forget =
        transaction.prepare_cached("DELETE FROM absolute WHERE epoch = ?1 AND cell = ?2")?;
    for place in kept.keys() {
        forget.execute((epoch, place))?;
    }
    Ok(())
}

/// Forgets what is kept of an epoch.
pub(super) fn close(
    transaction: &Transaction<'_>,
    target: i64,
    epoch: &Epoch,
) -> rusqlite::Result<()> {
    const EPOCHS: &str = "FROM epoch WHERE target = ?1 AND boot_id = ?2 AND map_id = ?3";
    let epoch = (target, &epoch.boot_id, epoch.map_id);
    for table in ["absolute", "interface"] {
        transaction
            .prepare_cached(&format!("DELETE FROM {table} WHERE epoch IN (SELECT id {EPOCHS})"))?
            .execute(epoch)?;
    }
    transaction.prepare_cached(&format!("DELETE {EPOCHS}"))?.execute(epoch).map(drop)
}

/// Writes what the interfaces are called, if that is not what stands there.
fn write_interfaces(
    transaction: &Transaction<'_>,
    epoch: i64,
    interfaces: &[KnownInterface],
) -> rusqlite::Result<()> {
    if read_interfaces(transaction, epoch)? == interfaces {
        return Ok(());
    }
    transaction.prepare_cached("DELETE FROM interface WHERE epoch = ?1")?.execute([epoch])?;
    let mut insert =
        transaction.prepare_cached("INSERT OR REPLACE INTO interface VALUES (?1, ?2, ?3, ?4)")?;
    for KnownInterface { number, name, scope } in interfaces {
        insert.execute((epoch, number, name, scope.name()))?;
    }
    Ok(())
}

/// Reads what is kept of a target.
pub(super) fn read(connection: &Connection, target: &str) -> rusqlite::Result<Vec<Absolute>> {
    let mut epochs = connection.prepare_cached(
        "SELECT epoch.id, boot_id, map_id FROM epoch JOIN target ON target.id = epoch.target
         WHERE target.name = ?1 ORDER BY epoch.id",
    )?;
    let epochs = epochs.query_map([target], |row| {
        Ok((row.get::<_, i64>(0)?, Epoch { boot_id: row.get(1)?, map_id: row.get(2)? }))
    })?;
    epochs
        .map(|epoch| {
            let (id, epoch) = epoch?;
            let interfaces = read_interfaces(connection, id)?;
            Ok(Absolute { epoch, interfaces, cells: read_cells(connection, id)? })
        })
        .collect()
}

fn read_cells(connection: &Connection, epoch: i64) -> rusqlite::Result<Vec<(u32, Cell)>> {
    let mut cells = connection.prepare_cached(
        "SELECT cell, packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes
         FROM absolute WHERE epoch = ?1 ORDER BY cell",
    )?;
    let counter = |row: &Row<'_>, column| row.get(column).map(i64::cast_unsigned);
    let cells = cells.query_map([epoch], |row| {
        let cell = Cell {
            packets: counter(row, 1)?,
            bytes: counter(row, 2)?,
            wire_packets: counter(row, 3)?,
            wire_bytes: counter(row, 4)?,
            payload_bytes: counter(row, 5)?,
            retransmitted_bytes: counter(row, 6)?,
        };
        Ok((row.get(0)?, cell))
    })?;
    cells.collect()
}

fn read_interfaces(connection: &Connection, epoch: i64) -> rusqlite::Result<Vec<KnownInterface>> {
    let mut interfaces = connection.prepare_cached(
        "SELECT number, name, scope FROM interface WHERE epoch = ?1 ORDER BY number",
    )?;
    let interfaces = interfaces.query_map([epoch], |row| {
        // Nothing else is written. If it were, somebody pays for it.
        let scope = Scope::of(&row.get::<_, String>(2)?).unwrap_or(Scope::Billed);
        Ok(KnownInterface { number: row.get(0)?, name: row.get(1)?, scope })
    })?;
    interfaces.collect()
}

//! The tables, and how a database of an older program gets them.
//!
//! Each step of [`MIGRATIONS`] is one transaction, which also sets `user_version`: after a crash or an error
//! in the middle the database is whole, at the step before. A step that landed is never changed.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, named_params};

use super::Error;

/// `application_id` of the database: "trag".
const APPLICATION: i32 = 0x7472_6167;

/// Step n makes schema n of schema n - 1.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_host.sql"),
    include_str!("schema_readings.sql"),
    include_str!("schema_interfaces.sql"),
];

/// The schema that this program reads and writes.
pub(super) const NEWEST: i32 = MIGRATIONS.len() as i32;

/// Keys of `meta`.
pub(super) mod key {
    /// The time zone that the days are cut in.
    pub const ZONE: &str = "time_zone";
    /// Link-layer bytes per packet, as configured: the balance of the host is made with them.
    pub const LINK_OVERHEAD: &str = "link_overhead";
    /// Version of the program that brought the database to its schema.
    pub const WRITTEN_BY: &str = "written_by";
    /// Tells this database from any other.
    pub const STORE_ID: &str = "store_id";
}

/// Brings the database to the newest schema.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    run_steps(connection, path, MIGRATIONS)
}

fn run_steps(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), Error> {
    let failed = |source| Error::of(path, source);
    let found = version(connection, path)?;
    let known = steps.len() as i32;
    if found > known {
        return Err(newer(connection, path, found, known));
    }
    for (version, step) in (1..).zip(steps).skip(found as usize) {
        let step_transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        step_transaction
            .execute_batch(step)
            .and_then(|()| step_transaction.pragma_update(None, "application_id", APPLICATION))
            .and_then(|()| step_transaction.pragma_update(None, "user_version", version))
            .and_then(|()| set_meta(&step_transaction, key::WRITTEN_BY, env!("CARGO_PKG_VERSION")))
            .and_then(|()| step_transaction.commit())
            .map_err(failed)?;
    }
    Ok(())
}

/// Refuses every schema but the newest.
pub(super) fn require(connection: &Connection, path: &Path) -> Result<(), Error> {
    match version(connection, path)? {
        // Made, and nothing written: the writer was stopped at once.
        0 => Err(Error::Absent { directory: path.parent().unwrap_or(path).to_owned() }),
        NEWEST => Ok(()),
        found if found > NEWEST => Err(newer(connection, path, found, NEWEST)),
        found => Err(Error::Older { path: path.to_owned(), found, known: NEWEST }),
    }
}

/// The schema of the database; 0 for an empty one. Refuses another program's.
fn version(connection: &Connection, path: &Path) -> Result<i32, Error> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            .map_err(|source| Error::of(path, source))
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables = || {
        connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            .map_err(|source| Error::of(path, source))
    };
    if application == APPLICATION || application == 0 && version == 0 && tables()? == 0 {
        return Ok(version);
    }
    Err(Error::Foreign { path: path.to_owned(), found: application })
}

fn newer(connection: &Connection, path: &Path, found: i32, known: i32) -> Error {
    // A schema to come may keep this elsewhere: then its version is not known.
    let written_by = meta(connection, key::WRITTEN_BY).ok().flatten();
    Error::Newer {
        path: path.to_owned(),
        found,
        known,
        written_by: written_by.unwrap_or_else(|| "of a later version".to_owned()),
    }
}

/// Reads a value of `meta`.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = :key", named_params! {":key": key}, |row| {
            row.get(0)
        })
        .optional()
}

/// Writes a value of `meta`.
pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT INTO meta (key, value) VALUES (:key, :value)
             ON CONFLICT DO UPDATE SET value = excluded.value",
            named_params! {":key": key, ":value": value},
        )
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
                         CREATE TABLE kept (a INTEGER) STRICT; INSERT INTO kept VALUES (1)";

    fn columns(connection: &Connection) -> String {
        connection
            .query_row("SELECT group_concat(name) FROM pragma_table_info('kept')", [], |row| {
                row.get(0)
            })
            .unwrap()
    }

    #[test]
    fn a_migration_that_fails_leaves_the_schema_before_it_and_can_be_tried_again() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("history.db");
        run_steps(&mut connection, path, &[FIRST]).unwrap();
        // The second step is refused in its middle.
        let broken = "ALTER TABLE kept ADD COLUMN b INTEGER; INSERT INTO nowhere VALUES (1)";
        let second = "ALTER TABLE kept ADD COLUMN b INTEGER";
        let third = "ALTER TABLE kept ADD COLUMN c INTEGER";
        let failed = run_steps(&mut connection, path, &[FIRST, broken, third]);
        assert!(matches!(failed, Err(Error::Sqlite { .. })), "{failed:?}");
        assert_eq!((version(&connection, path).unwrap(), columns(&connection).as_str()), (1, "a"));
        run_steps(&mut connection, path, &[FIRST, second, third]).unwrap();
        assert_eq!(
            (version(&connection, path).unwrap(), columns(&connection).as_str()),
            (3, "a,b,c")
        );
        // Nothing is done twice.
        run_steps(&mut connection, path, &[FIRST, second, third]).unwrap();
        let rows: i64 =
            connection.query_row("SELECT sum(a) FROM kept", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        let newer = run_steps(&mut connection, path, &[FIRST, second]);
        assert!(matches!(newer, Err(Error::Newer { found: 3, known: 2, .. })), "{newer:?}");
    }
}

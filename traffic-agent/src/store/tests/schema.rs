//! Databases of other programs and other versions.

use rusqlite::Connection;

use super::*;
use crate::store::{DATABASE, Error};

fn connection(directory: &Path) -> Connection {
    Connection::open(directory.join(DATABASE)).unwrap()
}

#[test]
fn a_newer_schema_is_refused_with_the_version_that_wrote_it() {
    let directory = directory();
    drop(open(directory.path()));
    let newer = connection(directory.path());
    newer
        .execute_batch(
            "PRAGMA user_version = 1000; UPDATE meta SET value = '9.9' WHERE key = 'written_by'",
        )
        .unwrap();
    drop(newer);
    let refused = [
        Store::open(directory.path(), &TimeZone::UTC).map(drop).unwrap_err(),
        Reader::open(directory.path()).map(drop).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::Newer { found: 1000, .. }), "{error:?}");
        assert!(error.to_string().contains("was written by traffic-agent 9.9"), "{error}");
    }
}

#[test]
fn another_programs_database_is_refused_and_left_alone() {
    let directory = directory();
    connection(directory.path()).execute_batch("CREATE TABLE theirs (a)").unwrap();
    for error in [
        Store::open(directory.path(), &TimeZone::UTC).map(drop).unwrap_err(),
        Reader::open(directory.path()).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
    }
    let tables = "SELECT group_concat(name) FROM sqlite_schema";
    let tables: String =
        connection(directory.path()).query_row(tables, [], |row| row.get(0)).unwrap();
    assert_eq!(tables, "theirs");
}

#[test]
fn a_database_without_tables_is_a_history_that_has_not_begun() {
    let directory = directory();
    fs::write(directory.path().join(DATABASE), "").unwrap();
    let error = Reader::open(directory.path()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Absent { .. }), "{error:?}");
    drop(open(directory.path()));
    assert_eq!(Reader::open(directory.path()).unwrap().targets().unwrap(), []);
}

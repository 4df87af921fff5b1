//! Damaged files, and files that somebody put there.

use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;
use crate::store::{DATABASE, Error};

fn refused(directory: &Path) -> Error {
    Store::open(directory, &TimeZone::UTC).map(drop).unwrap_err()
}

#[test]
fn files_are_made_for_the_group_and_nobody_else() {
    let parent = directory();
    let state = parent.path().join("made/here");
    let mut store = open(&state);
    store.flush(&one(empty("xray", Quarter(0)))).unwrap();
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o750);
    for name in ["history.db", "history.db-wal", "history.db-shm"] {
        assert_eq!(fs::metadata(state.join(name)).unwrap().mode() & 0o7777, 0o640, "{name}");
    }
    drop(store);
    // A reader of the group needs both to be there when the writer is not.
    assert!(state.join("history.db-wal").exists() && state.join("history.db-shm").exists());
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let directory = directory();
    for mode in [0o770, 0o752, 0o1777] {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(directory.path());
        assert!(matches!(error, Error::Exposed { .. }), "{mode:o}: {error:?}");
        assert!(error.to_string().contains("`chmod g-w,o-w "), "{error}");
    }
}

#[test]
fn links_in_the_directory_are_not_followed_and_links_to_it_are() {
    for name in ["history.db", "history.db-wal", "history.db-shm"] {
        let directory = directory();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        if name != "history.db" {
            fs::write(directory.path().join(DATABASE), "").unwrap();
        }
        symlink(&elsewhere, directory.path().join(name)).unwrap();
        let error = refused(directory.path());
        assert!(matches!(error, Error::Kind { .. }), "{name}: {error:?}");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    }
    let (directory, parent) = (directory(), directory());
    let link = parent.path().join("state");
    symlink(directory.path(), &link).unwrap();
    drop(open(&link));
    drop(Reader::open(&link).unwrap());
}

#[test]
fn a_damaged_database_says_so_and_how_to_go_on() {
    let directory = directory();
    let mut store = open(directory.path());
    for number in 0..2000 {
        let postings = vec![(series(443), counters(1))];
        store.flush(&one(TargetFlush { postings, ..empty("xray", Quarter(number)) })).unwrap();
    }
    drop(store);
    let database = directory.path().join(DATABASE);
    let whole = fs::read(&database).unwrap();

    // Every page but the first is overwritten: it opens, and fails where it is used.
    let mut damaged = whole.clone();
    damaged[4096..].fill(0x5a);
    fs::write(&database, &damaged).unwrap();
    let error = refused(directory.path());
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("history.db is damaged; counting goes on"), "{text}");
    assert!(text.contains("`mv "), "{text}");
    assert_eq!(fs::read(&database).unwrap(), damaged, "it is not made worse");
    let read = Reader::open(directory.path()).and_then(|reader| reader.targets());
    assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");

    // No database at all.
    fs::write(
        &database,
        "this is a text file that is longer than a header of a database is. ".repeat(99),
    )
    .unwrap();
    assert!(matches!(refused(directory.path()), Error::Damaged { .. }));

    // What the message says to do.
    fs::rename(&database, directory.path().join("history.db.damaged")).unwrap();
    for beside in ["history.db-wal", "history.db-shm"] {
        fs::rename(
            directory.path().join(beside),
            directory.path().join(format!("{beside}.damaged")),
        )
        .unwrap();
    }
    let mut store = open(directory.path());
    store.flush(&one(empty("xray", Quarter(0)))).unwrap();
    assert_eq!(Reader::open(directory.path()).unwrap().targets().unwrap().len(), 1);
}

#[test]
fn a_flush_that_fails_at_its_last_row_adds_nothing() {
    let directory = directory();
    let mut store = open(directory.path());
    let flush = |postings: Vec<(Series, Counters)>| {
        one(TargetFlush { postings, observed: vec![(Quarter(0), 5)], ..empty("xray", Quarter(0)) })
    };
    store.flush(&flush(vec![(series(1), counters(1))])).unwrap();
    let reader = Reader::open(directory.path()).unwrap();
    let before = (quarters(&reader, "xray"), days(&reader, "xray"));
    drop(reader);
    // Another program holds the write lock, longer than a flush waits.
    let other = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let both = flush(vec![(series(1), counters(1)), (series(2), counters(2))]);
    let error = store.flush(&both).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    other.execute_batch("ROLLBACK").unwrap();
    // The last part of a flush is refused.
    other
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON observed_day
             BEGIN SELECT raise(ABORT, 'refused'); END",
        )
        .unwrap();
    let error = store.flush(&both).unwrap_err();
    assert!(matches!(error, Error::Sqlite { .. }), "{error:?}");
    let reader = Reader::open(directory.path()).unwrap();
    assert_eq!((quarters(&reader, "xray"), days(&reader, "xray")), before);
    assert_eq!(reader.observed("xray", ALL_QUARTERS).unwrap(), [(Quarter(0), 5)]);
    drop(reader);
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    // The same once more, new series and all.
    store.flush(&both).unwrap();
    let reader = Reader::open(directory.path()).unwrap();
    let after = quarters(&reader, "xray");
    assert_eq!(after[&(Quarter(0), series(1))].wire_bytes, 2);
    assert_eq!(after[&(Quarter(0), series(2))].wire_bytes, 2);
    assert_eq!(reader.observed("xray", ALL_QUARTERS).unwrap(), [(Quarter(0), 10)]);
}

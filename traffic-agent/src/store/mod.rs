//! The history on disk: a SQLite database in the state directory. The only room that knows SQL.
//!
//! One writer ([`Store`], the daemon's), any number of readers ([`Reader`]), no protocol between them: a
//! reader needs no daemon, and no rights but to read the files.
//!
//! **What is kept.** `quarter` holds the six counters of each series and quarter of an hour, in UTC: the
//! truth. `day` holds the same by calendar day of the configured time zone, so that a report of a year is
//! read in milliseconds; both change in the same transaction, so that either sums up to what was posted.
//! `cut` says at which quarters each day begins and ends, so that another zone (or other rules of the
//! same) is noticed when the store is opened, and all days are cut again. `absolute` holds the counters
//! that the last flush took, so that a daemon that was killed goes on exactly where the book ends; `interface`
//! the names of what they were counted at, which may be gone then.
//!
//! **What survives.** A flush is one transaction: all of it or nothing. WAL with `synchronous = FULL` syncs
//! the log once per flush, so a power cut loses nothing that a flush had returned for, and never leaves half
//! of one. After an error the same flush, or a later one that covers it, can be tried again: nothing was
//! added. When it is not known whether a flush is in (the machine died), [`Store::absolutes`] says.
//!
//! **Who may read.** The state directory is 0750, the files are 0640 and in the directory's group. SQLite
//! needs the `-wal` and `-shm` files to read a WAL database, and a member of the group cannot make them, so
//! the writer leaves them there when it closes. A copy of the database without them is read as it is.
//! The directory may not be writable for its group: whoever can write there can put another database in
//! its place. A member of the group can hold a lock on the files it reads, and so keep the writer from
//! flushing (the maps go on counting); it cannot change a figure.
//!
//! **Numbers.** SQLite's integers have 63 bits and a sign: a counter in `quarter` and `day` stands still at
//! 2^63 - 1 and is read as `u64::MAX`, which every report marks ([`Counters::at_limit`]). In `absolute` the
//! sign is the 64th bit, so that they are exact throughout.
//!
//! [`Counters::at_limit`]: crate::report::Counters::at_limit

mod absolute;
mod days;
mod error;
mod files;
mod host;
mod names;
mod prune;
mod read;
mod readings;
mod schema;
mod write;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use files::{DATABASE, remove};
pub use host::{DAYS as HOST_DAYS, MOST_CGROUPS, OTHERS};
pub use prune::EVENTS;
pub use read::{Reader, TargetEntry};
pub use write::Store;

use jiff::Timestamp;

/// A counter in `quarter` or `day` that reaches this stays there.
const LIMIT: i64 = i64::MAX;

/// Milliseconds are what times are kept in.
fn timestamp(millisecond: i64) -> Timestamp {
    Timestamp::from_millisecond(millisecond).unwrap_or(match millisecond < 0 {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    })
}

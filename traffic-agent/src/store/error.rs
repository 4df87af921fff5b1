//! What can go wrong with the history on disk, and what to do then.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};

/// Why the history could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no database.
    #[error(
        "there is no history in {}: no `traffic-agent run` has written there yet; name another \
         directory with `--state-dir`", directory.display()
    )]
    Absent {
        /// The state directory.
        directory: PathBuf,
    },
    /// The state directory cannot be made or looked at.
    #[error("cannot use the state directory {}", directory.display())]
    Directory {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than the owner may replace what is in the state directory.
    #[error(
        "{} may be written by others than its owner (mode {mode:04o}), who could put another \
         database there; take that away: `chmod g-w,o-w {}`", directory.display(), directory.display()
    )]
    Exposed {
        /// The state directory.
        directory: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The path is something else than it should be, such as a symbolic link.
    #[error(
        "{} is not {expected}, so it is not used; look at it and move it away", path.display()
    )]
    Kind {
        /// What was found.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Somebody else's file or directory.
    #[error(
        "{} belongs to uid {owner}, and this runs as uid {user}: run as its owner, or give it away \
         with `chown`", path.display()
    )]
    Owner {
        /// The directory or file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs.
        user: u32,
    },
    /// A file cannot be read or written for want of rights.
    #[error(
        "no permission for {}: join the group that may read it (`usermod -aG GROUP USER`), or run \
         as root", path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is open cannot be found at its path any more.
    #[error(
        "the files that were open as {} were removed or moved away, or others put in their place",
        path.display()
    )]
    Displaced {
        /// The database.
        path: PathBuf,
    },
    /// A file cannot be made.
    #[error("cannot make {}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database is damaged, or it is none.
    #[error(
        "the history in {} is damaged; counting goes on in the kernel's maps. Keep what is there with \
         `mv {} {}.damaged` (and the files beside it that end in -wal and -shm): the agent begins a new \
         history within a minute, with what it had not yet written or, where it never read the old one, \
         all that was counted since the boot. `sqlite3 {}.damaged .recover` may save the old one",
        path.display(), path.display(), path.display(), path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A SQLite database, but another program's.
    #[error(
        "{} is a database of another program (application id {found:#x}); name another state \
         directory", path.display()
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Its application id.
        found: i32,
    },
    /// Written by a newer program.
    #[error(
        "the history in {} was written by traffic-agent {written_by} (schema {found}), and this is \
         {} (schema {known}): use that version or a newer one",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// The newest schema known here.
        known: i32,
        /// Version of the program that wrote it.
        written_by: String,
    },
    /// Written by an older program, and nothing has brought it up to date yet.
    #[error(
        "the history in {} was written by an older traffic-agent (schema {found}, this one reads \
         {known}): start `traffic-agent run` of this version once", path.display()
    )]
    Older {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// The schema read here.
        known: i32,
    },
    /// No space left.
    #[error(
        "no space is left for {}; nothing was written and nothing is lost: counting goes on in the \
         kernel's maps, and what was counted is written as soon as there is space", path.display()
    )]
    Full {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file system or the file does not allow to write.
    #[error(
        "cannot write to {}: the file system or the file is read-only; counting goes on in the \
         kernel's maps, and what was counted is written as soon as it is writable", path.display()
    )]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The disk fails. A file system that was writable and is not any more says no more than that.
    #[error(
        "cannot use {}: the disk does not take it (`dmesg` may say why); counting goes on in the kernel's \
         maps, and what was counted is written as soon as the disk works again", path.display()
    )]
    Disk {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Another program holds the database.
    #[error(
        "{} is held by another program; `fuser {}` says which. Nothing was written; try again",
        path.display(), path.display()
    )]
    Busy {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A value that this program never writes.
    #[error("the history in {} has {what} `{value}`, which is not known here", path.display())]
    Unknown {
        /// The database.
        path: PathBuf,
        /// What the value is for.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The time zone cannot be written down.
    #[error(
        "the time zone of this system has no name that the history could remember; set one, such as \
         `time_zone = \"Europe/Berlin\"`"
    )]
    NamelessZone,
    /// Anything else that SQLite refuses.
    #[error("cannot use the history in {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Sorts what SQLite says by what is to be done about it.
    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        let rusqlite::Error::SqliteFailure(failure, _) = &source else {
            return Self::Sqlite { path, source };
        };
        match failure.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damaged { path, source },
            ErrorCode::DiskFull => Self::Full { path, source },
            // The index of the log could not grow.
            ErrorCode::SystemIoFailure if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
                Self::Full { path, source }
            }
            ErrorCode::SystemIoFailure => Self::Disk { path, source },
            // A writer died within its last steps, and a reader that was there before holds the index of the
            // log as it was: gone when that reader is, or a writer comes.
            ErrorCode::ReadOnly
                if matches!(
                    failure.extended_code,
                    ffi::SQLITE_READONLY_RECOVERY | ffi::SQLITE_READONLY_CANTLOCK
                ) =>
            {
                Self::Busy { path, source }
            }
            ErrorCode::ReadOnly => Self::ReadOnly { path, source },
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy { path, source },
            _ => Self::Sqlite { path, source },
        }
    }
}

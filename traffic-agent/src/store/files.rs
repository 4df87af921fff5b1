//! Where the database is, who it belongs to, and that it is what it seems.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use super::Error;

/// Name of the database in the state directory.
pub const DATABASE: &str = "history.db";
/// What SQLite puts beside it: the log, and the index of the log.
const BESIDE: [&str; 2] = ["-wal", "-shm"];
/// Mode of the state directory.
const DIRECTORY_MODE: u32 = 0o750;
/// Mode of the database; SQLite gives the files beside it the same.
const FILE_MODE: u32 = 0o640;

/// Makes the state directory and an empty database where there are none, and refuses what others could
/// have put there. Returns the path of the database.
pub(super) fn prepare(directory: &Path) -> Result<PathBuf, Error> {
    let unusable = |source| Error::Directory { directory: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(unusable)?;
    // A link to the directory is fine (systemd makes one for DynamicUser=); one in it is not.
    let directory = fs::canonicalize(directory).map_err(unusable)?;
    let metadata = fs::metadata(&directory).map_err(unusable)?;
    owned(&directory, metadata.uid())?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Error::Exposed { directory, mode });
    }
    let database = directory.join(DATABASE);
    if make(&database, metadata.gid())? {
        return Ok(database);
    }
    for path in [&database].into_iter().cloned().chain(beside(&database)) {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Permission { path, source }),
            Ok(metadata) if !metadata.is_file() => {
                return Err(Error::Kind { path, expected: "a plain file" });
            }
            Ok(metadata) => owned(&path, metadata.uid())?,
        }
    }
    Ok(database)
}

/// Makes an empty database; false when something is there already.
///
/// What is there is not opened: closing it again would take the locks away that another connection of
/// this process holds (they are POSIX locks).
fn make(database: &Path, group: u32) -> Result<bool, Error> {
    let failed = |source| Error::Make { path: database.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(database);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        // A new history cannot begin; one that is there says itself that it cannot be written.
        Err(_) if fs::symlink_metadata(database).is_ok() => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    // The umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(failed)?;
    // A hardened unit that runs with that group may not call this, and need not.
    let belongs = file.metadata().is_ok_and(|metadata| metadata.gid() == group);
    if !belongs && let Err(error) = fchown(&file, None, Some(group)) {
        log::warn!("cannot give {} to group {group}: {error}", database.display());
    }
    Ok(true)
}

/// Finds the database of a state directory for reading.
pub(super) fn find(directory: &Path) -> Result<PathBuf, Error> {
    let absent = || Error::Absent { directory: directory.to_owned() };
    let unusable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => absent(),
        io::ErrorKind::PermissionDenied => Error::Permission { path: directory.to_owned(), source },
        _ => Error::Directory { directory: directory.to_owned(), source },
    };
    let database = fs::canonicalize(directory).map_err(unusable)?.join(DATABASE);
    if !fs::symlink_metadata(&database).map_err(unusable)?.is_file() {
        return Err(Error::Kind { path: database, expected: "a plain file" });
    }
    for path in [&database].into_iter().cloned().chain(beside(&database)) {
        match access(&path, AccessFlags::R_OK) {
            Err(nix::errno::Errno::ENOENT) | Ok(()) => {}
            Err(errno) => return Err(Error::Permission { path, source: errno.into() }),
        }
    }
    Ok(database)
}

/// Deletes the history of a state directory, if there is one.
pub fn remove(directory: &Path) -> io::Result<()> {
    let database = directory.join(DATABASE);
    // The database last: without it what is beside it says nothing.
    for path in beside(&database).chain([database.clone()]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Which files a database and those beside it are, by device and inode; `None` for one that is not there.
pub(super) type Identity = [Option<(u64, u64)>; 3];

/// Which files are at the path of a database now.
pub(super) fn identity(database: &Path) -> Identity {
    let of = |path: &Path| {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let [wal, shm] = BESIDE.map(|suffix| of(&with_suffix(database, suffix)));
    [of(database), wal, shm]
}

/// Whether a database can still be found where it was opened, and its log too.
pub(super) fn is_in_place(opened: &Identity, database: &Path) -> bool {
    let found = identity(database);
    opened.iter().zip(found).all(|(opened, found)| opened.is_none() || *opened == found)
}

/// Whether the log of a database and the index of the log are there: the last writer left them.
pub(super) fn beside_it(database: &Path) -> (bool, bool) {
    let mut exist = beside(database).map(|path| path.exists());
    (exist.next() == Some(true), exist.next() == Some(true))
}

fn beside(database: &Path) -> impl Iterator<Item = PathBuf> {
    BESIDE.into_iter().map(|suffix| with_suffix(database, suffix))
}

fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn owned(path: &Path, owner: u32) -> Result<(), Error> {
    let user = geteuid().as_raw();
    match owner == user {
        true => Ok(()),
        false => Err(Error::Owner { path: path.to_owned(), owner, user }),
    }
}

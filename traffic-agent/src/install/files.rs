//! Writes what was planned: each file at once or not at all, and all of them or none.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::Change;

/// Units and configuration hold no secret; everybody may see what is counted.
const MODE: u32 = 0o644;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { action, path, source }
}

/// The content of a file; none if it does not exist.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error("read", path)(source)),
    }
}

/// Changes that were made and can be taken back, as they are when this is dropped before [`Written::keep`].
#[derive(Debug, Default)]
pub struct Written {
    changes: Vec<Change>,
    directories: Vec<PathBuf>,
    kept: bool,
}

impl Written {
    /// Makes all changes; after a failure none.
    pub fn write(changes: &[Change]) -> Result<Self, Error> {
        let mut written = Self::default();
        for change in changes {
            written.make_directories(&change.path)?;
            put(&change.path, change.after.as_deref())?;
            written.changes.push(change.clone());
        }
        Ok(written)
    }

    /// The changes stay. Directories that became empty go.
    pub fn keep(mut self) {
        self.kept = true;
        for change in self.changes.iter().filter(|change| change.after.is_none()) {
            // That of a unit's drop-ins, or of the configuration; one that is still used is not empty.
            if let Some(directory) = change.path.parent() {
                let _ = fs::remove_dir(directory);
            }
        }
    }

    fn make_directories(&mut self, file: &Path) -> Result<(), Error> {
        let missing: Vec<_> = file.ancestors().skip(1).take_while(|path| !path.exists()).collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory).map_err(error("create", directory))?;
            fs::set_permissions(directory, Permissions::from_mode(0o755))
                .map_err(error("change the mode of", directory))?;
            self.directories.push(directory.to_owned());
        }
        Ok(())
    }

    /// Takes everything back, as far as possible; the first error is returned.
    pub fn take_back(mut self) -> Result<(), Error> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), Error> {
        self.kept = true;
        let undone =
            self.changes.iter().rev().map(|change| put(&change.path, change.before.as_deref()));
        let results: Vec<_> = undone.collect();
        for directory in self.directories.iter().rev() {
            // Somebody else's file in it keeps it.
            let _ = fs::remove_dir(directory);
        }
        results.into_iter().collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.kept {
            // On the way of another error, which is the one that is told.
            let _ = self.undo();
        }
    }
}

/// Gives a file its content, or removes it.
fn put(path: &Path, content: Option<&str>) -> Result<(), Error> {
    let Some(content) = content else {
        return fs::remove_file(path).map_err(error("remove", path));
    };
    // A link in /etc stays one: its file is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // systemd takes no file that begins with a dot for a unit.
    let temporary = target.with_file_name(format!(".{name}.traffic-agent"));
    let written = (|| {
        // What a killed run left, and whatever it links to, is not written to.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(&temporary)?;
        file.write_all(content.as_bytes())?;
        match fs::metadata(path) {
            Ok(old) => {
                chown(&temporary, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(old.permissions())?;
            }
            Err(_) => file.set_permissions(Permissions::from_mode(MODE))?,
        }
        file.sync_all()?;
        fs::rename(&temporary, &target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, before: Option<&str>, after: Option<&str>) -> Change {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Change { path: path.to_owned(), before: own(before), after: own(after) }
    }

    #[test]
    fn what_is_not_kept_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let (new, old) = (directory.path().join("a/b/new"), directory.path().join("old"));
        fs::write(&old, "before").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o640)).unwrap();
        let changes = [change(&new, None, Some("x")), change(&old, Some("before"), Some("after"))];
        let written = Written::write(&changes).unwrap();
        assert_eq!(read(&new).unwrap().as_deref(), Some("x"));
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(read(&old).unwrap().as_deref(), Some("after"));
        drop(written);
        assert_eq!(fs::metadata(&old).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(read(&old).unwrap().as_deref(), Some("before"));
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn a_failure_in_the_middle_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (first, blocked) = (directory.path().join("first"), directory.path().join("dir"));
        fs::create_dir(&blocked).unwrap();
        fs::write(blocked.join("x"), "").unwrap();
        let changes = [change(&first, None, Some("x")), change(&blocked, None, Some("x"))];
        assert!(Written::write(&changes).is_err());
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!((left, first.exists()), (1, false));
    }

    #[test]
    fn removed_files_take_their_empty_directory_along() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("unit.d/50.conf");
        let text = Some("x");
        Written::write(&[change(&file, None, text)]).unwrap().keep();
        Written::write(&[change(&file, text, None)]).unwrap().keep();
        assert!(!directory.path().join("unit.d").exists());
        assert!(directory.path().exists());
    }
}

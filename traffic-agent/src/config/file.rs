//! The file on disk.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::DEFAULT_FILE;
use super::source::{Place, Problem, Text};

/// More than any configuration has; a wrong path may lead to a disk image.
const BYTES_MOST: u64 = 1 << 20;

/// Which file, and whether it must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigFile {
    /// The usual one; nothing is missing without it.
    Default,
    /// One that was named.
    Named(PathBuf),
}

impl ConfigFile {
    /// From `--config`.
    pub fn new(named: Option<PathBuf>) -> Self {
        named.map_or(Self::Default, Self::Named)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Default => Path::new(DEFAULT_FILE),
            Self::Named(path) => path,
        }
    }

    /// Reads it; `None` if it is not there and need not be.
    pub(super) fn read(&self) -> Result<Option<String>, Problem> {
        let whole = |message: String| Problem {
            place: Place::WholeFile(self.path().to_owned()),
            key: String::new(),
            message,
        };
        let bytes = match self.bytes() {
            Ok(bytes) => bytes,
            Err(error) if *self == Self::Default && error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(whole(format!("cannot be read: {error}"))),
        };
        if bytes.len() as u64 > BYTES_MOST {
            return Err(whole(format!("more than {BYTES_MOST} bytes: is it the right file?")));
        }
        String::from_utf8(bytes).map(Some).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
            Problem {
                place: Text::new(self.path(), &text).place(valid),
                key: String::new(),
                message: "not UTF-8; save the file in UTF-8".to_owned(),
            }
        })
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        // A FIFO would make the agent wait for ever.
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path())?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(BYTES_MOST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

//! Where the maps and links of a target are pinned, so that they outlive the agent.
//!
//! `<bpffs>/traffic-agent/v<ABI>/<instance>/<name>/` holds the maps by their names, and `links/` in it the
//! links. The ABI is in the path because a map of another layout would be adopted without a word.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// The map without which the others are of no use.
const CELLS: &str = "CELLS";

/// Why pins could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing can be pinned there.
    #[error(
        "{} is no bpf filesystem; mount one: mount -t bpf bpf {}", path.display(), path.display()
    )]
    NoBpffs {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// A file or directory of the pins.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is pinned is not what this agent would have pinned.
    #[error(
        "the map pinned at {} is of another layout than this agent's ({found}, not {expected}); \
         remove all pins with `traffic-agent detach`", path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it ought to be.
        expected: String,
    },
    /// A later agent has taken over, and this one cannot read its maps.
    #[error(
        "{} was made by a later version of traffic-agent (ABI {abi}, this one has {own}); start \
         that one, or remove its pins with its `traffic-agent detach`", path.display()
    )]
    Newer {
        /// The pins.
        path: PathBuf,
        /// Theirs.
        abi: u32,
        /// This agent's.
        own: u32,
    },
}

/// The name of the host's ledger beside those of the targets, none of which has such a character.
pub(super) const HOST: &str = "~host";

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// The pins of all targets of one agent.
#[derive(Clone, Debug)]
pub struct PinRoot {
    bpffs: PathBuf,
    abi: u32,
    instance: String,
}

impl PinRoot {
    /// The pins of the agent with this state directory, below a bpf filesystem.
    pub fn open(bpffs: &Path, state_dir: &Path) -> Result<Self, Error> {
        Self::of_abi(bpffs, state_dir, own_abi())
    }

    fn of_abi(bpffs: &Path, state_dir: &Path, abi: u32) -> Result<Self, Error> {
        require_bpffs(bpffs)?;
        Ok(Self { bpffs: bpffs.to_owned(), abi, instance: instance(state_dir) })
    }

    /// Whether the bpf filesystem is still mounted.
    pub(super) fn require_bpffs(&self) -> Result<(), Error> {
        require_bpffs(&self.bpffs)
    }

    fn top(&self) -> PathBuf {
        self.bpffs.join("traffic-agent")
    }

    fn directory(&self, abi: u32) -> PathBuf {
        self.top().join(format!("v{abi}")).join(&self.instance)
    }

    /// The pins of a target, which need not exist.
    pub fn target(&self, name: &str) -> Pins {
        Pins { directory: self.directory(self.abi).join(name) }
    }

    /// The pins of a target as earlier versions left them, the latest first. More than one if an upgrade was
    /// interrupted by another.
    pub(super) fn earlier(&self, name: &str) -> Result<Vec<Pins>, Error> {
        let mut earlier = Vec::new();
        for abi in self.abis()?.into_iter().rev() {
            let directory = self.directory(abi).join(name);
            if !directory.exists() {
                continue;
            }
            if abi > self.abi {
                return Err(Error::Newer { path: directory, abi, own: self.abi });
            }
            if abi < self.abi {
                earlier.push(Pins { directory });
            }
        }
        Ok(earlier)
    }

    /// The names of all targets of which something is pinned, whatever version did it.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for abi in self.abis()? {
            names.extend(list(&self.directory(abi))?);
        }
        names.retain(|name| name != HOST);
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Whether the host's ledger is pinned, whatever version did it.
    pub fn has_host(&self) -> bool {
        let abis = self.abis().unwrap_or_default();
        abis.into_iter().any(|abi| self.directory(abi).join(HOST).exists())
    }

    /// Removes everything that is pinned for this agent: it detaches, and what was counted is gone.
    /// Returns how many targets there were.
    pub fn remove_all(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for abi in self.abis()? {
            for name in list(&self.directory(abi))? {
                Pins { directory: self.directory(abi).join(name) }.remove()?;
                removed += 1;
            }
            self.remove_empty(abi);
        }
        Ok(removed)
    }

    /// Removes the directories above pins that were removed, as far as nobody else has pins in them.
    pub fn remove_empty(&self, abi: u32) {
        let instance = self.directory(abi);
        for directory in instance.ancestors().take(3) {
            // Whatever is still in them is somebody's.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }

    /// All versions that have pins, ascending.
    fn abis(&self) -> Result<Vec<u32>, Error> {
        let mut abis: Vec<u32> = list(&self.top())?
            .iter()
            .filter_map(|name| name.strip_prefix('v')?.parse().ok())
            .collect();
        abis.sort_unstable();
        Ok(abis)
    }
}

fn require_bpffs(path: &Path) -> Result<(), Error> {
    match statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        true => Ok(()),
        false => Err(Error::NoBpffs { path: path.to_owned() }),
    }
}

/// The ABI under which this agent pins: its own, or a later one that `TRAFFIC_AGENT_ABI` names, which is how
/// upgrades are tested as long as there is but one.
fn own_abi() -> u32 {
    let named = std::env::var("TRAFFIC_AGENT_ABI").ok().and_then(|abi| abi.parse().ok());
    named.unwrap_or(0).max(traffic_ebpf::ABI_VERSION)
}

/// A name for a state directory that a bpf filesystem takes: it refuses dots.
fn instance(state_dir: &Path) -> String {
    let mut name = String::new();
    for &byte in state_dir.as_os_str().as_bytes() {
        match byte {
            b'/' => name.push('-'),
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' => name.push(byte.into()),
            _ => name.push_str(&format!("~{byte:02x}")),
        }
    }
    name.trim_start_matches('-').to_owned()
}

/// The names in a directory that may not exist.
fn list(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file_error("list", directory)(error)),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(file_error("list", directory))
}

/// The pins of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Whether there are any.
    pub fn exist(&self) -> bool {
        self.directory.join(CELLS).exists()
    }

    /// The same for whom they may be hidden from: then it is an error.
    pub fn try_exist(&self) -> Result<bool, Error> {
        let path = self.directory.join(CELLS);
        path.try_exists().map_err(file_error("look for", &path))
    }

    /// Makes the directories, for root alone.
    pub(super) fn create(&self) -> Result<(), Error> {
        let links = self.links();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&links)
            .map_err(file_error("make", &links))
    }

    /// Where a map is.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Where a link is.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// The names of all links.
    pub(super) fn link_names(&self) -> Result<Vec<String>, Error> {
        list(&self.links())
    }

    /// Removes all of them: links first, so that nothing is counted that nobody can read; then the cells, so
    /// that what is left of an interrupted removal does not look like counters.
    pub fn remove(&self) -> Result<(), Error> {
        let links = self.links();
        for directory in [&links, &self.directory] {
            let mut names = list(directory)?;
            names.sort_unstable_by_key(|name| name != CELLS);
            for name in names {
                let path = directory.join(name);
                if path != links {
                    fs::remove_file(&path).map_err(file_error("remove", &path))?;
                }
            }
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file_error("remove", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_names_without_dots_and_no_two_the_same() {
        assert_eq!(instance(Path::new("/var/lib/traffic-agent")), "var-lib-traffic~2dagent");
        assert_eq!(instance(Path::new("/tmp/.x")), "tmp-~2ex");
        assert_ne!(instance(Path::new("/a/b-c")), instance(Path::new("/a/b/c")));
    }

    #[test]
    fn where_no_bpf_filesystem_is_the_error_says_how_to_mount_one() {
        let place = tempfile::tempdir().unwrap();
        let error = PinRoot::open(place.path(), Path::new("/var/lib/x")).unwrap_err().to_string();
        assert!(error.contains("is no bpf filesystem; mount one: mount -t bpf bpf /"), "{error}");
    }
}

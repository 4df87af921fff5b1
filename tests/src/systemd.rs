//! A real systemd with the built `traffic-agent` in `/usr/bin`, and the lab's relay to be a proxy's unit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::Result;
use traffic_lab::role::Role;
use traffic_lab::systemd::Setup;
use traffic_lab::{Namespace, Systemd};

use crate::{agent, helper, require_root};

/// Where the lab's relay listens when it is [`relay_unit`].
pub const RELAY_PORT: u16 = 1080;

/// Where the roles of the lab are to be seen inside.
pub const HELPER: &str = "/usr/bin/traffic-tests";

/// Starts systemd in a network namespace, with these files (by their path inside, mostly units).
pub fn start(namespace: &Namespace, files: &[(&str, &str)]) -> Result<Systemd> {
    start_with(namespace, files, &[])
}

/// The same with more programs, by where they are seen inside.
pub fn start_with(
    namespace: &Namespace,
    files: &[(&str, &str)],
    more: &[(&Path, &str)],
) -> Result<Systemd> {
    require_root()?;
    let (agent, helper) = (agent::program()?, helper()?);
    let mut programs = vec![(agent.as_path(), "/usr/bin/traffic-agent"), (&helper, HELPER)];
    programs.extend_from_slice(more);
    Systemd::start(Setup { program: &helper, namespace, files, programs: &programs })
}

/// A unit that is the lab's relay, with these lines at the end of its `[Service]`.
pub fn relay_unit(service: &str) -> String {
    let listen = format!("[::]:{RELAY_PORT}").parse().expect("an address");
    let command = Role::Relay { listen }.command_of(Path::new(HELPER));
    let variables: String = command
        .get_envs()
        .filter_map(|(name, value)| {
            let (name, value) = (name.to_str()?, value?.to_str()?);
            Some(format!("Environment=\"{name}={value}\"\n"))
        })
        .collect();
    format!(
        "[Unit]\nDescription=relay of the lab\n\n[Service]\n{variables}ExecStart={HELPER}\n{service}\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// Everything below a directory by its path: mode, and content or where a link leads.
pub type Snapshot = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// No byte of any file differs, and none is there or gone.
#[track_caller]
pub fn assert_same(one: &Snapshot, other: &Snapshot) {
    let paths: BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    for path in paths {
        let text = |snapshot: &Snapshot| {
            let (mode, content) = snapshot.get(path)?;
            Some((format!("{mode:o}"), String::from_utf8_lossy(content).into_owned()))
        };
        assert_eq!(text(one), text(other), "{}", path.display());
    }
}

/// Everything below a directory of the inside.
pub fn snapshot(systemd: &Systemd, directory: &str) -> Result<Snapshot> {
    let root = systemd.path(directory);
    let mut found = BTreeMap::new();
    let mut left = vec![root.clone()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata()?;
        let content = if metadata.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?,
            );
            Vec::new()
        } else {
            fs::read(&path)?
        };
        found.insert(path.strip_prefix(&root)?.to_owned(), (metadata.mode(), content));
    }
    Ok(found)
}

/// What ran inside and how it ended, with all that it said.
#[track_caller]
pub fn assert_ended(output: &Output, code: i32, words: &[&str]) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}stderr: {err}");
    assert!(!err.contains("panicked"), "{err}");
    for word in words {
        assert!(out.contains(word) || err.contains(word), "{word:?} is not in {out}{err}");
    }
}

//! The manifest beside the object: what it was made of, and with what.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    build,
    sources::{Sources, sha256},
    toolchain::Toolchain,
};

/// Version of the manifest's shape.
const FORMAT: u32 = 1;

/// `traffic-ebpf/prebuilt/manifest.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    pub object: Object,
    sources: Inputs,
    crates: BTreeMap<String, String>,
    tools: BTreeMap<String, String>,
    flags: Vec<String>,
}

/// The object file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub bytes: u64,
    pub sha256: String,
}

/// What the object is made of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Inputs {
    sha256: String,
    inputs: BTreeMap<String, String>,
}

impl Manifest {
    /// Describes an object that was just built.
    pub fn new(object: &[u8], sources: Sources, toolchain: &Toolchain) -> Self {
        Self {
            format: FORMAT,
            object: Object { bytes: object.len() as u64, sha256: sha256(object) },
            sources: Inputs { sha256: sources.sha256(), inputs: sources.inputs },
            crates: sources.crates,
            tools: toolchain.versions(),
            flags: build::flags(),
        }
    }

    /// Reads a manifest.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!("cannot read {}; `cargo xtask ebpf` writes it", path.display())
        })?;
        let manifest: Self = serde_json::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        if manifest.format != FORMAT {
            bail!("{} has format {}, not {FORMAT}", path.display(), manifest.format);
        }
        Ok(manifest)
    }

    /// Writes the manifest.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the manifest")?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Says how an object differs from the one described.
    pub fn object_differences(&self, object: &[u8]) -> Vec<String> {
        let hash = sha256(object);
        if hash == self.object.sha256 && object.len() as u64 == self.object.bytes {
            return Vec::new();
        }
        vec![format!(
            "traffic.bpf.o is not the object of manifest.json: {} bytes, sha256 {hash}, \
             instead of {} bytes, sha256 {}",
            object.len(),
            self.object.bytes,
            self.object.sha256
        )]
    }

    /// Says how sources differ from those that the object was made of.
    pub fn source_differences(&self, sources: &Sources) -> Vec<String> {
        let mut found =
            differences("sources changed", &self.sources.inputs, &sources.inputs, false);
        // A manifest that was edited by hand may agree in parts only.
        if found.is_empty() && self.sources.sha256 != sources.sha256() {
            found.push("sources changed: the hash over all of them differs".into());
        }
        if self.flags != build::flags() {
            found.push("the flags of the build changed".into());
        }
        found
    }

    /// Says which tools differ from those that the object was built with.
    pub fn tool_differences(&self, toolchain: &Toolchain) -> Vec<String> {
        differences("differs", &self.tools, &toolchain.versions(), true)
    }
}

/// Compares two tables by key; `values` says whether the values mean something to a reader.
fn differences(
    what: &str,
    recorded: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
    values: bool,
) -> Vec<String> {
    let mut keys: Vec<&String> = recorded.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter_map(|key| match (recorded.get(key), now.get(key)) {
            (Some(old), Some(new)) if old == new => None,
            (Some(old), Some(new)) if values => {
                Some(format!("{what}: {key} is {new}, the object was built with {old}"))
            }
            (Some(_), Some(_)) => Some(format!("{what}: {key}")),
            (Some(_), None) => Some(format!("{what}: {key} is gone")),
            (None, _) => Some(format!("{what}: {key} is new")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn a_changed_file_is_named() {
        let old = table(&[("src/a.rs", "1"), ("src/b.rs", "2"), ("src/c.rs", "3")]);
        let new = table(&[("src/a.rs", "1"), ("src/b.rs", "9"), ("src/d.rs", "4")]);
        assert_eq!(
            differences("sources changed", &old, &new, false),
            [
                "sources changed: src/b.rs",
                "sources changed: src/c.rs is gone",
                "sources changed: src/d.rs is new",
            ]
        );
        assert!(differences("sources changed", &old, &old, false).is_empty());
    }

    #[test]
    fn another_tool_is_named_with_both_versions() {
        let old = table(&[("rustc", "1.96.0"), ("llvm", "22.1.8")]);
        let new = table(&[("rustc", "1.97.0"), ("llvm", "22.1.8")]);
        assert_eq!(
            differences("differs", &old, &new, true),
            ["differs: rustc is 1.97.0, the object was built with 1.96.0"]
        );
    }

    #[test]
    fn another_object_is_refused_with_both_hashes() {
        let manifest = Manifest {
            format: FORMAT,
            object: Object { bytes: 3, sha256: sha256(b"abc") },
            sources: Inputs { sha256: String::new(), inputs: BTreeMap::new() },
            crates: BTreeMap::new(),
            tools: BTreeMap::new(),
            flags: Vec::new(),
        };
        assert!(manifest.object_differences(b"abc").is_empty());
        let found = manifest.object_differences(b"abd");
        assert!(found[0].contains(&sha256(b"abc")) && found[0].contains(&sha256(b"abd")));
    }
}

//! What the object is made of, as hashes: files, settings of the package, crates.
//!
//! Only what can change the object takes part: a crate that merely the agent uses does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::workspace::{Package, Workspace};

/// The package of the program.
pub const PACKAGE: &str = "traffic-ebpf";

/// Everything that the object is made of.
pub struct Sources {
    /// SHA-256 in hexadecimal of every input, by name.
    pub inputs: BTreeMap<String, String>,
    /// Versions of the crates that the program itself asks for, by name.
    pub crates: BTreeMap<String, String>,
}

/// One `[[package]]` of `Cargo.lock`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Locked {
    name: String,
    version: String,
    checksum: String,
    dependencies: Vec<String>,
}

impl Sources {
    /// Reads and hashes the sources of the object.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let package = workspace.package(PACKAGE)?;
        let mut inputs = BTreeMap::new();
        let directory = workspace.root().join(PACKAGE);
        hash_files(&directory.join("src"), &format!("{PACKAGE}/src"), &mut inputs)?;

        inputs.insert("Cargo.toml (settings)".into(), sha256(settings(package).as_bytes()));

        let path = workspace.root().join("Cargo.lock");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let locked = parse_lock(&text);
        let wanted: Vec<&str> = asked(package).map(|dependency| dependency.name.as_str()).collect();
        let all = closure(&locked, &wanted)?;
        let mut list = String::new();
        for entry in &all {
            // Writing to a string cannot fail.
            let _ = writeln!(list, "{} {} {}", entry.name, entry.version, entry.checksum);
        }
        inputs.insert("Cargo.lock (crates)".into(), sha256(list.as_bytes()));
        let crates = all
            .iter()
            .filter(|entry| wanted.contains(&entry.name.as_str()))
            .map(|entry| (entry.name.clone(), entry.version.clone()))
            .collect();
        Ok(Self { inputs, crates })
    }

    /// One hash over all inputs.
    pub fn sha256(&self) -> String {
        let mut list = String::new();
        for (name, hash) in &self.inputs {
            let _ = writeln!(list, "{hash}  {name}");
        }
        sha256(list.as_bytes())
    }
}

/// Returns the SHA-256 of some bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash_files(directory: &Path, name: &str, inputs: &mut BTreeMap<String, String>) -> Result<()> {
    let unreadable = || format!("cannot read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let path = entry.path();
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if path.is_dir() {
            hash_files(&path, &name, inputs)?;
        } else {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            inputs.insert(name, sha256(&bytes));
        }
    }
    Ok(())
}

/// The dependencies that take part in a build.
fn asked(package: &Package) -> impl Iterator<Item = &crate::workspace::Dependency> {
    package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"))
}

/// What the manifests say about the build, in a form that formatting does not change.
fn settings(package: &Package) -> String {
    let mut lines = vec![format!("edition {}", package.edition)];
    for dependency in asked(package) {
        lines.push(format!(
            "{} {} {:?} {:?} {:?} default={}",
            dependency.name,
            dependency.req,
            dependency.kind,
            dependency.target,
            dependency.features,
            dependency.uses_default_features,
        ));
    }
    lines.sort();
    lines.join("\n")
}

/// Reads the packages of a `Cargo.lock`. Cargo writes the file itself, in one shape, so lines do.
fn parse_lock(text: &str) -> Vec<Locked> {
    let mut packages: Vec<Locked> = Vec::new();
    for line in text.lines() {
        if line == "[[package]]" {
            packages.push(Locked::default());
        }
        let Some(package) = packages.last_mut() else { continue };
        let quoted = || line.split('"').nth(1).unwrap_or_default().to_owned();
        match line.split([' ', '"']).next() {
            Some("name") => package.name = quoted(),
            Some("version") => package.version = quoted(),
            Some("checksum") => package.checksum = quoted(),
            Some("") if line.starts_with(" \"") => package.dependencies.push(quoted()),
            _ => {}
        }
    }
    packages
}

/// Returns the named packages and everything that they depend on, sorted, each once.
fn closure<'lock>(packages: &'lock [Locked], names: &[&'lock str]) -> Result<Vec<&'lock Locked>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = names.to_vec();
    while let Some(wanted) = open.pop() {
        // `name`, or `name version` where the lock file holds several versions.
        let (name, version) = wanted.split_once(' ').unwrap_or((wanted, ""));
        let Some(index) = packages.iter().position(|package| {
            package.name == name && (version.is_empty() || version == package.version)
        }) else {
            bail!("Cargo.lock has no package {wanted}");
        };
        if found.insert((name, index)) {
            open.extend(packages[index].dependencies.iter().map(String::as_str));
        }
    }
    Ok(found.into_iter().map(|(_, index)| &packages[index]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"version = 4

[[package]]
name = "aya-ebpf"
version = "0.2.1"
source = "registry"
checksum = "aa"
dependencies = [
 "syn 2.0.1",
]

[[package]]
name = "clap"
version = "4.0.0"
checksum = "bb"

[[package]]
name = "syn"
version = "1.0.9"
checksum = "cc"

[[package]]
name = "syn"
version = "2.0.1"
checksum = "dd"
"#;

    #[test]
    fn only_crates_of_the_object_are_in_its_closure() {
        let packages = parse_lock(LOCK);
        assert_eq!(packages.len(), 4);
        let names: Vec<_> = closure(&packages, &["aya-ebpf"])
            .unwrap()
            .iter()
            .map(|package| (package.name.as_str(), package.version.as_str()))
            .collect();
        assert_eq!(names, [("aya-ebpf", "0.2.1"), ("syn", "2.0.1")]);
    }

    #[test]
    fn a_crate_that_the_lock_file_lacks_is_an_error() {
        assert!(closure(&parse_lock(LOCK), &["tokio"]).is_err());
    }

    #[test]
    fn sha256_of_nothing_is_the_published_one() {
        // FIPS 180-4 test vector for the empty message.
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}

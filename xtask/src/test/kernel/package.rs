//! Debian's kernel packages: found by name, since exact names move with every update, and unpacked
//! into the build directory. Nothing is installed, and a kernel that was unpacked once needs no network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::version::Version;
use crate::{
    command::{self, announce},
    debian::{self, Lists},
    workspace::Workspace,
};

/// Suites that have kernels which Debian 12 has not: 5.10, and 6.16 or later. Each is looked for beside
/// the suite of the second column, on the mirror that the machine itself uses for it.
const OTHER_SUITES: [(&str, &str); 2] =
    [("bullseye-security", "-security"), ("trixie-backports", "")];
/// Marks a directory whose package is unpacked to the end.
const COMPLETE: &str = ".complete";

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The directory of the modules, `kernel` and `modules.builtin` in it.
    modules: PathBuf,
}

impl Kernel {
    /// Finds the newest kernel of a version: one that is here already, else Debian's.
    pub fn find_or_fetch(workspace: &Workspace, version: Version) -> Result<Self> {
        let kernels = workspace.tools().join("kernels");
        fs::create_dir_all(&kernels)
            .with_context(|| format!("cannot create {}", kernels.display()))?;
        let here: Vec<String> = fs::read_dir(&kernels)
            .with_context(|| format!("cannot read {}", kernels.display()))?
            .flatten()
            .filter(|entry| entry.path().join(COMPLETE).is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        if let Some(name) = version.newest(here.iter().map(String::as_str)) {
            return Self::open(&kernels.join(name));
        }
        let (lists, name) = search(&kernels, version)?;
        let directory = kernels.join(&name);
        lists.unpack(&name, &directory, &format!("to boot Linux {version}"))?;
        let kernel = Self::open(&directory)?;
        fs::write(directory.join(COMPLETE), "")
            .with_context(|| format!("cannot write to {}", directory.display()))?;
        Ok(kernel)
    }

    /// Looks at an unpacked package.
    fn open(directory: &Path) -> Result<Self> {
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|below| only_entry(&directory.join(below)))
            .with_context(|| format!("{} has no modules", directory.display()))?;
        let release = modules
            .file_name()
            .and_then(|name| name.to_str())
            .context("the kernel has no name")?
            .to_owned();
        let image = [directory.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("{} has no kernel image", directory.display()))?;
        Ok(Self { release, image, modules })
    }

    /// The bytes of a module, uncompressed; `None` if it is part of the kernel itself.
    pub fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        if builtin.lines().any(|line| line.ends_with(&format!("/{name}.ko"))) {
            return Ok(None);
        }
        let path = find_file(&self.modules.join("kernel"), &|file| {
            file.strip_prefix(name).is_some_and(|end| matches!(end, ".ko" | ".ko.xz"))
        })
        .with_context(|| format!("Linux {} has no module {name}", self.release))?;
        if path.extension().is_some_and(|extension| extension == "xz") {
            let mut xz = Command::new("xz");
            return command::output_bytes(xz.arg("-dc").arg(&path)).map(Some);
        }
        fs::read(&path).with_context(|| format!("cannot read {}", path.display())).map(Some)
    }
}

/// Finds a package in the machine's own lists, else in those of other suites.
fn search(kernels: &Path, version: Version) -> Result<(Lists, String)> {
    if !debian::is_here() {
        bail!("Linux {version} is not here, and only Debian's packages can be fetched");
    }
    let find = |lists: &Lists| -> Result<Option<String>> {
        let names = lists.search(&version.pattern())?;
        Ok(version.newest(names.iter().map(String::as_str)).map(str::to_owned))
    };
    let own = Lists::own();
    if let Some(name) = find(&own)? {
        return Ok((own, name));
    }
    // The lists of a fresh machine are empty.
    own.update()?;
    if let Some(name) = find(&own)? {
        return Ok((own, name));
    }
    announce(&format!("Debian 12 has no Linux {version}: looking in other suites"));
    let others = Lists::of_suites(&kernels.join("lists"), &OTHER_SUITES)?;
    others.update()?;
    match find(&others)? {
        Some(name) => Ok((others, name)),
        None => bail!("Linux {version} cannot be had: no package of it in {others}"),
    }
}

/// The only entry of a directory.
fn only_entry(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    let first = entries.next()?.path();
    entries.next().is_none().then_some(first)
}

/// The first file below a directory whose name `wanted` takes.
fn find_file(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, wanted) {
                return Some(found);
            }
        } else if entry.file_name().to_str().is_some_and(wanted) {
            return Some(path);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_known_by_its_modules_and_its_image_wherever_they_are() {
        let old = tempfile::tempdir().unwrap();
        let modules = old.path().join("lib/modules/6.1.0-9-cloud-amd64");
        fs::create_dir_all(modules.join("kernel/drivers/net")).unwrap();
        fs::create_dir_all(old.path().join("boot")).unwrap();
        assert!(Kernel::open(old.path()).is_err());
        fs::write(old.path().join("boot/vmlinuz-6.1.0-9-cloud-amd64"), "").unwrap();
        fs::write(modules.join("kernel/drivers/net/veth.ko"), "code").unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/net/packet/af_packet.ko\n").unwrap();
        let kernel = Kernel::open(old.path()).unwrap();
        assert_eq!(kernel.release, "6.1.0-9-cloud-amd64");
        assert_eq!(kernel.module("veth").unwrap(), Some(b"code".to_vec()));
        assert_eq!(kernel.module("af_packet").unwrap(), None);
        assert!(kernel.module("eth").is_err());

        let new = tempfile::tempdir().unwrap();
        let modules = new.path().join("usr/lib/modules/7.3.4");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("vmlinuz"), "").unwrap();
        assert_eq!(Kernel::open(new.path()).unwrap().image, modules.join("vmlinuz"));
    }
}

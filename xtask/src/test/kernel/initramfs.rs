//! A root file system for a guest, as the kernel unpacks it: a cpio archive in the format `newc`.
//!
//! Not compressed: an emulated processor takes longer to unpack it than to copy it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command;

/// Types of files, in the mode. Source: inode(7).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    inodes: u32,
    /// Paths that are in it, without a leading slash.
    paths: BTreeSet<String>,
}

impl Initramfs {
    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.paths.contains(path) {
            return;
        }
        self.parents(path);
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file, executable if it shall be.
    pub fn file(&mut self, path: &str, bytes: &[u8], executable: bool) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, REGULAR | if executable { 0o755 } else { 0o644 }, bytes);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, LINK | 0o777, to.as_bytes());
    }

    /// Adds a program of this machine under a path, and the libraries that it needs under theirs.
    pub fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        for library in libraries(program)? {
            let place = library.to_str().context("a library's path is not UTF-8")?;
            if !self.paths.contains(place.trim_matches('/')) {
                let bytes = read(&library)?;
                self.file(place, &bytes, true);
            }
        }
        let bytes = without_symbols(program)?;
        self.file(path, &bytes, true);
        Ok(())
    }

    /// The complete archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.archive
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    /// Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.inodes += 1;
        let links = 1;
        let (time, device) = (0, 0);
        let header = [
            self.inodes,
            mode,
            0,
            0,
            links,
            time,
            bytes.len() as u32,
            device,
            device,
            device,
            device,
            path.len() as u32 + 1,
            0,
        ];
        self.archive.extend(b"070701");
        for field in header {
            self.archive.extend(format!("{field:08x}").bytes());
        }
        self.archive.extend(path.bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend(bytes);
        self.pad();
        self.paths.insert(path.to_owned());
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The shared libraries of a program and its loader, by their paths here.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        if complaint.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("ldd cannot read {}: {}", program.display(), complaint.trim());
    }
    parse_libraries(&text).with_context(|| format!("libraries of {}", program.display()))
}

/// Reads what ldd prints: `name => /path (address)`, `/path (address)`, and the kernel's vdso.
fn parse_libraries(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("a library is missing: {}", line.trim());
        }
        libraries
            .extend(line.split_whitespace().find(|word| word.starts_with('/')).map(Into::into));
    }
    Ok(libraries)
}

/// A program without its symbols: those of a test are a hundred megabytes, which the guest would hold
/// in memory. Where there is no `strip`, whole.
fn without_symbols(program: &Path) -> Result<Vec<u8>> {
    if command::find("strip", &[]).is_none() {
        return read(program);
    }
    let scratch = std::env::temp_dir().join(format!("traffic-stripped-{}", std::process::id()));
    let stripped = command::run(Command::new("strip").arg("-o").arg(&scratch).arg(program))
        .and_then(|()| read(&scratch));
    let _ = fs::remove_file(&scratch);
    stripped
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file that only we read, next to its final place.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_parents_before_children_and_a_trailer() {
        let mut initramfs = Initramfs::default();
        initramfs.file("/t/deps/test", b"abcde", true);
        initramfs.link("t/again", "deps/test");
        let archive = initramfs.finish();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let names: Vec<usize> = ["t\0", "t/deps\0", "t/deps/test\0", "t/again\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).unwrap_or_else(|| panic!("{name:?} is missing")))
            .collect();
        assert!(names.is_sorted());
        // 6 bytes of magic, 13 fields of 8 digits, the name, padded to 4; then the content.
        let header = "070701000000030000".len();
        assert!(header < 110);
        assert!(text.contains("000081ed"), "an executable's mode is 0o100755");
        assert!(text.contains("abcde\0\0\0"), "contents are padded to four bytes");
    }

    #[test]
    fn libraries_are_those_that_ldd_found() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_libraries(text).unwrap(), expected.map(PathBuf::from));
        assert!(parse_libraries("\tlibx.so => not found\n").is_err());
    }
}

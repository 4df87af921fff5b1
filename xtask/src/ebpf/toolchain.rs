//! The compiler, linker and stripper of the object: found, or installed where that is possible.
//!
//! * `rustc` with a prebuilt `core` for `bpfel-unknown-none`, so neither nightly nor rust-src takes
//!   part: Debian has it, rustup has not.
//! * `bpf-linker`, built here against the LLVM of that `rustc`.
//! * `llvm-objcopy` of the same LLVM.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use super::build::TARGET;
use crate::{
    command::{self, announce, is_program},
    debian,
    workspace::Workspace,
};

/// The linker's version; another one makes other bytes.
const BPF_LINKER: &str = "0.13.0";
/// Names a compiler that is somewhere else.
const RUSTC_VARIABLE: &str = "TRAFFIC_BPF_RUSTC";
/// Names an LLVM that is somewhere else; the linker's build reads the same variable.
const LLVM_VARIABLE: &str = "LLVM_PREFIX";

/// Everything that turns the sources into the object.
pub struct Toolchain {
    pub rustc: PathBuf,
    pub sysroot: PathBuf,
    pub linker: PathBuf,
    pub objcopy: PathBuf,
    compiler: Compiler,
    llvm: String,
}

/// What `rustc --version --verbose` says.
#[derive(Debug, PartialEq, Eq)]
struct Compiler {
    /// Release, commit and origin, as in the first line.
    version: String,
    commit: String,
    llvm: String,
}

impl Toolchain {
    /// Finds the tools, and installs those that are missing.
    pub fn find_or_install(workspace: &Workspace) -> Result<Self> {
        let rustc = rustc()?;
        let compiler = Compiler::ask(&rustc)?;
        let sysroot = command::output(Command::new(&rustc).args(["--print", "sysroot"]))?.into();
        let prefix = llvm_prefix(compiler.llvm_major()?)?;
        let llvm = command::output(Command::new(prefix.join("bin/llvm-config")).arg("--version"))?;
        if major(&llvm)? != compiler.llvm_major()? {
            bail!(
                "the compiler {} uses LLVM {}, but {} is LLVM {llvm}; name one of the same major \
                 version with {LLVM_VARIABLE}",
                rustc.display(),
                compiler.llvm,
                prefix.display()
            );
        }
        let linker = linker(workspace, &prefix, compiler.llvm_major()?)?;
        let objcopy = prefix.join("bin/llvm-objcopy");
        Ok(Self { rustc, sysroot, linker, objcopy, compiler, llvm })
    }

    /// What the bytes of the object depend on, by name.
    pub fn versions(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("rustc".into(), self.compiler.version.clone()),
            ("rustc commit".into(), self.compiler.commit.clone()),
            ("rustc llvm".into(), self.compiler.llvm.clone()),
            ("bpf-linker".into(), BPF_LINKER.into()),
            ("bpf-linker llvm".into(), self.llvm.clone()),
        ])
    }
}

/// Finds a compiler that has `core` for the target.
fn rustc() -> Result<PathBuf> {
    if let Some(path) = env::var_os(RUSTC_VARIABLE).map(PathBuf::from) {
        if has_core(&path) {
            return Ok(path);
        }
        bail!("{RUSTC_VARIABLE}={} has no core library for {TARGET}", path.display());
    }
    let debian = PathBuf::from("/usr/bin/rustc");
    if !has_core(&debian) {
        debian::install(
            &["rustc-web", "libstd-rust-web-dev-bpf"],
            "to compile the eBPF program (without root: have it installed, or name a rustc of at \
             least 1.95 that has a core library for bpfel-unknown-none with TRAFFIC_BPF_RUSTC)",
        )?;
        if !has_core(&debian) {
            bail!("{} has no core library for {TARGET}, although installed", debian.display());
        }
    }
    Ok(debian)
}

fn has_core(rustc: &Path) -> bool {
    let directory =
        command::output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]));
    let Ok(entries) = directory.map_err(drop).and_then(|path| fs::read_dir(path).map_err(drop))
    else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Finds the LLVM that the linker is built against.
fn llvm_prefix(major: u32) -> Result<PathBuf> {
    let complete = |prefix: &Path| {
        is_program(&prefix.join("bin/llvm-config")) && is_program(&prefix.join("bin/llvm-objcopy"))
    };
    if let Some(prefix) = env::var_os(LLVM_VARIABLE).map(PathBuf::from) {
        if complete(&prefix) {
            return Ok(prefix);
        }
        bail!("{LLVM_VARIABLE}={} lacks bin/llvm-config or bin/llvm-objcopy", prefix.display());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if !complete(&prefix) || !prefix.join("include/llvm-c").exists() {
        let packages =
            [format!("llvm-{major}"), format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
        debian::install(
            &packages.each_ref().map(String::as_str),
            &format!(
                "to link the eBPF program (without root: have it installed, or name LLVM {major} \
                 with its development files with {LLVM_VARIABLE})"
            ),
        )?;
    }
    Ok(prefix)
}

/// Returns the linker, built if need be. Its directory names all that it depends on.
fn linker(workspace: &Workspace, prefix: &Path, llvm_major: u32) -> Result<PathBuf> {
    let root = workspace.tools().join(format!("bpf-linker-{BPF_LINKER}-llvm-{llvm_major}"));
    let linker = root.join("bin/bpf-linker");
    let version = |linker: &Path| command::output(Command::new(linker).arg("--version"));
    let wanted = format!("bpf-linker {BPF_LINKER}");
    // One that no longer runs, its LLVM being gone, is built again.
    if version(&linker).is_ok_and(|found| found == wanted) {
        return Ok(linker);
    }
    announce(&format!("building {wanted} for LLVM {llvm_major} in {}", root.display()));
    let scratch = workspace.tools().join("build");
    command::run(
        workspace
            .cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}")])
            .arg("--root")
            .arg(&root)
            // Outside the workspace, so that its settings take no part.
            .current_dir("/")
            .env(LLVM_VARIABLE, prefix)
            .env("CARGO_TARGET_DIR", &scratch)
            .env_remove("RUSTFLAGS"),
    )
    .with_context(|| {
        format!("cannot build {wanted}; it needs LLVM {llvm_major} with its development files")
    })?;
    let _ = fs::remove_dir_all(scratch);
    match version(&linker)? {
        found if found == wanted => Ok(linker),
        found => bail!("{} says `{found}`, not `{wanted}`", linker.display()),
    }
}

impl Compiler {
    fn ask(rustc: &Path) -> Result<Self> {
        let text = command::output(Command::new(rustc).args(["--version", "--verbose"]))?;
        Self::parse(&text)
            .ok_or_else(|| anyhow!("cannot understand the version of {}: {text}", rustc.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        Some(Self {
            version: field("rustc ")?.to_owned(),
            commit: field("commit-hash: ")?.to_owned(),
            llvm: field("LLVM version: ")?.to_owned(),
        })
    }

    fn llvm_major(&self) -> Result<u32> {
        major(&self.llvm)
    }
}

fn major(version: &str) -> Result<u32> {
    version
        .split('.')
        .next()
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("`{version}` is not a version of LLVM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_is_known_by_release_commit_and_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                    binary: rustc\ncommit-hash: ac68faa20c58\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.96.0\nLLVM version: 22.1.8";
        let compiler = Compiler::parse(text).unwrap();
        assert_eq!(compiler.version, "1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)");
        assert_eq!(compiler.commit, "ac68faa20c58");
        assert_eq!(compiler.llvm_major().unwrap(), 22);
    }

    #[test]
    fn a_strange_compiler_is_refused() {
        assert_eq!(Compiler::parse("rustc 1.96.0\nhost: x"), None);
        assert_eq!(Compiler::parse(""), None);
        assert!(major("git").is_err());
    }
}

//! Building the object so that its bytes depend on sources and tools only.
//!
//! Paths are the danger: they are in the line information of `.BTF`, which aya and the kernel need,
//! so stripping alone does not remove them. Every directory that can differ between two machines is
//! replaced by a fixed name. Settings of the user are kept out: a flag or a wrapper in the environment
//! would be in the bytes too.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{sources::PACKAGE, toolchain::Toolchain};
use crate::{
    command,
    workspace::{Workspace, json},
};

/// The target of the object.
pub const TARGET: &str = "bpfel-unknown-none";

/// The profile, complete: what `Cargo.toml` says about `release` must not reach the object.
const PROFILE: &[&str] = &[
    "inherits='release'",
    "opt-level=3",
    "debug=2",
    "strip='none'",
    "debug-assertions=false",
    "overflow-checks=false",
    "lto=true",
    "panic='abort'",
    "incremental=false",
    "codegen-units=1",
    "rpath=false",
];

/// Flags of the compiler. The architecture is fixed because aya-ebpf otherwise takes the building
/// machine's; it matters to kernel probes only, which the program has none of.
const COMPILER: &[&str] = &[
    "-Cdebuginfo=2",
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "--cfg=bpf_target_arch=\"x86_64\"",
];

/// The directories that differ between machines, and what the object calls them.
const WORKSPACE: &str = "/workspace";
const REGISTRY: &str = "/registry";
const LIBRARY: &str = "/rust";

/// Prefixes of variables with which a user configures cargo's builds.
const FOREIGN: &[&str] = &["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_UNSTABLE_"];

/// Everything that was asked of compiler and stripper, without this machine's paths.
pub fn flags() -> Vec<String> {
    let profile = PROFILE.iter().map(|setting| format!("profile.ebpf.{setting}"));
    let remaps = [WORKSPACE, REGISTRY, LIBRARY].map(|name| format!("--remap-path-prefix=…={name}"));
    profile
        .chain(COMPILER.iter().map(|&flag| flag.to_owned()))
        .chain(remaps)
        .chain(["llvm-objcopy --strip-debug".into()])
        .collect()
}

/// Where the object is built.
pub fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target().join("ebpf")
}

/// Builds the object and returns its bytes. Features are for tests: the committed object has none.
pub fn build(workspace: &Workspace, toolchain: &Toolchain, features: &[&str]) -> Result<Vec<u8>> {
    let linkers = toolchain.linker.parent().context("the linker has no directory")?;
    let directory = directory(workspace);
    let mut cargo = workspace.cargo();
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if FOREIGN.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .args(["build", "--package", PACKAGE, "--bin", "traffic", "--locked", "--profile", "ebpf"])
        .args(["--features", &features.join(",")])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&directory);
    for setting in PROFILE {
        cargo.args(["--config", &format!("profile.ebpf.{setting}")]);
    }
    cargo
        .env("RUSTC", &toolchain.rustc)
        // The program uses inline assembly, which the target has behind a feature.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", compiler_flags(workspace, toolchain)?.join("\u{1f}"))
        .env("PATH", command::path_with(linkers)?)
        // Empty means none, also where the user's configuration names one.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env_remove("RUSTFLAGS");
    command::run(&mut cargo)?;

    let built = directory.join(TARGET).join("ebpf/traffic");
    let stripped = directory.join("stripped.bpf.o");
    command::run(Command::new(&toolchain.objcopy).arg("--strip-debug").arg(&built).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

fn compiler_flags(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags: Vec<String> = COMPILER.iter().map(|&flag| flag.to_owned()).collect();
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    // The last match wins, so the wider directories come first.
    let directories = [
        (library, LIBRARY),
        (workspace.root().to_owned(), WORKSPACE),
        (registry(workspace)?, REGISTRY),
    ];
    for (directory, name) in directories {
        for path in spellings(&directory) {
            let text = path.to_str().with_context(|| {
                format!("cannot build in {}: the path is not UTF-8", path.display())
            })?;
            flags.push(format!("--remap-path-prefix={text}={name}"));
        }
    }
    Ok(flags)
}

/// A directory as it was named, and without symbolic links: the compiler writes either.
fn spellings(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    if let Ok(real) = directory.canonicalize()
        && real != directory
    {
        all.push(real);
    }
    all
}

/// Returns where the sources of the crates are unpacked, fetching them if need be.
fn registry(workspace: &Workspace) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    let metadata: Metadata = json(workspace.cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        TARGET,
    ]))?;
    let Some(package) = metadata.packages.iter().find(|package| package.name == "aya-ebpf") else {
        bail!("{PACKAGE} no longer uses aya-ebpf: say here where its crates are");
    };
    let directory = package.manifest_path.parent().and_then(Path::parent);
    Ok(directory.context("aya-ebpf has no directory")?.to_owned())
}

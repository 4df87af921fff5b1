//! `cargo xtask dist`: the Debian package.
//!
//! Reproducible: with the same compiler and libraries the same commit makes the same bytes from any
//! directory. Times are those of the commit (`SOURCE_DATE_EPOCH`, unless it is set), and paths of this
//! machine are kept out of the program.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, announce, is_program},
    debian,
    workspace::Workspace,
};

/// Version of cargo-deb.
const CARGO_DEB: &str = "3.8.0";
/// The package that is packaged.
const PACKAGE: &str = "traffic-agent";

/// Flags of `cargo xtask dist`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Package what `cargo build` makes, in a fraction of the time: to try the package, not to give it away
    #[arg(long)]
    debug: bool,
}

/// Builds the package and prints where it is.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let package = match options.debug {
        true => debug_package(workspace)?,
        false => release(workspace)?,
    };
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the package of a debug build, for the tests.
pub fn debug_package(workspace: &Workspace) -> Result<PathBuf> {
    package(workspace, workspace.target(), "dev", &|cargo| {
        cargo.args(["build", "--locked", "--package", PACKAGE, "--bins"]);
    })
}

fn release(workspace: &Workspace) -> Result<PathBuf> {
    let flags = without_paths(workspace);
    let epoch = epoch(workspace)?;
    // A directory of its own: other flags would make all that is built already useless.
    let target = workspace.target().join("release-build");
    package(workspace, &target, "release", &|cargo| {
        cargo.args(["build", "--release", "--locked", "--package", PACKAGE, "--bins"]);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", &flags).env("SOURCE_DATE_EPOCH", &epoch);
    })
}

/// Flags that put the same words in place of the paths of this machine.
fn without_paths(workspace: &Workspace) -> OsString {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut flags = OsString::from("--remap-path-prefix=");
    flags.push(workspace.root());
    flags.push("=.");
    if let Some(home) = home {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(home);
        flags.push("=/cargo");
    }
    flags
}

fn package(
    workspace: &Workspace,
    target: &Path,
    profile: &str,
    build: &dyn Fn(&mut Command),
) -> Result<PathBuf> {
    let tool = cargo_deb(workspace)?;
    debian::install(&["dpkg-dev"], "to package")?;
    let epoch = epoch(workspace)?;
    let mut cargo = workspace.cargo();
    build(&mut cargo);
    command::run(cargo.env("CARGO_TARGET_DIR", target))?;
    let directory = if profile == "dev" { "debug" } else { profile };
    generate(workspace, &target.join(directory).join(PACKAGE))?;

    let output = workspace.root().join("target/dist");
    let path = command::path_with(tool.parent().context("cargo-deb is in no directory")?)?;
    let mut cargo = workspace.cargo();
    cargo.args(["deb", "--quiet", "--no-build", "--locked", "--package", PACKAGE]);
    cargo.args(["--profile", profile]).arg("--output").arg(&output);
    if profile == "dev" {
        // Nobody keeps it; and cargo-deb, which is built in a hurry, compresses slower than gzip.
        cargo.args(["--fast", "--compress-type", "gz", "--compress-system"]);
    }
    cargo.env("PATH", path).env("CARGO_TARGET_DIR", target).env("SOURCE_DATE_EPOCH", &epoch);
    let printed = command::output(&mut cargo)?;
    printed
        .lines()
        .map(PathBuf::from)
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("cargo-deb does not say where the package is: {printed:?}"))
}

/// Lets the program write its own pages and completions to where the package expects them.
fn generate(workspace: &Workspace, program: &Path) -> Result<()> {
    let directory = workspace.root().join("target/dist");
    let pages = directory.join("man");
    let _ = fs::remove_dir_all(&pages);
    command::run(Command::new(program).args(["man", "--directory"]).arg(&pages))?;
    for shell in ["bash", "zsh", "fish"] {
        let text = command::output_bytes(Command::new(program).args(["completions", shell]))?;
        let path = directory.join(format!("{PACKAGE}.{shell}"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// When the sources were committed.
fn epoch(workspace: &Workspace) -> Result<OsString> {
    if let Some(epoch) = env::var_os("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let log = ["log", "-1", "--format=%ct"];
    command::output(Command::new("git").args(log).current_dir(workspace.root()))
        .map(OsString::from)
        .context("cannot tell the time of the sources: set SOURCE_DATE_EPOCH")
}

/// Finds cargo-deb, or builds it.
fn cargo_deb(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.tools().join(format!("cargo-deb-{CARGO_DEB}"));
    let program = root.join("bin/cargo-deb");
    if is_program(&program) {
        return Ok(program);
    }
    announce(&format!("building cargo-deb {CARGO_DEB} in {}", root.display()));
    let scratch = workspace.tools().join("build");
    command::run(
        workspace
            .cargo()
            // It runs once: what optimising would take is more than it saves.
            .args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked", "--debug"])
            .arg("--root")
            .arg(&root)
            // Outside the workspace, so that its settings take no part.
            .current_dir("/")
            .env("CARGO_TARGET_DIR", &scratch)
            .env_remove("RUSTFLAGS"),
    )
    .context("cannot build cargo-deb, which makes the package")?;
    let _ = fs::remove_dir_all(scratch);
    if !is_program(&program) {
        bail!("cargo installed no {}", program.display());
    }
    Ok(program)
}

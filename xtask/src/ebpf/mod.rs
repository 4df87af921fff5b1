//! `cargo xtask ebpf`: the committed object, rebuilt or compared.
//!
//! The object's users have neither the compiler for it nor its linker, so it is committed. A manifest
//! beside it says what it was made of and with what; `--check` holds object, manifest and sources
//! against each other.

mod build;
mod functions;
mod manifest;
mod sources;
mod toolchain;
mod verifier;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};

use self::{manifest::Manifest, sources::Sources, toolchain::Toolchain};
use crate::{command::announce, test, workspace::Workspace};

/// Flags of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub struct Options {
    /// Change nothing: fail unless the committed object belongs to the sources
    #[arg(long)]
    check: bool,
    /// Build one that counts with plain adds, for a test, into the build directory
    #[arg(long, conflicts_with = "check")]
    plain_adds: bool,
}

/// Where the committed object and its manifest are.
struct Prebuilt {
    object: PathBuf,
    manifest: PathBuf,
}

/// Builds the object, or checks the committed one.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if options.plain_adds {
        println!("{}", plain_adds(workspace)?.display());
        return Ok(ExitCode::SUCCESS);
    }
    let directory = workspace.root().join("traffic-ebpf/prebuilt");
    let prebuilt = Prebuilt {
        object: directory.join("traffic.bpf.o"),
        manifest: directory.join("manifest.json"),
    };
    if options.check { check(workspace, &prebuilt) } else { write(workspace, &prebuilt) }
}

/// Builds the object with plain adds in place of the atomic ones, and returns where it is.
pub fn plain_adds(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_install(workspace)?;
    let object = build::build(workspace, &toolchain, &["plain-adds"])?;
    let path = build::directory(workspace).join("plain-adds.bpf.o");
    fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn write(workspace: &Workspace, prebuilt: &Prebuilt) -> Result<ExitCode> {
    let sources = Sources::read(workspace)?;
    let toolchain = Toolchain::find_or_install(workspace)?;
    let object = build::build(workspace, &toolchain, &[])?;
    let manifest = Manifest::new(&object, sources, &toolchain);
    if let Some(directory) = prebuilt.object.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(&prebuilt.object, &object)
        .with_context(|| format!("cannot write {}", prebuilt.object.display()))?;
    manifest.write(&prebuilt.manifest)?;
    print_figures(workspace, &prebuilt.object)?;
    println!("traffic.bpf.o: {} bytes, sha256 {}", manifest.object.bytes, manifest.object.sha256);
    Ok(ExitCode::SUCCESS)
}

/// Prints what is in an object, and what the running kernel makes of it.
fn print_figures(workspace: &Workspace, path: &Path) -> Result<()> {
    let object = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let kernel = verifier::figures(workspace, path)?;
    print!("{}", functions::table(&object, &kernel)?);
    Ok(())
}

fn check(workspace: &Workspace, prebuilt: &Prebuilt) -> Result<ExitCode> {
    let recorded = Manifest::read(&prebuilt.manifest)?;
    let committed = fs::read(&prebuilt.object)
        .with_context(|| format!("cannot read {}", prebuilt.object.display()))?;
    let mut wrong = recorded.object_differences(&committed);
    wrong.extend(recorded.source_differences(&Sources::read(workspace)?));
    if !wrong.is_empty() {
        return Ok(refuse(&wrong));
    }
    println!("sources: as recorded in the manifest");

    let toolchain = Toolchain::find_or_install(workspace)?;
    let rebuilt = build::build(workspace, &toolchain, &[])?;
    let other_tools = recorded.tool_differences(&toolchain);
    if other_tools.is_empty() {
        if rebuilt != committed {
            let hash = sources::sha256(&rebuilt);
            return Ok(refuse(&[format!(
                "the same tools make another object of these sources: {} bytes, sha256 {hash}",
                rebuilt.len()
            )]));
        }
        println!("object: rebuilt, identical to the committed one ({})", recorded.object.sha256);
        print_figures(workspace, &prebuilt.object)?;
        return Ok(ExitCode::SUCCESS);
    }

    for difference in &other_tools {
        println!("tools: {difference}");
    }
    let path = build::directory(workspace).join("traffic.bpf.o");
    fs::write(&path, &rebuilt).with_context(|| format!("cannot write {}", path.display()))?;
    announce(&format!(
        "these tools cannot give the same bytes: running the kernel tests with {}",
        path.display()
    ));
    test::kernel_tests_with(workspace, &path)
}

/// Says why the committed object is not accepted.
fn refuse(reasons: &[String]) -> ExitCode {
    for reason in reasons {
        eprintln!("error: {reason}");
    }
    eprintln!("error: the committed object is not of these sources; run `cargo xtask ebpf`");
    ExitCode::FAILURE
}

//! Where the workspace is, and what cargo says about its packages.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

use crate::command;

/// The workspace that this program was built from.
pub struct Workspace {
    cargo: OsString,
    root: PathBuf,
    target: PathBuf,
    packages: Vec<Package>,
}

/// A member of the workspace, as in `cargo metadata`.
#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub edition: String,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

/// What a member asks of another crate.
#[derive(Deserialize)]
pub struct Dependency {
    pub name: String,
    pub req: String,
    /// `None` is a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
    pub features: Vec<String>,
    pub uses_default_features: bool,
    pub target: Option<String>,
}

/// A library, program or test of a member.
#[derive(Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

impl Workspace {
    /// Asks cargo about the workspace.
    pub fn open() -> Result<Self> {
        // The cargo that started us, so that no other version takes part.
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let metadata: Metadata = json(
            Command::new(&cargo)
                .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
                .arg(source.join("Cargo.toml")),
        )?;
        Ok(Self {
            cargo,
            root: metadata.workspace_root,
            target: metadata.target_directory,
            packages: metadata.packages,
        })
    }

    /// The directory that holds the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where builds go: `target`, or what `CARGO_TARGET_DIR` says.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where tools are installed that only this repository uses.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// A call of cargo in the workspace's root.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        command
    }

    /// Returns a member by name.
    pub fn package(&self, name: &str) -> Result<&Package> {
        self.packages
            .iter()
            .find(|package| package.name == name)
            .with_context(|| format!("the workspace has no package {name}"))
    }
}

/// Runs a program and reads the JSON that it prints.
pub fn json<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let text = command::output(command)?;
    serde_json::from_str(&text)
        .with_context(|| format!("cannot understand what {:?} printed", command.get_program()))
}

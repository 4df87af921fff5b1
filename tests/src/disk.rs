//! A disk of a daemon's own, that a test can break: an ext4 in a file.
//!
//! No mount(2) makes a file system read-only while somebody has a file open for writing. What does is an
//! error on the disk, and ext4 lets it be feigned.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::umount2;
use nix::sys::stat::{major, minor};

use crate::daemon::Home;

/// Room for a history and the journal of ext4.
const BYTES: u64 = 16 << 20;
/// e2fsck(8): errors were there, and were corrected.
const CORRECTED: i32 = 1;

/// The disk that a state directory is on.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// Puts the state directory on a disk of its own, before the first start. It is gone with the home.
    pub fn under(home: &mut Home) -> Result<Self> {
        let disk = Self { image: home.file("disk"), mounted: home.state_dir() };
        File::create(&disk.image)?.set_len(BYTES)?;
        run(Command::new("mkfs.ext4").args(["-q", "-e", "remount-ro"]).arg(&disk.image))?;
        home.unmount_at_the_end(&disk.mounted);
        disk.mount()?;
        fs::set_permissions(&disk.mounted, Permissions::from_mode(0o750))?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mounted]))
    }

    /// Has ext4 find an error, upon which it is read-only at once, whoever is writing.
    pub fn fail(&self) -> Result<()> {
        let device = fs::metadata(&self.mounted)?.dev();
        let block = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let block = fs::canonicalize(&block).with_context(|| format!("cannot follow {block}"))?;
        let name = block.file_name().context("a block device has a name")?;
        let switch = PathBuf::from("/sys/fs/ext4").join(name).join("trigger_fs_error");
        fs::write(&switch, "a test").with_context(|| format!("cannot write {}", switch.display()))
    }

    /// Does what an administrator does then: unmounts it, which nobody may be using, repairs it, and mounts
    /// it again.
    pub fn repair(&self) -> Result<()> {
        umount2(&self.mounted, nix::mount::MntFlags::empty()).context("cannot unmount the disk")?;
        let mut repair = Command::new("e2fsck");
        let output = repair.arg("-p").arg(&self.image).output()?;
        let repaired = matches!(output.status.code(), Some(0 | CORRECTED));
        ensure!(repaired, "{repair:?}: {output:?}");
        self.mount()
    }
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("{program} is not there: apt-get install e2fsprogs mount"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

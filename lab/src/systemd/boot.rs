//! What happens in the namespaces of a [`super::Systemd`] until systemd itself takes over: two processes of
//! one role. The outer makes the namespaces and starts the inner, which is PID 1 there, mounts what it
//! needs and becomes systemd.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pivot_root};

use crate::process::Process;
use crate::role::Role;

/// Below the role's directory: files to be copied to the inside, by their path.
pub(super) const FILES: &str = "files";
/// Lines `outside TAB inside`.
pub(super) const PROGRAMS: &str = "programs";
/// Holds the pid of the inner process.
const PID: &str = "pid";
/// Where the inside is put together.
const ROOT: &str = "root";

/// The search path of all that runs inside.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The default target.
const TARGET: &str = "lab.target";

/// How long the outer process may take to start the inner one.
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// Units that would change the host (its kernel's parameters, its devices), or wait for what is not there.
const MASKED: [&str; 19] = [
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-update-utmp.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-setup.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-random-seed.service",
    "systemd-binfmt.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
];

/// Waits until the outer process has written the pid of the inner one.
pub(super) fn wait_for_pid(outer: &mut Process, directory: &Path) -> Result<u32> {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(directory.join(PID)).unwrap_or_default();
        // With its end of line it is whole.
        if let Some(pid) = text.strip_suffix('\n') {
            return Ok(pid.parse()?);
        }
        if outer.poll()?.is_some() || begin.elapsed() > STARTED_WITHIN {
            bail!("no systemd was started: {}", outer.log());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes the namespaces, starts PID 1 in them and waits for its end. Does not return before.
pub(crate) fn outer(directory: &Path) -> Result<()> {
    // The network is there already, and the cgroup that becomes the root of the tree is our own.
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("cannot make namespaces: run it as root")?;
    let mut command = Role::SystemdInit { directory: directory.to_owned() }.command()?;
    // SAFETY: between fork and exec the closure makes one system call. Its parent is this process, which
    // is killed with the lab: a PID 1 that dies takes all of its namespace along.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let mut child = command.spawn().context("cannot start PID 1")?;
    fs::write(directory.join(PID), format!("{}\n", child.id()))?;
    let status = child.wait()?;
    bail!("systemd ended: {status}")
}

/// Mounts everything and becomes systemd. Is PID 1, and returns only on failure.
pub(crate) fn init(directory: &Path) -> Result<()> {
    if Pid::this().as_raw() != 1 {
        bail!("not PID 1");
    }
    // Here and not in the outer process, whose root would change with ours.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let root = directory.join(ROOT);
    mount_root(directory, &root)?;
    mount_kernel(&root)?;
    mount_devices(&root)?;
    mount_programs(directory, &root)?;
    place_units(&root)?;
    copy_tree(&directory.join(FILES), &root)?;
    enter(&root)?;
    let error = Command::new("/lib/systemd/systemd")
        .args(["--system", "--log-target=journal", "--show-status=no"])
        .arg(format!("--unit={TARGET}"))
        .env_clear()
        .env("PATH", PATH)
        .env("container", "traffic-lab")
        .stdin(File::open("/dev/null")?)
        .exec();
    Err(error).context("cannot become /lib/systemd/systemd: install the package systemd")
}

/// The host's files below a layer of memory.
fn mount_root(directory: &Path, root: &Path) -> Result<()> {
    // Or what is mounted here would be mounted on the host.
    attach("", Path::new("/"), "", MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    let layers = directory.join("layers");
    fs::create_dir_all(&layers)?;
    fs::create_dir_all(root)?;
    attach("tmpfs", &layers, "tmpfs", MsFlags::empty(), "mode=755")?;
    let [upper, work] = ["upper", "work"].map(|name| layers.join(name));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    attach("overlay", root, "overlay", MsFlags::empty(), &options)
}

/// The kernel's file systems, each a mount of its own: the pins and cgroups of the inside are not the host's.
fn mount_kernel(root: &Path) -> Result<()> {
    let none = MsFlags::empty();
    attach("proc", &root.join("proc"), "proc", none, "")?;
    attach("sysfs", &root.join("sys"), "sysfs", MsFlags::MS_RDONLY, "")?;
    for place in ["run", "tmp"] {
        attach("tmpfs", &root.join(place), "tmpfs", none, "mode=755")?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    attach("cgroup2", &root.join("sys/fs/cgroup"), "cgroup2", none, "")?;
    attach("bpf", &root.join("sys/fs/bpf"), "bpf", none, "mode=700")?;
    // The parameters of the host's kernel are not for its tests.
    let parameters = root.join("proc/sys");
    let source = parameters.to_str().context("not UTF-8")?;
    attach(source, &parameters, "", MsFlags::MS_BIND, "")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    attach("", &parameters, "", read_only, "")
}

fn mount_devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    attach("tmpfs", &dev, "tmpfs", MsFlags::empty(), "mode=755")?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        bind_file(&Path::new("/dev").join(name), &dev.join(name))?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    let options = "newinstance,ptmxmode=0666";
    attach("devpts", &dev.join("pts"), "devpts", MsFlags::empty(), options)?;
    symlink("pts/ptmx", dev.join("ptmx"))?;
    Ok(symlink("/proc/self/fd", dev.join("fd"))?)
}

fn mount_programs(directory: &Path, root: &Path) -> Result<()> {
    for line in fs::read_to_string(directory.join(PROGRAMS))?.lines() {
        let (outside, inside) = line.split_once('\t').context("not OUTSIDE TAB INSIDE")?;
        let inside = super::beneath(root, inside)?;
        fs::create_dir_all(inside.parent().context("a program without a directory")?)?;
        bind_file(Path::new(outside), &inside)?;
    }
    Ok(())
}

/// None of the host's own services is started here, and none of its disks is looked for.
fn place_units(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for entry in fs::read_dir(&units)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wants") {
            fs::remove_dir_all(&path)?;
        }
    }
    for name in MASKED {
        let link = units.join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink("/dev/null", &link)?;
    }
    fs::write(root.join("etc/fstab"), "")?;
    let target = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n";
    Ok(fs::write(units.join(TARGET), target)?)
}

/// Makes `root` the root, and lets go of the host's.
fn enter(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    // The old root ends up on top of the new one, at the same place.
    pivot_root(".", ".").context("cannot make the overlay the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the host's root")?;
    Ok(std::env::set_current_dir("/")?)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn bind_file(outside: &Path, inside: &Path) -> Result<()> {
    File::create(inside).with_context(|| format!("cannot create {}", inside.display()))?;
    let source = outside.to_str().context("not UTF-8")?;
    attach(source, inside, "", MsFlags::MS_BIND, "")
}

/// mount(2), with what was to be mounted where in the error.
fn attach(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    let some = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let (source, kind, options) = (some(source), some(kind), some(options));
    mount(source.as_deref(), target, kind.as_deref(), flags, options.as_deref()).with_context(
        || {
            let what = kind.or(source).unwrap_or_else(|| "flags".to_owned());
            format!("cannot mount {what} at {}", target.display())
        },
    )
}

//! One boot: what the guest holds, what it does, and what it says.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Programs, Version, initramfs, initramfs::Initramfs, package::Kernel};
use crate::{command, test::tally::Tally, workspace::Workspace};

/// Modules that the lab and the agent use, each after those that it needs.
const MODULES: [&str; 4] = ["veth", "inet_diag", "tcp_diag", "udp_diag"];
/// What busybox is called in the guest's script.
const APPLETS: [&str; 9] =
    ["sh", "cat", "mount", "mkdir", "insmod", "ip", "uname", "sync", "poweroff"];
/// Begins the lines with which the guest's script says how far it is.
const MARK: &str = "guest:";
/// All is over long before, or never.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Bytes of the self-test's bulk transfers. By the guest's clock it would choose more, which takes an
/// emulated processor minutes.
const SELFTEST_BYTES: u32 = 1_000_000;

/// Mitigations empty caches at every system call, which costs an emulated processor most of its time.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off";

/// What is booted, and what runs then.
pub struct Guest<'a> {
    pub version: Version,
    pub kernel: Kernel,
    pub programs: &'a Programs,
    pub filter: Option<&'a str>,
    /// Parts of names of tests that do not run.
    pub skipped: Vec<&'static str>,
}

/// What the guest has said so far, apart from the tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// The script came to its end.
    done: bool,
    tally: Tally,
    /// Test programs that have ended without saying how many tests failed.
    silent: Vec<String>,
    /// The result of the running test program was seen.
    result_seen: bool,
}

impl Guest<'_> {
    /// Boots, shows what the guest prints with its version in front, and adds up its results.
    pub fn run(&self, workspace: &Workspace) -> Result<Tally> {
        let image = workspace.tools().join("kernels").join(format!("{}.initramfs", self.version));
        initramfs::write(&image, &self.initramfs()?)?;
        let said = self.boot(&image);
        let _ = fs::remove_file(&image);
        let said = said?;
        let mut tally = said.tally;
        for program in &said.silent {
            eprintln!("error: {program} ended early on Linux {}: one failure", self.version);
            tally.failed += 1;
        }
        if !said.done {
            eprintln!("error: the guest of Linux {} ended early: one failure", self.version);
            tally.failed += 1;
        }
        Ok(tally)
    }

    fn initramfs(&self) -> Result<Vec<u8>> {
        let mut root = Initramfs::default();
        for directory in ["proc", "sys", "dev", "tmp"] {
            root.directory(directory);
        }
        let busybox = command::find("busybox", &[]).context("busybox is missing")?;
        root.program("bin/busybox", &busybox)?;
        for applet in APPLETS {
            root.link(&format!("bin/{applet}"), "busybox");
        }
        let mut modules = Vec::new();
        for module in MODULES {
            if let Some(bytes) = self.kernel.module(module)? {
                root.file(&format!("modules/{module}.ko"), &bytes, false);
                modules.push(module);
            }
        }
        root.program("bin/traffic-agent", &self.programs.agent)?;
        root.program("bin/verifier", &self.programs.verifier)?;
        // Where a test looks for its helper: one directory above its own.
        root.program("t/traffic-tests", &self.programs.helper)?;
        for (name, program) in &self.programs.tests {
            root.program(&format!("t/deps/{name}"), program)?;
        }
        root.file("init", self.script(&modules).as_bytes(), true);
        Ok(root.finish())
    }

    /// What the guest does, as its first and only script.
    fn script(&self, modules: &[&str]) -> String {
        let mut script = String::from(
            "#!/bin/sh\n\
             export PATH=/bin TMPDIR=/tmp TRAFFIC_REQUIRE_KERNEL=1 TRAFFIC_AGENT=/bin/traffic-agent\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
             mount -t cgroup2 none /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf\n\
             ip link set lo up\n",
        );
        for module in modules {
            // Writing to a string cannot fail.
            let _ = writeln!(script, "insmod /modules/{module}.ko");
        }
        let mut step = |name: &str, command: &str| {
            let _ = writeln!(script, "echo {MARK} {name} begins; {command}; code=$?");
            // By way of a file, because the console is a terminal, which is drawn on.
            let _ = writeln!(script, "cat /tmp/output; echo {MARK} {name} ended with $code");
        };
        let selftest = format!("traffic-agent selftest --bytes {SELFTEST_BYTES}");
        for (name, command) in [("verifier", "verifier"), ("selftest", &selftest)] {
            if self.filter.is_none_or(|filter| name.contains(filter)) {
                step(name, &format!("{command} >/tmp/output 2>&1"));
            }
        }
        let mut arguments = String::from("--test-threads=1 --show-output");
        if let Some(filter) = self.filter {
            let _ = write!(arguments, " '{}'", filter.replace('\'', ""));
        }
        for skipped in &self.skipped {
            let _ = write!(arguments, " --skip {skipped}");
        }
        for (name, _) in &self.programs.tests {
            step(name, &format!("/t/deps/{name} {arguments} >/tmp/output 2>&1"));
        }
        let _ = write!(script, "echo {MARK} done\nsync; poweroff -f\n");
        script
    }

    fn boot(&self, image: &Path) -> Result<Said> {
        let mut qemu = Command::new("qemu-system-x86_64");
        // The guest's clock counts instructions, and jumps while it waits: however slow or busy this
        // machine is, the guest sees a processor of 500 MHz with nothing else to do. By the clock of the
        // wall, TCP would repeat what is only late, and reset what it has repeated.
        qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"])
            .args(["-cpu", "max", "-M", "q35", "-m", "1536", "-smp", "1"])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", "stdio", "-append", COMMAND_LINE, "-kernel"])
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(image)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = Running(qemu.spawn().context("cannot run qemu-system-x86_64")?);
        let output = child.0.stdout.take().context("qemu has no output")?;
        let (sender, lines) = mpsc::channel();
        // In a thread, so that a guest which falls silent can be ended.
        let reader = thread::spawn(move || {
            BufReader::new(output)
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(String::from_utf8_lossy(&line).into_owned()))
        });
        let begin = Instant::now();
        let mut said = Said::default();
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    let line = line.trim_end();
                    println!("{}: {line}", self.version);
                    said.hear(line);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("Linux {} still runs after {PATIENCE:?}", self.version)
                }
            }
        }
        // It ends when the output does; a send that fails has nobody to tell.
        let _ = reader.join();
        let status = child.0.wait().context("cannot wait for qemu")?;
        if !status.success() {
            bail!("qemu ended with {status}");
        }
        println!("{}: {:.0} s", self.version, begin.elapsed().as_secs_f64());
        Ok(said)
    }
}

impl Said {
    fn hear(&mut self, line: &str) {
        self.tally.read(line);
        self.result_seen |= line.starts_with("test result: ");
        let Some(words) = line.strip_prefix(MARK) else { return };
        match words.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["done"] => self.done = true,
            [_, "begins"] => self.result_seen = false,
            ["verifier" | "selftest", "ended", "with", code] => {
                let one = u64::from(*code == "0");
                self.tally.add(Tally { passed: one, failed: 1 - one, ignored: 0 });
            }
            [name, "ended", "with", _] if !self.result_seen => self.silent.push((*name).to_owned()),
            _ => {}
        }
    }
}

/// A running qemu; dropped, it is ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(lines: &[&str]) -> Said {
        let mut said = Said::default();
        lines.iter().for_each(|line| said.hear(line));
        said
    }

    #[test]
    fn results_of_selftest_and_tests_are_added() {
        let said = hear(&[
            "guest: selftest begins",
            "guest: selftest ended with 0",
            "guest: leg begins",
            "test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out",
            "guest: leg ended with 0",
            "guest: done",
        ]);
        assert_eq!(said.tally, Tally { passed: 10, failed: 0, ignored: 0 });
        assert!(said.done && said.silent.is_empty());
    }

    #[test]
    fn a_selftest_that_fails_and_a_program_that_dies_are_failures() {
        let said = hear(&[
            "guest: selftest ended with 1",
            "guest: leg begins",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured",
            "guest: leg ended with 101",
            "guest: headers begins",
            "guest: headers ended with 139",
        ]);
        assert_eq!(said.tally, Tally { passed: 1, failed: 3, ignored: 0 });
        assert_eq!(said.silent, ["headers"]);
        assert!(!said.done);
    }
}

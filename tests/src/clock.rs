//! A wall clock of a daemon's own, that a test can set.
//!
//! Linux has namespaces for the time since boot and none for the wall clock, and the machine's is not a
//! test's to set. So a library that is preloaded into the daemon adds an offset to what the kernel says.
//! The kernel's own stamps (of a cgroup's directory, of a file) stay those of the machine.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::daemon::Home;

/// In C, because a program that is linked dynamically asks libc for the time, and a library in Rust would
/// ask the same.
const SOURCE: &str = include_str!("clock.c");

/// The clock that a daemon sees from its next start on, and every other command of its home.
#[derive(Debug)]
pub struct Clock {
    offset: File,
}

impl Clock {
    /// One that is right.
    pub fn of(home: &mut Home) -> Result<Self> {
        let [source, library, offset] = ["clock.c", "clock.so", "offset"].map(|it| home.file(it));
        std::fs::write(&source, SOURCE)?;
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .output()
            .context("cc is not there: apt-get install gcc")?;
        ensure!(output.status.success(), "clock.c: {}", String::from_utf8_lossy(&output.stderr));
        home.set("LD_PRELOAD", library.display());
        home.set("TRAFFIC_TEST_CLOCK", offset.display());
        let clock = Self { offset: File::create(offset)? };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to so many seconds before or after the machine's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        Ok(self.offset.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

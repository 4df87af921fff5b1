//! `cargo xtask test`: unit, kernel and end-to-end tests by one command.
//!
//! Nothing is skipped silently: what the tests need is installed, or its absence is an error; a test
//! program that ends early counts as failed; a filter that fits nothing is an error.

mod kernel;
mod tally;
mod tools;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::{kernel::Version, tally::Tally};
use crate::{
    command::{self, announce},
    debian, dist, ebpf,
    workspace::Workspace,
};

/// The package of kernel and end-to-end tests.
const PACKAGE: &str = "traffic-tests";
/// Its test targets that begin so are end to end, with real proxies; the others are kernel tests.
const END_TO_END: &str = "proxy_";

/// The test that loads an object with plain adds, which is built for nothing else.
const PLAIN_ADDS: &str = "plain_adds_lose_what_they_lose";
/// The tests of the Debian package, which is built for nothing else.
const PACKAGED: [&str; 2] = [
    "package_has_what_it_should_and_belongs_to_root",
    "package_is_installed_upgraded_removed_and_purged",
];

/// Flags of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Run only tests whose name contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Run the unit tests (they need no rights; `cargo test` runs them too)
    #[arg(long)]
    unit: bool,
    /// Run the kernel tests on the running kernel; or, with a version such as 6.1, the self-test and
    /// the tests of the core on Debian's cloud kernel of that version, booted in qemu. What does not
    /// look like a version is FILTER: `--kernel wire_tcp`
    #[arg(long, value_name = "VERSION", num_args = 0..=1)]
    kernel: Option<Option<String>>,
    /// Run the end-to-end tests with real proxies
    #[arg(long)]
    e2e: bool,
    /// Test what `cargo build --release` makes
    #[arg(long)]
    release: bool,
}

/// Which tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    unit: bool,
    kernel: bool,
    end_to_end: bool,
}

impl Options {
    /// All tests unless some are asked for.
    fn parts(&self) -> Parts {
        let kernel = self.kernel.is_some();
        let all = !(self.unit || kernel || self.e2e);
        Parts { unit: all || self.unit, kernel: all || kernel, end_to_end: all || self.e2e }
    }

    /// The version to be booted, if one was named. The word behind `--kernel` is the filter if it is
    /// no version: then it is moved there.
    fn take_version(&mut self) -> Result<Option<Version>> {
        let Some(word) = self.kernel.as_mut().and_then(Option::take) else { return Ok(None) };
        if let Ok(version) = word.parse() {
            if self.unit || self.e2e {
                bail!("on Linux {version} only the core runs: leave out --unit and --e2e");
            }
            return Ok(Some(version));
        }
        if let Some(filter) = &self.filter {
            bail!("`{word}` is no version of a kernel, and there is a filter already: `{filter}`");
        }
        self.filter = Some(word);
        Ok(None)
    }

    /// Whether the filter leaves this test.
    fn runs(&self, test: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| test.contains(filter))
    }
}

/// Runs the tests and prints their sum as the last line.
pub fn run(workspace: &Workspace, mut options: Options) -> Result<ExitCode> {
    match options.take_version()? {
        Some(version) => on_kernel(workspace, &options, version),
        None => tests(workspace, &options, None),
    }
}

/// Runs the kernel tests with an object in place of the committed one.
pub fn kernel_tests_with(workspace: &Workspace, object: &Path) -> Result<ExitCode> {
    tests(workspace, &Options { kernel: Some(None), ..Options::default() }, Some(object))
}

/// Boots another kernel, and runs what it can of the tests there.
fn on_kernel(workspace: &Workspace, options: &Options, version: Version) -> Result<ExitCode> {
    kernel::tools()?;
    let mut cargo = cargo(workspace, options, "test");
    cargo.args(["--no-run", "--package", PACKAGE]);
    cargo.args(kernel::TARGETS.iter().flat_map(|target| ["--test", target]));
    let messages = messages(&mut cargo)?;
    let built = |name: &str| {
        let mut lines = messages.lines();
        lines
            .find_map(|line| executable(line, name))
            .with_context(|| format!("cargo built no program called {name}"))
    };
    let programs = kernel::Programs {
        agent: agent(workspace, options)?,
        verifier: verifier(workspace, options)?,
        helper: built(PACKAGE)?,
        tests: kernel::TARGETS
            .iter()
            .map(|&name| Ok((name.to_owned(), built(name)?)))
            .collect::<Result<_>>()?,
    };
    let tally = kernel::run(workspace, version, &programs, options.filter.as_deref())?;
    Ok(conclude(tally, options))
}

fn tests(workspace: &Workspace, options: &Options, object: Option<&Path>) -> Result<ExitCode> {
    let parts = options.parts();
    let privileged = parts.kernel || parts.end_to_end;
    if privileged && !debian::is_root() {
        bail!(
            "the kernel tests and the end-to-end tests need root; run `cargo xtask test` as root \
             (`cargo test` runs the unit tests without rights)"
        );
    }
    // First, so that whatever is missing stops the run before any test.
    if privileged {
        tools::system()?;
    }
    if parts.end_to_end {
        tools::proxies(workspace)?;
    }

    let plain_adds = match parts.kernel && options.runs(PLAIN_ADDS) {
        true => Some(ebpf::plain_adds(workspace)?),
        false => None,
    };
    let package = match parts.kernel && PACKAGED.iter().any(|test| options.runs(test)) {
        true => {
            debian::install(&["adduser", "tzdata", "init-system-helpers"], "by the package")?;
            Some(dist::debug_package(workspace)?)
        }
        false => None,
    };

    let mut tally = Tally::default();
    if parts.unit {
        announce("unit tests");
        let mut cargo = cargo(workspace, options, "test");
        cargo.arg("--no-fail-fast").arg("--").args(&options.filter);
        tally.add(run_tests(&mut cargo)?);
    }
    if privileged {
        announce("kernel and end-to-end tests");
        let mut cargo = cargo(workspace, options, "test");
        cargo.args(["--package", PACKAGE, "--no-fail-fast"]);
        cargo.args(targets(workspace, parts)?);
        cargo.args(["--", "--test-threads=1"]).args(&options.filter);
        let bin = tools::directory(workspace);
        cargo
            .env("TRAFFIC_AGENT", agent(workspace, options)?)
            .env("TRAFFIC_TOOLS", &bin)
            .env("TRAFFIC_REQUIRE_KERNEL", "1")
            .env("PATH", command::path_with(&bin)?);
        if let Some(object) = object {
            cargo.env("TRAFFIC_AGENT_OBJECT", object);
        }
        if let Some(object) = plain_adds {
            cargo.env("TRAFFIC_PLAIN_ADDS_OBJECT", object);
        }
        if let Some(package) = package {
            cargo.env("TRAFFIC_DEB", package);
        }
        tally.add(run_tests(&mut cargo)?);
    }

    Ok(conclude(tally, options))
}

/// Prints the sum as the last line; success if tests ran and none failed.
fn conclude(tally: Tally, options: &Options) -> ExitCode {
    if tally.ignored > 0 {
        announce(&format!("{} tests are marked as ignored and did not run", tally.ignored));
    }
    let nothing = tally.is_empty();
    if nothing {
        match &options.filter {
            Some(filter) => eprintln!("error: no test ran: none has `{filter}` in its name"),
            None => eprintln!("error: no test ran: there is none"),
        }
    }
    println!("{tally}");
    if nothing || tally.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A call of cargo with the options that every call has.
fn cargo(workspace: &Workspace, options: &Options, task: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args([task, "--locked"]);
    if options.release {
        cargo.arg("--release");
    }
    cargo
}

/// Selects the test programs of the parts.
fn targets(workspace: &Workspace, parts: Parts) -> Result<Vec<String>> {
    let all = &workspace.package(PACKAGE)?.targets;
    let tests = all.iter().filter(|target| target.kind.iter().any(|kind| kind == "test"));
    let names: Vec<&str> = tests.map(|target| target.name.as_str()).collect();
    let selected = select(&names, parts);
    if selected.is_empty() {
        bail!("{PACKAGE} has no test of the kind that was asked for");
    }
    Ok(selected)
}

fn select(names: &[&str], parts: Parts) -> Vec<String> {
    let mut selected = Vec::new();
    if parts.kernel {
        // The package's own unit tests.
        selected.push("--lib".to_owned());
    }
    for name in names {
        let wanted = if name.starts_with(END_TO_END) { parts.end_to_end } else { parts.kernel };
        if wanted {
            selected.extend(["--test".to_owned(), (*name).to_owned()]);
        }
    }
    selected
}

/// Builds the agent and returns where it is.
fn agent(workspace: &Workspace, options: &Options) -> Result<PathBuf> {
    let mut cargo = cargo(workspace, options, "build");
    cargo.args(["--package", "traffic-agent", "--bins"]);
    messages(&mut cargo)?
        .lines()
        .find_map(|line| executable(line, "traffic-agent"))
        .context("cargo built no program called traffic-agent")
}

/// Builds the program that prints the verifier's figures, and returns where it is.
fn verifier(workspace: &Workspace, options: &Options) -> Result<PathBuf> {
    let mut cargo = cargo(workspace, options, "build");
    cargo.args(["--package", "traffic-agent", "--example", "verifier"]);
    messages(&mut cargo)?
        .lines()
        .find_map(|line| executable(line, "verifier"))
        .context("cargo built no program called verifier")
}

/// Runs cargo and returns what it says about what it built, a line each.
fn messages(cargo: &mut Command) -> Result<String> {
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("it does not build");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads where a program is from one of cargo's messages.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let program = message.get("executable")?.as_str()?;
    (message.get("target")?.get("name")? == name).then(|| program.into())
}

/// Runs cargo's tests, shows what they print, and adds up their results.
fn run_tests(cargo: &mut Command) -> Result<Tally> {
    let mut child =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut tally = Tally::default();
    let output = child.stdout.take().context("cargo has no output")?;
    // Bytes: a test may print anything.
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of cargo")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        eprintln!("error: cargo ended with {status} without a failed test: counted as one failure");
        tally.failed = 1;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn all_tests_run_unless_some_are_asked_for() {
        let all = Parts { unit: true, kernel: true, end_to_end: true };
        assert_eq!(Options::default().parts(), all);
        let kernel = Parts { unit: false, kernel: true, end_to_end: false };
        assert_eq!(Options { kernel: Some(None), ..Options::default() }.parts(), kernel);
    }

    #[test]
    fn the_word_behind_kernel_is_a_version_or_the_filter() {
        let parse = |arguments: &[&str]| {
            let mut options = Parsed::parse_from([&["test"], arguments].concat()).options;
            let version = options.take_version()?;
            anyhow::Ok((version.map(|v| v.to_string()), options.filter.clone(), options.parts()))
        };
        let kernel = Parts { unit: false, kernel: true, end_to_end: false };
        let word = |text: &str| Some(text.to_owned());
        assert_eq!(parse(&["--kernel"]).unwrap(), (None, None, kernel));
        assert_eq!(parse(&["--kernel", "wire_tcp"]).unwrap(), (None, word("wire_tcp"), kernel));
        assert_eq!(parse(&["--kernel", "6.1"]).unwrap(), (word("6.1"), None, kernel));
        assert_eq!(parse(&["--kernel=6.12", "leg"]).unwrap(), (word("6.12"), word("leg"), kernel));
        assert_eq!(parse(&["wire", "--kernel"]).unwrap(), (None, word("wire"), kernel));
        assert!(parse(&["--kernel", "wire", "leg"]).is_err());
        assert!(parse(&["--kernel", "6.1", "--e2e"]).is_err());
    }

    #[test]
    fn what_a_test_needs_is_made_only_if_the_filter_leaves_it() {
        let filtered = |filter: &str| Options { filter: Some(filter.into()), ..Options::default() };
        assert!(Options::default().runs(PLAIN_ADDS));
        assert!(filtered("plain_adds").runs(PLAIN_ADDS));
        assert!(!filtered("fifty_million").runs(PLAIN_ADDS));
    }

    #[test]
    fn end_to_end_tests_are_known_by_their_name() {
        let names = ["wire", "proxy_xray"];
        let parts = |kernel, end_to_end| Parts { unit: false, kernel, end_to_end };
        assert_eq!(select(&names, parts(true, false)), ["--lib", "--test", "wire"]);
        assert_eq!(select(&names, parts(false, true)), ["--test", "proxy_xray"]);
        assert!(select(&["wire"], parts(false, true)).is_empty());
    }

    #[test]
    fn the_agent_is_found_in_the_messages_of_cargo() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"traffic-agent"},
                          "executable":"/t/debug/traffic-agent"}"#;
        assert_eq!(
            executable(message, "traffic-agent"),
            Some(PathBuf::from("/t/debug/traffic-agent"))
        );
        assert_eq!(executable(message, "other"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "x"), None);
        assert_eq!(executable("no JSON", "x"), None);
    }
}

//! Loads the programs as a measurement does and prints what the kernel says of each, for
//! `cargo xtask ebpf`: name, instructions that the verifier went through, bytes as it left them, bytes of
//! machine code, with tabs between. Needs root; `-` is what the kernel does not say, or a program that
//! this kernel does not take.

use anyhow::{Context as _, Result};
use traffic_agent::kernel::{Counter, Options};
use traffic_lab::CountedCgroup;

fn main() -> Result<()> {
    // Some programs are loaded when they are attached.
    let cgroup = CountedCgroup::new("verifier")?;
    let options = Options { answered: true, ..Options::default() };
    let mut counter = Counter::load(&options)?;
    counter.attach(cgroup.path()).context("cannot attach to a cgroup of its own")?;
    let selected = cgroup.child("selected")?;
    counter
        .attach_above(selected.path(), cgroup.path(), &[2])
        .context("cannot select a cgroup below it")?;
    for program in counter.program_figures() {
        let figures = program.loaded.map_or([None; 3], |loaded| {
            let compiled = Some(loaded.compiled_bytes);
            [loaded.verified_instructions, loaded.translated_bytes, compiled]
        });
        let columns =
            figures.map(|figure| figure.map_or_else(|| "-".to_owned(), |n| n.to_string()));
        println!("{}\t{}", program.name, columns.join("\t"));
    }
    Ok(())
}

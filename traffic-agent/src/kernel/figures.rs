//! What the kernel says of the programs that it has loaded: what its verifier went through, and what
//! became of the object's instructions.

use super::Counter;

/// A program of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFigures {
    /// Its name in the object.
    pub name: String,
    /// What the kernel says; `None` if the program is not loaded here.
    pub loaded: Option<LoadedFigures>,
}

/// What the kernel says of a loaded program; `None` where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedFigures {
    /// Instructions that the verifier went through, on all ways through the program: its complexity, of
    /// which the kernel allows a million. Since 5.16.
    pub verified_instructions: Option<u32>,
    /// Bytes of the program as the verifier left it.
    pub translated_bytes: Option<u32>,
    /// Bytes of machine code; 0 where the kernel interprets.
    pub compiled_bytes: u32,
}

impl Counter {
    /// Figures of all programs of the object, in the order of their names.
    pub fn program_figures(&self) -> Vec<ProgramFigures> {
        let mut figures: Vec<ProgramFigures> = self
            .ebpf
            .programs()
            .map(|(name, program)| ProgramFigures {
                name: name.to_owned(),
                loaded: program.info().ok().map(|info| LoadedFigures {
                    verified_instructions: info.verified_instruction_count(),
                    translated_bytes: info.size_translated(),
                    compiled_bytes: info.size_jitted(),
                }),
            })
            .collect();
        figures.sort_by(|one, other| one.name.cmp(&other.name));
        figures
    }
}

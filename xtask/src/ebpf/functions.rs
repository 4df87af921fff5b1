//! What is in an object: its programs, their instructions, stack and size.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind,
    elf::FileHeader64, read::elf::ElfFile,
};

use super::verifier::Figures;

/// Bytes of one instruction slot; loading a 64-bit constant takes two.
const SLOT: u64 = 8;
/// The register that holds the frame's address.
const FRAME: usize = 10;
/// `BPF_JMP | BPF_CALL`, with `src_reg` = `BPF_PSEUDO_CALL` for a function of the same object.
const CALL: u8 = 0x85;
const PSEUDO_CALL: usize = 1;
/// `BPF_LD | BPF_IMM | BPF_DW`: an address, if it is relocated.
const LOAD_ADDRESS: u8 = 0x18;

/// A function by section and offset in it.
type Place = (usize, u64);

/// A function of the object.
#[derive(Debug, Default)]
struct Function {
    name: String,
    /// Empty for a subprogram.
    program: Option<String>,
    slots: u64,
    /// Bytes of stack below the frame's address.
    stack: u64,
    calls: BTreeSet<Place>,
}

/// Returns a table of the programs, a line each, and of their subprograms; with what the kernel says of
/// the programs, if it was asked.
pub fn table(object: &[u8], kernel: &BTreeMap<String, Figures>) -> Result<String> {
    let functions = functions(object)?;
    let mut text = format!(
        "{:<24} {:<27} {:>12} {:>13} {:>7} {:>8} {:>10} {:>10} {:>8}\n",
        "function",
        "section",
        "instructions",
        "with callees",
        "stack",
        "bytes",
        "verified",
        "translated",
        "machine"
    );
    let (programs, others): (Vec<_>, Vec<_>) =
        functions.iter().partition(|(_, function)| function.program.is_some());
    for (place, function) in programs.into_iter().chain(others) {
        let mut reached = BTreeSet::new();
        let stack = depth(&functions, *place, &mut Vec::new());
        reach(&functions, *place, &mut reached);
        let all: u64 =
            reached.iter().filter_map(|place| functions.get(place)).map(|one| one.slots).sum();
        let figures = kernel.get(&function.name).copied().unwrap_or_default();
        let shown = |figure: Option<u64>| match (figure, &function.program) {
            (Some(figure), _) => figure.to_string(),
            (None, Some(_)) => "-".to_owned(),
            (None, None) => String::new(),
        };
        let line = format!(
            "{:<24} {:<27} {:>12} {:>13} {:>7} {:>8} {:>10} {:>10} {:>8}",
            function.name,
            function.program.as_deref().unwrap_or("(subprogram)"),
            function.slots,
            all,
            stack,
            function.slots * SLOT,
            shown(figures.verified),
            shown(figures.translated_bytes),
            shown(figures.compiled_bytes),
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str("stack: the deepest chain of calls, as far as the instructions show it\n");
    text.push_str(if kernel.is_empty() {
        "verified, translated, machine: the kernel's figures need root\n"
    } else {
        "verified: instructions that this kernel's verifier went through, of a million that it allows;\n\
         translated, machine: bytes of the program as it left it, and compiled; -: not known here\n"
    });
    Ok(text)
}

fn functions(object: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let file: ElfFile<'_, FileHeader64<LittleEndian>> =
        ElfFile::parse(object).context("cannot read the object")?;
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
            continue;
        }
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index)?;
        let start = usize::try_from(symbol.address())?;
        let end = start + usize::try_from(symbol.size())?;
        let Some(code) = section.data()?.get(start..end) else {
            bail!("a function reaches beyond its section: the object is damaged");
        };
        let mut function = Function {
            name: readable(symbol.name()?),
            program: Some(section.name()?.to_owned()).filter(|name| name != ".text"),
            slots: symbol.size() / SLOT,
            stack: stack(code),
            calls: calls(code, index.0, symbol.address()),
        };
        for (offset, relocation) in section.relocations() {
            if !(symbol.address()..symbol.address() + symbol.size()).contains(&offset) {
                continue;
            }
            let at = usize::try_from(offset)? - start;
            let RelocationTarget::Symbol(target) = relocation.target() else { continue };
            let target = file.symbol_by_index(target)?;
            let Some(section) = target.section_index() else { continue };
            if file.section_by_index(section)?.kind() != SectionKind::Text {
                continue;
            }
            // Without the relocation the call reads as one into the own section.
            let Some(slot) = code.get(at..at + SLOT as usize) else { continue };
            let addend = i64::from(immediate(slot));
            let addend = match slot[0] {
                CALL => {
                    function.calls.remove(&(index.0, callee(offset, addend)));
                    (addend + 1) * SLOT as i64
                }
                LOAD_ADDRESS => addend,
                _ => continue,
            };
            function.calls.insert((section.0, target.address().wrapping_add_signed(addend)));
        }
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions)
}

/// The last part of a function's path: `trace` of `traffic::program::trace`.
fn readable(symbol: &str) -> String {
    let path = format!("{:#}", rustc_demangle::demangle(symbol));
    path.rsplit("::").next().unwrap_or(symbol).to_owned()
}

/// Where a call without relocation leads.
fn callee(offset: u64, immediate: i64) -> u64 {
    offset.wrapping_add_signed((immediate + 1) * SLOT as i64)
}

fn calls(code: &[u8], section: usize, start: u64) -> BTreeSet<Place> {
    (start..)
        .step_by(SLOT as usize)
        .zip(code.as_chunks::<8>().0)
        .filter(|(_, slot)| slot[0] == CALL && source(*slot) == PSEUDO_CALL)
        .map(|(offset, slot)| (section, callee(offset, i64::from(immediate(slot)))))
        .collect()
}

/// The deepest access below the frame's address, from the instructions in their order.
fn stack(code: &[u8]) -> u64 {
    // What each register holds, if it is an address in the frame.
    let mut held: [Option<i64>; 16] = [None; 16];
    held[FRAME] = Some(0);
    let mut lowest = 0;
    let mut slots = code.as_chunks::<8>().0.iter();
    while let Some(slot) = slots.next() {
        let (target, source) = (usize::from(slot[1] & 0x0f), source(slot));
        let offset = i64::from(i16::from_le_bytes([slot[2], slot[3]]));
        // Classes: 0 LD, 1 LDX, 2 ST, 3 STX, 4 ALU, 5 JMP, 6 JMP32, 7 ALU64.
        match (slot[0] & 0x07, slot[0]) {
            (0, _) => {
                held[target] = None;
                if slot[0] == LOAD_ADDRESS {
                    slots.next();
                }
            }
            (1, _) => {
                lowest = held[source].map_or(lowest, |base| lowest.min(base + offset));
                held[target] = None;
            }
            (2 | 3, _) => lowest = held[target].map_or(lowest, |base| lowest.min(base + offset)),
            (7, 0xbf) => held[target] = held[source].filter(|_| offset == 0),
            (7, 0x07) => {
                held[target] = held[target].map(|base| base + i64::from(immediate(slot)));
                lowest = held[target].map_or(lowest, |base| lowest.min(base));
            }
            (4 | 7, _) => held[target] = None,
            (_, CALL) => held[..6].fill(None),
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

fn source(slot: &[u8]) -> usize {
    usize::from(slot[1] >> 4)
}

fn immediate(slot: &[u8]) -> i32 {
    i32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]])
}

fn reach(functions: &BTreeMap<Place, Function>, place: Place, reached: &mut BTreeSet<Place>) {
    if let Some(function) = functions.get(&place)
        && reached.insert(place)
    {
        for &called in &function.calls {
            reach(functions, called, reached);
        }
    }
}

/// Stack of a function and the deepest of its callees. Source: `check_max_stack_depth()`,
/// kernel/bpf/verifier.c: each frame counts in units of 32 bytes.
fn depth(functions: &BTreeMap<Place, Function>, place: Place, above: &mut Vec<Place>) -> u64 {
    let Some(function) = functions.get(&place).filter(|_| !above.contains(&place)) else {
        return 0;
    };
    above.push(place);
    let below = function.calls.iter().map(|&called| depth(functions, called, above)).max();
    above.pop();
    function.stack.next_multiple_of(32) + below.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_is_the_deepest_store_or_address_below_the_frame() {
        #[rustfmt::skip]
        let code = [
            0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0,             // *(u64 *)(r10 - 8) = r1
            0xbf, 0xa2, 0, 0, 0, 0, 0, 0,                   // r2 = r10
            0x07, 0x02, 0, 0, 0xe8, 0xff, 0xff, 0xff,       // r2 += -24
            0x63, 0x12, 0xfc, 0xff, 0, 0, 0, 0,             // *(u32 *)(r2 - 4) = r1
            0x95, 0, 0, 0, 0, 0, 0, 0,                      // exit
        ];
        assert_eq!(stack(&code), 28);
        assert_eq!(stack(&code[..24]), 24);
        assert_eq!(stack(&code[..8]), 8);
        assert_eq!(stack(&code[32..]), 0);
    }

    #[test]
    fn a_call_leads_to_the_slot_after_it_plus_its_immediate() {
        let section = 3;
        let code = [0x85, 0x10, 0, 0, 4, 0, 0, 0, 0x85, 0, 0, 0, 6, 0, 0, 0];
        // The second is a helper's.
        assert_eq!(calls(&code, section, 16), BTreeSet::from([(section, 16 + 8 + 4 * 8)]));
    }

    #[test]
    fn callees_add_their_stack_in_units_of_32_bytes() {
        let place = |offset| (1, offset);
        let function = |stack, calls: &[u64]| Function {
            stack,
            calls: calls.iter().map(|&offset| place(offset)).collect(),
            ..Function::default()
        };
        let functions = BTreeMap::from([
            (place(0), function(40, &[8, 16])),
            (place(8), function(8, &[16])),
            (place(16), function(0, &[])),
        ]);
        assert_eq!(depth(&functions, place(0), &mut Vec::new()), 64 + 32);
    }

    #[test]
    fn a_function_is_named_as_in_the_source() {
        assert_eq!(readable("_RNvNtCs8DR81DqgttG_7traffic7program5trace"), "trace");
        assert_eq!(readable("count_egress"), "count_egress");
    }

    #[test]
    fn something_else_than_an_object_is_an_error() {
        assert!(table(b"\x7fELF", &BTreeMap::new()).is_err());
        assert!(table(b"", &BTreeMap::new()).is_err());
    }
}

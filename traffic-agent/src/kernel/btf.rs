//! Where the running kernel keeps what: offsets of members, values of enumerators, parameters of
//! functions, read from its BTF.
//!
//! aya parses BTF too, but keeps what it finds to itself. Of the crates that parse it, one is under the
//! LGPL, and the other takes 150 ms where this takes 5: it looks for a few names among 130,000 types.
//!
//! Source of the format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.

use std::{fs, io};

/// Where the kernel shows its own types; since 5.4, if built with CONFIG_DEBUG_INFO_BTF=y.
const RUNNING: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;

const INTEGER: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;
const VARIABLE: u32 = 14;
const SECTION: u32 = 15;
const FLOAT: u32 = 16;
const DECLARATION_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// No type of a kernel is made of so many within each other; one that is would be made of itself.
const DEEPEST: u32 = 32;

/// Why something is not known of the running kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no BTF, or it cannot be read.
    #[error("cannot read the kernel's types from {RUNNING}; it needs CONFIG_DEBUG_INFO_BTF=y")]
    Read(#[source] io::Error),
    /// It is not as documented.
    #[error("cannot understand the kernel's types in {RUNNING}: {0}")]
    Malformed(&'static str),
    /// The kernel has no such thing.
    #[error("this kernel has no {0}")]
    Missing(String),
}

/// The types of a kernel.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where the strings begin.
    strings: usize,
    /// Where each type begins; type 0 is `void` and has no place.
    types: Vec<usize>,
}

/// A tracepoint, as a program is attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// The number of its type, by which the kernel knows it.
    pub id: u32,
    /// How many arguments it has.
    pub arguments: usize,
}

/// One type, as far as it is the same for all kinds.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// How many members, enumerators or parameters follow.
    length: usize,
    /// Offsets of members also hold the size of bit fields.
    has_bit_fields: bool,
    /// Size, or another type.
    size_or_type: u32,
    /// Where what follows begins.
    rest: usize,
}

impl Btf {
    /// Reads the types of the running kernel.
    pub fn of_running_kernel() -> Result<Self, Error> {
        Self::parse(fs::read(RUNNING).map_err(Error::Read)?)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, Error> {
        let short = Error::Malformed("it is too short");
        let mut btf = Self { bytes, strings: 0, types: vec![0] };
        if btf.bytes.len() < HEADER_BYTES {
            return Err(short);
        }
        if u16::from_ne_bytes([btf.bytes[0], btf.bytes[1]]) != MAGIC {
            return Err(Error::Malformed("it does not begin as BTF does"));
        }
        let header = btf.number(4) as usize;
        let types = header + btf.number(8) as usize;
        let end = types + btf.number(12) as usize;
        btf.strings = header + btf.number(16) as usize;
        let strings_end = btf.strings.saturating_add(btf.number(20) as usize);
        if end > btf.bytes.len() || strings_end > btf.bytes.len() {
            return Err(short);
        }
        let mut at = types;
        while at + TYPE_BYTES <= end {
            btf.types.push(at);
            let found = btf.type_at(at);
            // What follows the twelve bytes that all kinds have.
            let each = match found.kind {
                INTEGER | VARIABLE | DECLARATION_TAG => 4,
                POINTER | FORWARD..=FUNCTION | FLOAT | TYPE_TAG => 0,
                ARRAY => 12,
                STRUCT | UNION | SECTION | ENUM64 => 12 * found.length,
                ENUM | PROTOTYPE => 8 * found.length,
                _ => return Err(Error::Malformed("it has a kind of type that is not known yet")),
            };
            at = found.rest + each;
        }
        if at != end { Err(short) } else { Ok(btf) }
    }

    /// Returns how many bytes into a structure a member begins. `path` may lead through structures inside of
    /// it, `ns.inum`; what has no name is looked through.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, Error> {
        let missing = || Error::Missing(format!("`{path}` in `struct {structure}`"));
        let mut at = self.find(STRUCT, structure);
        let mut bits = 0;
        for name in path.split('.') {
            let found = at.and_then(|at| self.member(at, name, DEEPEST));
            let (offset, of) = found.ok_or_else(missing)?;
            bits = u32::checked_add(bits, offset).ok_or_else(missing)?;
            at = self.structure(of);
        }
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing()) }
    }

    /// Returns the value of an enumerator.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, Error> {
        let missing = || Error::Missing(format!("`{name}` in `enum {enumeration}`"));
        let found = self.find(ENUM, enumeration).ok_or_else(missing)?;
        (0..found.length)
            .map(|index| found.rest + 8 * index)
            .find(|&at| self.is_named(self.number(at), name))
            .map(|at| self.number(at + 4))
            .ok_or_else(missing)
    }

    /// Returns a tracepoint; `None` if there is none of this name.
    pub fn tracepoint(&self, name: &str) -> Option<Tracepoint> {
        let (id, pointer) = self.find_with_id(TYPEDEF, &typedef_of(name))?;
        let prototype = self.by_id(self.by_id(pointer.size_or_type)?.size_or_type)?;
        // The first one is the tracepoint's own.
        let arguments = || prototype.length.saturating_sub(1);
        (prototype.kind == PROTOTYPE).then(|| Tracepoint { id, arguments: arguments() })
    }

    /// Whether a function has a parameter of this name.
    pub fn has_parameter(&self, function: &str, name: &str) -> Result<bool, Error> {
        let prototype = self
            .find(FUNCTION, function)
            .and_then(|found| self.by_id(found.size_or_type))
            .ok_or_else(|| Error::Missing(format!("`{function}()`")))?;
        Ok((0..prototype.length)
            .any(|index| self.is_named(self.number(prototype.rest + 8 * index), name)))
    }

    /// Finds a member by name, also in members without one, so deep at most: its offset in bits, and its
    /// type.
    fn member(&self, of: Type, name: &str, deepest: u32) -> Option<(u32, u32)> {
        (0..of.length).find_map(|index| {
            let at = of.rest + 12 * index;
            let (member, kind, offset) =
                (self.number(at), self.number(at + 4), self.number(at + 8));
            let (offset, bit_field) =
                if of.has_bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_named(member, name) {
                return (bit_field == 0).then_some((offset, kind));
            }
            if !self.is_named(member, "") {
                return None;
            }
            let inner = self.structure(kind)?;
            let (inner, kind) = self.member(inner, name, deepest.checked_sub(1)?)?;
            Some((offset.checked_add(inner)?, kind))
        })
    }

    /// Returns the structure or union that a type is, by whatever name.
    fn structure(&self, id: u32) -> Option<Type> {
        let mut found = self.by_id(id)?;
        for _ in 0..DEEPEST {
            match found.kind {
                TYPEDEF | VOLATILE | CONST => found = self.by_id(found.size_or_type)?,
                STRUCT | UNION => return Some(found),
                _ => return None,
            }
        }
        None
    }

    fn find(&self, kind: u32, name: &str) -> Option<Type> {
        self.find_with_id(kind, name).map(|(_, found)| found)
    }

    fn find_with_id(&self, kind: u32, name: &str) -> Option<(u32, Type)> {
        (1..)
            .zip(&self.types[1..])
            .map(|(id, &at)| (id, self.type_at(at)))
            .find(|(_, found)| found.kind == kind && self.is_named(found.name, name))
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(id as usize)?;
        (at != 0).then(|| self.type_at(at))
    }

    fn type_at(&self, at: usize) -> Type {
        let info = self.number(at + 4);
        Type {
            name: self.number(at),
            kind: info >> 24 & 0x1f,
            length: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            size_or_type: self.number(at + 8),
            rest: at + TYPE_BYTES,
        }
    }

    /// Compares the string at an offset, which ends with a zero.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let string = self.bytes.get(self.strings + offset as usize..).unwrap_or_default();
        string.starts_with(name.as_bytes()) && string.get(name.len()) == Some(&0)
    }

    /// Reads a number; 0 beyond the end.
    fn number(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }
}

/// Tracepoint `x` is known by the type `btf_trace_x`.
fn typedef_of(tracepoint: &str) -> String {
    format!("btf_trace_{tracepoint}")
}

/// Returns BTF of nothing but these tracepoints, whose types have the numbers that they have in the kernel's.
///
/// To load a program of a tracepoint, aya wants to look that number up itself, in all types of the kernel: those
/// are 20 MB in many small pieces. Here each of them is twelve bytes.
pub fn of_tracepoints(tracepoints: &[(&str, Tracepoint)]) -> Vec<u8> {
    let last = tracepoints.iter().map(|(_, tracepoint)| tracepoint.id).max().unwrap_or(0);
    let mut types = [0, FORWARD << 24, 0].repeat(last as usize);
    let mut strings = vec![0];
    for (name, Tracepoint { id, .. }) in tracepoints {
        // The first type has the number 1.
        let at = (*id as usize - 1) * types.len() / last as usize;
        types[at] = strings.len() as u32;
        types[at + 1] = TYPEDEF << 24;
        strings.extend_from_slice(typedef_of(name).as_bytes());
        strings.push(0);
    }
    let types_bytes = 4 * types.len() as u32;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + types_bytes as usize + strings.len());
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([1, 0]);
    for number in [HEADER_BYTES as u32, 0, types_bytes, types_bytes, strings.len() as u32] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(types.iter().flat_map(|number: &u32| number.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts BTF together, type by type.
    #[derive(Default)]
    struct Builder {
        types: Vec<u32>,
        strings: Vec<u8>,
    }

    impl Builder {
        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(text.bytes().chain([0]));
            at
        }

        /// A type with its rest: names are replaced by the offsets of their strings.
        fn add(&mut self, kind: u32, name: &str, length: u32, size: u32, rest: &[(&str, &[u32])]) {
            let name = self.string(name);
            self.types.extend([name, kind << 24 | length, size]);
            for (name, numbers) in rest {
                let name = self.string(name);
                self.types.push(name);
                self.types.extend_from_slice(numbers);
            }
        }

        fn bytes(self) -> Vec<u8> {
            let length = 4 * self.types.len() as u32;
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for number in [24, 0, length, length, self.strings.len() as u32] {
                bytes.extend(u32::to_ne_bytes(number));
            }
            bytes.extend(self.types.iter().flat_map(|number| number.to_ne_bytes()));
            bytes.extend(self.strings);
            bytes
        }
    }

    /// ```c
    /// typedef struct { struct net *net; } possible_net_t;                       // 1: struct, 2: typedef
    /// struct device { int a; union { int b; possible_net_t n; }; int c : 3; };  // 4; the union is 3
    /// enum reason { FIRST = 2, SECOND = 3 };                                    // 5
    /// void reply(sk, owner); void (*btf_trace_drop)(void *, skb, why);          // 6, 7; 8, 9, 10
    /// ```
    fn built() -> Builder {
        let mut btf = Builder::default();
        btf.add(STRUCT, "", 1, 8, &[("net", &[0, 0])]);
        btf.add(TYPEDEF, "possible_net_t", 0, 1, &[]);
        btf.add(UNION, "", 2, 8, &[("b", &[0, 0]), ("n", &[2, 0])]);
        let members: [(&str, &[u32]); 3] =
            [("a", &[0, 0]), ("", &[3, 64]), ("c", &[0, 3 << 24 | 128])];
        btf.add(STRUCT, "device", 3, 24, &members);
        // The kind's flag: offsets hold sizes of bit fields.
        let at = btf.types.len() - 9 - 2;
        btf.types[at] |= 1 << 31;
        btf.add(ENUM, "reason", 2, 4, &[("FIRST", &[2]), ("SECOND", &[3])]);
        btf.add(PROTOTYPE, "", 2, 0, &[("sk", &[0]), ("owner", &[0])]);
        btf.add(FUNCTION, "reply", 0, 6, &[]);
        btf.add(PROTOTYPE, "", 3, 0, &[("", &[0]), ("skb", &[0]), ("why", &[0])]);
        btf.add(POINTER, "", 0, 8, &[]);
        btf.add(TYPEDEF, "btf_trace_drop", 0, 9, &[]);
        btf
    }

    fn parsed() -> Btf {
        Btf::parse(built().bytes()).unwrap()
    }

    #[test]
    fn members_are_found_through_what_has_no_name() {
        let btf = parsed();
        assert_eq!(btf.offset("device", "a").unwrap(), 0);
        assert_eq!(btf.offset("device", "b").unwrap(), 8);
        assert_eq!(btf.offset("device", "n.net").unwrap(), 8);
    }

    #[test]
    fn what_is_missing_is_named() {
        let btf = parsed();
        let message = |result: Result<u32, Error>| result.unwrap_err().to_string();
        assert_eq!(message(btf.offset("device", "x")), "this kernel has no `x` in `struct device`");
        assert!(btf.offset("nothing", "a").is_err());
        // A bit field has no byte of its own, a pointer no members.
        assert!(btf.offset("device", "c").is_err());
        assert!(btf.offset("device", "a.b").is_err());
        assert!(btf.enumerator("reason", "THIRD").is_err());
    }

    #[test]
    fn values_and_parameters_are_found_by_name() {
        let btf = parsed();
        assert_eq!(btf.enumerator("reason", "SECOND").unwrap(), 3);
        assert!(btf.has_parameter("reply", "owner").unwrap());
        assert!(!btf.has_parameter("reply", "own").unwrap());
        assert!(btf.has_parameter("nothing", "owner").is_err());
        assert_eq!(btf.tracepoint("drop"), Some(Tracepoint { id: 10, arguments: 2 }));
        assert_eq!(btf.tracepoint("nothing"), None);
    }

    #[test]
    fn tracepoints_alone_keep_their_numbers() {
        let at = |id| Tracepoint { id, arguments: 0 };
        let alone = [("drop", at(7)), ("send", at(3)), ("first", at(1))];
        let btf = Btf::parse(of_tracepoints(&alone)).unwrap();
        for (name, Tracepoint { id, .. }) in alone {
            let (found, _) = btf.find_with_id(TYPEDEF, &typedef_of(name)).unwrap();
            assert_eq!(found, id);
        }
        assert_eq!(btf.types.len(), 1 + 7);
    }

    #[test]
    fn types_that_are_made_of_themselves_have_an_end() {
        let mut btf = Builder::default();
        btf.add(STRUCT, "itself", 1, 8, &[("", &[1, 0])]);
        btf.add(TYPEDEF, "again", 0, 2, &[]);
        btf.add(STRUCT, "round", 1, 8, &[("member", &[2, 0])]);
        let btf = Btf::parse(btf.bytes()).unwrap();
        assert!(btf.offset("itself", "x").is_err());
        assert!(btf.offset("round", "member.x").is_err());
    }

    #[test]
    fn what_is_cut_off_or_strange_is_refused() {
        let bytes = built().bytes();
        for length in 0..bytes.len() {
            assert!(Btf::parse(bytes[..length].to_vec()).is_err(), "{length} bytes");
        }
        let mut strange = bytes.clone();
        strange[HEADER_BYTES + 7] = 31;
        assert!(Btf::parse(strange).is_err());
    }
}

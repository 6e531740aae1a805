//! What instructions do, as far as it matters here: what they write, whom they wait for, and how a result comes of the
//! sources.

use super::body::Instr;

/// Bits of a thread's index that tell threads of one warp apart.
pub(super) const LANE: u32 = 31;
/// The same, of four warps that multiply together.
const WARPGROUP: u32 = 127;

/// What an opcode says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    /// Bits of the type that it ends with.
    pub(super) width: u32,
    /// Whether that type has a sign.
    pub(super) is_signed: bool,
    /// Whether its first operand is what it writes, unless that is an address.
    pub(super) has_result: bool,
}

impl Operation {
    pub(super) fn of(opcode: &str) -> Self {
        let last = opcode.rsplit('.').next().unwrap_or_default();
        Self {
            kind: Kind::of(opcode),
            width: width(last),
            is_signed: last.starts_with('s'),
            has_result: match base(opcode) {
                "bra" | "brx" | "ret" | "exit" | "trap" | "nop" => false,
                "bar" | "barrier" => has(opcode, "red"),
                "setmaxnreg" | "griddepcontrol" | "fence" | "membar" | "cp" | "nanosleep" => false,
                "wgmma" => has(opcode, "mma_async"),
                _ => true,
            },
        }
    }
}

/// An opcode before its first dot.
pub(super) fn base(opcode: &str) -> &str {
    opcode.split('.').next().unwrap_or_default()
}

/// Whether an opcode has this word after a dot.
pub(super) fn has(opcode: &str, word: &str) -> bool {
    opcode.split('.').skip(1).any(|part| part == word)
}

/// Bits of a type.
pub(super) fn width(name: &str) -> u32 {
    match name.trim_start_matches(|c: char| !c.is_ascii_digit()) {
        "8" => 8,
        "16" => 16,
        "32" | "16x2" => 32,
        _ if name == "pred" => 1,
        _ => 64,
    }
}

/// How a result comes of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Move,
    And,
    /// Of bits in the same place, like `or`.
    Bitwise,
    Add,
    Sub,
    ShiftLeft,
    ShiftRight,
    Extract,
    Multiply,
    MultiplyAdd,
    Divide,
    Remainder,
    Convert,
    Compare,
    Select,
    /// Nothing but the sources decides, in whatever way.
    Pure,
    /// From memory that threads have in common.
    Load,
    /// `shfl`, by where the value comes from.
    Exchange(Exchange),
    /// All lanes are told the same: `vote`.
    Agree,
    /// A tile's values go to lanes of their warp: `mma`, `ldmatrix`.
    Tile,
    /// Anything may decide.
    Unknown,
}

/// Where a lane's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// From one that the instruction names.
    Index,
    /// From the one whose number has other bits.
    Butterfly,
    /// From one so many before or behind.
    Distance,
}

impl Kind {
    fn of(opcode: &str) -> Self {
        let is_whole = !opcode.split('.').any(is_float);
        match base(opcode) {
            // The carry comes from the instruction before.
            _ if has(opcode, "cc") => Self::Unknown,
            "mov" if !has(opcode, "b128") => Self::Move,
            "and" => Self::And,
            "or" | "xor" | "not" => Self::Bitwise,
            "add" if is_whole => Self::Add,
            "sub" if is_whole => Self::Sub,
            "mul" if is_whole && !has(opcode, "hi") => Self::Multiply,
            "mad" if is_whole && !has(opcode, "hi") => Self::MultiplyAdd,
            "div" if is_whole => Self::Divide,
            "rem" => Self::Remainder,
            "shl" => Self::ShiftLeft,
            "shr" => Self::ShiftRight,
            "bfe" => Self::Extract,
            "cvt" if is_whole && !has(opcode, "sat") => Self::Convert,
            "setp" if is_whole => Self::Compare,
            "selp" => Self::Select,
            "mov" | "add" | "sub" | "mul" | "mad" | "div" | "cvt" | "setp" | "fma" | "set"
            | "slct" | "shf" | "bfi" | "prmt" | "min" | "max" | "abs" | "neg" | "rcp" | "sqrt"
            | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "lop3" | "popc" | "clz"
            | "brev" | "bfind" | "sad" | "dp2a" | "dp4a" | "copysign" | "testp" | "cvta"
            | "mul24" | "mad24" | "cnot" | "createpolicy" => Self::Pure,
            "ld" | "ldu" => Self::load(opcode),
            "shfl" if has(opcode, "idx") => Self::Exchange(Exchange::Index),
            "shfl" if has(opcode, "bfly") => Self::Exchange(Exchange::Butterfly),
            "shfl" => Self::Exchange(Exchange::Distance),
            "vote" | "redux" => Self::Agree,
            "match" if has(opcode, "all") => Self::Agree,
            "mma" | "ldmatrix" | "movmatrix" => Self::Tile,
            _ => Self::Unknown,
        }
    }

    /// Threads that load from one address load one value; but not of what is a thread's own, nor of what others may be
    /// writing meanwhile.
    fn load(opcode: &str) -> Self {
        let is_common = opcode.split('.').any(|part| {
            let space = part.strip_suffix("::cta").unwrap_or(part);
            ["global", "shared", "const", "param"].contains(&space)
        });
        let orders = ["volatile", "relaxed", "acquire", "mmio"];
        if is_common && !orders.iter().any(|order| has(opcode, order)) {
            Self::Load
        } else {
            Self::Unknown
        }
    }

    /// Whether an instruction gives the same whenever it is given the same.
    pub(super) fn is_function(self, opcode: &str) -> bool {
        match self {
            Self::Move | Self::And | Self::Bitwise | Self::Add | Self::Sub => true,
            Self::ShiftLeft | Self::ShiftRight | Self::Extract => true,
            Self::Multiply | Self::MultiplyAdd | Self::Divide | Self::Remainder => true,
            Self::Convert | Self::Compare | Self::Select | Self::Pure => true,
            Self::Load => has(opcode, "param"),
            Self::Exchange(_) | Self::Agree | Self::Tile | Self::Unknown => false,
        }
    }
}

/// Whether a part of an opcode is a type with fractions.
fn is_float(part: &str) -> bool {
    let digits = part.trim_start_matches(['b', 't']).strip_prefix('f');
    digits.is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit()))
        || part.starts_with("e4m3")
        || part.starts_with("e5m2")
}

/// Threads that have to come to an instruction together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Together {
    /// Bits of a thread's index that tell such threads apart.
    pub(super) threads: u32,
    /// The operand with the lanes that take part. If some do not, their ways may part.
    pub(super) lanes: Option<usize>,
}

/// Which threads have to come to an instruction together, if any.
pub(super) fn together(instr: &Instr<'_>) -> Option<Together> {
    let of = |threads| {
        Some(Together {
            threads,
            lanes: None,
        })
    };
    let lanes = || {
        Some(Together {
            threads: LANE,
            lanes: instr.operands.len().checked_sub(1),
        })
    };
    match instr.base() {
        "bar" | "barrier" if instr.has("warp") => lanes(),
        "bar" | "barrier" if instr.has("cluster") => of(u32::MAX),
        // With a number of threads, other warps may stay away.
        "bar" | "barrier" => {
            let of_vote = usize::from(instr.has("red")) * 2;
            let has_number = instr.operands.len() > of_vote + 1;
            of(if has_number { LANE } else { u32::MAX })
        }
        "shfl" | "vote" | "match" | "redux" | "elect" => lanes(),
        "wgmma" | "setmaxnreg" => of(WARPGROUP),
        "mma" | "ldmatrix" | "stmatrix" | "movmatrix" => of(LANE),
        _ if instr.has("aligned") => of(LANE),
        _ => None,
    }
}

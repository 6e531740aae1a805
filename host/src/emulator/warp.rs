//! What 32 lanes exchange once they have met: pure functions on values.
//!
//! The fragment layouts are those of the PTX ISA ("ldmatrix", "movmatrix", "Matrix Fragments for
//! mma.m16n8k16"). In all of them lane `l` has group `g = l / 4` and position `t = l % 4`.

use std::array::from_fn;

use half::{bf16, f16};

/// Lanes of a warp.
const LANES: usize = gpu_kernels::gpu::WARP as usize;

/// What one lane brings to a warp operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum WarpOp {
    Sync,
    /// Comes to a barrier of the thread block, and may wait there.
    Barrier {
        barrier: u32,
        threads: u32,
        waits: bool,
    },
    ShflXor {
        bits: u32,
        lane_mask: u32,
    },
    Shfl {
        bits: u32,
        source: u32,
    },
    Any(bool),
    /// The 16-byte row that the lane named, already read.
    LoadMatrix {
        row: [u32; 4],
        transposed: bool,
    },
    MovMatrix(u32),
    Mma {
        factors: Factors,
        acc: [f32; 4],
        a: [u32; 4],
        b: [u32; 2],
    },
}

/// Element type of the factors of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Factors {
    Bf16,
    F16,
}

/// What one lane takes away: as many words as the operation returns, the rest zero.
pub(super) type Reply = [u32; 4];

impl WarpOp {
    /// Whether two lanes ask for the same operation.
    #[inline]
    pub(super) fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Barrier {
                    barrier: x,
                    threads: m,
                    waits: a,
                },
                Self::Barrier {
                    barrier: y,
                    threads: n,
                    waits: b,
                },
            ) => (x, m, a) == (y, n, b),
            (Self::Sync, Self::Sync)
            | (Self::Shfl { .. }, Self::Shfl { .. })
            | (Self::Any(_), Self::Any(_))
            | (Self::MovMatrix(_), Self::MovMatrix(_)) => true,
            (Self::ShflXor { lane_mask: x, .. }, Self::ShflXor { lane_mask: y, .. }) => x == y,
            (Self::LoadMatrix { transposed: x, .. }, Self::LoadMatrix { transposed: y, .. }) => {
                x == y
            }
            (Self::Mma { factors: x, .. }, Self::Mma { factors: y, .. }) => x == y,
            _ => false,
        }
    }

    /// As the kernel's author calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Sync => "sync_warp",
            Self::Barrier { waits: true, .. } => "barrier_sync",
            Self::Barrier { waits: false, .. } => "barrier_arrive",
            Self::ShflXor { .. } => "shfl_xor",
            Self::Shfl { .. } => "shfl",
            Self::Any(_) => "any",
            Self::LoadMatrix { .. } => "ldmatrix_x4",
            Self::MovMatrix(_) => "movmatrix_trans",
            Self::Mma { .. } => "mma",
        }
    }
}

/// Does an operation that all lanes agree on.
pub(super) fn exchange(ops: &[WarpOp; LANES]) -> [Reply; LANES] {
    match ops[0] {
        WarpOp::Sync | WarpOp::Barrier { .. } => [[0; 4]; LANES],
        WarpOp::ShflXor { lane_mask, .. } => {
            from_fn(|l| one_word(word(&ops[l ^ lane_mask as usize])))
        }
        WarpOp::Shfl { .. } => from_fn(|l| match ops[l] {
            WarpOp::Shfl { source, .. } => one_word(word(&ops[source as usize])),
            _ => unreachable!("all lanes agree"),
        }),
        WarpOp::Any(_) => {
            let any = ops.iter().any(|op| word(op) != 0);
            [one_word(u32::from(any)); LANES]
        }
        WarpOp::LoadMatrix { transposed, .. } => load_matrices(ops, transposed),
        WarpOp::MovMatrix(_) => {
            let matrix: Matrix = from_fn(|row| halves(from_fn(|t| word(&ops[4 * row + t]))));
            from_fn(|l| one_word(transposed_fragment(&matrix, l)))
        }
        WarpOp::Mma { factors, .. } => multiply(ops, factors),
    }
}

/// An 8x8 matrix of 16-bit values.
type Matrix = [[u16; 8]; 8];

fn load_matrices(ops: &[WarpOp; LANES], transposed: bool) -> [Reply; LANES] {
    let rows: [[u32; 4]; LANES] = from_fn(|l| match ops[l] {
        WarpOp::LoadMatrix { row, .. } => row,
        _ => unreachable!("all lanes agree"),
    });
    if !transposed {
        return from_fn(|l| from_fn(|i| rows[8 * i + l / 4][l % 4]));
    }
    let matrices: [Matrix; 4] = from_fn(|i| from_fn(|row| halves(rows[8 * i + row])));
    from_fn(|l| from_fn(|i| transposed_fragment(&matrices[i], l)))
}

/// Lane `l`'s two values of the transposed matrix: its row `g`, columns `2 t` and `2 t + 1`.
fn transposed_fragment(matrix: &Matrix, l: usize) -> u32 {
    let (g, t) = (l / 4, l % 4);
    u32::from(matrix[2 * t][g]) | u32::from(matrix[2 * t + 1][g]) << 16
}

/// `acc + a b`. Products are exact in f32; they are added to the accumulator one after the other, each sum
/// rounded to f32. Tensor cores add in another order and cut instead of rounding, so results agree with a
/// GPU's to a few units in the last place of the largest term, not bit by bit.
fn multiply(ops: &[WarpOp; LANES], factors: Factors) -> [Reply; LANES] {
    let widen = match factors {
        Factors::Bf16 => |bits: u16| bf16::from_bits(bits).to_f32(),
        Factors::F16 => |bits: u16| f16::from_bits(bits).to_f32(),
    };
    let mut a = [[0.0f32; 16]; 16];
    let mut b = [[0.0f32; 8]; 16];
    let mut c = [[0.0f32; 8]; 16];
    for (l, op) in ops.iter().enumerate() {
        let (g, t) = (l / 4, l % 4);
        let WarpOp::Mma {
            acc,
            a: a_words,
            b: b_words,
            ..
        } = op
        else {
            unreachable!("all lanes agree");
        };
        for (i, &pair) in a_words.iter().enumerate() {
            let (row, column) = (g + i % 2 * 8, 2 * t + i / 2 * 8);
            a[row][column] = widen(pair as u16);
            a[row][column + 1] = widen((pair >> 16) as u16);
        }
        for (i, &pair) in b_words.iter().enumerate() {
            let row = 2 * t + i * 8;
            b[row][g] = widen(pair as u16);
            b[row + 1][g] = widen((pair >> 16) as u16);
        }
        for (i, &value) in acc.iter().enumerate() {
            c[g + i / 2 * 8][2 * t + i % 2] = value;
        }
    }
    for (c, a) in c.iter_mut().zip(&a) {
        for (&a, b) in a.iter().zip(&b) {
            for (c, &b) in c.iter_mut().zip(b) {
                *c += a * b;
            }
        }
    }
    from_fn(|l| {
        let (g, t) = (l / 4, l % 4);
        from_fn(|i| c[g + i / 2 * 8][2 * t + i % 2].to_bits())
    })
}

/// The one word that a lane brings to the simple operations.
#[inline]
fn word(op: &WarpOp) -> u32 {
    match *op {
        WarpOp::ShflXor { bits, .. } | WarpOp::Shfl { bits, .. } | WarpOp::MovMatrix(bits) => bits,
        WarpOp::Any(says) => u32::from(says),
        _ => unreachable!("brings more than a word"),
    }
}

#[inline]
fn one_word(word: u32) -> Reply {
    [word, 0, 0, 0]
}

fn halves(words: [u32; 4]) -> [u16; 8] {
    from_fn(|i| (words[i / 2] >> (i % 2 * 16)) as u16)
}

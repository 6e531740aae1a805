//! How a cache stores a value, and how a stored tile becomes operands of the tensor cores.
//!
//! `ldmatrix` moves 16-byte pieces of rows: eight 16-bit values, or sixteen bytes. Bytes are widened in
//! registers, after the move: a lane then holds other columns than the instruction's layout says, so the
//! columns are renamed instead of moved. For keys the renaming is undone by reading the query in the same
//! order, for values by storing the output in it. Values that several warps read are widened once for all of them,
//! in shared memory, and keep their order.
//!
//! Widening FP8 to f16 is exact, and scales multiply sums, not values: nothing is rounded on the way to the
//! product. Dequantising to bf16 with the scale, as is often done, rounds every value once more.

use core::fmt;

use crate::dtype::{Bf16, Dtype, F16, Half};
use crate::gpu::Gpu;

/// How a cache stores keys and values, at run time: what kernels of attention are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheDtype {
    /// Of its values.
    pub dtype: Dtype,
    /// Whether every token and head has a scale of its own, for keys and for values.
    pub token_scales: bool,
}

impl CacheDtype {
    /// Values as they are, or with scales that all tokens share.
    pub const fn of(dtype: Dtype) -> Self {
        Self {
            dtype,
            token_scales: false,
        }
    }

    /// Values with a scale for every token and head.
    pub const fn per_token(dtype: Dtype) -> Self {
        Self {
            dtype,
            token_scales: true,
        }
    }

    /// Bytes per value.
    pub const fn value_bytes(self) -> u32 {
        self.dtype.size() as u32
    }
}

/// As in PTX symbols.
impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype.symbol())?;
        f.write_str(if self.token_scales { "_token" } else { "" })
    }
}

/// A cache's element type.
pub trait CacheFormat: Copy {
    /// This type's name at run time.
    const CACHE: CacheDtype;
    /// Bytes per value.
    const BYTES: u32 = Self::CACHE.value_bytes();
    /// What the tensor cores multiply.
    type Math: Half;
    /// `mma` steps (16 columns each) in one `ldmatrix_x4`: 16 bytes of 16 rows, twice.
    const STEPS: usize;
    /// Whether every token and head has a scale of its own, for keys and for values.
    const TOKEN_SCALES: bool = Self::CACHE.token_scales;

    /// Key operands (tokens by dims) from what `ldmatrix_x4` gave; the second one if there are two steps.
    fn keys<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2];
    /// Value operands (dims by tokens) from what `ldmatrix_x4_trans` gave.
    fn values<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2];
    /// Which two pairs of a step's 16 dims lane `lane % 4 == quad` holds of a key: the first dim of each.
    fn key_dims(quad: u32) -> (u32, u32);
    /// Which two of a step's 16 dims lane `lane / 4 == row` holds of the output.
    fn value_dims(row: u32) -> (u32, u32);
    /// Sixteen bytes as sixteen f16, in order; nobody asks a format of 16 bits.
    fn widen16<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2];
}

macro_rules! sixteen_bits {
    ($($format:ident)*) => {$(
        impl CacheFormat for $format {
            const CACHE: CacheDtype = CacheDtype::of(Dtype::$format);
            type Math = $format;
            const STEPS: usize = 1;

            #[inline(always)]
            fn keys<G: Gpu>(_gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                [words; 2]
            }
            #[inline(always)]
            fn values<G: Gpu>(_gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                [words; 2]
            }
            #[inline(always)]
            fn key_dims(quad: u32) -> (u32, u32) {
                (2 * quad, 2 * quad + 8)
            }
            #[inline(always)]
            fn value_dims(row: u32) -> (u32, u32) {
                (row, row + 8)
            }
            #[inline(always)]
            fn widen16<G: Gpu>(_gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                [words; 2]
            }
        }
    )*};
}
sixteen_bits!(Bf16 F16);

/// FP8 e4m3 (OCP e4m3fn: no infinity, NaN is 0x7f and 0xff, largest 448).
#[derive(Clone, Copy, Debug)]
pub struct E4m3;
/// FP8 e5m2 (largest finite 57,344).
#[derive(Clone, Copy, Debug)]
pub struct E5m2;

/// FP8 e4m3 with a scale for every token and head.
#[derive(Clone, Copy, Debug)]
pub struct E4m3PerToken;
/// Signed bytes with a scale for every token and head.
#[derive(Clone, Copy, Debug)]
pub struct I8PerToken;

/// The byte formats differ in how four bytes become four f16.
trait Widen {
    /// Bytes 0 and 1, bytes 2 and 3.
    fn in_order<G: Gpu>(gpu: G, word: u32) -> [u32; 2];
    /// Bytes 0 and 2, bytes 1 and 3.
    fn even_odd<G: Gpu>(gpu: G, word: u32) -> [u32; 2];
}

impl Widen for E4m3 {
    #[inline(always)]
    fn in_order<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        gpu.widen_e4m3x4(word)
    }
    #[inline(always)]
    fn even_odd<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        gpu.widen_e4m3x4(gpu.permute_bytes(word, 0, 0x3120))
    }
}

impl Widen for E4m3PerToken {
    #[inline(always)]
    fn in_order<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        E4m3::in_order(gpu, word)
    }
    #[inline(always)]
    fn even_odd<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        E4m3::even_odd(gpu, word)
    }
}

impl Widen for I8PerToken {
    #[inline(always)]
    fn in_order<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        gpu.widen_i8x4(word)
    }
    #[inline(always)]
    fn even_odd<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        gpu.widen_i8x4(gpu.permute_bytes(word, 0, 0x3120))
    }
}

impl Widen for E5m2 {
    // An e5m2 is the upper byte of the same f16.
    #[inline(always)]
    fn in_order<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        [
            gpu.permute_bytes(word, 0, 0x1404),
            gpu.permute_bytes(word, 0, 0x3424),
        ]
    }
    #[inline(always)]
    fn even_odd<G: Gpu>(gpu: G, word: u32) -> [u32; 2] {
        [
            gpu.permute_bytes(word, 0, 0x2404),
            gpu.permute_bytes(word, 0, 0x3414),
        ]
    }
}

macro_rules! eight_bits {
    ($($format:ident = $cache:expr;)*) => {$(
        impl CacheFormat for $format {
            const CACHE: CacheDtype = $cache;
            type Math = F16;
            const STEPS: usize = 2;

            // A word holds four dims of a token: the first pair is the operand's lower half, the second its
            // upper half.
            #[inline(always)]
            fn keys<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                let [a, b] = [Self::in_order(gpu, words[0]), Self::in_order(gpu, words[1])];
                let [c, d] = [Self::in_order(gpu, words[2]), Self::in_order(gpu, words[3])];
                [[a[0], b[0], a[1], b[1]], [c[0], d[0], c[1], d[1]]]
            }
            // A word holds two dims of two tokens: the even bytes are one dim, the odd ones the next.
            #[inline(always)]
            fn values<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                let [a, b] = [Self::even_odd(gpu, words[0]), Self::even_odd(gpu, words[1])];
                let [c, d] = [Self::even_odd(gpu, words[2]), Self::even_odd(gpu, words[3])];
                [[a[0], a[1], c[0], c[1]], [b[0], b[1], d[0], d[1]]]
            }
            #[inline(always)]
            fn key_dims(quad: u32) -> (u32, u32) {
                (4 * quad, 4 * quad + 2)
            }
            #[inline(always)]
            fn value_dims(row: u32) -> (u32, u32) {
                (2 * row, 2 * row + 1)
            }
            #[inline(always)]
            fn widen16<G: Gpu>(gpu: G, words: [u32; 4]) -> [[u32; 4]; 2] {
                let [a, b] = [Self::in_order(gpu, words[0]), Self::in_order(gpu, words[1])];
                let [c, d] = [Self::in_order(gpu, words[2]), Self::in_order(gpu, words[3])];
                [[a[0], a[1], b[0], b[1]], [c[0], c[1], d[0], d[1]]]
            }
        }
    )*};
}
eight_bits! {
    E4m3 = CacheDtype::of(Dtype::F8E4m3);
    E5m2 = CacheDtype::of(Dtype::F8E5m2);
    E4m3PerToken = CacheDtype::per_token(Dtype::F8E4m3);
    I8PerToken = CacheDtype::per_token(Dtype::I8);
}

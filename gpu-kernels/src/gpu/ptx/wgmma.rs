//! `wgmma`: products of four warps, whose right factors the tensor cores read from shared memory by themselves.
//!
//! Products are begun here and waited for by [`wait`]; in between nobody may touch their registers, which is why they
//! travel as [`Pending`]. Factors are panels of 64 rows of 128 bytes in the 128-byte swizzle. The descriptor of
//! one says where it begins, how far apart groups of eight rows lie (1,024 bytes) and, for values, whose rows are
//! tokens, panels (8,192 bytes), all in units of 16 bytes (PTX ISA, "Matrix Descriptor Format").

use core::arch::asm;

#[cfg(doc)]
use crate::gpu::{Pending, WarpGroup};

/// The lower word of the descriptor of panels at `at`.
#[inline(always)]
fn low(at: u32) -> u32 {
    at >> 4 | 512 << 16
}

/// The accumulators of 4 and 8 steps, 8 registers each.
macro_rules! acc {
    (4) => {
        "{{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}, {16}, {17}, {18}, {19}, {20}, {21}, {22}, {23}, {24}, {25}, {26}, {27}, {28}, {29}, {30}, {31}}}"
    };
    (8) => {
        "{{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}, {16}, {17}, {18}, {19}, {20}, {21}, {22}, {23}, {24}, {25}, {26}, {27}, {28}, {29}, {30}, {31}, {32}, {33}, {34}, {35}, {36}, {37}, {38}, {39}, {40}, {41}, {42}, {43}, {44}, {45}, {46}, {47}, {48}, {49}, {50}, {51}, {52}, {53}, {54}, {55}, {56}, {57}, {58}, {59}, {60}, {61}, {62}, {63}}}"
    };
}

/// One product: the descriptors of the factors in memory, whose lower words are `$memory` plus `$offset`; the upper
/// word says where groups of rows lie, and the swizzle.
macro_rules! product {
    ($instruction:expr, $steps:tt, [$($register:literal = $memory:literal)*] + $offset:literal, $factors:expr) => {
        concat!(
            $("add.u32 low, ", $memory, ", ", $offset, "; mov.b64 ", $register, ", {{low, 0x40000040}};\n",)*
            "wgmma.mma_async.sync.aligned.", $instruction, " ", acc!($steps), ", ", $factors, ";\n"
        )
    };
}

/// What stands around products.
macro_rules! begin {
    () => {
        "{{ .reg .b32 low; .reg .b64 a, b;\nwgmma.fence.sync.aligned;\n"
    };
}
macro_rules! end {
    () => {
        "wgmma.commit_group.sync.aligned; }}"
    };
}

/// Assembly whose first operands are the accumulators of some steps.
macro_rules! with_acc {
    ($way:ident $acc:ident [$($step:literal)*] $text:expr, $($operands:tt)*) => {
        // SAFETY: the four warps of the group come here together, with panels in bounds for the steps of the text: the
        // contract of each function that uses this.
        unsafe {
            asm!(
                $text,
                $(
                    $way(reg32) $acc[$step][0][0], $way(reg32) $acc[$step][0][1],
                    $way(reg32) $acc[$step][0][2], $way(reg32) $acc[$step][0][3],
                    $way(reg32) $acc[$step][1][0], $way(reg32) $acc[$step][1][1],
                    $way(reg32) $acc[$step][1][2], $way(reg32) $acc[$step][1][3],
                )*
                $($operands)*
                options(nostack)
            )
        }
    };
}

macro_rules! scores {
    ($name:ident, $more:ident, $instruction:literal, $orders:literal) => {
        /// See [`WarpGroup::group_scores_bf16`].
        ///
        /// # Safety
        /// As there, with 2, 4 or 8 steps of 32 bytes.
        #[inline(always)]
        pub(super) unsafe fn $name<const STEPS: usize>(queries: u32, keys: u32) -> [[[f32; 4]; 2]; 4] {
            scores!(@ steps $instruction, $orders);
            const { assert!(STEPS == 2 || STEPS == 4 || STEPS == 8) };
            let mut acc = [[[0.0f32; 4]; 2]; 4];
            if STEPS == 2 {
                with_acc!(out acc [0 1 2 3]
                    concat!(begin!(), step!(0, "0"), step!(2), end!()),
                    in(reg32) low(queries), in(reg32) low(keys),);
            } else if STEPS == 4 {
                with_acc!(out acc [0 1 2 3]
                    concat!(begin!(), step!(0, "0"), step!(2), step!(4), step!(6), end!()),
                    in(reg32) low(queries), in(reg32) low(keys),);
            } else {
                // Four steps are a panel; the next one is 8,192 bytes behind.
                with_acc!(out acc [0 1 2 3]
                    concat!(begin!(), step!(0, "0"), step!(2), step!(4), step!(6), step!(512), step!(514), step!(516), step!(518), end!()),
                    in(reg32) low(queries), in(reg32) low(keys),);
            }
            acc
        }
        scores!(@ more $more, $instruction, $orders);
    };
    (@ steps $instruction:literal, $orders:literal) => {
        macro_rules! step {
            ($offset:literal) => {
                step!($offset, "1")
            };
            ($offset:literal, $adds:literal) => {
                product!($instruction, 4, ["a" = "{32}" "b" = "{33}"] + $offset, concat!("a, b, ", $adds, ", 1, 1", $orders))
            };
        }
    };
    (@ more none, $instruction:literal, $orders:literal) => {};
    (@ more $more:ident, $instruction:literal, $orders:literal) => {
        /// See [`WarpGroup::group_more_scores_bf16`].
        ///
        /// # Safety
        /// As there, with 4 or 8 steps.
        #[inline(always)]
        pub(super) unsafe fn $more<const STEPS: usize>(
            mut acc: [[[f32; 4]; 2]; 4],
            queries: u32,
            keys: u32,
        ) -> [[[f32; 4]; 2]; 4] {
            scores!(@ steps $instruction, $orders);
            const { assert!(STEPS == 4 || STEPS == 8) };
            if STEPS == 4 {
                with_acc!(inout acc [0 1 2 3]
                    concat!(begin!(), step!(0), step!(2), step!(4), step!(6), end!()),
                    in(reg32) low(queries), in(reg32) low(keys),);
            } else {
                with_acc!(inout acc [0 1 2 3]
                    concat!(begin!(), step!(0), step!(2), step!(4), step!(6), step!(512), step!(514), step!(516), step!(518), end!()),
                    in(reg32) low(queries), in(reg32) low(keys),);
            }
            acc
        }
    };
}
scores!(
    scores_bf16,
    more_scores_bf16,
    "m64n64k16.f32.bf16.bf16",
    ", 0, 0"
);
scores!(
    scores_f16,
    more_scores_f16,
    "m64n64k16.f32.f16.f16",
    ", 0, 0"
);
scores!(scores_e4m3, none, "m64n64k32.f32.e4m3.e4m3", "");

macro_rules! values {
    ($name:ident, $dtype:literal) => {
        /// See [`WarpGroup::group_values_bf16`].
        ///
        /// # Safety
        /// As there, with 4 or 8 steps.
        #[inline(always)]
        pub(super) unsafe fn $name<const STEPS: usize>(
            mut acc: [[[f32; 4]; 2]; STEPS],
            probs: [[u32; 4]; 4],
            values: u32,
        ) -> [[[f32; 4]; 2]; STEPS] {
            const { assert!(STEPS == 4 || STEPS == 8) };
            // 16 tokens are 2,048 bytes.
            macro_rules! steps {
                ($n:literal, $steps:tt, $memory:literal, $p0:literal, $p1:literal, $p2:literal, $p3:literal) => {
                    concat!(
                        begin!(),
                        product!(concat!("m64n", $n, "k16.f32.", $dtype, ".", $dtype), $steps, ["b" = $memory] + 0, concat!($p0, ", b, 1, 1, 1, 1")),
                        product!(concat!("m64n", $n, "k16.f32.", $dtype, ".", $dtype), $steps, ["b" = $memory] + 128, concat!($p1, ", b, 1, 1, 1, 1")),
                        product!(concat!("m64n", $n, "k16.f32.", $dtype, ".", $dtype), $steps, ["b" = $memory] + 256, concat!($p2, ", b, 1, 1, 1, 1")),
                        product!(concat!("m64n", $n, "k16.f32.", $dtype, ".", $dtype), $steps, ["b" = $memory] + 384, concat!($p3, ", b, 1, 1, 1, 1")),
                        end!()
                    )
                };
            }
            let [[a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3], [d0, d1, d2, d3]] = probs;
            if STEPS == 4 {
                with_acc!(inout acc [0 1 2 3]
                    steps!(64, 4, "{32}", "{{{33}, {34}, {35}, {36}}}", "{{{37}, {38}, {39}, {40}}}", "{{{41}, {42}, {43}, {44}}}", "{{{45}, {46}, {47}, {48}}}"),
                    in(reg32) low(values),
                    in(reg32) a0, in(reg32) a1, in(reg32) a2, in(reg32) a3, in(reg32) b0, in(reg32) b1, in(reg32) b2, in(reg32) b3,
                    in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) c3, in(reg32) d0, in(reg32) d1, in(reg32) d2, in(reg32) d3,);
            } else {
                with_acc!(inout acc [0 1 2 3 4 5 6 7]
                    steps!(128, 8, "{64}", "{{{65}, {66}, {67}, {68}}}", "{{{69}, {70}, {71}, {72}}}", "{{{73}, {74}, {75}, {76}}}", "{{{77}, {78}, {79}, {80}}}"),
                    in(reg32) low(values),
                    in(reg32) a0, in(reg32) a1, in(reg32) a2, in(reg32) a3, in(reg32) b0, in(reg32) b1, in(reg32) b2, in(reg32) b3,
                    in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) c3, in(reg32) d0, in(reg32) d1, in(reg32) d2, in(reg32) d3,);
            }
            acc
        }
    };
}
values!(values_bf16, "bf16");
values!(values_f16, "f16");

/// See [`WarpGroup::group_scores_e4m3`].
///
/// # Safety
/// As there, with 4 or 8 steps of 16 values.
#[inline(always)]
pub(super) unsafe fn scores_of_bytes<const STEPS: usize>(
    queries: u32,
    keys: u32,
) -> [[[f32; 4]; 2]; 4] {
    const { assert!(STEPS == 4 || STEPS == 8) };
    // SAFETY: this function's contract; two steps of 16 values are one of 32 bytes.
    unsafe {
        if STEPS == 4 {
            scores_e4m3::<2>(queries, keys)
        } else {
            scores_e4m3::<4>(queries, keys)
        }
    }
}

/// See [`WarpGroup::group_wait`].
///
/// # Safety
/// As there, with 4 or 8 steps.
#[inline(always)]
pub(super) unsafe fn wait<const STEPS: usize, const YOUNGER: u32>(
    mut acc: [[[f32; 4]; 2]; STEPS],
) -> [[[f32; 4]; 2]; STEPS] {
    const { assert!(STEPS == 4 || STEPS == 8) };
    if STEPS == 4 {
        with_acc!(inout acc [0 1 2 3] concat!("wgmma.wait_group.sync.aligned {32}; // ", acc!(4)), const YOUNGER,);
    } else {
        with_acc!(inout acc [0 1 2 3 4 5 6 7] concat!("wgmma.wait_group.sync.aligned {64}; // ", acc!(8)), const YOUNGER,);
    }
    acc
}

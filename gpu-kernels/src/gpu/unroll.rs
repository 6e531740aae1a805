//! Loops over register arrays.
//!
//! A register cannot be indexed at run time, so an array lives in registers only if every index is a
//! constant. The two compilers of PTX unroll loops by different rules of thumb; this one is unrolled by
//! itself. On the host, where arrays lie in memory, it is the loop it looks like: unrolled, all kernels
//! together would take a CPU's compiler minutes.

/// `unroll!([MOST] i in 0..N { body })`: the body, once for each `i`, with `i` a constant. `N` is a constant
/// of at most `MOST`, which is 2, 4, 8, 16 or 36.
#[cfg(target_arch = "nvptx64")]
macro_rules! unroll {
    ([2] $i:ident in 0..$n:tt $body:block) => { unroll!(@ 2, $i, $n, $body, 0 1) };
    ([4] $i:ident in 0..$n:tt $body:block) => { unroll!(@ 4, $i, $n, $body, 0 1 2 3) };
    ([8] $i:ident in 0..$n:tt $body:block) => { unroll!(@ 8, $i, $n, $body, 0 1 2 3 4 5 6 7) };
    ([16] $i:ident in 0..$n:tt $body:block) => {
        unroll!(@ 16, $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ([36] $i:ident in 0..$n:tt $body:block) => {
        unroll!(@ 36, $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27
            28 29 30 31 32 33 34 35)
    };
    (@ $most:literal, $i:ident, $n:tt, $body:block, $($k:literal)*) => {
        const { assert!($n <= $most) };
        $(if $k < $n {
            let $i: usize = $k;
            $body
        })*
    };
}

/// The same loop for the host.
#[cfg(not(target_arch = "nvptx64"))]
macro_rules! unroll {
    ([$most:literal] $i:ident in 0..$n:tt $body:block) => {{
        const { assert!($n <= $most) };
        for $i in 0..$n $body
    }};
}
pub(crate) use unroll;

/// `rolled!(gpu, i in 0..n { body })`: a loop that is not unrolled. Instructions have to be fetched, too, and those of code
/// that is longer than their cache are waited for.
macro_rules! rolled {
    ($gpu:expr, $i:ident in 0..$n:tt $body:block) => {{
        let mut $i = 0;
        while $i < $n {
            $body
            $i = $gpu.black_box($i + 1);
        }
    }};
}
pub(crate) use rolled;

//! Loops over register arrays.
//!
//! A register cannot be indexed at run time, so an array lives in registers only if every index is a
//! constant. The two compilers unroll loops by different rules of thumb; this one is unrolled by itself.

/// `unroll!([MOST] i in 0..N { body })`: the body, once for each `i`, with `i` a constant. `N` is a constant
/// of at most `MOST`, which is 2, 4, 8 or 16.
macro_rules! unroll {
    ([2] $i:ident in 0..$n:tt $body:block) => { unroll!(@ $i, $n, $body, 0 1) };
    ([4] $i:ident in 0..$n:tt $body:block) => { unroll!(@ $i, $n, $body, 0 1 2 3) };
    ([8] $i:ident in 0..$n:tt $body:block) => { unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7) };
    ([16] $i:ident in 0..$n:tt $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident, $n:tt, $body:block, $($k:literal)*) => {
        $(if $k < $n {
            let $i: usize = $k;
            $body
        })*
    };
}
pub(crate) use unroll;

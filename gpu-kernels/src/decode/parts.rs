//! The parts of a row that were attended to apart: which there are, and where they lie.

use crate::attention::item::MergeItem;
use crate::attention::lse::Lse;
use crate::attention::sequence::{first_key, query_row, seq_len};
use crate::attention::tile::TILE_GROUP;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::params::MergeParams;

/// Parts whose loads are in flight together.
pub(crate) const UNROLL: usize = 4;

/// A sequence of several parts.
#[derive(Clone, Copy)]
pub(crate) struct Divided {
    /// Its first row of the output.
    pub(crate) out_row: u32,
    /// How many parts it has.
    pub(crate) num_parts: u32,
    /// The workspace's index of the parts: `first + step * part`, and one more for part 0 where the step is 2: see
    /// [`MergeItem::step`].
    first: u32,
    step: u32,
}

impl Divided {
    /// Number `index` of what a schedule says is to be merged; `None` if that is nonsense.
    ///
    /// # Safety
    /// There are so many, and sequences have starts if there are any; nobody writes either.
    #[inline(always)]
    pub(crate) unsafe fn of_item<G: Gpu>(gpu: G, params: &MergeParams, index: u32) -> Option<Self> {
        // SAFETY: this function's contract.
        let item = unsafe { MergeItem::load(gpu, params.merges, index) };
        // Whatever it says, nothing is read or written that there is not.
        let run = item.first_part / 2;
        if item.seq >= params.num_seqs || run >= params.num_kv_splits {
            return None;
        }
        // SAFETY: a sequence: this function's contract.
        let out_row =
            unsafe { query_row(gpu, params.query_start_loc, params.num_tokens, item.seq) };
        out_row.map(|out_row| Self {
            out_row,
            num_parts: item.num_parts.min(params.num_kv_splits - run),
            first: item.first_part.saturating_sub((item.step == 2) as u32),
            step: item.step.min(2),
        })
    }

    /// Sequence `y`, if it was split.
    ///
    /// # Safety
    /// There is such a sequence; lengths and starts are there, and nobody writes them.
    #[inline(always)]
    pub(crate) unsafe fn of_seq<G: Gpu>(gpu: G, params: &MergeParams, y: u32) -> Option<Self> {
        let seq_len = if params.seq_lens == 0 {
            params.max_seq_len
        } else {
            // SAFETY: y is a sequence, and each has a length: this function's contract.
            unsafe {
                seq_len(
                    gpu,
                    params.seq_lens,
                    params.stride_seq_lens,
                    y,
                    params.max_seq_len,
                )
            }
        };
        // Stage 1's splits begin at the window's first group of tokens.
        let first = first_key(seq_len, params.mask) / TILE_GROUP * TILE_GROUP;
        // SAFETY: y is a sequence, and there is one start more: this function's contract.
        let out_row = unsafe { query_row(gpu, params.query_start_loc, params.num_tokens, y) }?;
        if seq_len - first <= params.split_len {
            return None;
        }
        Some(Self {
            out_row,
            // SAFETY: splits hold at least a tile: the host's `Splits::of_len`.
            num_parts: unsafe { div(seq_len - first - 1, params.split_len) } + 1,
            first: y * params.num_kv_splits,
            step: 1,
        })
    }

    /// The same, of [`Divided::of_seq`], whose step the compiler has lost sight of on the way here.
    #[inline(always)]
    pub(crate) fn of_splits(self) -> Self {
        Self { step: 1, ..self }
    }

    /// The same, of which the compiler does not know that it is: in a loop nothing that follows from it is held in registers
    /// from turn to turn.
    #[inline(always)]
    pub(crate) fn again<G: Gpu>(self, gpu: G) -> Self {
        Self {
            out_row: gpu.black_box(self.out_row),
            first: gpu.black_box(self.first),
            ..self
        }
    }

    /// The workspace's index of part `part`.
    #[inline(always)]
    fn index(self, part: u32) -> u64 {
        (self.first + self.step * part + (self.step == 2 && part == 0) as u32) as u64
    }
}

/// Four columns of each part of a batch.
pub(crate) type Columns = [[u32; 4]; UNROLL];

/// Four columns of a lane in the parts of a row.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    divided: Divided,
    /// Those of the workspace's part 0, and its lse.
    out: u64,
    lse: u64,
    /// Rows of a part, and bytes of a row.
    num_rows: u32,
    row_bytes: u32,
    /// Parts end here; of columns that a row does not have, there are none.
    end: u32,
}

impl Parts {
    /// The lane's columns, from `column` on, of row `row` of the sequence.
    #[inline(always)]
    pub(crate) fn of(params: &MergeParams, divided: Divided, row: u32, column: u32) -> Self {
        let row_bytes = params.head_size_v * 4;
        Self {
            divided,
            out: params.partial_out + row as u64 * row_bytes as u64 + column as u64 * 4,
            lse: params.partial_lse + Lse::BYTES * row as u64,
            num_rows: params.num_rows,
            row_bytes,
            end: if column < params.head_size_v {
                divided.num_parts
            } else {
                0
            },
        }
    }

    /// Those of `part` and the next ones, each `step` further; zeros past the end.
    ///
    /// # Safety
    /// Stage 1 wrote the parts.
    #[inline(always)]
    pub(crate) unsafe fn load<G: Gpu>(self, gpu: G, part: u32, step: u32) -> Columns {
        let mut batch = [[0u32; 4]; UNROLL];
        unroll!([4] i in 0..UNROLL {
            let part = part + i as u32 * step;
            if part < self.end {
                let row = self.divided.index(part) * self.num_rows as u64;
                // SAFETY: `part` is below `end`, so stage 1 wrote it: this function's contract.
                batch[i] =
                    unsafe { gpu.ld_global_b128(self.out + row * self.row_bytes as u64) };
            }
        });
        batch
    }

    /// The lse of the same parts.
    ///
    /// # Safety
    /// Stage 1 wrote them.
    #[inline(always)]
    pub(crate) unsafe fn load_lses<G: Gpu>(self, gpu: G, part: u32, step: u32) -> [Lse; UNROLL] {
        let mut lses = [Lse::EMPTY; UNROLL];
        unroll!([4] i in 0..UNROLL {
            let part = part + i as u32 * step;
            if part < self.end {
                // SAFETY: `part` is below `end`, so stage 1 wrote its lse: this function's contract.
                lses[i] = unsafe { self.load_lse(gpu, part) };
            }
        });
        lses
    }

    /// The lse of a part.
    ///
    /// # Safety
    /// There is such a part, and stage 1 wrote it.
    #[inline(always)]
    unsafe fn load_lse<G: Gpu>(self, gpu: G, part: u32) -> Lse {
        // SAFETY: this function's contract.
        unsafe {
            Lse::load(
                gpu,
                self.lse,
                self.divided.index(part) * self.num_rows as u64,
            )
        }
    }

    /// The lse of all parts, in every lane, which keeps the first `KEPT` that it takes: they are under way together, and
    /// there are seldom more.
    ///
    /// # Safety
    /// Converged; stage 1 wrote the parts' lse.
    #[inline(always)]
    pub(crate) unsafe fn total<G: Gpu, const KEPT: usize>(self, gpu: G) -> Lse {
        let num_splits = self.divided.num_parts;
        let mut own = [Lse::EMPTY; KEPT];
        let mut max = f32::NEG_INFINITY;
        unroll!([4] i in 0..KEPT {
            let split = i as u32 * WARP + gpu.lane();
            if split < num_splits {
                // SAFETY: `split < num_splits`, so stage 1 wrote it: this function's contract.
                own[i] = unsafe { self.load_lse(gpu, split) };
            }
        });
        unroll!([4] i in 0..KEPT {
            max = gpu.max(max, own[i].max);
        });
        let mut split = KEPT as u32 * WARP + gpu.lane();
        while split < num_splits {
            // SAFETY: `split < num_splits`, so stage 1 wrote it: this function's contract.
            max = gpu.max(max, unsafe { self.load_lse(gpu, split) }.max);
            split += WARP;
        }
        for mask in [1, 2, 4, 8, 16] {
            // SAFETY: converged again after the loop: this function's contract.
            max = gpu.max(
                max,
                f32::from_bits(unsafe { gpu.shfl_xor(max.to_bits(), mask) }),
            );
        }
        let mut sum = 0.0;
        unroll!([4] i in 0..KEPT {
            sum += own[i].weight(gpu, max);
        });
        let mut split = KEPT as u32 * WARP + gpu.lane();
        while split < num_splits {
            // SAFETY: `split < num_splits`, so stage 1 wrote it: this function's contract.
            sum += unsafe { self.load_lse(gpu, split) }.weight(gpu, max);
            split += WARP;
        }
        for mask in [1, 2, 4, 8, 16] {
            // SAFETY: converged again after the loop: this function's contract.
            sum += f32::from_bits(unsafe { gpu.shfl_xor(sum.to_bits(), mask) });
        }
        Lse { max, sum }
    }
}

/// The lse of all parts of a batch, added up as [`Parts::total`] does.
#[inline(always)]
pub(crate) fn total_of<G: Gpu>(gpu: G, [a, b, c, d]: [Lse; UNROLL]) -> Lse {
    let max = gpu.max(gpu.max(a.max, b.max), gpu.max(c.max, d.max));
    let [a, b, c, d] = [a, b, c, d].map(|lse| lse.weight(gpu, max));
    Lse {
        max,
        sum: (a + b) + (c + d),
    }
}

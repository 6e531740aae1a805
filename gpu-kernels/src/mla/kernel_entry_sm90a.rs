//! Stage 1 of split-KV decode attention over FP8 entries of 656 bytes, by the products of warp groups: what
//! `decode_mla_entry` computes, for compute capability 9.0 and many rows.
//!
//! Grid: as of `decode_mla_entry`, with 64 rows for each thread block, which is cut as that of
//! [`super::kernel_sm90a::decode_mla_group`].
//!
//! ```text
//! each warp that loads, for every second tile of 64 positions:
//!     find the entries; wait until its half of the stage is empty; copy them, and turn latents into f16; say which
//!     there are, and tell the group that computes the tile's scores
//! the groups, for each pair of tiles: see `group_softmax`
//! a group of query tokens of one split is finished: out, with the sink, and lse; else partial_out, partial_lse
//! ```

use crate::dtype::{Bf16, E4m3};
use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::mla::cache_format::{EntryForm, fp8_ds};
use crate::mla::entry_places::{Places, num_positions};
use crate::mla::entry_rows::{V_STEPS, is_causal, mended_row, own_rows, seen_by_all, sink_factor};
use crate::mla::group_loader_entry::load_entries;
use crate::mla::group_query::{load_entry_queries, row_scale};
use crate::mla::group_softmax::{GroupSoftmax, View};
use crate::mla::group_tile::{GROUP_WARPS, group_cut};
use crate::mla::kernel_sm90a::{LOAD_REGISTERS, REGISTERS};
use crate::mla::{Fp8Ds, MlaTile};
use crate::params::DecodeMlaEntryParams;

/// Steps of 16 values of an entry.
const K_STEPS: usize = (fp8_ds::LATENTS + fp8_ds::ROPE) as usize / 16;

/// The kernel.
///
/// # Safety
/// As [`super::kernel_fp8::decode_mla_entry`], on the grid above.
#[inline(always)]
pub unsafe fn decode_mla_entry_group<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams) {
    let rows = &params.rows;
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, rows.check) } {
        return;
    }
    let cut = const { group_cut(K_STEPS, V_STEPS) };
    let (cta, split, first_token) = own_rows(gpu, cut, params);
    // SAFETY: one length per sequence of the grid, if there are lengths.
    let num_positions = unsafe { num_positions(gpu, params, cta.seq) };
    let start = split * rows.split_len;
    if start >= num_positions {
        if split == 0 {
            // SAFETY: rows of this thread block.
            unsafe { cta.store_empty(gpu, cut, rows) };
        }
        return;
    }
    let positions = (start, num_positions.min(start + rows.split_len));
    if gpu.warp() < GROUP_WARPS {
        // SAFETY: the group comes here together; positions below `num_positions` can be looked up.
        unsafe {
            gpu.leave_registers::<LOAD_REGISTERS>();
            let places = Places::of(gpu, params, cta.seq, first_token);
            load_entries(gpu, cut, params, places, positions);
        }
        return;
    }
    // SAFETY: each group comes here together, and those that load leave as many registers; rows of this thread block.
    unsafe {
        gpu.take_registers::<REGISTERS>();
        load_entry_queries::<G, K_STEPS>(gpu, cut, rows, cta);
        if gpu.warp() < 2 * GROUP_WARPS {
            attend::<G, 0>(gpu, cut, params, num_positions, positions);
        } else {
            attend::<G, 1>(gpu, cut, params, num_positions, positions);
        }
    }
}

/// What group `GROUP` of those that multiply does once the queries are there.
///
/// # Safety
/// The group comes here together; the positions are those of the thread block, of which there is one at least.
#[inline(always)]
unsafe fn attend<G: Gpu, const GROUP: u32>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaEntryParams,
    num_positions: u32,
    (start, end): (u32, u32),
) {
    let rows = &params.rows;
    // With lists, the bits alone say what a row sees.
    let all_see = if is_causal(params) {
        seen_by_all(params, num_positions).min(end)
    } else {
        u32::MAX
    };
    let mut softmax = GroupSoftmax::<GROUP>::EMPTY;
    // SAFETY: the groups come here with the positions of the group that loads.
    unsafe {
        softmax.consume::<G, E4m3, Bf16>(
            gpu,
            cut,
            (start, end),
            &View {
                all_see,
                len_of: |row| {
                    // Found out again: the loop has no register to keep it in.
                    let (cta, split, _) = own_rows(gpu, cut, params);
                    let num_positions = self::num_positions(gpu, params, cta.seq);
                    let start = split * rows.split_len;
                    cta.seen(rows, row, num_positions, (start, num_positions)).1
                },
                scale_of: |row| row_scale(gpu, cut, row),
                there: |stage| gpu.ld_shared_b64(gpu.shared_base() + cut.group_there(stage)),
            },
        );
    }
    gpu.let_next_kernel_start();
    let (cta, ..) = own_rows(gpu, cut, params);
    let is_whole = start == 0 && end == num_positions;
    let factor_at = |row: u32| gpu.shared_base() + cut.group_factors() + 4 * row;
    let has_sinks = params.sink != 0;
    // SAFETY: both groups come here, after the last tile; each row's lse is stored once, and so is its factor.
    unsafe {
        softmax.finish::<G, E4m3>(gpu, cut, 1.0, |row, lse| {
            cta.store_lse(gpu, rows, row, lse, is_whole);
            if has_sinks && row < cta.num_rows {
                let factor = sink_factor(gpu, params, cta, row, lse);
                gpu.st_shared_b32(factor_at(row), factor.to_bits());
            }
        });
        cta.store_out::<G, Bf16, V_STEPS, GROUP_WARPS>(
            gpu,
            cut,
            rows,
            gpu.shared_base(),
            is_whole,
            |row| {
                if has_sinks {
                    f32::from_bits(gpu.ld_shared_b32(factor_at(row)))
                } else {
                    1.0
                }
            },
            |row| mended_row::<G, Fp8Ds, K_STEPS>(gpu, cut, params, row, is_whole),
        );
    }
}

/// [`decode_mla_entry_group`].
#[derive(Debug)]
pub struct DecodeMlaEntrySm90a;

impl Kernel for DecodeMlaEntrySm90a {
    type Params = DecodeMlaEntryParams;
    const VARIANT: Variant = Variant::DecodeMlaEntry {
        form: EntryForm::Fp8Ds,
        cut: group_cut(K_STEPS, V_STEPS),
    };
    const THREADS: u32 = group_cut(K_STEPS, V_STEPS).threads();

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams) {
        // SAFETY: the contract of `run` is that of `decode_mla_entry_group`.
        unsafe { decode_mla_entry_group(gpu, params) }
    }
}

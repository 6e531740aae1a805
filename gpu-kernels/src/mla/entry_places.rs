//! Which entry is at a position of a group of query tokens: the token of a sequence, or what an index list names.

use crate::attention::sequence::seq_len;
use crate::gpu::Gpu;
use crate::mla::slot_list::of_second_list;
use crate::params::{DecodeMlaEntryParams, EntryList};

/// Positions of a sequence's groups.
///
/// # Safety
/// `seq_lens`, if it is given, has a length for it.
#[inline(always)]
pub(super) unsafe fn num_positions<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams, seq: u32) -> u32 {
    let rows = &params.rows;
    if rows.seq_lens == 0 {
        return rows.max_seq_len;
    }
    // SAFETY: there is a length for `seq`: the contract of `num_positions`.
    unsafe {
        seq_len(
            gpu,
            rows.seq_lens,
            rows.stride_seq_lens,
            seq,
            rows.max_seq_len,
        )
    }
}

/// Where the indices of a group are.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The group's row of the block table.
    block_row: u64,
    /// Its rows of the two lists, and how many indices of each count.
    indices: [u64; 2],
    lens: [u32; 2],
}

impl Places {
    /// # Safety
    /// The lists, and their lengths if there are any, have a row for the query token.
    #[inline(always)]
    pub(super) unsafe fn of<G: Gpu>(
        gpu: G,
        params: &DecodeMlaEntryParams,
        seq: u32,
        token: u32,
    ) -> Self {
        let indices = |list: &EntryList| {
            list.indices
                + seq as u64 * list.stride_indices_seq as u64
                + token as u64 * list.stride_indices_token as u64
        };
        let len = |list: &EntryList| {
            if list.lens == 0 {
                return list.len;
            }
            let at = list.lens
                + seq as u64 * list.stride_lens_seq as u64
                + token as u64 * list.stride_lens_token as u64;
            // SAFETY: the length of the query token, or of its sequence: the contract of `of`.
            let len = unsafe { gpu.ld_global_b32(at) };
            if (len as i32) < 0 { 0 } else { len }
        };
        let [first, second] = &params.lists;
        Self {
            block_row: params.rows.block_table + seq as u64 * params.rows.stride_block_table as u64,
            indices: [indices(first), indices(second)],
            lens: [len(first), len(second)],
        }
    }

    /// The slot at a position, one of its list's cache, marked if it is the second list's; `None` if there is none.
    ///
    /// # Safety
    /// The position exists.
    #[inline(always)]
    pub(super) unsafe fn slot<G: Gpu>(
        &self,
        gpu: G,
        params: &DecodeMlaEntryParams,
        position: u32,
    ) -> Option<u32> {
        let address = self.address(params, position)?;
        // SAFETY: this function's contract, and so there is a word at the address.
        unsafe { self.slot_of(gpu, params, position, gpu.ld_global_b32(address)) }
    }

    /// Where it is written what is at a position, which exists: an index of its list, or, without lists, the block. `None` if
    /// it is behind those that count.
    #[inline(always)]
    pub(super) fn address(&self, params: &DecodeMlaEntryParams, position: u32) -> Option<u64> {
        let first = &params.lists[0];
        if first.indices == 0 {
            return Some(self.block_row + 4 * first.block_size.divide(position) as u64);
        }
        let (indices, len, at) = if position < first.len {
            (self.indices[0], self.lens[0], position)
        } else {
            (self.indices[1], self.lens[1], position - first.len)
        };
        (at < len).then(|| indices + 4 * at as u64)
    }

    /// The slot at a position, by the word at its [`Places::address`].
    ///
    /// # Safety
    /// As [`Places::slot`].
    #[inline(always)]
    pub(super) unsafe fn slot_of<G: Gpu>(
        &self,
        gpu: G,
        params: &DecodeMlaEntryParams,
        position: u32,
        word: u32,
    ) -> Option<u32> {
        let [first, second] = &params.lists;
        if first.indices == 0 {
            return Some(slot_in(first, word, position) as u32);
        }
        if position >= first.len {
            return (word < second.num_slots).then(|| of_second_list(word));
        }
        if params.rows.block_table == 0 {
            return (word < first.num_slots).then_some(word);
        }
        if word >= first.num_tokens {
            return None;
        }
        let column = self.block_row + 4 * first.block_size.divide(word) as u64;
        // SAFETY: the block table has a column for the token.
        let slot = slot_in(first, unsafe { gpu.ld_global_b32(column) }, word);
        (slot < first.num_slots as u64).then_some(slot as u32)
    }
}

/// The slot of a token in its block.
#[inline(always)]
fn slot_in(list: &EntryList, block: u32, token: u32) -> u64 {
    let block_size = list.block_size.divisor();
    let in_block = token - list.block_size.divide(token) * block_size;
    block as u64 * block_size as u64 + in_block as u64
}

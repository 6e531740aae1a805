//! Which token a gather puts into which row, by definition: the slot of each row, `None` where there is none.

use super::HostTensor;

/// A paged cache as gathers see it.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'t> {
    /// `[num_seqs, max_num_blocks_per_seq]`.
    pub block_table: &'t HostTensor,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the cache.
    pub num_blocks: usize,
}

impl Pages<'_> {
    /// The slot of token `token` of sequence `seq`.
    fn slot(&self, seq: usize, token: usize) -> Option<usize> {
        let position = token / self.block_size;
        if position >= self.block_table.shape[1] {
            return None;
        }
        let block = usize::try_from(self.block_table.integer(&[seq, position])).ok()?;
        (block < self.num_blocks).then_some(block * self.block_size + token % self.block_size)
    }

    /// Row `r` of sequence `s` with `row_starts[s] <= r < row_starts[s + 1]` is token
    /// `first_tokens[s] + r - row_starts[s]`.
    pub fn ragged(
        &self,
        row_starts: &[usize],
        first_tokens: &[usize],
        num_rows: usize,
    ) -> Vec<Option<usize>> {
        let mut slots = vec![None; num_rows];
        for (seq, bounds) in row_starts.windows(2).enumerate() {
            for (i, slot) in slots[bounds[0]..bounds[1]].iter_mut().enumerate() {
                *slot = self.slot(seq, first_tokens[seq] + i);
            }
        }
        slots
    }

    /// The last `lens[s]` of `seq_lens[s]` tokens, `rows_per_seq` rows for each sequence.
    pub fn padded(
        &self,
        seq_lens: &[usize],
        lens: &[usize],
        rows_per_seq: usize,
    ) -> Vec<Option<usize>> {
        let mut slots = vec![None; seq_lens.len() * rows_per_seq];
        for (seq, (&seq_len, &len)) in seq_lens.iter().zip(lens).enumerate() {
            for i in 0..len.min(rows_per_seq) {
                slots[seq * rows_per_seq + i] = self.slot(seq, seq_len - len + i);
            }
        }
        slots
    }

    /// Positions `indices[t, k]` of sequence `seqs[t]`.
    pub fn topk(&self, indices: &HostTensor, seqs: &[usize]) -> Vec<Option<usize>> {
        let mut slots = Vec::new();
        for (t, &seq) in seqs.iter().enumerate() {
            for k in 0..indices.shape[1] {
                let index = usize::try_from(indices.integer(&[t, k])).ok();
                slots.push(index.and_then(|index| self.slot(seq, index)));
            }
        }
        slots
    }
}

//! Which sequences of a step take the decode kernels.

use super::decode::{CheckedDecode, DecodeRequest, Starts};
use super::unified::{CheckedUnified, UnifiedRequest};
use crate::error::{RequestError, Result};
use crate::ops::checks::{grid_count, named};
use crate::ops::device_check::CheckMode;
use crate::plan::SplitPolicy;
use crate::tensor::{TensorView, TensorViewMut};

/// Sequences that take the decode kernels.
enum Decodes {
    /// None of them.
    None,
    /// The first so many, each with the query token of its number.
    First(usize),
    /// All of them, each with the query token that `query_start_loc` says, or none.
    All,
}

impl<'a> UnifiedRequest<'a> {
    /// Those that do, as a checked request of their own.
    pub(super) fn check_decodes(&self, starts: Starts<'a>) -> Result<Option<CheckedDecode<'a>>> {
        let (num_seqs, num_tokens) = (self.seq_lens.shape()[0], self.query.shape()[0]);
        let checked = match self.decodes(num_seqs, num_tokens) {
            Decodes::None => return Ok(None),
            Decodes::First(count) => self.decode_request(count, count)?.check()?,
            Decodes::All => self
                .decode_request(num_seqs, num_tokens)?
                .check_rows(Some(self.query_start_loc))?,
        };
        Ok(Some(CheckedDecode {
            starts: Some(starts),
            ..checked
        }))
    }

    /// The sequences that take the decode kernels.
    fn decodes(&self, num_seqs: usize, num_tokens: usize) -> Decodes {
        let options = &self.options;
        let num_decodes = options.num_decodes as usize;
        let longest = options.max_query_len.map_or(num_tokens, |len| len as usize);
        let decodes = if num_decodes == num_seqs {
            Decodes::First(num_seqs)
        } else if longest.min(num_tokens) <= 1 {
            Decodes::All
        } else if num_decodes > 0 && options.check == CheckMode::Off {
            Decodes::First(num_decodes)
        } else {
            Decodes::None
        };
        let count = match decodes {
            Decodes::First(count) => count,
            Decodes::None | Decodes::All => num_seqs,
        };
        // The decode kernels split keys, store no bytes, and have sequences along one dimension of the grid.
        let fits = options.split_policy != SplitPolicy::BatchInvariant
            && options.output_scale.is_none()
            && count > 0
            && grid_count("num_seqs", count).is_ok();
        if fits { decodes } else { Decodes::None }
    }

    /// The first `num_seqs` sequences and `num_tokens` query tokens as a request of their own.
    fn decode_request(
        &self,
        num_seqs: usize,
        num_tokens: usize,
    ) -> Result<DecodeRequest<'a>, RequestError> {
        let too_few = || {
            named("query", &self.query)
                .wrong_shape(format!("at least num_decodes = {num_tokens} tokens"))
        };
        let first = |view: &TensorView<'a>, count: usize| view.first(count).ok_or_else(too_few);
        let first_mut = |view: &TensorViewMut<'a>| {
            // SAFETY: what the decode kernels write, the other kernel does not touch, and both run in order.
            unsafe { view.first(num_tokens) }.ok_or_else(too_few)
        };
        Ok(DecodeRequest {
            query: first(&self.query, num_tokens)?,
            key_cache: self.key_cache,
            value_cache: self.value_cache,
            block_table: first(&self.block_table, num_seqs)?,
            seq_lens: first(&self.seq_lens, num_seqs)?,
            out: first_mut(&self.out)?,
            lse: self.lse.as_ref().map(first_mut).transpose()?,
            softmax_scale: self.softmax_scale,
            scales: self.scales,
            options: self.options.of_decodes(),
        })
    }
}

impl CheckedUnified<'_> {
    /// The decodes at the tensors of `request`, which is like this one's.
    pub(super) fn decodes_on<'b>(
        &self,
        request: &UnifiedRequest<'b>,
        starts: Starts<'b>,
    ) -> Result<Option<CheckedDecode<'b>>, RequestError>
    where
        Self: 'b,
    {
        let Some(decodes) = &self.decodes else {
            return Ok(None);
        };
        let (num_seqs, num_tokens) = (decodes.shape.num_seqs, decodes.num_tokens);
        let part = request.decode_request(num_seqs as usize, num_tokens as usize)?;
        let rows = decodes.query_start_loc.map(|_| request.query_start_loc);
        Ok(Some(decodes.on(part, rows, Some(starts))))
    }
}

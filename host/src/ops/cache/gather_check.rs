//! Checking a gather.

use std::fmt;

use gpu_kernels::entry::Variant;
use gpu_kernels::gather::grid as gather;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::mla::cache_format::{fp8_ds, v4};
use gpu_kernels::params::GatherParams;

use super::gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named};
use crate::ops::device_check::plan_check;
use crate::ops::layout::{byte_stride, elements};
use crate::ops::mla_entries::check_entries;
use crate::ops::plan::overlapping;
use crate::plan::dtypes;
use crate::tensor::{Dtype, TensorView};

impl<'a> GatherRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedGather<'a>> {
        if self.block_size == 0 {
            return Err(bad_value("block_size", "at least 1", 0).into());
        }
        let mut params = self.at(self.sizes()?);
        self.rows(&mut params)?;
        let is_padded = matches!(self.rows, GatherRows::Padded { .. });
        let out = self.out.view();
        params.stride_out_row = byte_stride(out, out.shape().len() - 2);
        params.stride_out_seq = if is_padded { byte_stride(out, 0) } else { 0 };
        let variant = self.variant(&mut params);
        let units = match self.form {
            GatherForm::Raw | GatherForm::Fp8 { .. } => params.row_units,
            GatherForm::Fp8Ds | GatherForm::V4 => 1,
        };
        let grid = |units| {
            gather::grid(params.num_rows, units).ok_or_else(|| {
                bad_value("num_rows", "small enough for one launch", params.num_rows)
            })
        };
        let (check, grid) = (grid(1)?, grid(units)?);
        Ok(CheckedGather {
            check: plan_check(self.check, Variant::CheckGather, check),
            launch: overlapping(variant, grid),
            params,
            request: self,
        })
    }

    /// Cache and output: dtypes and the row. Without addresses; counts units in values for now.
    fn sizes(&self) -> Result<GatherParams, RequestError> {
        let cache = named("cache", &self.cache);
        let out = named("out", self.out.view());
        let is_padded = matches!(self.rows, GatherRows::Padded { .. });
        let form = if is_padded {
            "[num_seqs, rows_per_seq, row]"
        } else {
            "[num_rows, row]"
        };
        let shape = self.out.view().shape();
        if shape.len() != if is_padded { 3 } else { 2 } {
            return Err(out.wrong_shape(form.to_owned()));
        }
        let row = shape[shape.len() - 1];
        let num_blocks = match &self.form {
            GatherForm::Raw | GatherForm::Fp8 { .. } => {
                let cache_form = "[num_blocks, block_size, row]";
                let [num_blocks, ..] = cache.rank::<3>(cache_form)?;
                cache.shape(cache_form, &[num_blocks, self.block_size, row])?;
                cache.strides(1)?;
                num_blocks
            }
            GatherForm::Fp8Ds => check_entries(cache, false, self.block_size)?,
            GatherForm::V4 => check_entries(cache, true, self.block_size)?,
        };
        match &self.form {
            GatherForm::Raw => {
                if self.cache.dtype().is_fnuz() {
                    // Copying would be right, but then nobody here could read it.
                    cache.dtype(&[Dtype::U8])?;
                }
                let dtype = out.dtype(&[self.cache.dtype()])?;
                out.strides(1)?;
                out.aligned(dtype.size())?;
                cache.aligned(dtype.size())?;
            }
            GatherForm::Fp8 { scale: view } => {
                cache.dtype(dtypes::gathered_caches())?;
                let dtype = out.dtype(dtypes::gathered_outputs())?;
                out.strides(1)?;
                out.aligned(dtype.size())?;
                cache.aligned(1)?;
                let named = named("scale", view);
                named.dtype(&[Dtype::F32])?;
                named.shape("[1]", &[1])?;
                named.aligned(4)?;
            }
            GatherForm::Fp8Ds => entry_rows(out, form, row, fp8_ds::LATENTS + fp8_ds::ROPE)?,
            GatherForm::V4 => entry_rows(out, form, row, v4::VALUES + v4::ROPE)?,
        }
        let is_v4 = matches!(self.form, GatherForm::V4);
        Ok(GatherParams {
            cache: 0,
            out: 0,
            scale: 0,
            block_table: 0,
            rows: 0,
            seqs: 0,
            check: 0,
            stride_cache_block: byte_stride(&self.cache, 0),
            stride_cache_slot: if is_v4 {
                0
            } else {
                byte_stride(&self.cache, 1)
            },
            stride_out_row: 0,
            stride_out_seq: 0,
            stride_block_table: 0,
            num_rows: count("num_rows", elements(&shape[..shape.len() - 1]))?,
            num_seqs: 0,
            rows_per_seq: FastDivmod::new(1),
            mode: 0,
            block_size: FastDivmod::new(count("block_size", self.block_size)?),
            num_blocks: count("num_blocks", num_blocks)?,
            max_num_blocks_per_seq: 0,
            zero_missing: u32::from(self.zero_missing),
            unit: 0,
            row_units: count("row", row)?,
        })
    }

    /// Which token goes to which row.
    fn rows(&self, params: &mut GatherParams) -> Result<(), RequestError> {
        let out = named("out", self.out.view());
        let shape = self.out.view().shape();
        match &self.rows {
            GatherRows::Ragged {
                block_table,
                row_starts,
                first_tokens,
            } => {
                let num_seqs = table(block_table, params)?;
                list("row_starts", row_starts, "[num_seqs + 1]", num_seqs + 1)?;
                params.mode = GatherParams::RAGGED;
                if let Some(first_tokens) = first_tokens {
                    list("first_tokens", first_tokens, "[num_seqs]", num_seqs)?;
                }
            }
            GatherRows::Padded {
                block_table,
                seq_lens,
                lens,
            } => {
                let num_seqs = table(block_table, params)?;
                if shape[0] != num_seqs {
                    return Err(out.wrong_shape(format!("[{num_seqs}, rows_per_seq, row]")));
                }
                list("seq_lens", seq_lens, "[num_seqs]", num_seqs)?;
                params.mode = GatherParams::PADDED;
                params.rows_per_seq = FastDivmod::new(count("rows_per_seq", shape[1])?);
                if let Some(lens) = lens {
                    list("lens", lens, "[num_seqs]", num_seqs)?;
                }
            }
            GatherRows::TopK {
                block_table,
                indices,
                seqs,
            } => {
                let num_seqs = table(block_table, params)?;
                let named = named("indices", indices);
                named.dtype(&[Dtype::I32])?;
                let [num_tokens, topk] = named.rank("[num_tokens, topk]")?;
                named.contiguous_from(0)?;
                named.aligned(4)?;
                if shape[0] != num_tokens.saturating_mul(topk) {
                    return Err(out.wrong_shape(format!("[{num_tokens} * {topk}, row]")));
                }
                params.mode = GatherParams::INDICES;
                params.rows_per_seq = FastDivmod::new(count("topk", topk)?);
                match seqs {
                    Some(seqs) => list("seqs", seqs, "[num_tokens]", num_tokens)?,
                    None if num_tokens > num_seqs => {
                        return Err(named.wrong_shape(format!(
                            "[num_tokens, topk] with at most {num_seqs} tokens, a sequence each"
                        )));
                    }
                    None => {}
                }
            }
            GatherRows::Slots { slots } => {
                list("slots", slots, "[num_rows]", shape[0])?;
                params.mode = GatherParams::INDICES;
            }
        }
        Ok(())
    }

    /// The kernel, and the unit in which it counts.
    fn variant(&self, params: &mut GatherParams) -> Variant {
        let out = self.out.view();
        let (cache_bytes, out_bytes) = (self.cache.dtype().size(), out.dtype().size());
        let aligned = |start: u64, strides: [i64; 2]| {
            start | strides[0].cast_unsigned() | strides[1].cast_unsigned()
        };
        let cache = aligned(
            params.cache,
            [params.stride_cache_block, params.stride_cache_slot],
        );
        let rows = aligned(params.out, [params.stride_out_row, params.stride_out_seq]);
        let values = params.row_units;
        match self.form {
            GatherForm::Raw => {
                let row_bytes = u64::from(values) * out_bytes as u64;
                params.unit = 1 << (cache | rows | row_bytes | 16).trailing_zeros();
                params.row_units = u32::try_from(row_bytes / u64::from(params.unit))
                    .expect("a row of less than 2^31 values, counted in units not smaller");
                Variant::GatherCopy
            }
            GatherForm::Fp8 { .. } => {
                let vec8 = values.is_multiple_of(8)
                    && cache.is_multiple_of(8 * cache_bytes as u64)
                    && rows.is_multiple_of(16);
                params.unit = if vec8 { 8 } else { 1 };
                params.row_units = values / params.unit;
                Variant::GatherScaled {
                    cache: self.cache.dtype(),
                    out: out.dtype(),
                    vec8,
                }
            }
            GatherForm::Fp8Ds => Variant::GatherMlaFp8Ds,
            GatherForm::V4 => Variant::GatherMlaV4,
        }
    }
}

/// A block table: fills in what the kernel needs of it and returns the number of sequences.
fn table(block_table: &TensorView<'_>, params: &mut GatherParams) -> Result<usize, RequestError> {
    let named = named("block_table", block_table);
    named.dtype(&[Dtype::I32])?;
    let [num_seqs, width] = named.rank("[num_seqs, max_num_blocks_per_seq]")?;
    named.strides(1)?;
    named.aligned(4)?;
    params.stride_block_table = byte_stride(block_table, 0);
    params.num_seqs = count("num_seqs", num_seqs)?;
    params.max_num_blocks_per_seq = count("max_num_blocks_per_seq", width)?;
    Ok(num_seqs)
}

/// A contiguous list of i32.
fn list(
    name: &'static str,
    view: &TensorView<'_>,
    form: &str,
    len: usize,
) -> Result<(), RequestError> {
    let named = named(name, view);
    named.dtype(&[Dtype::I32])?;
    named.shape(form, &[len])?;
    named.strides(1)?;
    named.aligned(4)
}

/// Rows of dequantised entries.
fn entry_rows(out: Named<'_, '_>, form: &str, row: usize, values: u32) -> Result<(), RequestError> {
    out.dtype(&[Dtype::Bf16])?;
    if row != values as usize {
        return Err(out.wrong_shape(format!("{form} with rows of {values} values")));
    }
    out.strides(8)?;
    out.aligned(16)
}

fn bad_value(name: &'static str, expected: &str, got: impl fmt::Display) -> RequestError {
    RequestError::Value {
        name,
        expected: expected.into(),
        got: got.to_string(),
    }
}

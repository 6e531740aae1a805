//! A decode request that is good, to change one thing of.

use ferroattn::ops::{DecodeOptions, DecodeRequest, KvScales};
use ferroattn::tensor::Dtype;

use crate::common::parts::{Parts, parts};

/// A decode request in parts: 3 sequences, 8 query heads, 2 KV heads of 64, blocks of 16.
#[derive(Clone, Debug)]
pub(crate) struct Decode {
    pub(crate) query: Parts,
    pub(crate) key_cache: Parts,
    pub(crate) value_cache: Parts,
    pub(crate) block_table: Parts,
    pub(crate) seq_lens: Parts,
    pub(crate) out: Parts,
    pub(crate) lse: Parts,
    pub(crate) softmax_scale: f32,
    pub(crate) q_scale: Option<Parts>,
    pub(crate) kv_scales: Option<(Parts, Parts)>,
    pub(crate) options: DecodeOptions<'static>,
}

impl Decode {
    pub(crate) fn new() -> Self {
        let cache = parts(Dtype::Bf16, &[10, 16, 2, 64]);
        Self {
            query: parts(Dtype::Bf16, &[3, 8, 64]),
            key_cache: cache.clone(),
            value_cache: cache,
            block_table: parts(Dtype::I32, &[3, 4]),
            seq_lens: parts(Dtype::I32, &[3]),
            out: parts(Dtype::Bf16, &[3, 8, 64]),
            lse: parts(Dtype::F32, &[3, 8]),
            softmax_scale: 0.125,
            q_scale: None,
            kv_scales: None,
            options: DecodeOptions::default(),
        }
    }

    pub(crate) fn request(&self) -> DecodeRequest<'static> {
        DecodeRequest {
            query: self.query.view(),
            key_cache: self.key_cache.view(),
            value_cache: self.value_cache.view(),
            block_table: self.block_table.view(),
            seq_lens: self.seq_lens.view(),
            out: self.out.view_mut(),
            lse: Some(self.lse.view_mut()),
            softmax_scale: self.softmax_scale,
            scales: self.kv_scales.as_ref().map(|(k, v)| KvScales {
                q_scale: self.q_scale.as_ref().map(Parts::view),
                k_scale: k.view(),
                v_scale: v.view(),
            }),
            options: self.options,
        }
    }
}

/// The message with which a changed request is refused.
pub(crate) fn refusal(change: impl FnOnce(&mut Decode)) -> String {
    let mut decode = Decode::new();
    change(&mut decode);
    match decode.request().check() {
        Ok(_) => panic!("accepted: {decode:?}"),
        Err(error) => error.to_string(),
    }
}

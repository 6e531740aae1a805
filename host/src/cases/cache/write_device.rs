//! A cache write's tensors on a machine, the requests over them, and what they have to become.

use rand_chacha::ChaCha8Rng;

use super::mistakes::{bad_positions, bad_slots};
use super::write::CacheWriteCase;
use super::write_fill::{CacheWriteTensors, RopeTensors, cache_write};
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::options::ScaleForm;
use crate::cases::base::tensors::{Amount, whole};
use crate::cases::base::uploads::Uploads;
use crate::error::{RequestError, Result};
use crate::ops::{
    CacheScales, CacheWriteRequest, CheckMode, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
};
use crate::reference::{
    HostTensor, reshape_and_cache_flash, reshape_and_cache_per_token_head,
    reshape_and_cache_scaled, rotate,
};
use crate::runtime::{Launcher, Runtime};
use crate::tensor::Dtype;

/// A cache-write case on a machine.
pub struct DeviceCacheWrite<'m> {
    tensors: CacheWriteTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceCacheWrite<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: CacheWriteTensors) -> Result<Self> {
        let all = [
            &tensors.key,
            &tensors.value,
            &tensors.key_cache,
            &tensors.value_cache,
            &tensors.slot_mapping,
        ];
        let rope = tensors.rope.iter().flat_map(RopeTensors::all);
        let scales = tensors.scales.iter().flatten();
        let uploads = Uploads::new(runtime, all.into_iter().chain(scales).chain(rope))?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &CacheWriteTensors {
        &self.tensors
    }

    /// The request that writes copy `set` of `num_tokens` tokens.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        set: usize,
        num_tokens: usize,
        check: CheckMode,
    ) -> Result<CacheWriteRequest<'_>, RequestError> {
        self.write(set, num_tokens, check)
    }

    fn write(
        &self,
        set: usize,
        num_tokens: usize,
        check: CheckMode,
    ) -> Result<CacheWriteRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let start = set * num_tokens;
        let rows = tensors.key.shape[0] - start;
        Ok(CacheWriteRequest {
            key: uploads.view(&tensors.key.slice(start, rows))?,
            value: uploads.view(&tensors.value.slice(start, rows))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order; keys and values share no
            // element, also where `CacheWriteTensors` packs them into one cache.
            key_cache: unsafe { uploads.view_mut(&tensors.key_cache)? },
            // SAFETY: see `key_cache`, with which it shares no element.
            value_cache: unsafe { uploads.view_mut(&tensors.value_cache)? },
            slot_mapping: uploads.view(&tensors.slot_mapping.slice(start, num_tokens))?,
            block_size: tensors.key_cache.shape[1],
            scales: match &tensors.scales {
                None => CacheScales::None,
                Some([k_scale, v_scale]) if k_scale.shape.len() == 1 => CacheScales::Given {
                    k_scale: uploads.view(k_scale)?,
                    v_scale: uploads.view(v_scale)?,
                },
                Some([k_scale, v_scale]) => CacheScales::PerTokenHead {
                    // SAFETY: `self` is borrowed exclusively, launches run in order, and no other view has the tensor.
                    k_scale: unsafe { uploads.view_mut(k_scale)? },
                    // SAFETY: `self` is borrowed exclusively, launches run in order, and no other view has the tensor.
                    v_scale: unsafe { uploads.view_mut(v_scale)? },
                },
            },
            check,
        })
    }

    /// The same with the rotation, whose tensors there are.
    fn rotated(
        &mut self,
        set: usize,
        rope: &RopeTensors,
        case: &CacheWriteCase,
    ) -> Result<RopeAndCacheRequest<'_>, RequestError> {
        let uploads = &self.uploads;
        let start = set * case.num_tokens;
        let part = |tensor: &HostTensor| tensor.slice(start, tensor.shape[0] - start);
        let style = case.rope.map(|rope| rope.style).unwrap_or_default();
        let query = if rope.query.shape[1] == 0 {
            None
        } else {
            let is_scaled = rope.query_out.dtype == Dtype::F8E4m3;
            Some(RopeQuery {
                query: uploads.view(&part(&rope.query))?,
                // SAFETY: `self` is borrowed exclusively, launches run in order, and no other view has the tensor.
                out: unsafe { uploads.view_mut(&part(&rope.query_out))? },
                q_scale: is_scaled.then(|| uploads.view(&rope.q_scale)).transpose()?,
            })
        };
        Ok(RopeAndCacheRequest {
            write: self.write(set, case.num_tokens, case.check)?,
            table: RopeTable {
                positions: uploads.view(&part(&rope.positions))?,
                cos_sin: uploads.view(&rope.cos_sin)?,
                style,
            },
            query,
        })
    }

    /// Waits, and reads both caches.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, HostTensor)> {
        Ok((
            self.uploads.read(&self.tensors.key_cache)?,
            self.uploads.read(&self.tensors.value_cache)?,
        ))
    }
}

impl RopeTensors {
    fn all(&self) -> [&HostTensor; 5] {
        [
            &self.positions,
            &self.cos_sin,
            &self.query,
            &self.query_out,
            &self.q_scale,
        ]
    }
}

/// A cache write on a machine, with what its launches need.
struct WriteRun<'m> {
    case: CacheWriteCase,
    device: DeviceCacheWrite<'m>,
    workspaces: Workspaces<'m>,
}

impl Runnable for CacheWriteCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        Ok(Box::new(WriteRun {
            case: self.clone(),
            device: DeviceCacheWrite::new(runtime, cache_write(self, seed, amount))?,
            workspaces: Workspaces::new(runtime, self.check),
        }))
    }
}

impl<'m> DeviceCase<'m> for WriteRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        if let Some(rope) = self.device.tensors.rope.clone() {
            let checked = self.device.rotated(set, &rope, &self.case)?.check()?;
            let plan = checked.plan();
            let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
            checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
            return Ok(plan.to_string());
        }
        let (tokens, check) = (self.case.num_tokens, self.case.check);
        let checked = self.device.request(set, tokens, check)?.check()?;
        let plan = checked.plan();
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn uploads(&self) -> &Uploads<'m> {
        &self.device.uploads
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        let (tensors, uploads) = (&self.device.tensors, &self.device.uploads);
        let rope = tensors.rope.iter().map(|rope| &rope.query_out);
        [&tensors.key_cache, &tensors.value_cache]
            .into_iter()
            .chain(tensors.scales.iter().flatten())
            .chain(rope)
            .map(|tensor| uploads.read(tensor))
            .collect()
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        all_same(outputs, &self.expected())
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        let (case, tensors) = (&self.case, &self.device.tensors);
        if case.num_tokens == 0 {
            return Vec::new();
        }
        let slots = tensors.slot_mapping.slice(0, case.num_tokens);
        let num_slots = tensors.key_cache.shape[0] * tensors.key_cache.shape[1];
        let mut mistakes = bad_slots(&slots, num_slots, random);
        let given = tensors.scales.iter().flatten();
        let given = given.filter(|_| case.scales != ScaleForm::Token);
        mistakes.extend(given.map(|scale| MemoryMistake::one_scale(scale, random)));
        if let Some(rope) = &tensors.rope {
            let has_queries = rope.query.shape[1] > 0;
            mistakes.extend(bad_positions(&rope.positions, &slots, has_queries, random));
            if has_queries && rope.query_out.dtype == Dtype::F8E4m3 {
                mistakes.push(MemoryMistake::one_scale(&rope.q_scale, random));
            }
        }
        mistakes
    }
}

impl WriteRun<'_> {
    /// What every output's storage has to hold after one launch of each set.
    fn expected(&self) -> Vec<Vec<u8>> {
        let tensors = &self.device.tensors;
        let is_interleaved = self
            .case
            .rope
            .is_some_and(|rope| rope.style == RopeStyle::GptJ);
        let turned = |new: &HostTensor| match &tensors.rope {
            Some(rope) => rotate(new, &rope.positions, &rope.cos_sin, is_interleaved),
            None => new.clone(),
        };
        let mut keys = whole(&tensors.key_cache);
        let k_scale = self.side(&turned(&tensors.key), &tensors.key_cache, 0, &mut keys);
        let is_packed = self.case.cache.layout.is_packed();
        let mut values = if is_packed {
            keys.clone()
        } else {
            whole(&tensors.value_cache)
        };
        let v_scale = self.side(&tensors.value, &tensors.value_cache, 1, &mut values);
        if is_packed {
            keys.clone_from(&values);
        }
        let mut expected = vec![keys, values];
        if tensors.scales.is_some() {
            expected.extend([k_scale, v_scale]);
        }
        if let Some(rope) = &tensors.rope {
            expected.push(self.queries(rope, &turned(&rope.query)));
        }
        expected
    }

    /// What new tokens make of one side's cache, whose bytes are `bytes`; and of its scales.
    fn side(&self, new: &HostTensor, cache: &HostTensor, side: usize, bytes: &mut [u8]) -> Vec<u8> {
        let tensors = &self.device.tensors;
        let slots = &tensors.slot_mapping;
        let Some(scales) = &tensors.scales else {
            reshape_and_cache_flash(new, slots, cache, bytes);
            return Vec::new();
        };
        let scales = &scales[side];
        let mut scale_bytes = whole(scales);
        if self.case.scales == ScaleForm::Token {
            let stored = reshape_and_cache_per_token_head(new, slots, cache, bytes, scales);
            for (at, scale) in stored {
                scale_bytes[4 * at..4 * at + 4].copy_from_slice(&scale.to_le_bytes());
            }
        } else {
            let (values, []) = scale_bytes.as_chunks::<4>() else {
                unreachable!("scales of four bytes")
            };
            let values: Vec<f32> = values
                .iter()
                .map(|&scale| f32::from_le_bytes(scale))
                .collect();
            reshape_and_cache_scaled(new, slots, &values, cache, bytes);
        }
        scale_bytes
    }

    /// Turned queries as they are stored: token `t` is slot `t` of a cache of one block.
    fn queries(&self, rope: &RopeTensors, turned: &HostTensor) -> Vec<u8> {
        let out = &rope.query_out;
        let mut bytes = whole(out);
        let num_tokens = self.device.tensors.slot_mapping.shape[0];
        let tokens = (0..num_tokens as u64).flat_map(u64::to_le_bytes).collect();
        let tokens = HostTensor::contiguous("tokens", Dtype::I64, &[num_tokens], tokens);
        let as_cache = HostTensor {
            shape: [&[1][..], &out.shape].concat(),
            strides: [&[0][..], &out.strides].concat(),
            ..out.clone()
        };
        if out.dtype == Dtype::F8E4m3 {
            #[allow(clippy::cast_possible_truncation, reason = "it came from an f32")]
            let scale = rope.q_scale.float(&[0]) as f32;
            reshape_and_cache_scaled(turned, &tokens, &[scale], &as_cache, &mut bytes);
        } else {
            reshape_and_cache_flash(turned, &tokens, &as_cache, &mut bytes);
        }
        bytes
    }
}

//! Requests that one mistake makes invalid: each has to be a typed error, and nothing may be written.

use std::cell::RefCell;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::exact::DeviceCase;
use super::fill::{self, Amount};
use super::run::{read_check, workspace};
use super::{
    Case, DecodeCase, DeviceDecode, DeviceEntries, DeviceUnified, EntryCase, EntryTensors,
    UnifiedCase, UnifiedTensors, Uploads,
};
use crate::error::{Error, Result};
use crate::reference::HostTensor;
use crate::runtime::Runtime;
use crate::tensor::{Dtype, MAX_RANK};

/// What is done to a view of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bend {
    /// One dimension more.
    Rank,
    /// A dtype that no operation takes there.
    Dtype,
    /// Every second element of the last dimension.
    LastStride,
    /// Backwards along the first dimension.
    Backwards,
    /// One byte further.
    Misaligned,
    /// The address 0.
    Null,
    /// One element less in the last dimension.
    Narrow,
}

const BENDS: [Bend; 7] = [
    Bend::Rank,
    Bend::Dtype,
    Bend::LastStride,
    Bend::Backwards,
    Bend::Misaligned,
    Bend::Null,
    Bend::Narrow,
];

/// A view, taken apart.
pub(crate) struct Parts {
    pub(crate) address: u64,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<i64>,
}

/// Bends the view that is made next after `left` others, if it can be.
#[derive(Debug)]
pub(crate) struct Bender {
    left: usize,
    bend: Bend,
    /// The tensor that was bent.
    bent: Option<&'static str>,
}

impl Bender {
    /// Called with every view that is made.
    pub(crate) fn see(&mut self, name: &'static str, parts: &mut Parts) {
        if self.left > 0 {
            self.left -= 1;
        } else if self.bent.is_none() && self.bend.apply(name, parts) {
            self.bent = Some(name);
        }
    }
}

impl Bend {
    /// Bends the view unless that could make sense; says whether it did.
    fn apply(self, name: &str, parts: &mut Parts) -> bool {
        let rank = parts.shape.len();
        // The dtype and the rank of caches whose blocks are only copied are the caller's.
        let is_opaque = matches!(name, "cache" | "compact") && parts.dtype != Dtype::U8;
        // Indices, scales, and an lse may lie in any order.
        let is_rows = matches!(
            name,
            "query"
                | "out"
                | "key"
                | "value"
                | "qkv"
                | "key_cache"
                | "value_cache"
                | "kv_cache"
                | "query_out"
        ) && !is_opaque;
        if parts.shape.iter().product::<usize>() == 0 || rank == 0 {
            return false;
        }
        match self {
            Self::Rank if rank < MAX_RANK && !is_opaque => {
                parts.shape.insert(0, 1);
                parts.strides.insert(0, 0);
            }
            Self::Dtype if !is_opaque => {
                parts.dtype = match parts.dtype {
                    Dtype::I32 | Dtype::I64 | Dtype::U8 => Dtype::F32,
                    _ => Dtype::I32,
                };
            }
            Self::LastStride if is_rows && parts.shape[rank - 1] > 1 => {
                parts.strides[rank - 1] *= 2;
            }
            Self::Backwards if parts.shape[0] > 1 => parts.strides[0] = -parts.strides[0].max(1),
            Self::Misaligned if parts.dtype.size() > 1 && !is_opaque => parts.address += 1,
            Self::Null => parts.address = 0,
            // Pages may be larger than they have to be.
            Self::Narrow if is_rows && rank > 2 && parts.shape[rank - 1] > 1 => {
                parts.shape[rank - 1] -= 1;
            }
            _ => return false,
        }
        true
    }
}

/// A case on a machine, to be launched with a mistake in it.
enum Device<'m> {
    Decode(DecodeCase, Box<DeviceDecode<'m>>),
    Entries(EntryCase, Box<DeviceEntries<'m>>),
    Unified(UnifiedCase, Box<DeviceUnified<'m>>, u64),
    Exact(Box<dyn DeviceCase<'m> + 'm>),
}

impl<'m> Device<'m> {
    fn new(case: &Case, runtime: &'m dyn Runtime, seed: u64) -> Result<Self> {
        Ok(match case {
            Case::Decode(case) => Self::Decode(
                case.clone(),
                Box::new(DeviceDecode::new(
                    runtime,
                    fill::decode(case, seed, Amount::WHOLE),
                )?),
            ),
            Case::DecodeEntries(case) => Self::Entries(
                case.clone(),
                Box::new(DeviceEntries::new(
                    runtime,
                    EntryTensors::new(case, seed, Amount::WHOLE),
                )?),
            ),
            Case::Unified(case) => {
                let tensors =
                    UnifiedTensors::new(case, seed, Amount::WHOLE).expect("few query tokens");
                let device = DeviceUnified::new(runtime, tensors)?;
                Self::Unified(case.clone(), Box::new(device), seed)
            }
            other => Self::Exact(
                other
                    .on(runtime, seed, Amount::WHOLE)?
                    .expect("only attention is not exact"),
            ),
        })
    }

    fn uploads(&self) -> &Uploads<'m> {
        match self {
            Self::Decode(_, device) => device.uploads(),
            Self::Entries(_, device) => device.uploads(),
            Self::Unified(_, device, _) => device.uploads(),
            Self::Exact(device) => device.uploads(),
        }
    }

    fn launch(&mut self, runtime: &dyn Runtime) -> Result<()> {
        let device = runtime.device();
        match self {
            Self::Decode(case, decode) => {
                let plan = decode.plan(case, &device)?;
                let mut workspace = workspace(runtime, plan.workspace_bytes())?;
                decode.launch(case, 0, &plan, &mut workspace, runtime)?;
                read_check(&workspace, case.check)
            }
            Self::Entries(case, entries) => {
                let plan = entries.plan(case, &device)?;
                let mut workspace = workspace(runtime, plan.workspace_bytes())?;
                entries.launch(case, 0, &plan, &mut workspace, runtime)?;
                read_check(&workspace, case.check)
            }
            Self::Unified(case, unified, seed) => {
                let checked = unified.request(case, *seed, 0)?.check()?;
                let plan = checked.plan(&device)?;
                let mut workspace = workspace(runtime, plan.workspace_bytes())?;
                checked.launch(&plan, &mut workspace.view_mut(), runtime)?;
                read_check(&workspace, case.base.check)
            }
            Self::Exact(device) => device.launch(0, runtime).map(drop),
        }
    }

    /// What may have been written.
    fn outputs(&self) -> Result<Vec<HostTensor>> {
        let attention =
            |(out, lse): (HostTensor, Option<HostTensor>)| [out].into_iter().chain(lse).collect();
        match self {
            Self::Decode(_, device) => device.results().map(attention),
            Self::Entries(_, device) => device.results().map(attention),
            Self::Unified(_, device, _) => device.results().map(attention),
            Self::Exact(device) => device.outputs(),
        }
    }
}

/// A number of the case that nobody may ask for.
fn spoil_option(case: &mut Case, random: &mut ChaCha8Rng) -> Option<&'static str> {
    const BAD: [f32; 4] = [f32::NAN, f32::INFINITY, 0.0, -1.0];
    let bad = BAD[random.random_range(0..4)];
    let base = match case {
        Case::Decode(case) => case,
        Case::Unified(case) => &mut case.base,
        _ => return None,
    };
    // A latent cache has no scores to change.
    match random.random_range(0..3) {
        0 if base.latent.is_none() => {
            base.scores.softcap = Some(bad);
            Some("softcap")
        }
        1 if base.latent.is_none() => {
            base.scores.sliding_window = Some(0);
            Some("sliding_window")
        }
        _ => {
            base.softmax_scale = Some(BAD[random.random_range(0..2)]);
            Some("softmax_scale")
        }
    }
}

/// Makes one mistake in the request of a valid case, and launches it: `Ok` says which mistake led to an error, or that
/// none could be made.
///
/// # Errors
/// It was no error, not one of the request, or something was written.
pub(super) fn break_one(
    case: &Case,
    runtime: &dyn Runtime,
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Result<Option<String>, String> {
    let mut case = case.clone();
    let failed = |error: Error| format!("before the mistake: {error}");
    let option = match random.random_range(0..4) {
        0 => spoil_option(&mut case, random),
        _ => None,
    };
    let mut device = Device::new(&case, runtime, seed).map_err(failed)?;
    let before = device.outputs().map_err(failed)?;
    let bend = BENDS[random.random_range(0..BENDS.len())];
    if option.is_none() {
        *device.uploads().bender().borrow_mut() = Some(Bender {
            left: random.random_range(0..8),
            bend,
            bent: None,
        });
    }
    let result = device.launch(runtime).and_then(|()| runtime.synchronize());
    let bender = device.uploads().bender().borrow_mut().take();
    let bent = bender.and_then(|bender| bender.bent);
    let what = match (option, bent) {
        (Some(option), _) => option.to_owned(),
        (None, Some(tensor)) => format!("{bend:?} of {tensor}"),
        (None, None) => return Ok(None),
    };
    match result {
        Err(Error::Request(_) | Error::Unsupported { .. } | Error::Check(_)) => {}
        Err(error) => return Err(format!("{what}: {error}")),
        Ok(()) => return Err(format!("{what}: no error")),
    }
    let after = device.outputs().map_err(failed)?;
    let same = before
        .iter()
        .zip(&after)
        .all(|(before, after)| before.storage.bytes == after.storage.bytes);
    if !same {
        return Err(format!("{what}: an error, but something was written"));
    }
    Ok(Some(what))
}

/// A place for a [`Bender`]; there is none but in these tests of requests.
pub(crate) type BenderCell = RefCell<Option<Bender>>;

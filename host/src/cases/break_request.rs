//! Requests that one mistake makes invalid: each has to be a typed error, and nothing may be written.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::base::device_case::DeviceCase;
use super::base::tensors::Amount;
use super::base::view_mistake::{VIEW_MISTAKES, ViewBreaker};
use super::case::Case;
use crate::error::{Error, Result};
use crate::runtime::Runtime;

/// Launches the first set and says what became of it, the check on the device included.
pub(super) fn launch(device: &mut dyn DeviceCase<'_>, runtime: &dyn Runtime) -> Result<()> {
    device.launch(0, runtime)?;
    runtime.synchronize()?;
    device.find_fault()
}

/// A number of the case that nobody may ask for.
fn spoil_option(case: &mut Case, random: &mut ChaCha8Rng) -> Option<&'static str> {
    const BAD: [f32; 4] = [f32::NAN, f32::INFINITY, 0.0, -1.0];
    let bad = BAD[random.random_range(0..4)];
    let base = match case {
        Case::Decode(case) => case,
        Case::Unified(case) => &mut case.base,
        Case::DecodeEntries(_)
        | Case::CacheWrite(_)
        | Case::MlaWrite(_)
        | Case::MlaWriteGrouped(_)
        | Case::Gather(_)
        | Case::Blocks(_) => return None,
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
pub(super) fn break_request(
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
    let mut device = case.on(runtime, seed, Amount::WHOLE).map_err(failed)?;
    let before = device.uploads().snapshot().map_err(failed)?;
    let mistake = VIEW_MISTAKES[random.random_range(0..VIEW_MISTAKES.len())];
    if option.is_none() {
        let breaker = ViewBreaker::new(random.random_range(0..8), mistake);
        *device.uploads().breaker().borrow_mut() = Some(breaker);
    }
    let result = launch(device.as_mut(), runtime);
    let breaker = device.uploads().breaker().borrow_mut().take();
    let broken = breaker.and_then(|breaker| breaker.broken());
    let what = match (option, broken) {
        (Some(option), _) => option.to_owned(),
        (None, Some(tensor)) => format!("{mistake:?} of {tensor}"),
        (None, None) => return Ok(None),
    };
    match result {
        Err(Error::Request(_) | Error::Unsupported { .. } | Error::Check(_)) => {}
        Err(error) => return Err(format!("{what}: {error}")),
        Ok(()) => return Err(format!("{what}: no error")),
    }
    unchanged(device.as_ref(), &before).map_err(|error| format!("{what}: {error}"))?;
    Ok(Some(what))
}

/// Every tensor holds what it held before.
///
/// # Errors
/// In words: the first that does not.
pub(super) fn unchanged(
    device: &dyn DeviceCase<'_>,
    before: &[(&'static str, Vec<u8>)],
) -> Result<(), String> {
    let after = device.uploads().snapshot();
    let after = after.map_err(|error| error.to_string())?;
    let changed = before.iter().zip(&after).find(|(old, new)| old != new);
    match changed {
        None => Ok(()),
        Some(((name, _), _)) => Err(format!("an error, but {name} was written")),
    }
}

//! Wrong values in device memory: the check on the device has to name each, and nothing may be written.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::base::tensors::Amount;
use super::break_request::{launch, unchanged};
use super::case::Case;
use crate::error::{Error, Result};
use crate::ops::CheckMode;
use crate::runtime::Runtime;

/// Puts one wrong value where the check of a valid case looks, and launches it: `Ok` says what was found, or that there
/// is no check, or nothing that it looks at.
///
/// # Errors
/// Nothing was found, something else was, or something was written.
pub(super) fn corrupt_memory(
    case: &Case,
    runtime: &dyn Runtime,
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Result<Option<String>, String> {
    if case.check() == CheckMode::Off {
        return Ok(None);
    }
    let failed = |error: Error| format!("before the mistake: {error}");
    let mut device = case.on(runtime, seed, Amount::WHOLE).map_err(failed)?;
    let mut mistakes = device.mistakes(random);
    if mistakes.is_empty() {
        return Ok(None);
    }
    let mistake = mistakes.swap_remove(random.random_range(0..mistakes.len()));
    let planted = device
        .uploads()
        .plant(&mistake.tensor, &mistake.index, &mistake.bytes);
    planted.map_err(failed)?;
    let before = device.uploads().snapshot().map_err(failed)?;
    let expected = &mistake.message;
    match launch(device.as_mut(), runtime) {
        Err(Error::Check(found)) if found.to_string().contains(expected) => {}
        Err(error) => return Err(format!("{error}, where it had to say \"{expected}\"")),
        Ok(()) => return Err(format!("no fault, where there had to be \"{expected}\"")),
    }
    unchanged(device.as_ref(), &before).map_err(|error| format!("\"{expected}\": {error}"))?;
    Ok(Some(mistake.tensor.storage.name.to_owned()))
}

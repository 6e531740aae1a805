//! Random valid cases of every operation, small enough for the emulator.

use rand_chacha::ChaCha8Rng;

use super::attention::draw::{decode_case, entry_case, latent_case, unified_case};
use super::cache::blocks::BlocksOperation;
use super::cache::draw::{blocks_case, gather_case, grouped_case, mla_write_case, write_case};
use super::case::Case;

/// Those of a case's type each, or two.
const OTHERS: [&str; 9] = [
    "decode",
    "decode_mla",
    "decode_mla_entry",
    "unified",
    "reshape_and_cache_flash",
    "rope_and_cache",
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "gather",
];

/// The operations that cases are drawn of, as their lines begin.
pub const OPERATIONS: [&str; OTHERS.len() + BlocksOperation::ALL.len()] = {
    let mut all = [""; OTHERS.len() + BlocksOperation::ALL.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = match at.checked_sub(OTHERS.len()) {
            Some(block) => BlocksOperation::ALL[block].name(),
            None => OTHERS[at],
        };
        at += 1;
    }
    all
};

/// A case of `operation`, one of [`OPERATIONS`].
///
/// # Panics
/// If it is another.
pub(super) fn draw(operation: &str, random: &mut ChaCha8Rng) -> Case {
    match operation {
        "decode" => Case::Decode(decode_case(random)),
        "decode_mla" => Case::Decode(latent_case(random)),
        "decode_mla_entry" => Case::DecodeEntries(entry_case(random)),
        "unified" => Case::Unified(unified_case(random)),
        "reshape_and_cache_flash" => Case::CacheWrite(write_case(random, false)),
        "rope_and_cache" => Case::CacheWrite(write_case(random, true)),
        "concat_and_cache_mla" => Case::MlaWrite(mla_write_case(random)),
        "concat_and_cache_mla_grouped" => Case::MlaWriteGrouped(grouped_case(random)),
        "gather" => Case::Gather(gather_case(random)),
        other => match BlocksOperation::named(other) {
            Some(operation) => Case::Blocks(blocks_case(random, operation)),
            None => panic!("no case of `{other}` can be drawn"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn what_is_drawn_reads_back_and_is_of_the_operation() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for operation in OPERATIONS {
            for _ in 0..200 {
                let case = draw(operation, &mut random);
                let line = case.to_string();
                assert_eq!(line.split(' ').next(), Some(operation));
                assert_eq!(line.parse(), Ok(case), "{line}");
            }
        }
        assert_ne!(random.next_u64(), 0);
    }
}

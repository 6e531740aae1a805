//! Copies of an exchange that find each other.
//!
//! `shfl.sync` and `vote.sync` name the lanes that take part. Since compute capability 7.0 these wait for one another
//! wherever they are, as long as each executes an exchange of the same kind with the same lanes: it need not be the same
//! instruction. So it does no harm that a compiler copies one to both arms of a branch, if the lanes of every arm come to
//! the same exchanges in the same order. Instructions that are `.aligned`, as `bar.sync` is, have to be the same for all
//! lanes. (On an H200, `shfl.sync`, `vote.sync` and `bar.warp.sync` in both arms give what they should; with `bar.sync`
//! in both, or in one, a kernel does not end.)

use std::collections::HashMap;

use super::analysis::Branch;
use super::flow::Flow;

/// What lies ahead of a block, until the ways meet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    /// Not known yet, or the kernel traps.
    Anything,
    /// These exchanges: a number of a list.
    Exchanges(usize),
    /// It depends on the way.
    Differs,
}

/// Whether lanes that part at a branch come to the same exchanges, whichever way each takes. `exchanges`: of a block, in
/// their order, by kind.
pub(super) fn are_on_all_ways<'t>(
    flow: &Flow,
    branch: &Branch,
    exchanges: impl Fn(usize) -> Vec<&'t str>,
) -> bool {
    // A list is its first exchange and the list behind it; 0 is the empty one.
    let mut lists: HashMap<(&str, usize), usize> = HashMap::new();
    let mut ahead = vec![Ahead::Anything; flow.successors.len()];
    let join = |ahead: &[Ahead], block: usize| {
        let ways = flow.successors[block].iter().map(|&next| {
            if Some(next) == flow.meeting[branch.block] || next == flow.end() {
                Ahead::Exchanges(0)
            } else {
                ahead[next]
            }
        });
        ways.fold(Ahead::Anything, |all, way| match (all, way) {
            (Ahead::Anything, other) | (other, Ahead::Anything) => other,
            (a, b) if a == b => a,
            (Ahead::Exchanges(_) | Ahead::Differs, Ahead::Exchanges(_) | Ahead::Differs) => {
                Ahead::Differs
            }
        })
    };
    let mut changed = true;
    while changed {
        changed = false;
        // Blocks are found on the way down: the last ones know first what lies ahead.
        for &block in branch.apart.blocks.iter().rev() {
            let mut now = join(&ahead, block);
            if let Ahead::Exchanges(list) = &mut now {
                for kind in exchanges(block).into_iter().rev() {
                    let next = lists.len() + 1;
                    *list = *lists.entry((kind, *list)).or_insert(next);
                }
            }
            changed |= now != ahead[block];
            ahead[block] = now;
        }
    }
    join(&ahead, branch.block) != Ahead::Differs
}

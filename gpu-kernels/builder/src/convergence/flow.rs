//! The control flow of a body: blocks, which of them come before which on every path, and where paths that part meet.

use std::ops::Range;

use super::body::Body;

/// Basic blocks and how they follow one another. The end of the kernel is a block of its own, the last.
#[derive(Debug)]
pub(super) struct Flow {
    /// Instructions of each block but the end.
    pub(super) blocks: Vec<Range<usize>>,
    pub(super) successors: Vec<Vec<usize>>,
    pub(super) predecessors: Vec<Vec<usize>>,
    /// Blocks that are reached, each after one that leads there: an order in which values are known early.
    pub(super) order: Vec<usize>,
    /// For each block the next one up through which all paths to it come.
    pub(super) dominator: Vec<Option<usize>>,
    /// For each block the next one down through which all paths from it to the end go. None: it is never left, or
    /// traps.
    pub(super) meeting: Vec<Option<usize>>,
}

impl Flow {
    pub(super) fn of(body: &Body<'_>) -> Self {
        let blocks = blocks(body);
        let end = blocks.len();
        let mut block_at = vec![end; body.instrs.len() + 1];
        for (block, range) in blocks.iter().enumerate() {
            block_at[range.start] = block;
        }
        let mut successors: Vec<Vec<usize>> = blocks
            .iter()
            .map(|range| {
                let last = &body.instrs[range.end - 1];
                let mut next: Vec<usize> = last.targets.iter().map(|&at| block_at[at]).collect();
                let falls_through = match last.base() {
                    "ret" | "exit" => {
                        next.push(end);
                        last.guard.is_some()
                    }
                    // Ends the whole grid with an error: nobody waits for these threads.
                    "trap" | "bra" => last.guard.is_some(),
                    "brx" => false,
                    _ => true,
                };
                if falls_through {
                    next.push(block_at[range.end]);
                }
                next.sort_unstable();
                next.dedup();
                next
            })
            .collect();
        successors.push(Vec::new());
        let order = reached(&successors, 0);
        let mut predecessors = vec![Vec::new(); end + 1];
        for &block in &order {
            for &next in &successors[block] {
                predecessors[next].push(block);
            }
        }
        Self {
            dominator: dominators(&successors, &predecessors, 0),
            meeting: dominators(&predecessors, &successors, end),
            blocks,
            successors,
            predecessors,
            order,
        }
    }

    pub(super) fn end(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks in which threads may be apart that part at the end of `block`: those on the way to where their paths
    /// meet again, which may lead through `block` itself.
    pub(super) fn apart(&self, block: usize) -> Region {
        let mut is_in = vec![false; self.blocks.len() + 1];
        let mut blocks = Vec::new();
        let mut open = vec![block];
        while let Some(from) = open.pop() {
            for &next in &self.successors[from] {
                if Some(next) != self.meeting[block] && next != self.end() && !is_in[next] {
                    is_in[next] = true;
                    blocks.push(next);
                    open.push(next);
                }
            }
        }
        Region { is_in, blocks }
    }

    /// Whether a block may be entered again.
    pub(super) fn is_in_loop(&self, block: usize) -> bool {
        let mut is_seen = vec![false; self.successors.len()];
        let mut open = vec![block];
        while let Some(from) = open.pop() {
            for &next in &self.successors[from] {
                if next == block {
                    return true;
                }
                if !is_seen[next] {
                    is_seen[next] = true;
                    open.push(next);
                }
            }
        }
        false
    }
}

/// Some blocks.
#[derive(Debug, Default)]
pub(super) struct Region {
    pub(super) is_in: Vec<bool>,
    pub(super) blocks: Vec<usize>,
}

/// Cuts the body after whatever jumps, and before whatever is jumped to.
fn blocks(body: &Body<'_>) -> Vec<Range<usize>> {
    let mut starts = vec![0];
    for (index, instr) in body.instrs.iter().enumerate() {
        starts.extend(&instr.targets);
        if ["bra", "brx", "ret", "exit", "trap"].contains(&instr.base()) {
            starts.push(index + 1);
        }
    }
    starts.push(body.instrs.len());
    starts.sort_unstable();
    starts.dedup();
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// What is reached from `root`, in reverse postorder.
fn reached(successors: &[Vec<usize>], root: usize) -> Vec<usize> {
    let mut is_seen = vec![false; successors.len()];
    let mut done = Vec::new();
    let mut open = vec![(root, 0)];
    is_seen[root] = true;
    while let Some((block, next)) = open.last_mut() {
        if let Some(&successor) = successors[*block].get(*next) {
            *next += 1;
            if !is_seen[successor] {
                is_seen[successor] = true;
                open.push((successor, 0));
            }
        } else {
            done.push(*block);
            open.pop();
        }
    }
    done.reverse();
    done
}

/// The immediate dominators of what is reached from `root` (Cooper, Harvey, Kennedy: A simple, fast dominance
/// algorithm). The root's own is none.
fn dominators(
    successors: &[Vec<usize>],
    predecessors: &[Vec<usize>],
    root: usize,
) -> Vec<Option<usize>> {
    let order = reached(successors, root);
    let mut number = vec![usize::MAX; successors.len()];
    for (index, &block) in order.iter().enumerate() {
        number[block] = index;
    }
    let mut dominator: Vec<Option<usize>> = vec![None; successors.len()];
    dominator[root] = Some(root);
    let mut changed = true;
    while changed {
        changed = false;
        for &block in &order[1..] {
            let mut common = None;
            for &before in &predecessors[block] {
                if dominator[before].is_none() {
                    continue;
                }
                common = Some(match common {
                    None => before,
                    Some(other) => meet(&dominator, &number, other, before),
                });
            }
            if dominator[block] != common {
                dominator[block] = common;
                changed = true;
            }
        }
    }
    dominator[root] = None;
    dominator
}

/// The lowest block above both.
fn meet(dominator: &[Option<usize>], number: &[usize], mut a: usize, mut b: usize) -> usize {
    let up = |block: usize| dominator[block].expect("blocks further up are known");
    while a != b {
        while number[a] > number[b] {
            a = up(a);
        }
        while number[b] > number[a] {
            b = up(b);
        }
    }
    a
}

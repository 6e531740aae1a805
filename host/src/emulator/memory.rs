//! Global memory: bounds, alignment, bytes never written.
//!
//! Each allocation lies in a cell of the address space that it has for itself, at a random place of it. A wrong
//! index that stays in the cell is out of bounds; one that leaves it, by whatever power of two or multiple of a
//! stride, is so too but for one chance in a hundred thousand if the tensor it gets to has a few megabytes. Pages
//! come into being with the first write: an allocation of many gigabytes costs what is written of it.

use std::sync::OnceLock;

use super::fault::{FaultKind, Finding};
use super::page::{PAGE_BYTES, Page, Place};
use super::race::{Conflict, Now};
use super::schedule::mix;

/// What never-written bytes read as on the host: NaN in every float type.
pub(super) const POISON: u8 = 0xff;

/// Address of the first cell, and the bytes of one.
const FIRST_ADDRESS: u64 = 1 << 46;
const CELL_BYTES: u64 = 1 << 40;
/// Cells that there are: addresses stay positive as signed numbers.
const MAX_CELLS: u64 = (1 << 23) - FIRST_ADDRESS / CELL_BYTES;
/// An allocation begins at the end of the first quarter of its cell or somewhere in the two after that, so that
/// there is room for indices below 0 and beyond the end.
const FIRST_BEGIN: u64 = CELL_BYTES / 4;
const LAST_BEGIN: u64 = CELL_BYTES / 4 * 3;
/// Bytes of the largest allocation.
const LARGEST: u64 = CELL_BYTES / 8;
/// What addresses of allocations are multiples of, and by the laws of chance no more.
const ALIGNMENT: u64 = 256;

/// All global allocations of an emulator.
pub(super) struct GlobalMemory {
    allocations: Vec<Allocation>,
    seed: u64,
}

/// One global allocation.
struct Allocation {
    name: &'static str,
    address: u64,
    bytes: u64,
    /// `None` once freed.
    pages: Option<Box<[OnceLock<Box<Page>>]>>,
}

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

impl GlobalMemory {
    /// Empty; `seed` says where in their cells allocations will begin.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            allocations: Vec::new(),
            seed,
        }
    }

    /// The address of a new allocation; or what it would have to be.
    pub(super) fn allocate(&mut self, name: &'static str, bytes: u64) -> Result<u64, String> {
        let cell = self.allocations.len() as u64;
        if bytes > LARGEST || cell >= MAX_CELLS {
            return Err(format!(
                "at most 128 GiB, and one of the first {MAX_CELLS} allocations of its machine"
            ));
        }
        let begins = (LAST_BEGIN - FIRST_BEGIN) / ALIGNMENT;
        let begin = FIRST_BEGIN + mix(self.seed ^ mix(cell + 1)) % begins * ALIGNMENT;
        let address = FIRST_ADDRESS + cell * CELL_BYTES + begin;
        let num_pages = bytes.div_ceil(PAGE_BYTES);
        self.allocations.push(Allocation {
            name,
            address,
            bytes,
            pages: Some((0..num_pages).map(|_| OnceLock::new()).collect()),
        });
        Ok(address)
    }

    /// Forgets the contents; the address is never given out again.
    pub(super) fn free(&mut self, address: u64) {
        let allocation = self.allocations.get_mut(cell_of(address));
        let allocation = allocation.filter(|allocation| allocation.address == address);
        let pages = allocation.and_then(|allocation| allocation.pages.take());
        assert!(pages.is_some(), "freed twice, or no begin of an allocation");
    }

    /// Checks and records an access of `bytes` bytes, a power of two up to 16.
    #[inline]
    pub(super) fn access(
        &self,
        now: &Now,
        address: u64,
        bytes: u32,
        access: Access,
    ) -> Result<Place<'_>, Box<Finding>> {
        let (allocation, offset) = self.find(address, u64::from(bytes))?;
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(misaligned(allocation.name, offset as i64, bytes));
        }
        let pages = allocation.pages.as_deref().unwrap_or_default();
        let page = &pages[(offset / PAGE_BYTES) as usize];
        let in_page = (offset % PAGE_BYTES) as usize;
        let page = match access {
            Access::Write => page.get_or_init(Page::new),
            Access::Read | Access::Atomic => page
                .get()
                .ok_or_else(|| never_written(allocation.name, offset as i64))?,
        };
        if access != Access::Write {
            page.check_written(in_page, bytes)
                .map_err(|skip| never_written(allocation.name, offset as i64 + skip))?;
        }
        page.check_races(now, in_page, bytes, access)
            .map_err(|(skip, other)| {
                race(allocation.name, offset as i64 + skip, now, access, other)
            })?;
        if access == Access::Write {
            page.mark_written(in_page, bytes);
        }
        Ok(Place {
            page,
            offset: in_page,
        })
    }

    /// Writes from the host.
    pub(super) fn copy_in(&mut self, address: u64, bytes: &[u8]) -> Result<(), Box<Finding>> {
        let (allocation, offset) = self.find(address, bytes.len() as u64)?;
        for (at, chunk) in word_chunks(offset, bytes.len()) {
            let page = &allocation.pages()[(at / PAGE_BYTES) as usize];
            let place = Place {
                page: page.get_or_init(Page::new),
                offset: (at % PAGE_BYTES) as usize,
            };
            place.page.mark_written(place.offset, chunk.len() as u32);
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(&bytes[chunk.clone()]);
            place.store_part(u32::from_le_bytes(word), chunk.len() as u32);
        }
        Ok(())
    }

    /// Reads to the host; bytes never written become [`POISON`].
    pub(super) fn copy_out(&self, address: u64, bytes: &mut [u8]) -> Result<(), Box<Finding>> {
        let (allocation, offset) = self.find(address, bytes.len() as u64)?;
        for (at, chunk) in word_chunks(offset, bytes.len()) {
            let target = &mut bytes[chunk];
            let Some(page) = allocation.pages()[(at / PAGE_BYTES) as usize].get() else {
                target.fill(POISON);
                continue;
            };
            let in_page = (at % PAGE_BYTES) as usize;
            let bytes = page.bytes_from(in_page);
            for (byte, written) in target.iter_mut().zip(bytes) {
                *byte = written.unwrap_or(POISON);
            }
        }
        Ok(())
    }

    /// Forgets who accessed what: thread blocks are about to get numbers that were used before.
    pub(super) fn forget_histories(&mut self) {
        let pages = self.allocations.iter().flat_map(|a| a.pages());
        for page in pages.filter_map(OnceLock::get) {
            page.forget_histories();
        }
    }

    /// A finding about a place in an allocation.
    #[cold]
    pub(super) fn finding(&self, kind: FaultKind, address: u64, detail: String) -> Box<Finding> {
        let allocation = &self.allocations[cell_of(address)];
        Finding::memory(kind, allocation.name, allocation.offset(address), detail)
    }

    #[inline]
    fn find(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64), Box<Finding>> {
        if let Some(allocation) = self.allocations.get(cell_of(address))
            && allocation.pages.is_some()
            && let Some(offset) = address.checked_sub(allocation.address)
            && offset + bytes <= allocation.bytes
        {
            return Ok((allocation, offset));
        }
        Err(self.out_of_bounds(address, bytes))
    }

    #[cold]
    fn out_of_bounds(&self, address: u64, bytes: u64) -> Box<Finding> {
        let (name, index, detail) = match self.allocations.get(cell_of(address)) {
            None => ("", address as i64, "no allocation is anywhere near".into()),
            Some(a) if a.pages.is_none() => (a.name, a.offset(address), "it was freed".into()),
            Some(a) => {
                let detail = format!("it holds {} bytes", a.bytes);
                (a.name, a.offset(address), detail)
            }
        };
        let detail = format!("{bytes} bytes at {address:#x}; {detail}");
        Finding::memory(FaultKind::OutOfBounds, name, index, detail)
    }
}

impl Allocation {
    fn pages(&self) -> &[OnceLock<Box<Page>>] {
        self.pages.as_deref().unwrap_or_default()
    }

    /// Of an address in its cell.
    fn offset(&self, address: u64) -> i64 {
        address.wrapping_sub(self.address) as i64
    }
}

/// Number of the cell that an address is in, if there are so many.
#[inline]
fn cell_of(address: u64) -> usize {
    (address.wrapping_sub(FIRST_ADDRESS) / CELL_BYTES) as usize
}

/// `(offset, range of the slice)` of the pieces of a copy, none of which crosses a word.
fn word_chunks(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let chunk = (4 - (at % 4) as usize).min(bytes - done);
        let range = done..done + chunk;
        done += chunk;
        (chunk > 0).then_some((at, range))
    })
}

#[cold]
pub(super) fn misaligned(tensor: &str, index: i64, bytes: u32) -> Box<Finding> {
    let detail = format!("{bytes} bytes at once need a multiple of {bytes}");
    Finding::memory(FaultKind::Misaligned, tensor, index, detail)
}

#[cold]
pub(super) fn never_written(tensor: &str, index: i64) -> Box<Finding> {
    Finding::memory(FaultKind::UninitialisedRead, tensor, index, String::new())
}

#[cold]
pub(super) fn race(
    tensor: &str,
    index: i64,
    now: &Now,
    access: Access,
    other: Conflict,
) -> Box<Finding> {
    let does = match access {
        Access::Read => "reads",
        Access::Write => "writes",
        Access::Atomic => "changes atomically",
    };
    let Conflict { thread, block, did } = other;
    let is_here = block == now.run - now.first_run;
    let whom = if is_here {
        format!("thread {thread}")
    } else {
        format!("thread {thread} of thread block {block} (counted along the grid)")
    };
    let detail = format!("it {does} what {whom} {did}, with no barrier between");
    let mut finding = Finding::memory(FaultKind::DataRace, tensor, index, detail);
    finding.other = is_here.then_some(thread);
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_jump_by_a_power_of_two_leads_from_one_allocation_to_another() {
        for seed in 0..16 {
            let mut memory = GlobalMemory::new(seed);
            let begins: Vec<u64> = (0..200)
                .map(|_| memory.allocate("some", 4 << 20).expect("room"))
                .collect();
            for &begin in &begins {
                assert!(begin.is_multiple_of(ALIGNMENT));
                for jump in (0..64).map(|bit| 1u64 << bit).filter(|&j| j >= 4 << 20) {
                    for place in [begin.wrapping_add(jump), begin.wrapping_sub(jump)] {
                        assert!(memory.find(place, 1).is_err(), "{begin:#x} to {place:#x}");
                    }
                }
            }
        }
    }
}

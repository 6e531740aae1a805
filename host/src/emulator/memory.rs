//! Global memory: bounds, alignment, bytes never written.
//!
//! Global allocations lie far apart, so that a wrong index cannot reach a neighbour unseen. Their pages
//! come into being with the first write: an allocation of many gigabytes costs what is written of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::fault::{FaultKind, Finding};
use super::race::{Conflict, History, Now};

/// What never-written bytes read as on the host: NaN in every float type.
pub(super) const POISON: u8 = 0xff;

/// Address of the first allocation, and the distance to the next.
const FIRST_ADDRESS: u64 = 1 << 46;
const SPACING: u64 = 1 << 38;
/// Room for indices below 0 and beyond the end, on either side of an allocation.
const LARGEST: u64 = SPACING / 2;

const PAGE_BYTES: u64 = 1 << 14;

/// All global allocations of an emulator.
#[derive(Default)]
pub(super) struct GlobalMemory {
    allocations: Vec<Allocation>,
}

/// One global allocation.
struct Allocation {
    name: &'static str,
    bytes: u64,
    /// `None` once freed.
    pages: Option<Box<[OnceLock<Box<Page>>]>>,
}

/// 16 KiB of an allocation. The contents are atomics because thread blocks run in parallel.
struct Page {
    words: Box<[AtomicU32]>,
    /// A bit per byte.
    written: Box<[AtomicU16]>,
    /// Accesses to whole words.
    word_histories: Box<[History<AtomicU64>]>,
    /// Accesses to single bytes and halves of words, if there ever was one.
    byte_histories: OnceLock<Box<[History<AtomicU64>]>>,
}

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

/// A checked place in global memory.
pub(super) struct Place<'m> {
    page: &'m Page,
    /// Byte offset in the page.
    offset: usize,
}

impl GlobalMemory {
    /// The address of a new allocation, or `None` if it is too large to imagine.
    pub(super) fn allocate(&mut self, name: &'static str, bytes: u64) -> Option<u64> {
        if bytes > LARGEST {
            return None;
        }
        let address = FIRST_ADDRESS + SPACING * self.allocations.len() as u64;
        let num_pages = bytes.div_ceil(PAGE_BYTES);
        self.allocations.push(Allocation {
            name,
            bytes,
            pages: Some((0..num_pages).map(|_| OnceLock::new()).collect()),
        });
        Some(address)
    }

    /// Forgets the contents; the address is never given out again.
    pub(super) fn free(&mut self, address: u64) {
        let (index, offset) = locate(address);
        assert_eq!(offset, 0, "freeing the inside of an allocation");
        let pages = self.allocations[index].pages.take();
        assert!(pages.is_some(), "freed twice");
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
            target.fill(POISON);
            let Some(page) = allocation.pages()[(at / PAGE_BYTES) as usize].get() else {
                continue;
            };
            let in_page = (at % PAGE_BYTES) as usize;
            let word = page.words[in_page / 4].load(Relaxed).to_le_bytes();
            let written = page.written[in_page / 16].load(Relaxed) >> (in_page % 16);
            for (i, byte) in target.iter_mut().enumerate() {
                if written >> i & 1 != 0 {
                    *byte = word[in_page % 4 + i];
                }
            }
        }
        Ok(())
    }

    /// Forgets who accessed what: thread blocks are about to get numbers that were used before.
    pub(super) fn forget_histories(&mut self) {
        let pages = self.allocations.iter().flat_map(|a| a.pages());
        for page in pages.filter_map(OnceLock::get) {
            page.word_histories.iter().for_each(History::forget);
            let bytes = page.byte_histories.get();
            bytes.into_iter().flatten().for_each(History::forget);
        }
    }

    /// A finding about a place in an allocation.
    #[cold]
    pub(super) fn finding(&self, kind: FaultKind, address: u64, detail: String) -> Box<Finding> {
        let (index, offset) = locate(address);
        Finding::memory(kind, self.allocations[index].name, offset, detail)
    }

    #[inline]
    fn find(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64), Box<Finding>> {
        let (index, offset) = locate(address);
        if let Some(allocation) = self.allocations.get(index)
            && allocation.pages.is_some()
            && let Ok(offset) = u64::try_from(offset)
            && offset + bytes <= allocation.bytes
        {
            return Ok((allocation, offset));
        }
        Err(self.out_of_bounds(address, bytes))
    }

    #[cold]
    fn out_of_bounds(&self, address: u64, bytes: u64) -> Box<Finding> {
        let (index, offset) = locate(address);
        let (name, index, detail) = match self.allocations.get(index) {
            None => ("", address as i64, "no allocation is anywhere near".into()),
            Some(a) if a.pages.is_none() => (a.name, offset, "it was freed".into()),
            Some(a) => (a.name, offset, format!("it holds {} bytes", a.bytes)),
        };
        let detail = format!("{bytes} bytes at {address:#x}; {detail}");
        Finding::memory(FaultKind::OutOfBounds, name, index, detail)
    }
}

impl Allocation {
    fn pages(&self) -> &[OnceLock<Box<Page>>] {
        self.pages.as_deref().unwrap_or_default()
    }
}

impl Page {
    fn new() -> Box<Self> {
        let bytes = PAGE_BYTES as usize;
        Box::new(Self {
            words: (0..bytes / 4).map(|_| AtomicU32::default()).collect(),
            written: (0..bytes / 16).map(|_| AtomicU16::default()).collect(),
            word_histories: (0..bytes / 4).map(|_| History::default()).collect(),
            byte_histories: OnceLock::new(),
        })
    }

    /// Or how many bytes in, the first never-written one is.
    #[inline]
    fn check_written(&self, offset: usize, bytes: u32) -> Result<(), i64> {
        let missing = !(self.written[offset / 16].load(Relaxed) >> (offset % 16));
        let missing = missing & byte_mask(bytes);
        if missing == 0 {
            return Ok(());
        }
        Err(i64::from(missing.trailing_zeros()))
    }

    #[inline]
    fn mark_written(&self, offset: usize, bytes: u32) {
        let mask = byte_mask(bytes) << (offset % 16);
        let written = &self.written[offset / 16];
        if written.load(Relaxed) & mask != mask {
            written.fetch_or(mask, Relaxed);
        }
    }

    /// Or how many bytes in, with whom.
    #[inline]
    fn check_races(
        &self,
        now: &Now,
        offset: usize,
        bytes: u32,
        access: Access,
    ) -> Result<(), (i64, Conflict)> {
        let range = offset..offset + bytes as usize;
        if bytes < 4 {
            return self.check_part_of_word(now, range, access);
        }
        let words = &self.word_histories[range.start / 4..range.end / 4];
        for (i, history) in words.iter().enumerate() {
            match access {
                Access::Read => history.read(now),
                Access::Write => history.write(now),
                Access::Atomic => history.atomic(now),
            }
            .map_err(|other| (i as i64 * 4, other))?;
        }
        let Some(bytes) = self.byte_histories.get() else {
            return Ok(());
        };
        for (i, history) in bytes[range].iter().enumerate() {
            match access {
                Access::Read => history.check_read(now),
                Access::Write | Access::Atomic => history.check_write(now),
            }
            .map_err(|other| (i as i64, other))?;
        }
        Ok(())
    }

    /// Bytes of one word may belong to different lanes, so such accesses have histories of their own.
    fn check_part_of_word(
        &self,
        now: &Now,
        range: std::ops::Range<usize>,
        access: Access,
    ) -> Result<(), (i64, Conflict)> {
        let word = &self.word_histories[range.start / 4];
        let bytes = self
            .byte_histories
            .get_or_init(|| (0..PAGE_BYTES).map(|_| History::default()).collect());
        for (i, history) in bytes[range].iter().enumerate() {
            match access {
                Access::Read => history.read(now).and_then(|()| word.check_read(now)),
                _ => history.write(now).and_then(|()| word.check_write(now)),
            }
            .map_err(|other| (i as i64, other))?;
        }
        Ok(())
    }
}

impl Place<'_> {
    /// Reads `N` whole words.
    #[inline]
    pub(super) fn load<const N: usize>(&self) -> [u32; N] {
        let words = &self.page.words[self.offset / 4..][..N];
        std::array::from_fn(|i| words[i].load(Relaxed))
    }

    /// Writes `N` whole words.
    #[inline]
    pub(super) fn store<const N: usize>(&self, values: [u32; N]) {
        let words = &self.page.words[self.offset / 4..][..N];
        for (word, value) in words.iter().zip(values) {
            word.store(value, Relaxed);
        }
    }

    /// Reads the word that holds this place, shifted so that the place comes first.
    #[inline]
    pub(super) fn load_part(&self) -> u32 {
        self.page.words[self.offset / 4].load(Relaxed) >> (self.offset % 4 * 8)
    }

    /// Writes `bytes` bytes of the word that holds this place.
    pub(super) fn store_part(&self, value: u32, bytes: u32) {
        let shift = self.offset % 4 * 8;
        let mask = (u32::MAX >> (32 - 8 * bytes)) << shift;
        // A neighbouring thread block may be writing the other bytes.
        let _ = self.page.words[self.offset / 4].fetch_update(Relaxed, Relaxed, |word| {
            Some(word & !mask | value << shift & mask)
        });
    }

    /// Compare and swap; returns what was there.
    pub(super) fn compare_and_swap(&self, expected: u32, value: u32) -> u32 {
        let word = &self.page.words[self.offset / 4];
        match word.compare_exchange(expected, value, Relaxed, Relaxed) {
            Ok(old) | Err(old) => old,
        }
    }
}

/// Which allocation is nearest, and the offset from its begin.
#[inline]
fn locate(address: u64) -> (usize, i64) {
    let from_first = address.wrapping_sub(FIRST_ADDRESS - LARGEST / 2);
    let index = (from_first / SPACING) as usize;
    let offset = (from_first % SPACING) as i64 - (LARGEST / 2) as i64;
    (index, offset)
}

#[inline]
fn byte_mask(bytes: u32) -> u16 {
    u16::MAX >> (16 - bytes)
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

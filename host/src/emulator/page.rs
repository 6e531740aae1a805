//! A page of global memory: its words, which of its bytes were written, and who accessed them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::memory::Access;
use super::race::{Conflict, History, Now};

pub(super) const PAGE_BYTES: u64 = 1 << 14;

/// 16 KiB of an allocation. The contents are atomics because thread blocks run in parallel.
pub(super) struct Page {
    words: Box<[AtomicU32]>,
    /// A bit per byte.
    written: Box<[AtomicU16]>,
    /// Accesses to whole words.
    word_histories: Box<[History<AtomicU64>]>,
    /// Accesses to single bytes and halves of words, if there ever was one.
    byte_histories: OnceLock<Box<[History<AtomicU64>]>>,
}

/// A checked place in global memory.
pub(super) struct Place<'m> {
    pub(super) page: &'m Page,
    /// Byte offset in the page.
    pub(super) offset: usize,
}

impl Page {
    pub(super) fn new() -> Box<Self> {
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
    pub(super) fn check_written(&self, offset: usize, bytes: u32) -> Result<(), i64> {
        let missing = !(self.written[offset / 16].load(Relaxed) >> (offset % 16));
        let missing = missing & byte_mask(bytes);
        if missing == 0 {
            return Ok(());
        }
        Err(i64::from(missing.trailing_zeros()))
    }

    #[inline]
    pub(super) fn mark_written(&self, offset: usize, bytes: u32) {
        let mask = byte_mask(bytes) << (offset % 16);
        let written = &self.written[offset / 16];
        if written.load(Relaxed) & mask != mask {
            written.fetch_or(mask, Relaxed);
        }
    }

    /// The bytes of a word from `offset` on, and beyond it nothing; `None` where nobody wrote.
    pub(super) fn bytes_from(&self, offset: usize) -> impl Iterator<Item = Option<u8>> + use<> {
        let word = self.words[offset / 4].load(Relaxed).to_le_bytes();
        let written = self.written[offset / 16].load(Relaxed) >> (offset % 16);
        let bytes = word.into_iter().skip(offset % 4).enumerate();
        bytes.map(move |(i, byte)| (written >> i & 1 != 0).then_some(byte))
    }

    /// As if nobody had accessed it.
    pub(super) fn forget_histories(&self) {
        self.word_histories.iter().for_each(History::forget);
        let bytes = self.byte_histories.get();
        bytes.into_iter().flatten().for_each(History::forget);
    }

    /// Or how many bytes in, with whom.
    #[inline]
    pub(super) fn check_races(
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
                Access::Write | Access::Atomic => {
                    history.write(now).and_then(|()| word.check_write(now))
                }
            }
            .map_err(|other| (i as i64, other))?;
        }
        Ok(())
    }
}

impl Place<'_> {
    /// A place for whoever has none: what is written there is lost.
    pub(super) fn nowhere() -> Self {
        static NOWHERE: OnceLock<Box<Page>> = OnceLock::new();
        Self {
            page: NOWHERE.get_or_init(Page::new),
            offset: 0,
        }
    }

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

#[inline]
fn byte_mask(bytes: u32) -> u16 {
    u16::MAX >> (16 - bytes)
}

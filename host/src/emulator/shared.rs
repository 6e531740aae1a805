//! Dynamic shared memory of a thread block, and the asynchronous copies into it.
//!
//! Each OS thread has one, which its thread blocks use in turn. Nothing is cleared between them: histories
//! carry the thread block's number, so what an earlier one wrote counts as never written.

use std::cell::Cell;

use super::fault::{FaultKind, Finding, SHARED};
use super::memory::{Access, misaligned, never_written, race};
use super::race::{Conflict, History, Now};

/// Where shared memory begins: not at 0, so that a forgotten base is out of bounds.
pub(super) const SHARED_BASE: u32 = 0x400;

/// Dynamic shared memory of the thread block that an OS thread runs now.
#[derive(Default)]
pub(super) struct SharedMemory {
    words: Vec<Cell<u32>>,
    histories: Vec<History<Cell<u64>>>,
    /// `[word, warp]`: see [`Now::readers`].
    readers: Vec<Cell<u32>>,
    warps: usize,
    bytes: Cell<u32>,
}

impl SharedMemory {
    /// Makes room for a launch. What thread blocks before left there counts as never written, for their
    /// numbers differ.
    pub(super) fn resize(&mut self, bytes: u32, warps: u32) {
        let words = bytes.div_ceil(16) as usize * 4;
        self.warps = warps as usize;
        if self.readers.len() < words * self.warps {
            self.readers.resize(words * self.warps, Cell::new(0));
        }
        if self.words.len() < words {
            self.words.resize(words, Cell::new(0));
            self.histories.resize_with(words, History::default);
        }
        self.bytes.set(bytes);
    }

    /// As if never touched: thread blocks are about to get numbers that were used before.
    pub(super) fn forget_histories(&self) {
        self.histories.iter().for_each(History::forget);
    }

    /// Checks, records and does a read of `N` words.
    #[inline]
    pub(super) fn load<const N: usize>(
        &self,
        now: &Now,
        address: u32,
    ) -> Result<[u32; N], Box<Finding>> {
        let first = self.find::<N>(address)?;
        for (i, history) in self.histories[first..first + N].iter().enumerate() {
            if !history.is_written(now) {
                return Err(never_written(SHARED, shared_index(first + i)));
            }
            landed(history, now, first + i)?;
            history
                .read(&self.beside(now, first + i))
                .map_err(|other| race(SHARED, shared_index(first + i), now, Access::Read, other))?;
        }
        let words = &self.words[first..first + N];
        Ok(std::array::from_fn(|i| words[i].get()))
    }

    /// Checks, records and does a write of `N` words.
    #[inline]
    pub(super) fn store<const N: usize>(
        &self,
        now: &Now,
        address: u32,
        values: [u32; N],
    ) -> Result<(), Box<Finding>> {
        self.write(now, address, values, History::write)
    }

    /// Begins an asynchronous copy of `values`: they are there, but nobody may look.
    #[inline]
    pub(super) fn begin_copy<const WORDS: usize>(
        &self,
        now: &Now,
        address: u32,
        values: [u32; WORDS],
    ) -> Result<(), Box<Finding>> {
        self.write(now, address, values, History::begin_copy)
    }

    /// Ends what [`SharedMemory::begin_copy`] began.
    #[inline]
    pub(super) fn end_copy(&self, now: &Now, address: u32, words: usize) {
        let first = (address - SHARED_BASE) as usize / 4;
        for history in &self.histories[first..first + words] {
            history.end_copy(now);
        }
    }

    #[inline]
    fn write<const N: usize>(
        &self,
        now: &Now,
        address: u32,
        values: [u32; N],
        record: impl Fn(&History<Cell<u64>>, &Now) -> Result<(), Conflict>,
    ) -> Result<(), Box<Finding>> {
        let first = self.find::<N>(address)?;
        for (i, history) in self.histories[first..first + N].iter().enumerate() {
            landed(history, now, first + i)?;
            record(history, &self.beside(now, first + i)).map_err(|other| {
                race(SHARED, shared_index(first + i), now, Access::Write, other)
            })?;
        }
        let words = &self.words[first..first + N];
        for (word, value) in words.iter().zip(values) {
            word.set(value);
        }
        Ok(())
    }

    /// `now`, with the readers of a word.
    #[inline]
    fn beside<'n>(&'n self, now: &Now<'n>, word: usize) -> Now<'n> {
        Now {
            readers: &self.readers[word * self.warps..][..self.warps],
            ..*now
        }
    }

    /// Index of the first of `N` words.
    #[inline]
    fn find<const N: usize>(&self, address: u32) -> Result<usize, Box<Finding>> {
        let bytes = 4 * N as u32;
        let offset = i64::from(address) - i64::from(SHARED_BASE);
        if offset < 0 || offset + i64::from(bytes) > i64::from(self.bytes.get()) {
            let detail = format!("the thread block has {} bytes", self.bytes.get());
            return Err(Finding::memory(
                FaultKind::OutOfBounds,
                SHARED,
                offset,
                detail,
            ));
        }
        if !address.is_multiple_of(bytes) {
            return Err(misaligned(SHARED, offset, bytes));
        }
        Ok(offset as usize / 4)
    }
}

/// Refuses words that an asynchronous copy is still writing.
#[inline]
fn landed(history: &History<Cell<u64>>, now: &Now, word: usize) -> Result<(), Box<Finding>> {
    match history.in_flight(now) {
        None => Ok(()),
        Some(thread) => Err(Finding::memory(
            FaultKind::AsyncCopyNotWaited,
            SHARED,
            shared_index(word),
            format!("thread {thread} started the copy and has not waited for it"),
        )),
    }
}

fn shared_index(word: usize) -> i64 {
    word as i64 * 4
}

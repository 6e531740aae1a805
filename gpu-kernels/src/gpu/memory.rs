//! Global and shared memory, and copies from one to the other.

/// What is known of the 128-byte line that a copy comes from, and where it shall stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Others are about to read the rest of it, which shall come into the L2 as well.
    pub is_whole: bool,
    /// It will be read again soon. One that is not is the first to leave the L2.
    pub stays: bool,
}

impl Line {
    /// A line of a cache, which is larger than the L2 and read once per step.
    pub const ONCE: Self = Self {
        is_whole: false,
        stays: false,
    };
}

/// The memory that a lane reads and writes.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](crate::gpu).
pub unsafe trait Memory: Copy {
    // ---- global ------------------------------------------------------------------------------------

    /// Loads one byte.
    ///
    /// # Safety
    /// In bounds, written before this launch or by a lane ordered before this one.
    #[track_caller]
    unsafe fn ld_global_b8(self, address: u64) -> u8;
    /// Loads 2 bytes.
    ///
    /// # Safety
    /// As [`Memory::ld_global_b8`], aligned.
    #[track_caller]
    unsafe fn ld_global_b16(self, address: u64) -> u16;
    /// Loads 4 bytes.
    ///
    /// # Safety
    /// As [`Memory::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b32(self, address: u64) -> u32;
    /// Loads 8 bytes.
    ///
    /// # Safety
    /// As [`Memory::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b64(self, address: u64) -> u64;
    /// Loads 16 bytes as four little-endian words.
    ///
    /// # Safety
    /// As [`Memory::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b128(self, address: u64) -> [u32; 4];
    /// Stores one byte.
    ///
    /// # Safety
    /// In bounds, and no other lane touches these bytes unless ordered.
    #[track_caller]
    unsafe fn st_global_b8(self, address: u64, value: u8);
    /// Stores 2 bytes.
    ///
    /// # Safety
    /// As [`Memory::st_global_b8`], aligned.
    #[track_caller]
    unsafe fn st_global_b16(self, address: u64, value: u16);
    /// Stores 4 bytes.
    ///
    /// # Safety
    /// As [`Memory::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b32(self, address: u64, value: u32);
    /// Stores 8 bytes.
    ///
    /// # Safety
    /// As [`Memory::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b64(self, address: u64, value: u64);
    /// Stores 16 bytes as four little-endian words.
    ///
    /// # Safety
    /// As [`Memory::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b128(self, address: u64, value: [u32; 4]);
    /// Writes `value` if the 4 bytes at `address` equal `expected`; returns what was there. Relaxed, at
    /// the scope of the device.
    ///
    /// # Safety
    /// In bounds, aligned; the word is accessed by atomics alone during the launch.
    #[track_caller]
    unsafe fn atomic_cas_global_b32(self, address: u64, expected: u32, value: u32) -> u32;

    // ---- shared ------------------------------------------------------------------------------------

    /// Loads 4 bytes.
    ///
    /// # Safety
    /// In bounds, aligned, written before, and no unordered writer.
    #[track_caller]
    unsafe fn ld_shared_b32(self, address: u32) -> u32;
    /// Loads 8 bytes.
    ///
    /// # Safety
    /// As [`Memory::ld_shared_b32`].
    #[track_caller]
    unsafe fn ld_shared_b64(self, address: u32) -> u64;
    /// Loads 16 bytes.
    ///
    /// # Safety
    /// As [`Memory::ld_shared_b32`].
    #[track_caller]
    unsafe fn ld_shared_b128(self, address: u32) -> [u32; 4];
    /// Stores 4 bytes.
    ///
    /// # Safety
    /// In bounds, aligned, and no unordered reader or writer.
    #[track_caller]
    unsafe fn st_shared_b32(self, address: u32, value: u32);
    /// Stores 8 bytes.
    ///
    /// # Safety
    /// As [`Memory::st_shared_b32`].
    #[track_caller]
    unsafe fn st_shared_b64(self, address: u32, value: u64);
    /// Stores 16 bytes.
    ///
    /// # Safety
    /// As [`Memory::st_shared_b32`].
    #[track_caller]
    unsafe fn st_shared_b128(self, address: u32, value: [u32; 4]);

    // ---- asynchronous copies, global to shared -----------------------------------------------------

    /// Starts copying 16 bytes past the L1; with `valid` false writes 16 zero bytes and reads nothing.
    /// `line`, a constant, says what to do with the line in the L2.
    ///
    /// # Safety
    /// Both addresses in bounds and 16-byte aligned (`source` only if `valid`); nobody touches the target
    /// before the copy was waited for.
    #[track_caller]
    unsafe fn cp_async_b128(self, target: u32, source: u64, valid: bool, line: Line);
    /// Starts copying 4 bytes; with `valid` false writes 4 zero bytes and reads nothing.
    ///
    /// # Safety
    /// As [`Memory::cp_async_b128`], 4-byte aligned.
    #[track_caller]
    unsafe fn cp_async_b32(self, target: u32, source: u64, valid: bool);
    /// Closes the group of copies that this lane started since the last call (maybe none).
    #[track_caller]
    fn cp_async_commit(self);
    /// Waits until at most `PENDING` of this lane's groups, the youngest ones, are unfinished.
    #[track_caller]
    fn cp_async_wait<const PENDING: u32>(self);
}

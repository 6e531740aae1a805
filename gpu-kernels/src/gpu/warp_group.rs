//! Products of matrices that four warps multiply together.

#[cfg(doc)]
use crate::gpu::in_panels;
use crate::gpu::{Matrices, Numbers, Pending, Threads, group};

/// A lane among those of four warps.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](crate::gpu).
pub unsafe trait WarpGroup: Threads + Matrices + Numbers {
    /// Has `REGISTERS` registers from here on, more than before.
    ///
    /// # Safety
    /// The four warps of the group call it together; others leave it as many.
    #[inline(always)]
    unsafe fn take_registers<const REGISTERS: u32>(self) {}
    /// Has `REGISTERS` registers from here on, fewer than before.
    ///
    /// # Safety
    /// The four warps of the group call it together.
    #[inline(always)]
    unsafe fn leave_registers<const REGISTERS: u32>(self) {}

    /// Lets a warp group's products see what this thread wrote to shared memory, and copied there, once the threads
    /// have met at a barrier; and lets those that this thread takes part in see what others did before a barrier at
    /// which it met them. It waits for everything that the thread has under way.
    #[inline(always)]
    fn fence_warpgroup(self) {}
    /// Begins `queries keysᵀ` of 64 queries and 64 keys of `STEPS * 16` bf16 values, which lie as panels (see
    /// [`in_panels`]) side by side. Warp `w` of the group has queries `16 w ..`, as of [`Matrices::mma_bf16`]; of the
    /// keys 16 side by side, twice 8.
    ///
    /// # Safety
    /// The four warps of the group call it together, and `STEPS` is 4 or 8. Panels of as many steps are visible to
    /// them, in bounds, and 1,024-byte aligned.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_scores_bf16<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::scores::<Self, true, STEPS>(self, Pending::ZERO, queries, keys) }
    }
    /// As [`WarpGroup::group_scores_bf16`], of f16 values.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_scores_f16<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::scores::<Self, false, STEPS>(self, Pending::ZERO, queries, keys) }
    }
    /// Begins `pending + queries keysᵀ` as [`WarpGroup::group_scores_bf16`] does, where `pending` are scores that were
    /// begun: of further columns of the same queries and keys.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_more_scores_bf16<const STEPS: usize>(
        self,
        pending: Pending<4>,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::scores::<Self, true, STEPS>(self, pending, queries, keys) }
    }
    /// As [`WarpGroup::group_more_scores_bf16`], of f16 values.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_more_scores_f16<const STEPS: usize>(
        self,
        pending: Pending<4>,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::scores::<Self, false, STEPS>(self, pending, queries, keys) }
    }
    /// As [`WarpGroup::group_scores_bf16`], of e4m3 values, whose rows of bytes lie in one panel.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_scores_e4m3<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::scores_e4m3::<Self, STEPS>(self, queries, keys) }
    }
    /// Begins `acc + probs values` of 64 rows and 64 tokens, whose `STEPS * 16` bf16 values lie as panels side by side.
    /// A warp has rows as in [`WarpGroup::group_scores_bf16`]; its left factors are those of [`Matrices::mma_bf16`], of
    /// 16 tokens each.
    ///
    /// # Safety
    /// As [`WarpGroup::group_scores_bf16`].
    #[track_caller]
    #[inline(always)]
    unsafe fn group_values_bf16<const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::values::<Self, true, STEPS>(self, acc, probs, values) }
    }
    /// As [`WarpGroup::group_values_bf16`], of f16 values.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_values_f16<const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: the four warps come here together, with visible panels in bounds: this method's contract.
        unsafe { group::values::<Self, false, STEPS>(self, acc, probs, values) }
    }

    /// What a warp group's products gave, once all but the `YOUNGER` youngest ones that it began are complete.
    ///
    /// # Safety
    /// As [`WarpGroup::group_scores_bf16`]; `pending` is not younger than that.
    #[inline(always)]
    unsafe fn group_wait<const STEPS: usize, const YOUNGER: u32>(
        self,
        Pending(acc): Pending<STEPS>,
    ) -> [[[f32; 4]; 2]; STEPS] {
        acc
    }
}

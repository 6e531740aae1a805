//! What the planner knows of a machine.

use gpu_kernels::entry::{Arch, ArchSet, Entry};

/// A CUDA grid has at most this many thread blocks along x.
pub(crate) const MOST_CTAS_X: u64 = (1 << 31) - 1;
/// A CUDA grid has at most this many thread blocks along y, and along z.
pub(crate) const MOST_CTAS_YZ: u32 = 65_535;

/// Numbers that decide how work is cut up. Plain data: a plan can be made for any machine, on any machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Compute capability, e.g. `(9, 0)`.
    pub compute_capability: (u32, u32),
    /// The architectures whose kernels are at hand, also those that run on other devices alone.
    pub archs: ArchSet,
    /// Shared memory a thread block may have (opt-in limit).
    pub shared_bytes_per_cta: u32,
    /// Shared memory of a multiprocessor.
    pub shared_bytes_per_sm: u32,
}

impl DeviceInfo {
    /// An H200 SXM.
    pub const H200: Self = Self {
        num_sms: 132,
        compute_capability: (9, 0),
        archs: ArchSet::ALL,
        shared_bytes_per_cta: 232_448,
        shared_bytes_per_sm: 233_472,
    };
    /// What the emulator pretends to be: few multiprocessors, and the smallest shared memory supported
    /// (compute capability 8.6 and 8.9).
    pub const EMULATED: Self = Self {
        num_sms: 4,
        compute_capability: (8, 6),
        archs: ArchSet::ALL,
        shared_bytes_per_cta: 101_376,
        shared_bytes_per_sm: 102_400,
    };

    /// Whether the device has the instructions that a kernel uses, and the kernel is at hand.
    pub fn runs(&self, entry: &Entry) -> bool {
        let newest = entry.archs.newest(self.archs, self.compute_capability);
        newest.is_some()
    }

    /// Whether a grid may begin before the one ahead of it in the stream has ended.
    pub fn overlaps_launches(&self) -> bool {
        Arch::Sm90.runs_on(self.compute_capability)
    }
}

#[cfg(test)]
mod tests {
    use gpu_kernels::entry::ENTRIES;

    use super::*;

    #[test]
    fn kernels_for_one_gpu_have_to_be_at_hand() {
        let find = |is_exact| {
            let mut all = ENTRIES.iter();
            all.find(|entry| entry.archs.iter().all(Arch::is_exact) == is_exact)
                .expect("one")
        };
        let (hopper, any) = (find(true), find(false));
        let without = DeviceInfo {
            archs: ArchSet::EVERYWHERE,
            ..DeviceInfo::H200
        };
        assert!(DeviceInfo::H200.runs(hopper) && !without.runs(hopper));
        assert!(!DeviceInfo::EMULATED.runs(hopper));
        for device in [DeviceInfo::H200, without, DeviceInfo::EMULATED] {
            assert!(device.runs(any));
        }
    }
}

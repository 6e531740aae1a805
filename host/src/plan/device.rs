//! What the planner knows of a machine.

use gpu_kernels::entry::Entry;

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
    /// Whether the kernels that are for this compute capability alone are at hand, if there are such.
    pub has_exact_kernels: bool,
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
        has_exact_kernels: true,
        shared_bytes_per_cta: 232_448,
        shared_bytes_per_sm: 233_472,
    };
    /// What the emulator pretends to be: few multiprocessors, and the smallest shared memory supported
    /// (compute capability 8.6 and 8.9).
    pub const EMULATED: Self = Self {
        num_sms: 4,
        compute_capability: (8, 6),
        has_exact_kernels: true,
        shared_bytes_per_cta: 101_376,
        shared_bytes_per_sm: 102_400,
    };

    /// Whether the device has the instructions that a kernel uses, and the kernel is at hand.
    pub fn runs(&self, entry: &Entry) -> bool {
        !entry.hopper || self.compute_capability == (9, 0) && self.has_exact_kernels
    }
}

#[cfg(test)]
mod tests {
    use gpu_kernels::entry::ENTRIES;

    use super::*;

    #[test]
    fn kernels_for_one_gpu_have_to_be_at_hand() {
        let hopper = ENTRIES.iter().find(|entry| entry.hopper).expect("one");
        let any = ENTRIES.iter().find(|entry| !entry.hopper).expect("one");
        let without = DeviceInfo {
            has_exact_kernels: false,
            ..DeviceInfo::H200
        };
        assert!(DeviceInfo::H200.runs(hopper) && !without.runs(hopper));
        assert!(!DeviceInfo::EMULATED.runs(hopper));
        for device in [DeviceInfo::H200, without, DeviceInfo::EMULATED] {
            assert!(device.runs(any));
        }
    }
}

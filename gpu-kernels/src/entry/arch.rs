//! The architectures that PTX is compiled for: which GPUs take it, and which rows of the table it holds.
//!
//! PTX runs on every later GPU, so these are the architectures at which the instruction set gains something that the
//! kernels use. An exact one is the exception: what it adds no other GPU has, so its PTX runs on no other, and holds
//! only the rows that use it.

/// The version of PTX that all modules say, which decides how old a driver may be. 8.1 (CUDA 12.1) is the oldest that
/// widens FP8 on sm_89; an architecture that came later needs a later one.
pub const PTX_VERSION: &str = "8.1";

macro_rules! archs {
    ($($(#[$doc:meta])* $arch:ident = $name:literal, $capability:expr, $reach:ident, $gpus:expr;)*) => {
        /// An architecture that PTX is compiled for, in ascending order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Arch {
            $($(#[$doc])* $arch,)*
        }

        impl Arch {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$arch),*];

            /// As compilers and PTX call it, such as "sm_90".
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$arch => $name,)*
                }
            }

            /// The lowest compute capability that it runs on.
            pub const fn compute_capability(self) -> (u32, u32) {
                match self {
                    $(Self::$arch => $capability,)*
                }
            }

            /// Whether it runs on that compute capability and on no later one.
            pub const fn is_exact(self) -> bool {
                match self {
                    $(Self::$arch => is_exact!($reach),)*
                }
            }

            /// The GPUs that load its PTX, and not that of a later one.
            pub const fn gpus(self) -> &'static [GpuModel] {
                match self {
                    $(Self::$arch => const { &$gpus },)*
                }
            }
        }
    };
}

macro_rules! is_exact {
    (later_too) => {
        false
    };
    (exact) => {
        true
    };
}

/// What the assembler has to know of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuModel {
    /// As the assembler calls it.
    pub name: &'static str,
    /// Most shared memory of a thread block (CUDA C++ Programming Guide, "Technical Specifications per Compute
    /// Capability").
    pub shared_bytes_per_cta: u32,
}

const fn gpu(name: &'static str, shared_kib: u32) -> GpuModel {
    GpuModel {
        name,
        shared_bytes_per_cta: shared_kib << 10,
    }
}

archs! {
    /// Ampere: `mma` of 16-bit values, `cp.async`.
    Sm80 = "sm_80", (8, 0), later_too, [gpu("sm_80", 163), gpu("sm_86", 99)];
    /// Ada: FP8 is converted by instruction.
    Sm89 = "sm_89", (8, 9), later_too, [gpu("sm_89", 99)];
    /// Hopper: a grid may begin before the one ahead of it has ended.
    Sm90 = "sm_90", (9, 0), later_too, [gpu("sm_90", 227), gpu("sm_100", 227), gpu("sm_120", 99)];
    /// Hopper's warp groups, which multiply out of shared memory.
    Sm90a = "sm_90a", (9, 0), exact, [gpu("sm_90a", 227)];
}

/// What a section's name means: `section!(name)` is the set of architectures that hold its rows, `section!(name: item)`
/// an item that is compiled for those alone. What is `everywhere` is in all that are not exact.
macro_rules! section {
    (everywhere) => {
        ArchSet::EVERYWHERE
    };
    (sm_90a) => {
        ArchSet::EMPTY.with(Arch::Sm90a)
    };
    (everywhere: $item:item) => {
        #[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
        $item
    };
    (sm_90a: $item:item) => {
        #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
        $item
    };
}
pub(super) use section;

impl Arch {
    /// The architecture of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|arch| arch.name() == name)
    }

    /// Whether GPUs of a compute capability run its PTX.
    pub fn runs_on(self, compute_capability: (u32, u32)) -> bool {
        if self.is_exact() {
            self.compute_capability() == compute_capability
        } else {
            self.compute_capability() <= compute_capability
        }
    }
}

impl core::fmt::Display for Arch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// A set of architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchSet(u32);

impl ArchSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All.
    pub const ALL: Self = Self((1 << Arch::ALL.len()) - 1);
    /// All that are not exact.
    pub const EVERYWHERE: Self = {
        let mut set = Self::EMPTY;
        let mut at = 0;
        while at < Arch::ALL.len() {
            if !Arch::ALL[at].is_exact() {
                set = set.with(Arch::ALL[at]);
            }
            at += 1;
        }
        set
    };

    /// The same with one more.
    #[must_use]
    pub const fn with(self, arch: Arch) -> Self {
        Self(self.0 | 1 << arch as u32)
    }

    /// The same without one.
    #[must_use]
    pub const fn without(self, arch: Arch) -> Self {
        Self(self.0 & !(1 << arch as u32))
    }

    /// Whether `arch` is in it.
    pub const fn contains(self, arch: Arch) -> bool {
        self.0 & 1 << arch as u32 != 0
    }

    /// Its members, in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Arch> {
        let all = Arch::ALL.iter().copied();
        all.filter(move |&arch| self.contains(arch))
    }

    /// The newest that is in both sets and runs on a GPU.
    pub fn newest(self, other: Self, compute_capability: (u32, u32)) -> Option<Arch> {
        let both = Self(self.0 & other.0);
        both.iter()
            .rev()
            .find(|arch| arch.runs_on(compute_capability))
    }
}

impl FromIterator<Arch> for ArchSet {
    fn from_iter<I: IntoIterator<Item = Arch>>(archs: I) -> Self {
        archs.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_in_ascending_order() {
        for &arch in Arch::ALL {
            assert_eq!(Arch::named(arch.name()), Some(arch));
        }
        assert!(Arch::ALL.is_sorted_by_key(|arch| (arch.compute_capability(), arch.is_exact())));
        for name in ["compute_90", "sm_", "sm_x", ""] {
            assert_eq!(Arch::named(name), None, "{name}");
        }
    }

    #[test]
    fn an_exact_architecture_is_for_no_other_gpu() {
        assert!(Arch::Sm90a.runs_on((9, 0)));
        for other in [(8, 0), (8, 6), (8, 9), (9, 1), (10, 0), (12, 0)] {
            assert!(!Arch::Sm90a.runs_on(other));
        }
    }

    #[test]
    fn a_gpu_gets_the_newest_architecture_that_it_runs() {
        let newest = |capability| ArchSet::ALL.newest(ArchSet::EVERYWHERE, capability);
        assert_eq!(newest((7, 5)), None);
        assert_eq!(newest((8, 6)), Some(Arch::Sm80));
        assert_eq!(newest((9, 0)), Some(Arch::Sm90));
        assert_eq!(newest((12, 0)), Some(Arch::Sm90));
        let without = ArchSet::ALL.without(Arch::Sm90);
        assert_eq!(
            without.newest(ArchSet::EVERYWHERE, (9, 0)),
            Some(Arch::Sm89)
        );
    }

    #[test]
    fn a_gpu_is_assembled_for_once() {
        for &arch in Arch::ALL {
            assert_eq!(arch.gpus()[0].name, arch.name());
        }
    }
}

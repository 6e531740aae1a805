//! Every compiled kernel, from one table.
//!
//! `entries!` turns the table's rows into the PTX symbols (on a PTX target), and on the host into [`EntryId`], the rows of
//! [`ENTRIES`] that the planner chooses from, and [`run`], by which the emulator calls a kernel.
//!
//! The table has sections: sets of architectures, whose PTX holds their rows ([`arch`]).

pub mod arch;
mod variant;

use arch::section;
pub use arch::{Arch, ArchSet};

#[cfg(not(target_arch = "nvptx64"))]
pub use table::run;
pub use table::{ENTRIES, EntryId};
pub use variant::Variant;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which one.
    pub id: EntryId,
    /// The PTX symbol.
    pub name: &'static str,
    /// What it computes.
    pub variant: Variant,
    /// Threads per thread block (`.maxntid`).
    pub threads: u32,
    /// Thread blocks that must fit on a multiprocessor (`.minnctapersm`).
    pub min_ctas: u32,
    /// Size of its parameter block.
    pub params_bytes: usize,
    /// Whether registers must not spill to memory.
    pub hot: bool,
    /// Whose PTX holds it.
    pub archs: ArchSet,
}

impl EntryId {
    /// This kernel's row.
    pub fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }

    /// What it computes.
    pub fn variant(self) -> Variant {
        self.entry().variant
    }
}

impl Entry {
    /// The row of a variant, if it was compiled.
    pub fn find(variant: Variant) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.variant == variant)
    }
}

/// [`Entry::hot`]: a row may say otherwise.
macro_rules! is_hot {
    () => {
        true
    };
    (may_spill) => {
        false
    };
}

macro_rules! entries {
    ($([$section:ident] $($name:ident: $kernel:ty $(, $spill:ident)?;)*)*) => {
        /// Identifies a compiled kernel.
        #[allow(non_camel_case_types, reason = "each is a PTX symbol")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EntryId {
            $($(#[doc = concat!("`", stringify!($name), "`")] $name,)*)*
        }

        /// All compiled kernels.
        pub static ENTRIES: &[Entry] = &[$($(Entry {
            id: EntryId::$name,
            name: stringify!($name),
            variant: <$kernel as Kernel>::VARIANT,
            threads: <$kernel as Kernel>::THREADS,
            min_ctas: <$kernel as Kernel>::MIN_CTAS,
            params_bytes: size_of::<<$kernel as Kernel>::Params>(),
            hot: is_hot!($($spill)?),
            archs: section!($section),
        },)*)*];

        /// Runs one lane of kernel `id` on `gpu`: what the emulator calls.
        ///
        /// # Safety
        /// `params` points to the kernel's parameter block, and the launch keeps the kernel's conditions.
        #[cfg(not(target_arch = "nvptx64"))]
        pub unsafe fn run<G: crate::gpu::Gpu>(id: EntryId, gpu: G, params: *const u8) {
            match id {
                // SAFETY: a block of this kernel, whose conditions the launch keeps: the contract of `run`.
                $($(EntryId::$name => unsafe { lane::<$kernel, G>(gpu, params) },)*)*
            }
        }

        $($(section! { $section:
            /// PTX entry point.
            #[cfg(target_arch = "nvptx64")]
            #[cfg_attr(gpu_route = "nvvm", cuda_std::kernel)]
            #[cfg_attr(not(gpu_route = "nvvm"), unsafe(no_mangle))]
            pub unsafe extern "ptx-kernel" fn $name(params: <$kernel as Kernel>::Params) {
                // SAFETY: the host's `launch` keeps the kernel's conditions: `check()` made the tensors agree, the plan
                // made the grid; what indices may name, `CheckMode` says.
                unsafe { <$kernel as Kernel>::run(crate::gpu::PtxLane, &params) }
            }
        })*)*
    };
}

mod table;

//! The kernels of ferroattn as PTX, compiled by stock rustc. A part of `ferroattn`, which unpacks a kernel when it is first used;
//! nothing here has to be called by hand.
//!
//! Each of [`KERNELS`] is an `.xz` file with one PTX module for each architecture that the kernel is for, one after the
//! other. A module begins with `.version`, and its `.target` is one of [`ARCHS`].
#![no_std]

/// Writes down a set: the facts as constants, and the kernels with their files.
macro_rules! set {
    (
        route: $route:literal;
        compiler: $compiler:literal;
        ptx_version: $ptx_version:literal;
        source_sha256: $source_sha256:literal;
        archs: $archs:expr;
        $($kernel:literal,)*
    ) => {
        /// The route by which the kernels were compiled.
        pub const ROUTE: &str = $route;
        /// The compiler's version line.
        pub const COMPILER: &str = $compiler;
        /// PTX ISA version of the modules.
        pub const PTX_VERSION: &str = $ptx_version;
        /// SHA-256 of the source that they were compiled from.
        pub const SOURCE_SHA256: &str = $source_sha256;
        /// The architectures that were compiled for, in ascending order.
        pub static ARCHS: &[&str] = &$archs;
        /// The kernels by name, in alphabetical order, each with its file.
        pub static KERNELS: &[(&str, &[u8])] = &[
            $(($kernel, include_bytes!(concat!("../kernels/", $kernel, ".ptx.xz")))),*
        ];
    };
}

include!("kernels.rs");

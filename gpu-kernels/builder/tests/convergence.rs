//! The PTX in the repository: threads that wait for one another come to the same place.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use ferroattn_ptx_builder::convergence::check_set;
use ferroattn_ptx_builder::ptx_set::PtxSet;
use ferroattn_ptx_builder::{ROUTES, kernels_dir};

#[test]
fn no_kernel_of_either_set_is_refused() {
    let mut refused = String::new();
    for route in ROUTES {
        let set = PtxSet::read(&kernels_dir().join("ptx").join(route)).expect("a set");
        for kernel in check_set(&set).expect("all of it is understood") {
            for finding in &kernel.findings {
                refused += &format!(
                    "{route}: {} for {}: {finding}\n",
                    kernel.kernel, kernel.arch
                );
            }
        }
    }
    assert!(refused.is_empty(), "{refused}");
}

//! Graphs: what they keep, and captures that fail. With a driver that runs nothing.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod fake_driver;

use fake_driver::{Fake, LAUNCH, launch, with_fake};
use ferroattn::Error;
use ferroattn::runtime::{Buffer, Cuda, DriverError, Pinned, StreamLauncher};
use ferroattn::tensor::Dtype;

#[test]
fn an_allocation_of_0_bytes() {
    with_fake("an_allocation_of_0_bytes", "", || {
        let cuda = Cuda::open(0).unwrap();
        let buffer = Buffer::uninit(&cuda, "nothing", Dtype::U8, &[0]).unwrap();
        assert_ne!(buffer.view().address(), 0);
        assert_eq!(buffer.bytes(), 0);
    });
}

#[test]
fn a_capture_returns_the_error_of_its_work() {
    with_fake("a_capture_returns_the_error_of_its_work", "", || {
        let cuda = Cuda::open(0).unwrap();
        let buffer = Buffer::uninit(&cuda, "buffer", Dtype::U8, &[16]).unwrap();
        let work = move |_: &StreamLauncher<'_>| {
            drop(buffer);
            Err(DriverError::NotUnified.into())
        };
        let error = cuda.capture(work).unwrap_err();
        assert!(
            matches!(error, Error::Driver(DriverError::NotUnified)),
            "{error:?}"
        );
        let fake = Fake::open();
        assert_eq!(fake.calls("cuGraphInstantiateWithFlags"), 0);
        assert_eq!(fake.calls("cuMemFree_v2"), 1, "there is no graph");
    });
}

#[test]
fn a_graph_keeps_memory_that_it_may_refer_to() {
    with_fake("a_graph_keeps_memory_that_it_may_refer_to", "", || {
        let cuda = Cuda::open(0).unwrap();
        cuda.kernels().prepare(&[LAUNCH.kernel]).unwrap();
        let fake = Fake::open();
        let freed = || fake.calls("cuMemFree_v2");
        let buffer = || Buffer::uninit(&cuda, "buffer", Dtype::U8, &[16]).unwrap();
        let (owned, early, late) = (buffer(), buffer(), buffer());
        let work = move |launcher: &StreamLauncher<'_>| {
            assert_ne!(owned.view().address(), 0);
            launch(launcher)
        };
        let first = cuda.capture(work).unwrap();
        assert_eq!(freed(), 0, "the work is gone, its buffer's memory is not");
        drop(early);
        first.launch().unwrap();
        drop(buffer());
        assert_eq!(freed(), 1, "the one that was allocated after the capture");
        let between = buffer();
        let second = cuda.capture(launch).unwrap();
        drop(between);
        drop(first);
        second.launch().unwrap();
        assert_eq!(freed(), 1, "the second one could know all of them");
        drop(second);
        assert_eq!(freed(), 4);
        drop(late);
        assert_eq!(freed(), 5, "without a graph at once");
    });
}

#[test]
fn a_graph_keeps_pinned_memory() {
    with_fake("a_graph_keeps_pinned_memory", "", || {
        let cuda = Cuda::open(0).unwrap();
        cuda.kernels().prepare(&[LAUNCH.kernel]).unwrap();
        let pinned = Pinned::new(&cuda);
        let fake = Fake::open();
        let host = Buffer::uninit(&pinned, "host", Dtype::U8, &[16]).unwrap();
        let graph = cuda.capture(launch).unwrap();
        drop(host);
        assert_eq!(fake.calls("cuMemFreeHost"), 0);
        drop(graph);
        assert_eq!(fake.calls("cuMemFreeHost"), 1);
    });
}

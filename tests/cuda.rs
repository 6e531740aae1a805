//! The CUDA machine itself: memory, launches, graphs, timing. Each test says so and passes where there is
//! no GPU.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::time::Instant;

use ferroattn::Result;
use ferroattn::ops::{BlockCaches, CheckMode, CopyBlocksRequest};
use ferroattn::runtime::{
    Buffer, Cuda, DriverError, Kernels, Launch, Launcher, Pinned, StreamLauncher,
};
use ferroattn::tensor::Dtype;
use gpu_kernels::entry::{ENTRIES, EntryId};
use gpu_kernels::params::{CheckFault, CheckSlotsParams, KernelParams, ScaleList};

/// The first GPU, or `None` where there is none.
fn gpu() -> Option<Cuda> {
    match Cuda::open(0) {
        Ok(cuda) => Some(cuda),
        Err(
            error @ (DriverError::NoDriver { .. }
            | DriverError::NoDevice { .. }
            | DriverError::ComputeCapability { .. }
            | DriverError::Route { .. }),
        ) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A kernel that is easy to predict: reports the slot that lies outside the cache.
struct CheckSlots<'m> {
    slots: Buffer<'m>,
    report: Buffer<'m>,
}

impl<'m> CheckSlots<'m> {
    const NUM_SLOTS: i64 = 100;
    const TOKENS: u32 = 1000;
    const BAD_TOKEN: usize = 777;

    fn new(cuda: &'m Cuda) -> Result<Self> {
        let mut slots = [-1i64; Self::TOKENS as usize];
        slots[Self::BAD_TOKEN] = Self::NUM_SLOTS;
        let bytes: &[u8] = bytemuck::cast_slice(&slots);
        let report = [0; size_of::<CheckFault>()];
        Ok(Self {
            slots: Buffer::new(cuda, "slots", Dtype::I64, &[slots.len()], bytes)?,
            report: Buffer::new(cuda, "report", Dtype::U8, &[report.len()], &report)?,
        })
    }

    fn enqueue(&self, launcher: &impl Launcher, overlaps_previous: bool) -> Result<()> {
        let params = CheckSlotsParams {
            slot_mapping: self.slots.view().address(),
            check: self.report.view().address(),
            // Padding is not looked for among others.
            seen: 0,
            positions: 0,
            num_slots: Self::NUM_SLOTS,
            num_positions: 0,
            stride_layer: 0,
            scales: [ScaleList::NONE; 3],
            num_tokens: Self::TOKENS,
            seen_mask: 0,
            has_layers: 0,
            all_positions: 0,
        };
        let launch = Launch {
            kernel: EntryId::check_slots,
            grid: [3, 1, 1],
            shared_bytes: 0,
            overlaps_previous,
        };
        // SAFETY: both addresses are buffers of the sizes that the parameters say.
        unsafe { launcher.launch(&launch, params.as_bytes()) }
    }

    fn assert_reported(&self) -> Result<()> {
        let words: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&self.report.read()?);
        assert_eq!(words[..2], [CheckFault::SLOT, 777]);
        assert_eq!(words[4..], [100, 0, 100, 0]);
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        self.report.write(&[0; size_of::<CheckFault>()])
    }
}

#[test]
fn every_kernel_is_compiled_without_spilling() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    println!("{:?}", cuda.properties());
    let start = Instant::now();
    let device = cuda.kernels().device();
    for entry in ENTRIES.iter().filter(|entry| device.runs(entry)) {
        let start = Instant::now();
        cuda.kernels().prepare(&[entry.id])?;
        let usage = cuda.kernels().usage(entry.id)?;
        println!("{:32} {usage:?} in {:?}", entry.name, start.elapsed());
        assert!(
            !entry.hot || usage.local_bytes == 0,
            "{} spills",
            entry.name
        );
    }
    println!("all in {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_launch_does_what_the_kernel_says() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    let mut check = CheckSlots::new(&cuda)?;
    for overlaps_previous in [false, true] {
        check.forget()?;
        check.enqueue(&cuda, overlaps_previous)?;
        check.assert_reported()?;
    }
    Ok(())
}

#[test]
fn zero_is_ordered_with_launches() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    let check = CheckSlots::new(&cuda)?;
    check.enqueue(&cuda, true)?;
    // SAFETY: the report's own buffer.
    unsafe { cuda.zero(check.report.view().address(), check.report.bytes())? };
    assert!(check.report.read()?.iter().all(|&byte| byte == 0));
    Ok(())
}

#[test]
fn a_graph_replays() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    let mut check = CheckSlots::new(&cuda)?;
    cuda.kernels().prepare(&[EntryId::check_slots])?;
    let report = check.report.view().address();
    for _ in 0..2 {
        {
            let graph = cuda.capture(|launcher| {
                // SAFETY: the report's own buffer.
                unsafe { launcher.zero(report, size_of::<CheckFault>())? };
                check.enqueue(launcher, true)?;
                check.enqueue(launcher, true)
            })?;
            // Recording runs nothing.
            assert!(check.report.read()?.iter().all(|&byte| byte == 0));
            graph.launch()?;
            check.assert_reported()?;
            let mut times = cuda.time(10, || cuda.sweep_l2(), || graph.launch())?;
            println!("{times:?} ms");
            // One replay may have to wait while other tests have kernels compiled.
            times.sort_by(f32::total_cmp);
            assert!(times[0] > 0.0 && times[5] < 100.0);
        }
        check.forget()?;
    }
    Ok(())
}

#[test]
fn a_capture_that_fails_leaves_the_stream_usable() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    let check = CheckSlots::new(&cuda)?;
    let error = cuda.capture(|launcher| check.enqueue(launcher, false));
    assert!(error.is_err_and(|error| error.to_string().contains("Kernels::prepare")));
    check.enqueue(&cuda, false)?;
    check.assert_reported()
}

#[test]
fn a_serving_stack_brings_its_own_context() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    // `cuda` made the context current; from here on only raw pointers, as a caller in C would have them.
    let kernels = Kernels::load()?;
    let check = CheckSlots::new(&cuda)?;
    // SAFETY: the stream lives as long as `cuda`.
    let launcher = unsafe { StreamLauncher::new(&kernels, cuda.stream())? };
    check.enqueue(&launcher, true)?;
    check.assert_reported()
}

#[test]
fn blocks_are_swapped_out_to_pinned_memory_and_back() -> Result<()> {
    let Some(cuda) = gpu() else { return Ok(()) };
    const BLOCK: usize = 4096;
    let pinned = Pinned::new(&cuda);
    let bytes: Vec<u8> = (0..=250).cycle().take(8 * BLOCK).collect();
    let shape = [8, BLOCK];
    let mut cache = Buffer::new(&cuda, "cache", Dtype::U8, &shape, &bytes)?;
    let mut host = Buffer::new(&pinned, "host", Dtype::U8, &[2, BLOCK], &vec![0; 2 * BLOCK])?;
    let pairs = |list: [i64; 4]| {
        Buffer::new(
            &cuda,
            "pairs",
            Dtype::I64,
            &[2, 2],
            bytemuck::cast_slice(&list),
        )
    };
    let (out, back) = (pairs([5, 0, 2, 1])?, pairs([0, 7, 1, 0])?);
    let swap = |source: &Buffer<'_>, target: &mut Buffer<'_>, pairs: &Buffer<'_>| {
        let checked = CopyBlocksRequest {
            caches: BlockCaches::Between {
                source: source.view(),
                target: target.view_mut(),
            },
            pairs: pairs.view(),
            check: CheckMode::Off,
        }
        .check()?;
        let mut workspace = Buffer::uninit(&cuda, "workspace", Dtype::U8, &[256])?;
        checked.launch(&checked.plan(), &mut workspace.view_mut(), &cuda)
    };
    swap(&cache, &mut host, &out)?;
    swap(&host, &mut cache, &back)?;
    let block = |at: usize| &bytes[at * BLOCK..(at + 1) * BLOCK];
    assert_eq!(host.read()?, [block(5), block(2)].concat());
    let expected: Vec<u8> = [2, 1, 2, 3, 4, 5, 6, 5]
        .into_iter()
        .flat_map(block)
        .copied()
        .collect();
    assert_eq!(cache.read()?, expected);
    Ok(())
}

//! How fast the GPU reads: what the benchmarks are measured by.

use gpu_kernels::bench::read_ceiling::THREADS;
use gpu_kernels::entry::Variant;
use gpu_kernels::params::{KernelParams, ReadCeilingParams};

use crate::error::Result;
use crate::plan::variants;
use crate::runtime::{Buffer, Cuda, Launch, Launcher};
use crate::tensor::Dtype;

/// Bytes read per launch: far more than any level-2 cache.
const BYTES: u64 = 4 << 30;
/// A stride of the grid reads 16 bytes per thread, eight times over.
const BYTES_PER_THREAD: u64 = 16 * 8;
const REPLAYS: usize = 20;

/// The best of a few grids, in 1e9 bytes per second; none if the GPU has no memory to spare for it.
pub(super) fn read_gbps(cuda: &Cuda) -> Result<Option<f64>> {
    let memory = cuda.properties().memory_bytes as u64;
    if memory < 2 * BYTES {
        return Ok(None);
    }
    let bytes = usize::try_from(BYTES).unwrap_or(usize::MAX);
    let source = Buffer::uninit(cuda, "source", Dtype::U8, &[bytes])?;
    // SAFETY: the buffer is this long; what is in it does not matter, but reading it unwritten would.
    unsafe { cuda.zero(source.view().address(), bytes)? };
    let mut best = 0.0f64;
    for ctas_per_sm in [1, 2, 4] {
        let ctas = cuda.device().num_sms * ctas_per_sm;
        let threads = u64::from(ctas) * u64::from(THREADS);
        let sink_len = usize::try_from(threads).unwrap_or(usize::MAX);
        let sink = Buffer::uninit(cuda, "sink", Dtype::I32, &[sink_len])?;
        let step = threads * BYTES_PER_THREAD;
        let params = ReadCeilingParams {
            source: source.view().address(),
            sink: sink.view().address(),
            bytes: BYTES / step * step,
        };
        let launch = Launch {
            kernel: variants::entry(Variant::ReadCeiling).id,
            grid: [ctas, 1, 1],
            shared_bytes: 0,
            overlaps_previous: false,
        };
        cuda.kernels().prepare(&[launch.kernel])?;
        let times = cuda.time(
            REPLAYS,
            || Ok(()),
            // SAFETY: source and sink hold what the parameters say.
            || unsafe { cuda.launch(&launch, params.as_bytes()) },
        )?;
        let fastest = times.into_iter().fold(f32::INFINITY, f32::min);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
        let gbps = params.bytes as f64 / f64::from(fastest) * 1e-6;
        best = best.max(gbps);
    }
    Ok(Some(best))
}

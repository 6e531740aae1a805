//! What does a step cost the host? Checking a request or rebinding a checked one to the next layer's tensors; planning,
//! once for each size of batch; and launching, here into nothing, so that only this library's part is left.
//!
//! ```sh
//! cargo run --release --example host_times
//! ```

use std::hint::black_box;
use std::time::Instant;

use ferroattn::Result;
use ferroattn::ops::{DecodeOptions, DecodeRequest, KvScales};
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::{Launch, Launcher, MachineId};
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};

/// Takes kernels and runs none.
struct Nowhere(MachineId);

impl Launcher for Nowhere {
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        black_box((launch, params));
        Ok(())
    }
    unsafe fn zero(&self, _address: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo::H200
    }
    fn machine(&self) -> MachineId {
        self.0
    }
}

/// A layer's decode.
fn layer(at: u64, cache: Dtype) -> Result<DecodeRequest<'static>> {
    // SAFETY: no kernel runs, so nothing is ever read or written.
    let view = |dtype, shape: &[usize]| unsafe { TensorView::contiguous(at, dtype, shape) };
    Ok(DecodeRequest {
        query: view(Dtype::Bf16, &[64, 32, 128])?,
        key_cache: view(cache, &[10_000, 16, 8, 128])?,
        value_cache: view(cache, &[10_000, 16, 8, 128])?,
        block_table: view(Dtype::I32, &[64, 512])?,
        seq_lens: view(Dtype::I32, &[64])?,
        // SAFETY: as above.
        out: unsafe { TensorViewMut::contiguous(at, Dtype::Bf16, &[64, 32, 128])? },
        lse: None,
        softmax_scale: 0.088,
        scales: (cache != Dtype::Bf16).then_some(KvScales {
            q_scale: None,
            k_scale: view(Dtype::F32, &[1])?,
            v_scale: view(Dtype::F32, &[1])?,
        }),
        options: DecodeOptions::default(),
    })
}

/// Nanoseconds, of the best of many rounds.
fn time<T>(mut work: impl FnMut() -> Result<T>) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..1000).for_each(|_| drop(black_box(work())));
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..30).map(round).fold(f64::MAX, f64::min)
}

fn main() -> Result<()> {
    let to = Nowhere(MachineId::unique());
    for cache in [Dtype::Bf16, Dtype::F8E4m3] {
        let checked = layer(0x1000, cache)?.check()?;
        let plan = checked.plan(&to.device())?;
        // SAFETY: as above.
        let mut space = unsafe { TensorViewMut::contiguous(256, Dtype::U8, &[1 << 30])? };
        let views = time(|| layer(0x2000, cache));
        let all = [
            time(|| layer(0x2000, cache)?.check()) - views,
            time(|| checked.rebind(layer(0x2000, cache)?)) - views,
            time(|| checked.plan(&to.device())),
            time(|| checked.launch(&plan, &mut space, &to)),
        ];
        println!("{cache}: check, rebind, plan, launch in {all:.0?} ns");
    }
    Ok(())
}

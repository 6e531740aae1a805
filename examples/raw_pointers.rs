//! A serving stack has tensors, a stream and a workspace of its own. What does it hand over?
//!
//! Addresses with dtype, shape and strides become views, which is the one unsafe step; the stream becomes a
//! launcher; the plan says how large the workspace must be. Nothing is allocated and nothing waits in between.
//!
//! ```sh
//! cargo run --release --example raw_pointers
//! ```

use std::error::Error;

use ferroattn::emulator::Emulator;
use ferroattn::ops::{DecodeOptions, DecodeRequest};
use ferroattn::runtime::{Cuda, Launcher, Runtime, StreamLauncher};
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};

const SEQS: usize = 2;
const HEADS: usize = 8;
const SIZE: usize = 64;
/// 8 blocks of 16 tokens, 2 KV heads.
const CACHE: [usize; 4] = [8, 16, 2, SIZE];

fn main() -> Result<(), Box<dyn Error>> {
    match Cuda::open(0) {
        Ok(cuda) => {
            // SAFETY: a `CUstream` that lives as long as `cuda`; a stack would pass its own here.
            let stream = unsafe { StreamLauncher::new(cuda.kernels(), cuda.stream())? };
            serve(&cuda, &stream)
        }
        Err(missing) => {
            eprintln!("{missing}; going on with the emulator");
            let emulator = Emulator::new();
            serve(&emulator, &emulator)
        }
    }
}

fn serve(machine: &dyn Runtime, stream: &dyn Launcher) -> Result<(), Box<dyn Error>> {
    // What the stack has: addresses on the device. All keys are 0, so the output is the mean of the values.
    let address = |bytes: &[u8]| -> ferroattn::Result<u64> {
        let address = machine.allocate("stack", bytes.len())?;
        // SAFETY: the allocation is this long.
        unsafe { machine.copy_in(address, bytes)? };
        Ok(address)
    };
    let one = 0x3f80u16.to_le_bytes();
    let query = address(&one.repeat(SEQS * HEADS * SIZE))?;
    let cached: usize = CACHE.iter().product();
    let keys = address(&vec![0; 2 * cached])?;
    let values = address(&one.repeat(cached))?;
    let table = address(&[5i32, 2, 7, 0].map(i32::to_le_bytes).concat())?;
    let lens = address(&[20i32, 7].map(i32::to_le_bytes).concat())?;
    let out = address(&vec![0; 2 * SEQS * HEADS * SIZE])?;

    // SAFETY: each address holds a tensor of this dtype and shape until the stream has finished.
    let view =
        |address, dtype, shape: &[usize]| unsafe { TensorView::contiguous(address, dtype, shape) };
    let checked = DecodeRequest {
        query: view(query, Dtype::Bf16, &[SEQS, HEADS, SIZE])?,
        key_cache: view(keys, Dtype::Bf16, &CACHE)?,
        value_cache: view(values, Dtype::Bf16, &CACHE)?,
        block_table: view(table, Dtype::I32, &[SEQS, 2])?,
        seq_lens: view(lens, Dtype::I32, &[SEQS])?,
        // SAFETY: as above, and nobody else uses `out` meanwhile.
        out: unsafe { TensorViewMut::contiguous(out, Dtype::Bf16, &[SEQS, HEADS, SIZE])? },
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options: DecodeOptions::default(),
    }
    .check()?;
    let plan = checked.plan(&stream.device())?;
    let bytes = plan.workspace_bytes().max(256);
    let workspace = machine.allocate("workspace", bytes)?;
    // SAFETY: allocated for this alone.
    let mut workspace = unsafe { TensorViewMut::contiguous(workspace, Dtype::U8, &[bytes])? };
    checked.launch(&plan, &mut workspace, stream)?;

    machine.synchronize()?;
    let mut result = vec![0; 2 * SEQS * HEADS * SIZE];
    // SAFETY: `out` is this long.
    unsafe { machine.copy_out(out, &mut result)? };
    assert_eq!(result, one.repeat(SEQS * HEADS * SIZE));
    println!("{plan}\nevery value is 1, as it must be");
    Ok(())
}

//! One step of decode attention from another crate, in the emulator; and what kernels and which driver came along.

use ferroattn::Result;
use ferroattn::emulator::Emulator;
use ferroattn::ops::{DecodeOptions, DecodeRequest};
use ferroattn::runtime::driver::require_driver;
use ferroattn::runtime::embedded::SETS;
use ferroattn::runtime::{Buffer, Runtime};
use ferroattn::tensor::Dtype;

const HEAD_SIZE: usize = 64;
const BLOCK_SIZE: usize = 16;
/// bf16 bits of 1.0.
const ONE: u16 = 0x3f80;

fn main() -> Result<()> {
    for set in SETS {
        let newest = set.arch_for((9, 0)).expect("for an H200");
        let kernels = set
            .kernels()
            .filter(|name| set.module(name, newest).is_some());
        println!("kernels of {}: {} for {newest}", set.route, kernels.count());
    }
    #[cfg(feature = "cudarc")]
    println!("devices that cudarc sees: {:?}", devices());
    match require_driver() {
        Ok(version) => println!("driver: CUDA {version}"),
        Err(error) => println!("no GPU: {error}"),
    }
    attend(&Emulator::new())
}

/// Through functions of the driver that the linker found.
#[cfg(feature = "cudarc")]
fn devices() -> std::result::Result<i32, cudarc::driver::DriverError> {
    cudarc::driver::result::init()?;
    cudarc::driver::result::device::get_count()
}

/// Two query heads attend to three tokens whose values are all 1: so is the result.
fn attend<R: Runtime>(machine: &R) -> Result<()> {
    let ones = |count: usize| ONE.to_le_bytes().repeat(count);
    let cache_shape = [1, BLOCK_SIZE, 1, HEAD_SIZE];
    let cache = ones(BLOCK_SIZE * HEAD_SIZE);
    let query = Buffer::new(
        machine,
        "query",
        Dtype::Bf16,
        &[1, 2, HEAD_SIZE],
        &ones(2 * HEAD_SIZE),
    )?;
    let key_cache = Buffer::new(machine, "key_cache", Dtype::Bf16, &cache_shape, &cache)?;
    let value_cache = Buffer::new(machine, "value_cache", Dtype::Bf16, &cache_shape, &cache)?;
    let block_table = Buffer::new(
        machine,
        "block_table",
        Dtype::I32,
        &[1, 1],
        &0i32.to_le_bytes(),
    )?;
    let seq_lens = Buffer::new(machine, "seq_lens", Dtype::I32, &[1], &3i32.to_le_bytes())?;
    let mut out = Buffer::uninit(machine, "out", Dtype::Bf16, &[1, 2, HEAD_SIZE])?;
    let checked = DecodeRequest {
        query: query.view(),
        key_cache: key_cache.view(),
        value_cache: value_cache.view(),
        block_table: block_table.view(),
        seq_lens: seq_lens.view(),
        out: out.view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options: DecodeOptions::default(),
    }
    .check()?;
    let plan = checked.plan(&machine.device())?;
    let workspace_bytes = plan.workspace_bytes();
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[workspace_bytes])?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    assert_eq!(out.read()?, ones(2 * HEAD_SIZE));
    println!("{}: {plan}: as expected", machine.name());
    Ok(())
}

//! A step of a serving stack: two sequences decode, a third brings a chunk of its prompt. What does it ask for?
//!
//! One request for all of them. The sequences' query tokens lie side by side; `query_start_loc` says where each
//! begins. The stack sorts decodes to the front and says how many there are, since it knows that anyway.
//!
//! ```sh
//! cargo run --release --example mixed_batch
//! ```

use std::error::Error;

use ferroattn::emulator::Emulator;
use ferroattn::ops::{UnifiedOptions, UnifiedRequest};
use ferroattn::runtime::{Buffer, Cuda, Runtime};
use ferroattn::tensor::Dtype::{Bf16, I32, U8};

const HEADS: usize = 8;
const SIZE: usize = 64;
/// 12 blocks of 16 tokens, 2 KV heads.
const CACHE: [usize; 4] = [12, 16, 2, SIZE];
/// Query tokens of each sequence, and its tokens in the cache.
const QUERY_LENS: [i32; 3] = [1, 1, 10];
const SEQ_LENS: [i32; 3] = [33, 70, 26];

fn main() -> Result<(), Box<dyn Error>> {
    let machine: Box<dyn Runtime> = match Cuda::open(0) {
        Ok(cuda) => Box::new(cuda),
        Err(missing) => {
            eprintln!("{missing}; going on with the emulator");
            Box::new(Emulator::new())
        }
    };
    let machine = machine.as_ref();
    let ints = |name, shape: &[usize], values: &[i32]| {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Buffer::new(machine, name, I32, shape, &bytes)
    };
    let ones = |count: usize| 0x3f80u16.to_le_bytes().repeat(count);
    let cached: usize = CACHE.iter().product();
    let starts = [0, 1, 2, 2 + QUERY_LENS[2]];
    let tokens = usize::try_from(starts[3])?;

    // All keys are 0, so the output is the mean of the values, which are 1.
    let query = Buffer::new(
        machine,
        "query",
        Bf16,
        &[tokens, HEADS, SIZE],
        &ones(tokens * HEADS * SIZE),
    )?;
    let keys = Buffer::new(machine, "key_cache", Bf16, &CACHE, &vec![0; 2 * cached])?;
    let values = Buffer::new(machine, "value_cache", Bf16, &CACHE, &ones(cached))?;
    let table = ints(
        "block_table",
        &[3, 5],
        &[7, 2, 9, 0, 0, 4, 1, 0, 3, 11, 5, 8, 0, 0, 0],
    )?;
    let start_loc = ints("query_start_loc", &[4], &starts)?;
    let lens = ints("seq_lens", &[3], &SEQ_LENS)?;
    let mut out = Buffer::uninit(machine, "out", Bf16, &[tokens, HEADS, SIZE])?;

    let mut options = UnifiedOptions::default();
    options.num_decodes = 2;
    let checked = UnifiedRequest {
        query: query.view(),
        key_cache: keys.view(),
        value_cache: values.view(),
        block_table: table.view(),
        query_start_loc: start_loc.view(),
        seq_lens: lens.view(),
        out: out.view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options,
    }
    .check()?;
    let plan = checked.plan(&machine.device())?;
    let mut workspace =
        Buffer::uninit(machine, "workspace", U8, &[plan.workspace_bytes().max(256)])?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    machine.synchronize()?;
    assert_eq!(out.read()?, ones(tokens * HEADS * SIZE));
    println!("{plan}\nevery value is 1, as it must be");
    Ok(())
}

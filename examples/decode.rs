//! The main job: a paged cache is filled, then a batch decodes step by step. On the GPU if there is one, else
//! on the emulator with small sizes.
//!
//! ```sh
//! cargo run --release --example decode
//! ```
//!
//! The steps are in `host/src/cli/decode_demo.rs`: per step a `CacheWriteRequest` for the new tokens and a
//! `DecodeRequest` over all of them, each checked, planned and launched.

use std::error::Error;

use ferroattn::cli::decode_demo::{self, DecodeDemo};
use ferroattn::emulator::Emulator;
use ferroattn::runtime::{Cuda, Runtime};

fn main() -> Result<(), Box<dyn Error>> {
    let machine: Box<dyn Runtime> = match Cuda::open(0) {
        Ok(cuda) => Box::new(cuda),
        Err(missing) => {
            eprintln!("{missing}; going on with the emulator");
            Box::new(Emulator::new())
        }
    };
    let demo = DecodeDemo::for_machine(machine.as_ref());
    println!("{demo:#?}");
    let outcome = decode_demo::run(&demo, machine.as_ref())?;
    println!("{outcome}");
    outcome.verdict?;
    Ok(())
}

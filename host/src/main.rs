//! The `ferroattn` program: see [`ferroattn::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ferroattn::cli::main()
}

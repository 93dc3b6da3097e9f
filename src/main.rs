//! The `assay` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(assay::main(std::env::args_os()) as u8)
}

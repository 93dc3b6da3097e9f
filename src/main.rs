//! The `assay` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(assay::cli::run(std::env::args_os()) as u8)
}

//! The `assay` program: everything is in the library.

fn main() {
    assay::end(assay::main(std::env::args_os()))
}

//! One fuzzer for all decoders: ASSAY_FUZZ_TARGET names the one that is asked. contrib/fuzz/run starts it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<String> = LazyLock::new(|| {
    let target = std::env::var("ASSAY_FUZZ_TARGET").unwrap_or_default();
    if !assay::fuzz::targets().any(|known| known == target) {
        let known: Vec<&str> = assay::fuzz::targets().collect();
        eprintln!("ASSAY_FUZZ_TARGET must be one of {}", known.join(" "));
        std::process::exit(2);
    }
    target
});

fuzz_target!(|bytes: &[u8]| {
    assay::fuzz::decode(&TARGET, bytes);
});

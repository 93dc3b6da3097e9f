//! selftest -v2: silent on whatever is whole, and one finding for each thing that is not.

use super::lab::{Copy, Source, lab};
use crate::backup::Options as BackupOptions;
use crate::ids::Version;
use crate::monitor::Silent;
use crate::selftest::{self, Cause, Finding, Fix, Level, Options, Scope};

pub fn options(level: Level) -> Options {
    Options { level, scope: Scope::Everything, rev: None, sample: None, fix: Fix::Report }
}

pub fn found(copy: &Copy, options: &Options) -> Vec<Finding> {
    selftest::run(&copy.open(), options, &Silent).unwrap().findings
}

pub fn shown(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|f| format!("{:?} {}: {} {:?}", f.cause, f.error.code(), f.error, f.hits)).collect()
}

fn v2(copy: &Copy) -> Vec<Finding> {
    found(copy, &options(Level::Structure))
}

fn assert_clean(copy: &Copy, what: &str) {
    let findings = v2(copy);
    assert!(findings.is_empty(), "{what}: {:#?}", shown(&findings));
}

#[test]
fn clean_labs_have_no_finding() {
    assert_clean(&Copy::init(), "empty");
    let copy = Copy::of(&lab().files);
    assert_clean(&copy, "lab");
    copy.lose_index();
    copy.recover();
    assert_clean(&copy, "recovered");
}

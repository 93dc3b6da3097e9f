//! selftest -v5: each file state is rebuilt and compared.

use super::lab::{Copy, lab};
use super::structures::{found, options, shown};
use crate::selftest::Level;

#[test]
fn a_clean_lab_restores_without_a_finding() {
    let copy = Copy::of(&lab().files);
    let findings = found(&copy, &options(Level::Files));
    assert!(findings.is_empty(), "{:#?}", shown(&findings));
}

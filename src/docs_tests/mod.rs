//! Executes what docs/ claims: tables of numbers, codes, errors and options are compared with the code.
//!
//! Invariants: each comparison goes both ways (nothing in the code is missing in the table, nothing in the table
//! is missing in the code); the second reader of the format runs against arcs that were just written.

mod commands;
mod errors;
mod format;
mod reader;
mod reports;

/// Text of the repository, read when the tests run.
fn file(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rows of the first table after `heading`, without its head; cells trimmed, backticks removed.
fn table(text: &str, heading: &str, header: &str) -> Vec<Vec<String>> {
    let section = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let (_, after) = section.split_once(&format!("{header}\n")).unwrap_or_else(|| panic!("{heading}: no {header}"));
    let rows: Vec<Vec<String>> = after
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "{heading}: {header} has no rows");
    rows
}

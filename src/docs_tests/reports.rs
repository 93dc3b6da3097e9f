//! docs/reports.md promises a test for each row.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of all test functions, unit tests and mount-tests.
fn tests() -> BTreeSet<String> {
    fn walk(dir: &Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let mut is_test = false;
                for line in text.lines().map(str::trim_start) {
                    is_test |= line == "#[test]";
                    if let (true, Some(rest)) = (is_test, line.strip_prefix("fn ")) {
                        into.insert(rest.split('(').next().unwrap_or_default().to_string());
                        is_test = false;
                    }
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    ["src", "mount-tests"].iter().for_each(|dir| walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut names));
    names
}

#[test]
fn each_row_of_reports_names_tests_that_exist() {
    let text = super::file("docs/reports.md");
    let tests = tests();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what a user met"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, named] = cells.as_slice() else { panic!("not three cells: {row}") };
        assert!(!named.is_empty(), "no test: {row}");
        for name in named.split(", ").map(|name| name.trim_matches('`')) {
            assert!(tests.contains(name), "there is no test {name}: {row}");
        }
    }
}

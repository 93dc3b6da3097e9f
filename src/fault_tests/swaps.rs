//! Arcs of two histories in one backup dir.

use super::Rng;
use super::lab::{Copy, Files, Source};
use super::questions::{Ask, Truth};
use crate::backup::Options;
use crate::ids::{ArcName, Version};

/// Two backup dirs with one key and one r0 whose later runs saved different things, and the right answers of both.
fn siblings() -> [(Copy, Truth); 2] {
    let source = Source::new();
    for n in 0..6 {
        source.write(&format!("d{n}/same"), format!("the same in both {n}").as_bytes());
        source.write(&format!("d{n}/differs"), &Rng::new(n).noise(700));
    }
    let first = Copy::init();
    first.backup(&source, &Options::default());
    let second = Copy::of(&first.files());
    for (salt, copy) in [(100, &first), (200, &second)] {
        for n in 0..6 {
            source.write(&format!("d{n}/differs"), &Rng::new(salt + n).noise(700));
        }
        copy.backup(&source, &Options::default());
        source.write("later", &Rng::new(salt + 50).noise(900));
        copy.backup(&source, &Options::default());
    }
    [first, second].map(|copy| {
        let truth = Truth::of(&copy.reader());
        (copy, truth)
    })
}

fn arcs_of(files: &Files, run: u32) -> Vec<String> {
    let of = |name: &&String| ArcName::parse(name).is_some_and(|arc| arc.version == Version(run));
    files.keys().filter(of).cloned().collect()
}

#[test]
fn arcs_of_another_history_with_the_same_key_never_give_wrong_answers() {
    let [(first, truth), (second, other)] = siblings();
    let (files, foreign) = (first.files(), second.files());
    let names = arcs_of(&files, 1);
    assert_eq!(names, arcs_of(&foreign, 1));
    assert!(names.len() >= 3);
    // Every choice of arcs of r1 from the other history.
    for choice in 1..1u32 << names.len() {
        let mut mixed = files.clone();
        for (n, name) in names.iter().enumerate().filter(|(n, _)| choice & 1 << n != 0) {
            assert_ne!(mixed[name], foreign[name], "{n}");
            mixed.insert(name.clone(), foreign[name].clone());
        }
        let what = || format!("arcs of r1 exchanged, choice {choice:b}");
        let copy = Copy::of(&mixed);
        let failed = truth.judge(&copy.reader(), &what);
        let commit_is_foreign = choice & 1 << names.iter().position(|n| n.ends_with(".0")).unwrap() != 0;
        for (n, error) in &failed {
            // The index knows the tree; but one that its commit record does not prove is not shown.
            let ask = &truth.questions[*n].0;
            let unproven = commit_is_foreign && ask.version() == Some(Version(1)) && error.code() == "TREE_MISMATCH";
            assert!(ask.is_bytes() || unproven, "{}: {ask:?}: {error}", what());
        }

        let copy = Copy::without_index(&mixed);
        let got = copy.recover();
        let reader = copy.reader();
        // Which history the commit record is of decides about r1; r2 names its r1 by digest.
        let right = if commit_is_foreign { &other } else { &truth };
        let shown = |ask: &Ask| !matches!(ask, Ask::Versions | Ask::Named(_) | Ask::History(..));
        let told = |ask: &Ask| shown(ask) && ask.version().is_none_or(|v| got.versions.contains(&v));
        let failed = right.judge_those(&reader, &what, &told);
        assert!(failed.iter().all(|(_, e)| e.is_damage()), "{}: {failed:?}", what());
        assert_eq!(got.versions.contains(&Version(2)), !commit_is_foreign, "{}", what());
    }
}

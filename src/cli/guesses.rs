//! Commands of other backup programs, and what they are called here.

/// What to do instead; one line.
pub fn hint(word: &str) -> &'static str {
    let word = word.to_ascii_lowercase();
    HINTS.iter().find(|(words, _)| words.contains(&word.as_str())).map_or(ANY, |(_, hint)| hint)
}

const ANY: &str = "`assay --help` lists the commands";

const HINTS: &[(&[&str], &str)] = &[
    (
        &["verify", "check", "test", "validate", "fsck", "scrub", "audit"],
        "`assay selftest` proves the backup: -v2 its structure, -v3 reads every block, -v5 rebuilds every file",
    ),
    (
        &["list", "ll", "tree", "find", "search", "locate"],
        "`assay versions` lists the versions, `assay ls [PATH|PATTERN]` what is in one",
    ),
    (&["umount", "unmount", "u"], "`umount MNT`, or `fusermount3 -u MNT` unless root has mounted it"),
    (
        &["prune", "forget", "expire", "thin", "keep"],
        "`assay retain -s 7d4w12m1y` keeps versions by rules and removes the others; `assay pack` gives the room back",
    ),
    (
        &["remove", "delete", "del", "purge", "clear", "drop"],
        "`assay rm -r REV` removes versions, `assay retain` all but some; `assay pack` gives the room back",
    ),
    (&["compact", "gc", "vacuum", "shrink"], "`assay pack` gives back the room of what no version needs any more"),
    (
        &["cmp", "status"],
        "`assay compare` says what differs from the files as they are now, `assay diff REV REV` from one version to another",
    ),
    (&["save", "create", "add", "run", "archive", "sync"], "`assay backup PATH…` saves paths as a new version"),
    (
        &["extract", "fetch", "download", "export", "dump", "cat", "print"],
        "`assay get PATH…` restores, `assay mount MNT` shows all versions",
    ),
    (
        &["repair", "rebuild", "rebuild-index", "reindex", "heal", "fix"],
        "`assay selftest --fix` corrects what can be corrected, `assay recover` makes the index anew",
    ),
    (&["info", "show", "df", "du", "size", "usage"], "`assay stats` shows sizes and damage, `assay versions` the runs"),
    (&["logs", "history", "journal"], "`assay log` shows the last runs, `assay versions` what was saved"),
    (&["unlock", "break-lock"], "a lock ends with the process that holds it; nothing has to be unlocked"),
    (
        &["key", "keys", "passwd", "password", "rekey"],
        "`assay init --passphrase ask` makes a key with a passphrase; key.conf in the backup dir holds it",
    ),
    (
        &["copy", "push", "upload", "replicate"],
        "copy the backup dir as it is, say by `rsync -a`: it is whole after every backup",
    ),
    (&["new", "setup", "initialize", "start"], "`assay init [DIR]` makes a backup dir"),
    (&["version"], "`assay --version` tells the program's, `assay versions` lists those of the backup"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn guesses_are_no_commands_and_each_has_one_hint() {
        let command = crate::cli::Cli::command();
        let mut seen = std::collections::BTreeSet::new();
        for word in HINTS.iter().flat_map(|(words, _)| words.iter()) {
            assert!(command.find_subcommand(word).is_none(), "{word} is a command");
            assert!(seen.insert(word), "{word} has two hints");
        }
        assert_eq!(hint("Verify"), hint("check"));
        assert_eq!(hint("bananas"), ANY);
    }
}

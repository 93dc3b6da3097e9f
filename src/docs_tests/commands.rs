//! docs/commands.md: the help of every command, as clap prints it. `ASSAY_BLESS=1 cargo test` writes it anew.

use clap::CommandFactory;

use super::file;

const HEAD: &str = "\
# Commands

The long help of every command, as `assay help COMMAND` prints it. Made from the program's own definitions; a test
compares, and `ASSAY_BLESS=1 cargo test commands_md` writes this page anew.

`assay completions bash|zsh|fish|man` (not listed in the help) prints shell completions and the man page.
";

fn page() -> String {
    let mut command = crate::cli::Cli::command().term_width(100).mut_arg("dir", |arg| arg.hide_env_values(true));
    command.build();
    let mut page = format!("{HEAD}\n## assay\n\n```\n{}```\n", lines(&command.render_long_help().to_string()));
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .map(|sub| sub.get_name().to_string())
        .collect();
    for name in names {
        let sub = command.find_subcommand_mut(&name).unwrap();
        page += &format!("\n## assay {name}\n\n```\n{}```\n", lines(&sub.render_long_help().to_string()));
        for act in sub.get_subcommands_mut().filter(|act| act.get_name() != "help") {
            let help = lines(&act.render_long_help().to_string());
            page += &format!("\n## assay {name} {}\n\n```\n{help}```\n", act.get_name());
        }
    }
    page
}

/// Without spaces at the ends of lines, with one newline at the end.
fn lines(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn commands_md_is_the_help_of_the_program() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    let page = page();
    if std::env::var_os("ASSAY_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
        return;
    }
    let found = file("docs/commands.md");
    for (number, (found, wanted)) in found.lines().zip(page.lines()).enumerate() {
        assert_eq!(found, wanted, "docs/commands.md, line {}: run ASSAY_BLESS=1 cargo test commands_md", number + 1);
    }
    assert!(found == page, "docs/commands.md is shorter or longer: run ASSAY_BLESS=1 cargo test commands_md");
}

/// Pages whose command lines and links are checked.
const PAGES: [&str; 11] = [
    "README.md",
    "contrib/README.md",
    "docs/architecture.md",
    "docs/commands.md",
    "docs/decisions.md",
    "docs/destinations.md",
    "docs/errors.md",
    "docs/format.md",
    "docs/security.md",
    "docs/verifying.md",
    "CHANGELOG.md",
];

/// `assay …` as a line of a code block or between backticks, up to a pipe, a redirection or a comment.
fn command_lines(text: &str) -> Vec<String> {
    let inline = text.split('`').skip(1).step_by(2).filter(|code| !code.contains('\n'));
    let lines = text.lines().map(|line| line.trim_start_matches("$ "));
    let end =
        |command: &str| command.split(" | ").next().unwrap().split(['>', '#', '&', '…']).next().unwrap().to_string();
    inline.chain(lines).filter(|line| line.starts_with("assay ") && !line.starts_with("assay: ")).map(end).collect()
}

#[test]
fn every_command_line_of_the_docs_is_one_that_the_program_takes() {
    let mut seen = 0;
    for page in PAGES {
        for line in command_lines(&file(page)) {
            let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "||").collect();
            // A choice of arguments, a key's info string, or a tag of a digest.
            if line.contains(['[', '|']) || line.ends_with(" v2") || page == "docs/commands.md" {
                continue;
            }
            seen += 1;
            if let Err(e) = crate::cli::Cli::command().try_get_matches_from(&words) {
                use clap::error::ErrorKind::{DisplayHelp, MissingRequiredArgument};
                assert!(matches!(e.kind(), DisplayHelp | MissingRequiredArgument), "{page}: {line}: {e}");
            }
        }
    }
    assert!(seen > 20, "only {seen} command lines were found");
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn every_link_of_the_docs_leads_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in PAGES {
        let text = file(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (target, fragment) = link.split_once('#').unwrap_or((link, ""));
            let base = root.join(page);
            let path = if target.is_empty() { base } else { base.parent().unwrap().join(target) };
            assert!(path.exists(), "{page}: {link}");
            if !fragment.is_empty() {
                let linked = std::fs::read_to_string(&path).unwrap();
                let mut headings = linked.lines().filter_map(|line| line.strip_prefix('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == fragment);
                assert!(found, "{page}: {link}: no such heading");
            }
        }
    }
}

/// Each block of a page that has tables of dest.toml is one, as far as it goes.
#[test]
fn tables_of_destinations_in_the_documents_are_understood() {
    let text = file("docs/destinations.md");
    let blocks = text.split("```\n").skip(1).step_by(2).filter(|block| block.contains("[[destination]]"));
    let kinds: Vec<_> = blocks
        .flat_map(|block| crate::dest::Settings::parse_all(block).unwrap_or_else(|what| panic!("{what}: {block}")))
        .map(|settings| settings.type_name())
        .collect();
    assert_eq!(kinds, ["dir", "sftp", "s3", "webdav", "azure", "gcs", "webdav"]);
}

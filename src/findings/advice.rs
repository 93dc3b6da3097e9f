//! What the user can do about a finding: all of the advice that there is.

use super::Cause;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    TestMachine,
    FixOrPutBack,
    TestMemory,
    PutBack,
    /// As v5 says it of what it can't list.
    PutBackOrFix,
    /// The catalog is damaged, the index may know what it said.
    KeepIndex,
    PutFileBack,
    MoveOut,
    MakeReadable,
    MakeIndex,
    /// As `MakeIndex`, where v2 has compared index and catalogs.
    RebuildIndex,
    /// A base catalog does without what is damaged.
    BaseIsNext,
    /// Index and catalogs agree on what can't be.
    SaveAgain,
    PutCommitBack,
    /// The index is older than the arcs.
    AddedNext,
    /// The error says what to do.
    AsItSays,
    /// A copy at the destination NAME is wrong, or gone.
    SyncCopy,
    /// It could not be asked.
    ReachCopy,
    /// It was right when it came again.
    LookAtLine,
}

impl Advice {
    pub fn text(self) -> &'static str {
        match self {
            Advice::TestMachine => "nothing is lost; test the memory, cables and controller of this machine",
            Advice::FixOrPutBack => {
                "`assay selftest --fix` tries to repair it; else put the arc back from a copy of the backup dir"
            }
            Advice::TestMemory => "test the memory of this machine; `assay selftest --fix` looks for a flipped bit",
            Advice::PutBack => "put the arc back from a copy of the backup dir",
            Advice::PutBackOrFix => "put the arc back from a copy of the backup dir, or run `assay selftest -v3 --fix`",
            Advice::KeepIndex => "put the arc back from a copy of the backup dir; do not lose the index before",
            Advice::PutFileBack => "put the right file back from a copy of this backup dir",
            Advice::MoveOut => "move it out of the backup dir, or give it its own name back",
            Advice::MakeReadable => "make it readable, then run the selftest again",
            Advice::MakeIndex => "`assay selftest -v2 --fix`, or `assay recover`, makes the index anew from the arcs",
            Advice::RebuildIndex => "`assay selftest -v2 --fix` makes the index anew from the catalogs",
            Advice::BaseIsNext => {
                "put the arc back from a copy of the backup dir (from a destination: `assay recover --from NAME --arcs`); \
                 `assay selftest -v2 --fix` has the next backup write a base catalog, which does not need this one"
            }
            Advice::SaveAgain => "the catalogs say so too: it was written so; keep the originals and save them again",
            Advice::PutCommitBack => {
                "put the commit arc back from a copy of the backup dir; if there is none, \
                 `assay recover --accept-loss`"
            }
            Advice::AddedNext => "the next backup adds it to the index; so does `assay selftest -v2 --fix`",
            Advice::AsItSays => "do as the line says: nothing of this backup is damaged by it",
            Advice::SyncCopy => {
                "`assay dest sync NAME` sends it again from a good copy, here or at another destination"
            }
            Advice::ReachCopy => "nothing there is known to be wrong: see that NAME can be reached, then run it again",
            Advice::LookAtLine => "nothing is lost; look at the line to NAME, and test the memory of this machine",
        }
    }

    /// Where nothing but the cause is known.
    pub fn usual(cause: Cause) -> Advice {
        match cause {
            Cause::Transient => Advice::TestMachine,
            Cause::Medium => Advice::FixOrPutBack,
            Cause::Memory => Advice::TestMemory,
            Cause::Missing => Advice::PutBack,
            Cause::Index => Advice::MakeIndex,
            Cause::Catalog => Advice::KeepIndex,
            Cause::Key => Advice::PutFileBack,
            Cause::Stray => Advice::MoveOut,
            Cause::Unchecked => Advice::MakeReadable,
        }
    }

    /// Of a copy at a destination.
    pub fn of_copy(cause: Cause) -> Advice {
        match cause {
            Cause::Unchecked => Advice::ReachCopy,
            Cause::Transient => Advice::LookAtLine,
            Cause::Index => Advice::MakeIndex,
            _ => Advice::SyncCopy,
        }
    }

    /// Of what v2 finds by itself: it has read the catalogs, and no block.
    pub fn of_structure(cause: Cause) -> Advice {
        match cause {
            Cause::Index => Advice::RebuildIndex,
            Cause::Unchecked => Advice::MakeReadable,
            _ => Advice::BaseIsNext,
        }
    }

    /// Of a directory or version that v5 can't list.
    pub fn of_listing(cause: Cause) -> Advice {
        match cause {
            Cause::Index => Advice::RebuildIndex,
            Cause::Unchecked => Advice::MakeReadable,
            _ => Advice::PutBackOrFix,
        }
    }
}

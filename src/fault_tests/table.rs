//! The table: damage × place × later act. Each line is a damage in a place; the other columns are what the acts must find.

use std::sync::{Arc, OnceLock};

use super::Rng;
use super::acts::Cell;
use super::damage::spots;
use super::lab::{Copy, Files, Lab, Source, lab};
use super::layout::{Layout, Users};
use super::questions::Truth;
use super::runs::let_it_age;
use crate::backup::Options;
use crate::crypto::Keys;
use crate::findings::Cause;
use crate::ids::Version;

/// - unread: what readers who have the index lose; `healed` is put right on the way, `struck` the frames that are hit.
/// - told as: one code or several (`another`: those of an arc that is another one), and a cause.
/// - v0-5: findings of each level of selftest, and of `-v2` after a recovery; `*`: one or several.
/// - fix: what `-v3 --fix` makes of it; what is not put right is not touched.
/// - backup: what the next one says; `short`: only if what is there is shorter than the arc.
const TABLE: &str = "
    bit          Data     frame        healed   ARC_FRAME_WRONG|ARC_TAG_MISMATCH     Medium   0001110  right  quiet
    byte         Data     header       nothing  ARC_HEADER_BAD                       Medium   0001100  right  quiet
    fill         Data     header       nothing  ARC_HEADER_BAD                       Medium   0001100  right  quiet
    byte         Data     head         healed   ARC_FRAME_WRONG                      Medium   0001110  right  quiet
    byte         Data     body         struck   ARC_TAG_MISMATCH                     Medium   0001110  not    quiet
    bytes        Data     body         struck   ARC_TAG_MISMATCH                     Medium   0001110  not    quiet
    bytes        Data     tag          struck   ARC_TAG_MISMATCH                     Medium   0001110  not    quiet
    five         Data     body         struck   ARC_TAG_MISMATCH                     Medium   0002220  not    quiet
    swap         Data     head         struck   ARC_FRAME_WRONG                      Medium   0001110  not    quiet
    swap         Data     body         struck   ARC_TAG_MISMATCH                     Medium   0001110  not    quiet
    sealed       Data     body         struck   BLOCK_HASH_MISMATCH                  Memory   0001110  not    quiet
    sealed-zstd  Data     body         struck   BLOCK_COMPRESSION_BAD                Memory   0001110  not    quiet
    byte         Data     footer       nothing  ARC_TAG_MISMATCH                     Medium   0011111  right  quiet
    byte         Data     footer-head  nothing  ARC_FRAME_WRONG                      Medium   0011111  right  quiet
    byte         Data     trailer      nothing  ARC_TRAILER_BAD                      Medium   0001100  right  quiet
    fill         Data     end          nothing  ARC_FRAME_WRONG|ARC_TRAILER_BAD      Medium   0012211  right  quiet
    byte         Data     both         nothing  ARC_HEADER_BAD|ARC_TRAILER_BAD       Medium   0002200  right  quiet
    longer       Data     file         nothing  ARC_FRAME_TRUNCATED|ARC_TRAILER_BAD  Missing  0011111  right  quiet
    cut          Data     trailer      nothing  ARC_FRAME_TRUNCATED                  Missing  0011111  right  told
    cut          Data     end          nothing  ARC_FRAME_TRUNCATED                  Missing  0011111  right  told
    cut          Data     frame        behind   ARC_FRAME_TRUNCATED                  Missing  0011111  not    told
    cut          Data     header       all      ARC_FRAME_TRUNCATED                  Missing  0011111  not    told
    empty        Data     file         all      ARC_FRAME_TRUNCATED                  Missing  0011111  not    told
    gone         Data     file         all      ARC_MISSING                          Missing  0011111  not    told
    longest      Data     file         all      ARC_FRAME_WRONG|ARC_FRAME_TRUNCATED  Missing  00*****  not    quiet
    next         Data     file         all      another                              Missing  00*****  not    short
    stranger     Data     file         all      another                              Key      00*****  not    short

    byte         Catalog  header       nothing  ARC_HEADER_BAD                       Medium   0001100  right  quiet
    fill         Catalog  header       nothing  ARC_HEADER_BAD                       Medium   0001100  right  quiet
    byte         Catalog  head         struck   ARC_FRAME_WRONG                      Catalog  0011111  right  quiet
    bit          Catalog  frame        struck   ARC_FRAME_WRONG|ARC_TAG_MISMATCH     Catalog  0011111  right  quiet
    byte         Catalog  body         struck   ARC_TAG_MISMATCH                     Catalog  0011111  not    quiet
    bytes        Catalog  body         struck   ARC_TAG_MISMATCH                     Catalog  0011111  not    quiet
    fill         Catalog  bodies       all      ARC_TAG_MISMATCH                     Catalog  00*****  not    quiet
    byte         Catalog  footer       nothing  ARC_TAG_MISMATCH                     Medium   0011111  right  quiet
    byte         Catalog  footer-head  nothing  ARC_FRAME_WRONG                      Medium   0011111  right  quiet
    byte         Catalog  trailer      nothing  ARC_TRAILER_BAD                      Medium   0001100  right  quiet
    fill         Catalog  end          nothing  ARC_FRAME_WRONG|ARC_TRAILER_BAD      Medium   0012211  right  quiet
    longer       Catalog  file         nothing  ARC_FRAME_TRUNCATED|ARC_TRAILER_BAD  Missing  0011111  right  quiet
    byte         Catalog  both         nothing  ARC_HEADER_BAD|ARC_TRAILER_BAD       Medium   0002200  right  quiet
    cut          Catalog  trailer      nothing  ARC_FRAME_TRUNCATED                  Missing  0011111  right  told
    cut          Catalog  end          nothing  ARC_FRAME_TRUNCATED                  Missing  0011111  right  told
    cut          Catalog  frame        behind   ARC_FRAME_TRUNCATED|ARC_RECORD_BAD   Catalog  00*****  not    told
    cut          Catalog  header       all      ARC_FRAME_TRUNCATED                  Catalog  0011111  not    told
    empty        Catalog  file         all      ARC_FRAME_TRUNCATED                  Catalog  0011111  not    told
    gone         Catalog  file         all      ARC_MISSING                          Catalog  0011111  not    told
    next         Catalog  file         all      another                              Catalog  00*****  not    short
    stranger     Catalog  file         all      another                              Key      00*****  not    short

    byte         Commit   header       nothing  ARC_HEADER_BAD                       Medium   0001100  not    quiet
    byte         Commit   head         nothing  ARC_FRAME_WRONG                      Medium   0001100  not    quiet
    byte         Commit   body         nothing  ARC_TAG_MISMATCH                     Medium   0001100  not    quiet
    byte         Commit   footer       nothing  ARC_TAG_MISMATCH                     Medium   0001100  not    quiet
    byte         Commit   footer-head  nothing  ARC_FRAME_WRONG                      Medium   0001100  not    quiet
    byte         Commit   trailer      nothing  ARC_TRAILER_BAD                      Medium   0001100  not    quiet
    byte         Commit   bodies       all      COMMIT_DAMAGED                       Catalog  001111*  not    quiet
    fill         Commit   file         all      COMMIT_DAMAGED                       Catalog  001111*  not    told
    cut          Commit   last         nothing  ARC_FRAME_TRUNCATED|ARC_TRAILER_BAD  Medium   0001100  not    quiet
    cut          Commit   end          nothing  ARC_FRAME_TRUNCATED|ARC_TRAILER_BAD  Medium   0001100  not    quiet
    cut          Commit   first        all      COMMIT_DAMAGED                       Catalog  001111*  not    told
    cut          Commit   header       all      COMMIT_DAMAGED                       Catalog  001111*  not    told
    empty        Commit   file         all      COMMIT_DAMAGED                       Catalog  001111*  not    told
    gone         Commit   file         all      COMMIT_DAMAGED                       Catalog  001111*  not    told
    next         Commit   file         all      COMMIT_DAMAGED                       Catalog  00*****  not    told
    stranger     Commit   file         all      COMMIT_DAMAGED                       Catalog  00*****  not    told
";

pub struct Row {
    pub damage: &'static str,
    of: &'static str,
    pub part: &'static str,
    pub lost: &'static str,
    codes: &'static str,
    pub cause: &'static str,
    counts: &'static str,
    pub fix: &'static str,
    pub backup: &'static str,
}

impl Row {
    fn of(line: &'static str) -> Row {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [damage, of, part, lost, codes, cause, counts, fix, backup] = words[..] else { panic!("{line}") };
        Row { damage, of, part, lost, codes, cause, counts, fix, backup }
    }

    /// How many findings; None: one or several.
    pub fn count(&self, column: usize) -> Option<usize> {
        char::from(self.counts.as_bytes()[column]).to_digit(10).map(|count| count as usize)
    }

    pub fn says(&self, code: &str) -> bool {
        let codes = match self.codes {
            "another" => "ARC_FRAME_WRONG|ARC_FRAME_TRUNCATED|ARC_HEADER_BAD",
            codes => codes,
        };
        codes.split('|').any(|one| one == code)
    }

    pub fn is_cause(&self, cause: Cause) -> bool {
        format!("{cause:?}") == self.cause
    }
}

/// What is damaged.
pub struct World {
    pub lab: Lab,
    /// By name.
    pub arcs: Vec<Layout>,
    pub keys: Arc<Keys>,
    /// Another backup dir.
    pub stranger: Files,
    pub users: Users,
}

impl World {
    fn of(copy: &Copy) -> World {
        let (source, stranger) = (Source::new(), Copy::init());
        for n in 0..3 {
            source.write("f", &Rng::new(n).noise(20_000));
            stranger.backup(&source, &Options::default());
        }
        let lab = Lab { files: copy.files(), truth: Truth::of(&copy.reader()) };
        let (arcs, keys, users) = (Layout::all(copy), copy.open().keys().clone(), Users::of(&copy.reader()));
        World { lab, arcs, keys, stranger: stranger.files(), users }
    }

    pub fn newest(&self) -> Version {
        self.arcs.last().unwrap().name.version
    }
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::of(&Copy::of(&lab().files)))
}

const ALL: usize = usize::MAX;

/// Plays an act for each line of the table, in up to so many arcs and so many places of each.
fn each(world: &World, plan: fn(&Row) -> (usize, usize), mut act: impl FnMut(&Cell<'_>)) {
    let (mut rng, mut failures) = (Rng::from_env(), Vec::new());
    for row in TABLE.lines().filter(|line| !line.is_empty()).map(Row::of) {
        let (arcs, places) = plan(&row);
        let (mut struck, mut nth) = (0, 0);
        let mut left: Vec<_> = world.arcs.iter().filter(|arc| format!("{:?}", arc.role()) == row.of).collect();
        while struck < arcs && !left.is_empty() {
            let arc = left.swap_remove(rng.below(left.len()));
            let spots = spots(&row, arc, world, &mut rng);
            let step = spots.len().div_ceil(places).max(1);
            let first = rng.below(step).min(spots.len().saturating_sub(1));
            for spot in spots.iter().skip(first).step_by(step) {
                let cell = Cell { world, row: &row, spot, nth };
                let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&cell)));
                if let Err(panic) = played {
                    let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                    failures.push(format!("{}: {}", spot.what, why.chars().take(1000).collect::<String>()));
                }
                nth += 1;
            }
            struck += usize::from(!spots.is_empty());
        }
        if struck == 0 && arcs > 0 {
            failures.push(format!("{} {} {} strikes nowhere", row.damage, row.of, row.part));
        }
    }
    assert!(failures.is_empty(), "{} cells:\n{}", failures.len(), failures.join("\n"));
}

/// Every arc, where its ends or all of it is hit.
fn shells(row: &Row) -> (usize, usize) {
    let is_shell = ["cut", "gone"].contains(&row.damage) || row.part == "footer";
    (if is_shell { ALL } else { 1 }, if row.damage == "cut" && row.part != "trailer" { 2 } else { 1 })
}

#[test]
fn reads_lose_what_is_damaged_and_nothing_else() {
    let copy = Copy::of(&world().lab.files);
    let mut reader = copy.reader();
    // Every cut and every swap, of the others a sample: with ASSAY_ALL_POINTS=1 all.
    let plan = |row: &Row| {
        let all = std::env::var_os("ASSAY_ALL_POINTS").is_some_and(|value| value == "1");
        (ALL, if all || ["cut", "swap"].contains(&row.damage) { ALL } else { 1 })
    };
    each(world(), plan, |cell| cell.read(&copy, &mut reader));
}

#[test]
fn selftests_tell_each_damage_in_its_place() {
    let plan = |row: &Row| match (row.damage, row.of) {
        ("byte", _) | ("bytes", "Catalog") => (ALL, ALL),
        ("bytes", _) => (ALL, 2),
        ("five", _) => (ALL, 2),
        _ => shells(row),
    };
    each(world(), plan, |cell| cell.found());
}

#[test]
fn fix_puts_right_what_it_can_and_touches_nothing_else() {
    // Of what stays as it is, a sample.
    let plan = |row: &Row| (usize::from(row.fix == "right" || ["bytes", "cut", "gone"].contains(&row.damage)), 1);
    each(world(), plan, |cell| cell.fix());
}

#[test]
fn what_is_around_the_frames_is_written_anew_or_left_alone() {
    each(world(), |row| (ALL, if row.damage == "cut" { ALL } else { 1 }), |cell| cell.shell());
}

#[test]
fn recover_brings_back_all_but_what_is_lost() {
    let plan = |row: &Row| match (row.damage, row.of) {
        ("bytes", "Catalog") => (ALL, ALL),
        ("cut", "Commit") => (ALL, 3),
        ("next" | "stranger", _) | ("cut", "Catalog") => (ALL, 1),
        ("cut" | "gone", _) => shells(row),
        _ if ["nothing", "healed"].contains(&row.lost) && row.part != "footer" => (0, 0),
        _ => shells(row),
    };
    each(world(), plan, |cell| cell.recover());
}

#[test]
fn backups_after_it_say_so_and_are_whole() {
    let (source, copy) = (Source::new(), Copy::init());
    let mut rng = Rng::new(31);
    source.write("one", &rng.noise(3000));
    source.write("several", &rng.noise(20_000));
    // More blocks than a node has room for.
    source.write("many", &rng.noise(300_000));
    std::fs::hard_link(source.join("one"), source.join("linked")).unwrap();
    (0..16).for_each(|n| source.write(&format!("d1/sub{n}/file"), format!("file {n}").as_bytes()));
    for n in 0..3 {
        source.write(&format!("later{n}"), &rng.noise(5000));
        let_it_age();
        copy.backup(&source, &Options::default());
    }
    let world = World::of(&copy);
    for name in ["one", "several", "many", "later2"] {
        std::fs::copy(source.join(name), source.join(&format!("copy-of-{name}"))).unwrap();
    }
    source.write("after", b"saved after the loss");
    let_it_age();
    let plan = |row: &Row| match (row.damage, row.of) {
        ("bytes", "Catalog") => (ALL, ALL),
        ("gone", "Commit") => (ALL, 1),
        // This world has no frames of one length.
        ("swap", _) => (0, 0),
        ("fill" | "longer", _) if row.lost == "nothing" => (0, 0),
        _ => (1, 1),
    };
    each(&world, plan, |cell| cell.save(&source));
}

#[test]
fn rm_and_pack_after_it_lose_nothing_more() {
    each(world(), |row| (usize::from(!["nothing", "healed"].contains(&row.lost)), 1), |cell| cell.prune());
}

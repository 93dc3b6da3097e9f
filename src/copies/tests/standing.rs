//! What is noted of copies, and what a state says by it.

use super::super::notes::{self, Note, noted_here, tidy};
use super::super::standing::{LOOK_AGAIN_S, note_here};
use super::*;
use crate::copies::Condition;
use crate::ledger::now_s;

fn here(world: &World, arc: ArcName) -> Condition {
    let all = status(&world.around(&world.dir(), Arc::new(|_, _, _| None)), None).unwrap();
    all.iter().find(|one| one.arc == arc).unwrap().here.as_ref().unwrap().condition
}

fn an_arc(world: &World) -> ArcEntry {
    world.dir().open_index().unwrap().arcs().unwrap().remove(0).entry
}

#[test]
fn what_was_proven_long_ago_is_to_be_looked_at_again() {
    let world = World::new(&["usb"]);
    world.backup();
    let (dir, entry) = (world.dir(), an_arc(&world));
    assert_eq!(here(&world, entry.name), Condition::Unknown, "nobody has read it");
    note_here(&dir, entry.name, Note::now(entry.id, State::Proven));
    assert_eq!(here(&world, entry.name), Condition::Ready);
    let at_s = now_s() - LOOK_AGAIN_S - 10;
    note_here(&dir, entry.name, Note { at_s, ..Note::now(entry.id, State::Proven) });
    assert_eq!(here(&world, entry.name), Condition::Unknown, "90 days and more");
    // A note of another arc of that name says nothing.
    note_here(&dir, entry.name, Note::now(crate::ids::ArcId([9; 16]), State::Proven));
    assert_eq!(here(&world, entry.name), Condition::Unknown);
}

#[test]
fn notes_of_the_backup_dir_are_written_anew_and_say_the_same() {
    let world = World::new(&["usb"]);
    world.backup();
    let (dir, entry) = (world.dir(), an_arc(&world));
    let file = world.path("b/copies").join("0".repeat(32));
    (0..1500).for_each(|_| note_here(&dir, entry.name, Note::now(entry.id, State::Failed)));
    note_here(&dir, entry.name, Note::now(entry.id, State::Proven));
    let (before, long) = (noted_here(&dir), fs::metadata(&file).unwrap().len());
    tidy(&dir, &dir.lock_to_mend(Duration::ZERO).unwrap());
    let short = fs::metadata(&file).unwrap().len();
    assert!(short * 100 < long, "{short} of {long}");
    assert_eq!(noted_here(&dir), before);
    // A line that a kill has cut costs itself.
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 9]).unwrap();
    note_here(&dir, entry.name, Note::now(entry.id, State::Gone));
    assert_eq!(noted_here(&dir)[&entry.name].state, State::Gone);
    assert!(!notes::is_held(&dir, "usb"));
}

//! Marks and what is known of places, with a backup dir.

use std::fs;

use super::code;
use super::google::{self, Google};
use super::servers::{AZURE_KEY, KEY, Server};
use crate::backupdir::{BackupDir, Config};
use crate::dest::{self, Known, Lie, Settings, mark};
use crate::ids::CopyId;

/// A backup dir whose dest.toml says this.
fn backup(temp: &tempfile::TempDir, name: &str, text: &str) -> BackupDir {
    let path = temp.path().join(name);
    BackupDir::init(&path, None, &Config::default()).unwrap();
    fs::write(path.join("dest.toml"), text).unwrap();
    BackupDir::open(&path, &|_| None).unwrap()
}

fn usb(temp: &tempfile::TempDir) -> String {
    format!("[[destination]]\nname = \"usb\"\ntype = \"dir\"\npath = \"{}/usb\"\n", temp.path().to_str().unwrap())
}

fn open(dir: &BackupDir, name: &str) -> (Settings, crate::error::Result<Box<dyn dest::Storage>>) {
    let settings = dest::named(dir, name).unwrap();
    let variables = |name: &str| (name == "SECRET").then(|| super::SECRET.to_string());
    let opened = dest::open(dir, &settings, &variables);
    (settings, opened)
}

fn set(dir: &BackupDir, name: &str) -> crate::error::Result<mark::Mark> {
    set_as(dir, name, mark::Before::Absent)
}

fn set_as(dir: &BackupDir, name: &str, before: mark::Before) -> crate::error::Result<mark::Mark> {
    let (settings, storage) = open(dir, name);
    let (lock, mut known) = (dir.lock()?, Known::read(dir)?);
    mark::set(storage?.as_ref(), &settings, before, dir, &lock, &mut known)
}

fn read(dir: &BackupDir, name: &str) -> crate::error::Result<mark::Mark> {
    mark::read(open(dir, name).1?.as_ref(), dir.keys(), &Known::read(dir)?)
}

#[test]
fn a_place_is_marked_once_and_is_of_one_backup() {
    let temp = tempfile::tempdir().unwrap();
    let dir = backup(&temp, "b", &usb(&temp));
    assert_eq!(code(set(&dir, "usb")), "DEST_ABSENT");
    fs::create_dir(temp.path().join("usb")).unwrap();
    assert_eq!(code(read(&dir, "usb")), "DEST_UNMARKED");
    fs::write(temp.path().join("usb/photo.jpg"), "mine").unwrap();
    let refused = set(&dir, "usb").unwrap_err();
    assert!(refused.code() == "DEST_NOT_EMPTY" && refused.to_string().contains("photo.jpg"), "{refused}");
    fs::remove_file(temp.path().join("usb/photo.jpg")).unwrap();
    let mark = set(&dir, "usb").unwrap();
    assert_eq!((mark.copy, read(&dir, "usb").unwrap()), (CopyId(1), mark));
    let again = set(&dir, "usb").unwrap_err();
    assert!(again.code() == "DEST_NOT_EMPTY" && again.to_string().contains("copy 1"), "{again}");

    // Another backup does not touch it.
    let other = backup(&temp, "other", &usb(&temp));
    assert_eq!(code(read(&other, "usb")), "DEST_NOT_OURS");
    let refused = set(&other, "usb").unwrap_err();
    assert!(refused.to_string().contains(&dir.keys().backup_id().to_string()), "{refused}");
    assert_eq!(read(&dir, "usb").unwrap(), mark);

    // Each byte of the mark counts, and its length.
    let path = temp.path().join("usb/DESTID");
    let bytes = fs::read(&path).unwrap();
    for changed in [&bytes[1..], &[&bytes[..], b"x"].concat(), &bytes.iter().map(|byte| !byte).collect::<Vec<_>>()] {
        fs::write(&path, changed).unwrap();
        assert_eq!(code(read(&dir, "usb")), "DEST_NOT_OURS");
    }

    // A mount point without its disk is not empty, and not new: the disk is absent.
    fs::remove_file(&path).unwrap();
    let absent = read(&dir, "usb").unwrap_err();
    assert!(absent.code() == "DEST_ABSENT" && absent.to_string().contains("mounted"), "{absent}");
    assert_eq!(code(set(&dir, "usb")), "DEST_ABSENT");
    assert!(!path.exists());
    // Marked anew it is another copy: the number of the old one is never given again.
    assert_eq!(set_as(&dir, "usb", mark::Before::Gone).unwrap().copy, CopyId(2));
}

#[test]
fn what_a_test_found_is_kept_with_the_place() {
    let temp = tempfile::tempdir().unwrap();
    let server = Server::moto().with_bucket();
    let text = format!(
        "[[destination]]\nname = \"cloud\"\ntype = \"s3\"\nendpoint = \"http://127.0.0.1:{}\"\nbucket = \"bucket\"\n\
         access-key = \"id\"\nsecret-key-env = \"SECRET\"\n",
        server.port
    );
    let dir = backup(&temp, "b", &text);
    let mark = set(&dir, "cloud").unwrap();
    let exam = dest::examine(open(&dir, "cloud").1.unwrap().as_ref()).unwrap();
    let mut known = Known::read(&dir).unwrap();
    known.found(&mark, "cloud", &exam, 1_700_000_000);
    known.write(&dir).unwrap();
    let read = Known::read(&dir).unwrap();
    assert_eq!(read, known);
    let place = read.of_name("cloud").unwrap();
    assert_eq!(
        (place.copy(), place.tested_s(), place.accepts()),
        (1, Some(1_700_000_000), &[Lie::Sha256, Lie::Md5][..])
    );
    // It holds no secret, and what makes no sense is told.
    let path = dir.path().join("dest.known");
    assert!(!fs::read_to_string(&path).unwrap().contains(super::SECRET));
    fs::write(&path, "[[place]]\nid = 7\n").unwrap();
    assert_eq!(code(Known::read(&dir)), "CONFIG");
}

/// Each type, from dest.toml on, by what its table says and credentials from where it says.
#[test]
fn services_are_opened_as_dest_toml_says() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(temp.path().join(name), text).unwrap();
        temp.path().join(name).to_str().unwrap().to_string()
    };
    let (key, account) = google::account();
    let (webdav, azure, google) = (Server::rclone_webdav(), Server::azurite(), Google::start(Some(key)));
    let account = write("account", &account);
    let text = format!(
        "[[destination]]\nname = \"dav\"\ntype = \"webdav\"\nurl = \"http://127.0.0.1:{}/some/where/\"\n\
         user = \"{KEY}\"\npassword-env = \"SECRET\"\n\
         [[destination]]\nname = \"azure\"\ntype = \"azure\"\nendpoint = \"http://127.0.0.1:{}/testaccount\"\n\
         account = \"testaccount\"\ncontainer = \"container\"\ncredential-command = \"echo {AZURE_KEY}\"\nclass = \"Cool\"\n\
         [[destination]]\nname = \"google\"\ntype = \"gcs\"\nendpoint = \"http://127.0.0.1:{}\"\nbucket = \"bucket\"\n\
         credential-file = \"{account}\"\nclass = \"NEARLINE\"\n",
        webdav.port, azure.port, google.port,
    );
    let dir = backup(&temp, "b", &text);
    for (number, name) in ["dav", "azure", "google"].into_iter().enumerate() {
        let mark = set(&dir, name).unwrap();
        assert_eq!((mark.copy, read(&dir, name).unwrap()), (CopyId(number as u16 + 1), mark));
    }
    assert_eq!(fs::read(webdav.dir.path().join("data/some/where/DESTID")).unwrap().len(), mark::MARK_LEN);
    assert_eq!(google.objects.lock().unwrap()["DESTID"].len(), mark::MARK_LEN);
}

#[test]
fn a_place_within_the_backup_dir_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let inside = usb(&temp).replace("/usb\"\n", "/b/ledger\"\n");
    let dir = backup(&temp, "b", &inside);
    fs::create_dir_all(dir.path().join("ledger")).unwrap();
    assert_eq!(code(open(&dir, "usb").1.map(drop)), "CONFIG");
    assert_eq!(code(dest::named(&dir, "nas").map(drop)), "USAGE");
}

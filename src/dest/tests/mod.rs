//! What every storage must do, asked of real servers; what each does where something is wrong.

mod clouds;
mod faults;
pub(crate) mod google;
pub(crate) mod servers;
mod whole;

use std::cell::Cell;
use std::fs;

use base64ct::{Base64, Encoding};
use google::Google;
use servers::{AZURE_KEY, KEY, SECRET, Server};

use super::cloud::Cloud;
use super::secret::Credentials;
use super::settings::Verify;
use super::{Body, Exam, Lie, Object, Proof, Storage, Sum, examine, proof, put_proven};
use super::{azure, dir, gcs, s3, secret, settings, sftp, webdav};
use crate::error::{Error, Result};
use crate::testing::Rng;

fn credentials() -> Credentials {
    Credentials { access_key: KEY.into(), secret: SECRET.to_string().into(), token: None }
}

fn open_s3(server: &Server) -> Cloud<s3::S3> {
    s3::S3::open("cloud", &server.s3(), &credentials()).unwrap()
}

fn open_webdav(settings: &settings::WebDav) -> Cloud<webdav::WebDav> {
    webdav::WebDav::open("cloud", settings, Some(&SECRET.to_string().into())).unwrap()
}

fn open_azure(settings: &settings::Azure, secret: &str) -> Cloud<azure::Azure> {
    azure::Azure::open("cloud", settings, &secret.to_string().into()).unwrap()
}

fn open_gcs(settings: &settings::Gcs, account: Option<&secret::Secret>) -> Cloud<gcs::Gcs> {
    gcs::Gcs::open("cloud", settings, account).unwrap()
}

fn open_sftp(server: &Server) -> sftp::Sftp {
    sftp::Sftp::open("home", &server.sftp()).unwrap()
}

fn code<T: std::fmt::Debug>(done: Result<T>) -> &'static str {
    done.unwrap_err().code()
}

/// An error as it is told; without secrets.
fn said(error: &Error) -> String {
    assert!(!format!("{error} {error:?}").contains(SECRET));
    error.to_string()
}

/// A body whose source breaks after so many bytes were read of it; an upload may read it twice.
struct Breaking<'a>(&'a [u8], Cell<u64>);

impl Body for Breaking<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn fill(&self, start: u64, piece: &mut [u8]) -> Result<()> {
        match self.1.get().checked_sub(piece.len() as u64) {
            Some(left) => self.1.set(left),
            None => return Err(Error::io("read", "/source", &std::io::Error::from_raw_os_error(libc::EIO))),
        }
        self.0.fill(start, piece)
    }

    fn sum(&self) -> Result<Sum> {
        self.0.sum()
    }
}

/// What every storage must do, in an empty place.
fn suite(storage: &dyn Storage) {
    let mut rng = Rng::from_env();
    println!("seed {}", rng.seed);
    let (small, large) = (rng.noise(5000), rng.noise((3 << 20) + 7));
    assert_eq!(storage.list().unwrap(), []);
    assert_eq!(storage.stat("arc.0.1").unwrap(), None);
    assert_eq!(code(storage.read("arc.0.1", 0..1)), "DEST_NOT_FOUND");

    for (name, bytes) in [("arc.0.1", &small), ("arc.0.2", &large), ("arc.0.0", &Vec::new())] {
        storage.put(name, &bytes.as_slice()).unwrap();
        assert_eq!(storage.stat(name).unwrap(), Some(bytes.len() as u64));
        proof::prove(storage, name, bytes.len() as u64, &bytes.as_slice().sum().unwrap()).unwrap();
    }
    let listed = storage.list().unwrap();
    let expected = [("arc.0.0", 0), ("arc.0.1", 5000), ("arc.0.2", large.len() as u64)];
    assert_eq!(listed, expected.map(|(name, len_bytes)| Object { name: name.into(), len_bytes }));

    // Every range is the one that was asked for.
    let len = large.len() as u64;
    let mut ranges = vec![0..1, 0..len, len - 1..len, 32_767..32_769, 65_536..131_072];
    for _ in 0..20 {
        let start = rng.below(large.len() - 1) as u64;
        ranges.push(start..start + 1 + rng.below((len - start) as usize) as u64);
    }
    for range in ranges {
        let found = storage.read("arc.0.2", range.clone()).unwrap();
        assert!(found == large[range.start as usize..range.end as usize], "{range:?}");
    }
    // Past the end there is nothing, and it is no data.
    for range in [len - 1..len + 1, len..len + 1, len + 100..len + 200, 0..len + 1] {
        assert_eq!(code(storage.read("arc.0.2", range.clone())), "DEST_WRONG_RANGE", "{range:?}");
    }
    #[allow(clippy::reversed_empty_ranges)]
    for senseless in [5..5, 9..3, 0..u64::MAX] {
        assert_eq!(code(storage.read("arc.0.2", senseless)), "DEST_WRONG_RANGE");
    }

    // Nothing is replaced.
    let other = rng.noise(6000);
    assert_eq!(code(storage.put("arc.0.1", &other.as_slice())), "DEST_EXISTS");
    assert!(storage.read("arc.0.1", 0..5000).unwrap() == small);

    // What breaks on the way is an error, and never proven.
    let sum = large.as_slice().sum().unwrap();
    for (limit, must_break) in [(1 << 20, true), (len + (1 << 20), false)] {
        match storage.put("arc.0.3", &Breaking(&large, Cell::new(limit))) {
            Ok(_) if !must_break => proof::prove(storage, "arc.0.3", len, &sum).unwrap(),
            Ok(_) => panic!("the source broke, and nobody said so"),
            Err(error) => {
                assert_eq!(error.code(), "IO");
                assert!(proof::prove(storage, "arc.0.3", len, &sum).is_err());
            }
        }
        // Some servers show late what a put that broke has left.
        loop {
            storage.remove("arc.0.3").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
            if storage.stat("arc.0.3").unwrap().is_none() {
                break;
            }
        }
    }

    // Other bytes, other lengths, no object: each is told.
    let wrong: Sum = [7; 32];
    let told = proof::prove(storage, "arc.0.1", 5000, &wrong).unwrap_err().to_string();
    let found = crate::text::hex(&small.as_slice().sum().unwrap());
    let dest = storage.name();
    let source = "07".repeat(32);
    assert_eq!(
        told,
        format!("arc.0.1 at {dest}: expected checksum {source} doesn't match the existing file checksum {found}")
    );
    assert_eq!(code(proof::prove(storage, "arc.0.1", 4999, &wrong)), "DEST_CHECKSUM");
    assert_eq!(code(proof::prove(storage, "arc.9.9", 4999, &wrong)), "DEST_NOT_FOUND");

    // Several at a time, as a run has them.
    std::thread::scope(|scope| {
        for number in 0..6 {
            let large = &large;
            scope.spawn(move || {
                let name = format!("arc.1.{number}");
                let own = &large[number * 1000..];
                storage.put(&name, &own).unwrap();
                for start in (0..own.len() as u64 - 70_000).step_by(700_000) {
                    let found = storage.read(&name, start..start + 65_536).unwrap();
                    assert!(found == own[start as usize..][..65_536]);
                }
            });
        }
    });
    assert_eq!(storage.list().unwrap().len(), 9);

    for object in storage.list().unwrap() {
        storage.remove(&object.name).unwrap();
        assert_eq!(storage.stat(&object.name).unwrap(), None);
        storage.remove(&object.name).unwrap();
    }
    assert_eq!(storage.list().unwrap(), []);
}

/// The lie test must find what the server was found to do by hand.
fn exam(storage: &dyn Storage, refuses: &[Lie], accepts: &[Lie]) {
    let found = examine(storage).unwrap();
    println!("{found:?}");
    let Exam { refuses: no, accepts: yes, deletes, left, .. } = found;
    assert_eq!((no.as_slice(), yes.as_slice(), deletes, left), (refuses, accepts, true, 0));
    assert_eq!(storage.list().unwrap(), []);
}

#[test]
fn a_directory_passes() {
    let temp = tempfile::tempdir().unwrap();
    // What others have there is no object.
    fs::create_dir(temp.path().join("lost+found")).unwrap();
    fs::write(temp.path().join("arc.5.1.part"), "left by a put that was cut").unwrap();
    let storage = dir::Dir::open("usb", temp.path()).unwrap();
    suite(&storage);
    exam(&storage, &[Lie::Replace], &[]);
    storage.put("arc.5.1", &&b"whole"[..]).unwrap();
    let names: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn openssh_passes() {
    let server = Server::sshd();
    let storage = open_sftp(&server);
    suite(&storage);
    exam(&storage, &[Lie::Replace], &[]);
}

#[test]
fn rclones_webdav_passes() {
    let server = Server::rclone_webdav();
    let storage = open_webdav(&server.webdav());
    let path = server.dir.path().join("data/some/where");
    // What others have there is no object.
    fs::create_dir(path.join("more")).unwrap();
    fs::write(path.join("arc.5.1.part"), "left by a put that was cut").unwrap();
    suite(&storage);
    exam(&storage, &[Lie::Replace], &[]);
    storage.put("arc.5.1", &&b"whole"[..]).unwrap();
    let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["arc.5.1", "more"]);
    // A file that has a name in the way of a URL.
    fs::write(path.join("a b%20ü&?#"), "odd").unwrap();
    // What it has listed a moment ago it may tell again.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let listed = storage.list().unwrap();
    assert_eq!(listed[0], Object { name: "a b%20ü&?#".into(), len_bytes: 3 });
}

#[test]
fn azurite_passes() {
    let server = Server::azurite();
    let storage = open_azure(&server.azure(), AZURE_KEY);
    suite(&storage);
    exam(&storage, &[Lie::Md5, Lie::Replace], &[]);
    // It tells the MD5 of what came; nobody has told it.
    assert_eq!(put_proven(&storage, "arc.0.1", &&b"bytes"[..], Verify::Server, true).unwrap(), Proof::Server);
    // The same with a signature that others may be given.
    let sas = account_sas("2126-11-28T00:00:00Z");
    let storage = open_azure(&server.azure(), &sas);
    assert_eq!(storage.read("arc.0.1", 0..5).unwrap(), b"bytes");
    storage.remove("arc.0.1").unwrap();
    suite(&storage);
}

/// A shared access signature of the account, made as Microsoft's reference says.
fn account_sas(until: &str) -> String {
    let (service, kind, may, version) = ("b", "sco", "rwdlac", "2018-11-09");
    let text = format!("testaccount\n{may}\n{service}\n{kind}\n\n{until}\n\n\n{version}\n");
    let mut mac = <hmac::Hmac<sha2::Sha256> as hmac::KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap();
    hmac::Mac::update(&mut mac, text.as_bytes());
    let signature = Base64::encode_string(&hmac::Mac::finalize(mac).into_bytes());
    let signature = percent_encoding::utf8_percent_encode(&signature, percent_encoding::NON_ALPHANUMERIC);
    let until = until.replace(':', "%3A");
    format!("?sv={version}&ss={service}&srt={kind}&sp={may}&se={until}&sig={signature}")
}

#[test]
fn a_small_google_passes_with_and_without_an_account() {
    let (key, account) = google::account();
    for (server, account) in [(Google::start(Some(key)), Some(&account)), (Google::start(None), None)] {
        let storage = open_gcs(&server.settings(), account);
        suite(&storage);
        exam(&storage, &[Lie::Md5, Lie::Replace], &[]);
        assert_eq!(put_proven(&storage, "arc.0.1", &&b"bytes"[..], Verify::Server, true).unwrap(), Proof::Server);
    }
}

#[test]
fn rclones_s3_passes_and_its_lies_are_found() {
    let server = Server::rclone();
    let storage = open_s3(&server);
    suite(&storage);
    exam(&storage, &[Lie::Md5], &[Lie::Sha256, Lie::Replace]);
}

#[test]
fn motos_s3_passes_and_its_lies_are_found() {
    let server = Server::moto().with_bucket();
    let storage = open_s3(&server);
    suite(&storage);
    exam(&storage, &[Lie::Replace], &[Lie::Sha256, Lie::Md5]);
}

//! Places that are absent, full, closed or broken, and servers that send other bytes than they were asked for.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::servers::Server;
use super::{code, open_s3, open_sftp, said};
use crate::dest::faulty::{Fault, Faulty, Request};
use crate::dest::settings::Verify;
use crate::dest::{Body, Checksum, Compared, Storage, dir, proof, sftp};
use crate::error::Trouble;
use crate::os::process::geteuid;
use crate::testing::Rng;

#[test]
fn a_directory_that_is_not_there_is_absent_and_never_made() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("mnt/usb");
    assert_eq!(code(dir::Dir::open("usb", &path).map(drop)), "DEST_ABSENT");
    assert!(!temp.path().join("mnt").exists());
    fs::write(temp.path().join("mnt"), "a file").unwrap();
    assert_eq!(code(dir::Dir::open("usb", &path).map(drop)), "DEST_ABSENT");
}

#[test]
fn a_directory_that_lost_its_place_is_absent_and_never_empty() {
    let temp = tempfile::tempdir().unwrap();
    let (path, aside) = (temp.path().join("usb"), temp.path().join("aside"));
    fs::create_dir(&path).unwrap();
    let storage = dir::Dir::open("usb", &path).unwrap();
    storage.put("arc.0.1", &&b"whole"[..]).unwrap();
    fs::rename(&path, &aside).unwrap();
    for is_another_there in [false, true] {
        // What it has it gives; what it has not says nothing.
        assert_eq!(storage.read("arc.0.1", 0..5).unwrap(), b"whole");
        assert_eq!(code(storage.stat("arc.0.2")), "DEST_ABSENT", "{is_another_there}");
        assert_eq!(code(storage.read("arc.0.2", 0..5)), "DEST_ABSENT", "{is_another_there}");
        assert_eq!(code(storage.list()), "DEST_ABSENT", "{is_another_there}");
        assert_eq!(code(storage.remove("arc.0.2")), "DEST_ABSENT", "{is_another_there}");
        if !is_another_there {
            fs::create_dir(&path).unwrap();
        }
    }
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(storage.stat("arc.0.2").unwrap(), None);
    assert_eq!(storage.list().unwrap().len(), 1);
}

/// A file system of 1 MiB, in memory, while `act` runs.
fn on_a_small_disk(act: impl FnOnce(&std::path::Path)) {
    let temp = tempfile::tempdir().unwrap();
    let on = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    on(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(temp.path()));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(temp.path())));
    on(Command::new("umount").arg(temp.path()));
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_full_disk_is_told_and_keeps_no_remains() {
    if geteuid() != 0 {
        return;
    }
    on_a_small_disk(|path| {
        let bytes = Rng::from_env().noise(2 << 20);
        let storage = dir::Dir::open("usb", path).unwrap();
        assert_eq!(code(storage.put("arc.0.1", &bytes.as_slice())), "DEST_FULL");
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        storage.put("arc.0.1", &&bytes[..500_000]).unwrap();
        // The same over sftp, whose protocol does not say why.
        let server = Server::sshd();
        let settings = crate::dest::settings::Sftp { path: path.to_str().unwrap().into(), ..server.sftp() };
        let storage = sftp::Sftp::open("home", &settings).unwrap();
        assert_eq!(code(storage.put("arc.0.2", &bytes.as_slice())), "DEST_FULL");
        assert_eq!(storage.list().unwrap().len(), 1);
        storage.put("arc.0.3", &&bytes[..300_000]).unwrap();
    });
}

#[test]
fn a_disk_that_is_in_use_is_not_unmounted_and_its_mount_point_alone_is_no_place() {
    if geteuid() != 0 {
        return;
    }
    on_a_small_disk(|path| {
        let storage = dir::Dir::open("usb", path).unwrap();
        storage.put("arc.0.1", &&b"x"[..]).unwrap();
        let umounted = Command::new("umount").arg(path).output().unwrap();
        assert!(!umounted.status.success());
        assert_eq!(storage.stat("arc.0.1").unwrap(), Some(1));
    });
}

#[test]
fn what_is_no_regular_file_is_no_object() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("arc.0.1")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", temp.path().join("arc.0.2")).unwrap();
    let storage = dir::Dir::open("usb", temp.path()).unwrap();
    for name in ["arc.0.1", "arc.0.2"] {
        assert_eq!(code(storage.stat(name)), "DEST_REFUSED");
        assert_eq!(code(storage.read(name, 0..1)), "DEST_REFUSED");
        assert_eq!(code(storage.put(name, &&b"x"[..])), "DEST_REFUSED");
    }
    assert_eq!(storage.list().unwrap(), []);
}

#[test]
fn an_sftp_place_without_its_directory_is_absent_also_later() {
    let server = Server::sshd();
    let storage = open_sftp(&server);
    storage.put("arc.0.1", &&b"bytes"[..]).unwrap();
    let (data, away) = (server.dir.path().join("data"), server.dir.path().join("away"));
    fs::rename(&data, &away).unwrap();
    for gone in [code(storage.stat("arc.0.1")), code(storage.list()), code(storage.remove("arc.0.1"))] {
        assert_eq!(gone, "DEST_ABSENT");
    }
    assert_eq!(code(storage.put("arc.0.1", &&b"x"[..])), "DEST_ABSENT");
    assert_eq!(code(sftp::Sftp::open("home", &server.sftp()).map(drop)), "DEST_ABSENT");
    fs::rename(&away, &data).unwrap();
    assert_eq!(storage.read("arc.0.1", 0..5).unwrap(), b"bytes");
}

/// As where the server's own disk hangs: the connection lives, and no answer comes.
#[test]
fn a_server_that_does_not_answer_is_not_waited_for_longer_than_a_request_may_take() {
    let temp = tempfile::tempdir().unwrap();
    let (script, pid) = (temp.path().join("ssh"), temp.path().join("pid"));
    fs::create_dir(temp.path().join("data")).unwrap();
    let text = format!("echo $$ >{}; exec /usr/lib/openssh/sftp-server\n", pid.to_str().unwrap());
    fs::write(&script, text).unwrap();
    let settings = crate::dest::settings::Sftp {
        host: "h".into(),
        user: None,
        port: None,
        path: temp.path().join("data").to_str().unwrap().into(),
        ssh_command: vec!["sh".into(), script.to_str().unwrap().into()],
    };
    let storage = sftp::Sftp::open("home", &settings).unwrap();
    storage.put("arc.0.1", &&b"bytes"[..]).unwrap();
    let requests: [&dyn Fn() -> crate::error::Result<()>; 2] =
        [&|| storage.list().map(drop), &|| storage.stat("arc.0.1").map(drop)];
    for request in requests {
        let pid = fs::read_to_string(&pid).unwrap();
        assert!(Command::new("kill").args(["-STOP", pid.trim()]).status().unwrap().success());
        let begun = std::time::Instant::now();
        assert_eq!(code(request()), "DEST_TIMED_OUT");
        assert!(begun.elapsed() < crate::dest::READ_LIMIT * 2);
        // The next request has a connection, and a server, of its own.
        assert_eq!(storage.list().unwrap().len(), 1);
    }
}

#[test]
fn a_lost_connection_is_made_anew() {
    let server = Server::sshd();
    let storage = open_sftp(&server);
    storage.put("arc.0.1", &&b"bytes"[..]).unwrap();
    for _ in 0..2 {
        storage.kill_connection();
        assert_eq!(storage.read("arc.0.1", 1..4).unwrap(), b"yte");
        storage.kill_connection();
        assert_eq!(storage.list().unwrap().len(), 1);
    }
    storage.kill_connection();
    storage.put("arc.0.2", &&b"more"[..]).unwrap();
    drop(server);
    storage.kill_connection();
    assert_eq!(code(storage.stat("arc.0.1")), "DEST_FAILED");
}

#[test]
fn ssh_says_why_it_does_not_connect() {
    let server = Server::sshd();
    let refused = |change: &dyn Fn(&mut crate::dest::settings::Sftp)| {
        let mut settings = server.sftp();
        change(&mut settings);
        said(&sftp::Sftp::open("home", &settings).map(drop).unwrap_err())
    };
    let stranger = refused(&|settings| settings.user = Some("nobody-of-this-name".into()));
    assert!(stranger.contains("not allowed") && stranger.contains("Permission denied"), "{stranger}");
    let no_key = refused(&|settings| settings.ssh_command.extend(["-o".into(), "UserKnownHostsFile=/dev/null".into()]));
    assert!(no_key.contains("Host key verification failed"), "{no_key}");
    let no_ssh = refused(&|settings| settings.ssh_command = vec!["no-such-ssh".into()]);
    assert!(no_ssh.contains("no-such-ssh"), "{no_ssh}");
}

/// What is stored counts by what was compared, not by what the storage says.
#[test]
fn an_object_that_was_stored_wrong_is_never_proven() {
    let bytes = Rng::from_env().noise(100_000);
    let cases: [(Fault, &str); 4] = [
        (Fault::Flip, "DEST_CHECKSUM"),
        (Fault::Shorten(99_999), "DEST_CHECKSUM"),
        (Fault::Fail(Trouble::Full("x".into())), "DEST_FULL"),
        (Fault::FailAfter(Trouble::Failed("the answer is lost".into())), "DEST_FAILED"),
    ];
    for (fault, expected) in cases {
        let temp = tempfile::tempdir().unwrap();
        let inner = dir::Dir::open("usb", temp.path()).unwrap();
        let put = fault.clone();
        let storage = Faulty::new(inner, move |request, _| (request == Request::Put).then(|| put.clone()));
        let stored = proof::put_proven(&storage, "arc.0.1", &bytes.as_slice(), Verify::Read, false);
        assert_eq!((code(stored), storage.fired()), (expected, 1), "{fault:?}");
    }
    // A read that is wrong, and one that takes its time.
    let temp = tempfile::tempdir().unwrap();
    let open = |fault: Fault| {
        let inner = dir::Dir::open("usb", temp.path()).unwrap();
        Faulty::new(inner, move |request, _| (request == Request::Read).then(|| fault.clone()))
    };
    let flips = open(Fault::Flip);
    assert_eq!(code(proof::put_proven(&flips, "arc.0.1", &bytes.as_slice(), Verify::Read, true)), "DEST_CHECKSUM");
    assert_eq!(flips.fired(), 1);
    let slow = open(Fault::Wait(Duration::from_millis(20)));
    let proof = proof::put_proven(&slow, "arc.0.2", &bytes.as_slice(), Verify::Read, false).unwrap();
    assert_eq!((proof, slow.fired()), (proof::Proof::ReadBack, 1));
    let asked: Vec<Request> = slow.requests().into_iter().map(|(request, _)| request).collect();
    assert_eq!(asked, [Request::Put, Request::Stat, Request::Read]);
}

/// Algorithm, then value; each error names both sides.
#[test]
fn what_a_server_says_it_computed_is_compared_with_what_is_recorded() {
    let temp = tempfile::tempdir().unwrap();
    let bytes = b"bytes".as_slice();
    let sum = Checksum::sha256(&bytes.sum().unwrap());
    let put = |object: &str, claim: Checksum, honest: bool| {
        let storage = dir::Dir::open("usb", temp.path()).unwrap();
        let storage =
            Faulty::new(storage, move |request, _| (request == Request::Put).then(|| Fault::Claim(claim.clone())));
        proof::put_proven(&storage, object, &bytes, Verify::Server, honest).map_err(|error| error.to_string())
    };
    let sha1 = Checksum { algorithm: "sha1".into(), value: sum.value.clone() };
    let other = Checksum { algorithm: "sha256".into(), value: "00".repeat(32) };
    assert_eq!(put("arc.3.1", sum.clone(), true), Ok(proof::Proof::Server));
    let told = put("arc.3.2", sha1.clone(), true).unwrap_err();
    assert_eq!(told, "checksum algorithm mismatch for arc.3.2 at usb: source=sha256, destination=sha1");
    let told = put("arc.3.3", other.clone(), true).unwrap_err();
    assert_eq!(
        told,
        format!(
            "arc.3.3 at usb: expected checksum {} doesn't match the existing file checksum {}",
            sum.value, other.value
        )
    );
    // The word of one that was not found to compare is not even looked at.
    assert_eq!(put("arc.3.4", sha1, false), Ok(proof::Proof::ReadBack));
    assert_eq!(put("arc.3.5", other, false), Ok(proof::Proof::ReadBack));
}

#[test]
fn a_servers_word_counts_only_where_it_was_found_to_compare() {
    let server = Server::moto().with_bucket();
    let storage = open_s3(&server);
    let sum = Checksum::sha256(&b"x".as_slice().sum().unwrap());
    assert_eq!(storage.put("arc.0.0", &&b"x"[..]).unwrap(), Compared::Told { source: sum.clone(), found: sum });
    let stored = |name, verify, honest| proof::put_proven(&storage, name, &&b"bytes"[..], verify, honest).unwrap();
    assert_eq!(stored("arc.0.1", Verify::Server, true), proof::Proof::Server);
    assert_eq!(stored("arc.0.2", Verify::Server, false), proof::Proof::ReadBack);
    assert_eq!(stored("arc.0.3", Verify::Read, true), proof::Proof::ReadBack);
    assert_eq!(stored("arc.0.4", Verify::Trust, true), proof::Proof::Unverified);
}

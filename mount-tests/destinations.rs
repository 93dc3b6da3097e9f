//! `assay dest`: places named in dest.toml, marked, tested and listed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Cmd, Lab, is_root, names_in, tool};

fn dest(lab: &Lab, args: &[&str]) -> Cmd {
    lab.assay("dest", args)
}

/// A lab with a backup dir whose dest.toml names a directory `usb`, which is there, and one `nas`, which is not.
fn lab() -> Lab {
    let lab = Lab::with_files(&[("a", b"some bytes")]);
    fs::create_dir(lab.path("usb")).expect("mkdir");
    let table = |name: &str| {
        format!("[[destination]]\nname = \"{name}\"\ntype = \"dir\"\npath = \"{}\"\n", lab.path(name).display())
    };
    let text = format!("{}onfail = \"ignore\"\nrate = \"2M\"\n{}off = true\n", table("usb"), table("nas"));
    fs::write(lab.repo().join("dest.toml"), text).expect("write");
    lab
}

#[test]
fn a_place_is_marked_tested_and_listed() {
    let lab = lab();
    let all = dest(&lab, &["ls"]).ok().out();
    assert!(all.contains("usb") && all.contains("not marked") && all.contains("failures ignored"), "{all}");
    assert!(all.lines().count() == 2 && all.contains("off"), "{all}");
    let unmarked = dest(&lab, &["test", "usb"]).run().code(1);
    assert!(
        unmarked.err().contains("assay: DEST_UNMARKED: usb") && unmarked.err().contains("help: `assay dest setid"),
        "{}",
        unmarked.err()
    );

    let said = dest(&lab, &["setid", "usb"]).ok().out();
    for word in ["copy 1", "Refuses", "to replace an object", "read back", "Delete", "allowed", "Put", "Get", "Range"] {
        assert!(said.contains(word), "no {word}: {said}");
    }
    assert_eq!(names_in(&lab.path("usb")), [b"DESTID".to_vec()]);
    let found = dest(&lab, &["test", "usb", "--json"]).ok().json();
    assert_eq!(
        (&found["refuses"][0], &found["deletes"], &found["left_objects"]),
        (&"replace".into(), &true.into(), &0.into())
    );
    assert!(found["put_bytes_s"].as_u64().is_some_and(|rate| rate > 0), "{found}");
    let object = dest(&lab, &["ls", "usb", "--json"]).ok().json();
    assert_eq!((&object["name"], &object["size_bytes"]), (&"DESTID".into(), &98.into()));
    let all = dest(&lab, &["ls"]).ok().out();
    assert!(all.contains("copy 1") && all.contains("tested 20"), "{all}");
    assert!(lab.assay("log", ["-v"]).ok().out().contains("dest"), "it is not logged");

    // A second time there is something in it; another backup leaves it alone.
    assert!(dest(&lab, &["setid", "usb"]).run().code(1).err().contains("DEST_NOT_EMPTY"));
    let other = lab.path("other");
    lab.assay_on(&other, "init", crate::support::NONE).ok();
    fs::copy(lab.repo().join("dest.toml"), other.join("dest.toml")).expect("copy");
    let foreign = lab.assay_on(&other, "dest", ["test", "usb"]).run().code(1);
    assert!(foreign.err().contains("DEST_NOT_OURS"), "{}", foreign.err());
    let looked = lab.assay_on(&other, "dest", ["ls", "usb"]).ok().out();
    assert!(looked.contains("DESTID") && looked.contains("not marked as one of this backup"), "{looked}");
}

#[test]
fn what_is_wrong_is_said_in_one_line_and_changes_nothing() {
    let lab = lab();
    let absent = dest(&lab, &["setid", "nas"]).run().code(1);
    assert!(
        absent.err().contains("assay: DEST_ABSENT: nas is not there") && absent.err().contains("help: "),
        "{}",
        absent.err()
    );
    assert!(!lab.path("nas").exists());
    let unknown = dest(&lab, &["ls", "tape"]).run().code(2);
    assert!(unknown.err().contains("dest.toml has no destination tape: it has usb, nas"), "{}", unknown.err());
    let path = lab.repo().join("dest.toml");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replace("rate =", "speed =")).expect("write");
    let wrong = dest(&lab, &["ls"]).run().code(1);
    let err = wrong.err();
    assert!(
        err.starts_with("assay: CONFIG: ")
            && err.contains("dest.toml: line 6: a destination of type dir has no setting `speed`"),
        "{err}"
    );
    // The backup is made all the same, and says that no copies were.
    let src = lab.src();
    let backup = lab.assay("backup", [&src]).run().code(3);
    assert!(backup.err().contains("assay: CONFIG: ") && backup.out().contains("Version"), "{}", backup.text());
    // Whoever is writing is not disturbed, nor is a measurement.
    fs::write(&path, text).expect("write");
    let lock = fs::File::open(lab.repo().join("lock")).expect("open");
    lock.lock().expect("lock");
    assert!(dest(&lab, &["setid", "usb"]).run().code(11).err().contains("LOCKED"));
    assert!(names_in(&lab.path("usb")).is_empty());
}

#[test]
fn a_mount_point_without_its_disk_is_absent_not_empty() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let usb = lab.path("usb");
    tool("mount").args(["-t", "tmpfs", "-o", "size=32m", "disk"]).arg(&usb).ok();
    dest(&lab, &["setid", "usb"]).ok();
    tool("umount").arg(&usb).ok();
    for args in [&["test", "usb"][..], &["ls", "usb"], &["setid", "usb"]] {
        let absent = dest(&lab, args).run().code(1);
        assert!(absent.err().contains("DEST_ABSENT") && absent.err().contains("is it mounted?"), "{}", absent.err());
    }
    assert!(names_in(&usb).is_empty());
}

/// Killed at any moment, `setid` leaves a place that is ours, or one that it can still be made.
#[test]
fn a_cut_setid_leaves_nothing_that_stands_in_the_way() {
    let lab = lab();
    let mut seen = [0; 2];
    for round in 0..12 {
        let (mut command, _) = dest(&lab, &["setid", "usb", "--anew"]).into_parts();
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("spawn");
        std::thread::sleep(std::time::Duration::from_millis(round * 25));
        let _ = child.kill();
        child.wait().expect("wait");
        let is_marked = lab.path("usb/DESTID").exists();
        seen[usize::from(is_marked)] += 1;
        if is_marked {
            dest(&lab, &["test", "usb"]).ok();
        }
        for name in names_in(&lab.path("usb")) {
            fs::remove_file(lab.path("usb").join(String::from_utf8(name).expect("a name of ours"))).expect("remove");
        }
    }
    println!("not marked, marked: {seen:?}");
    let copies: Vec<String> = fs::read_to_string(lab.repo().join("dest.known"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("copy = "))
        .map(String::from)
        .collect();
    let mut once = copies.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), copies.len(), "a number was given twice: {copies:?}");
    dest(&lab, &["setid", "usb", "--anew"]).ok();
}

const SECRET: &str = "the-secret-of-the-bucket";

/// A server of another program; ends with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens at, and that no other call gives. The system chooses from 32,768 on for whoever connects
/// somewhere or asks for any port: a server that is to be started by another program would find one of those taken.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(101);
    loop {
        let nth = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (nth % 20_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

impl Server {
    /// `program`: below the directory of the servers for tests; `command` adds what it needs to listen at a port.
    fn start(lab: &Lab, program: &str, command: impl FnOnce(&mut Command, u16)) -> Server {
        let port = free_port();
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers");
        let servers = std::env::var_os("ASSAY_TEST_SERVERS").map_or_else(usual, PathBuf::from);
        let log = fs::File::create(lab.path("server.log")).expect("create");
        let mut started = Command::new(servers.join(program));
        command(&mut started, port);
        let child = started.stdout(log.try_clone().expect("clone")).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}: run contrib/test-servers"));
        let server = Server { child, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(90), "{program} does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// moto with a certificate of its own, and one bucket.
    fn moto(lab: &Lab) -> Server {
        let (key, cert) = (lab.path("tls.key"), lab.path("tls.pem"));
        let make = tool("openssl").args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        let make = make.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
        make.arg("-keyout").arg(&key).arg("-out").arg(&cert).ok();
        let server = Server::start(lab, "venv/bin/moto_server", |command, port| {
            command.args(["-H", "127.0.0.1", "-s", "-p", &port.to_string(), "-c"]).arg(&cert).arg("-k").arg(&key);
        });
        let script = "import sys, ssl, urllib.request as r\n\
                      auth = 'AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'\n\
                      q = r.Request(sys.argv[1], method='PUT', headers={'Authorization': auth})\n\
                      r.urlopen(q, context=ssl._create_unverified_context())";
        let url = format!("https://localhost:{}/bucket", server.port);
        tool("/usr/bin/python3").args(["-c", script, &url]).unset("SSL_CERT_FILE").ok();
        server
    }
}

/// As docs/destinations.md has it for what only rclone reaches.
#[test]
fn what_rclone_serves_has_a_whole_copy_and_it_comes_back() {
    let lab = Lab::with_files(&[("a", b"some bytes")]);
    fs::write(lab.path("loopback"), format!("{SECRET}\n")).expect("write");
    fs::create_dir(lab.path("served")).expect("mkdir");
    let there = lab.path("served/laptop");
    let server = Server::start(&lab, "rclone", |command, port| {
        let address = format!("127.0.0.1:{port}");
        command.args(["serve", "webdav"]).arg(lab.path("served")).args(["--addr", &address]);
        command.args(["--user", "ann", "--pass", SECRET, "--vfs-cache-mode", "off", "--dir-cache-time", "1ms"]);
        command.args(["--config", "/dev/null"]);
    });
    let text = format!(
        "[[destination]]\nname = \"drive\"\ntype = \"webdav\"\nurl = \"http://127.0.0.1:{}/laptop\"\nuser = \"ann\"\n\
         password-file = \"{}\"\n",
        server.port,
        lab.path("loopback").display()
    );
    fs::write(lab.repo().join("dest.toml"), &text).expect("write");
    let absent = dest(&lab, &["setid", "drive"]).run().code(1);
    assert!(absent.err().contains("DEST_ABSENT") && !there.exists(), "{}", absent.err());
    fs::create_dir_all(&there).expect("mkdir");
    let set = dest(&lab, &["setid", "drive"]).ok().out();
    for words in ["copy 1", "Refuses   to replace an object", "what is sent is read back", "allowed"] {
        assert!(set.contains(words), "no {words}: {set}");
    }
    lab.assay("backup", crate::support::NONE).arg(lab.src()).ok();
    assert!(dest(&lab, &["verify", "drive"]).ok().out().contains("drive"));
    let arcs: Vec<_> = names_in(&there).into_iter().filter(|name| name.starts_with(b"arc.")).collect();
    assert_eq!(arcs.len(), names_in(&there).len() - 1, "DESTID, and nothing but arcs: {:?}", names_in(&there));
    for arc in arcs {
        let arc = String::from_utf8(arc).expect("UTF-8");
        tool("cmp").arg(lab.repo().join(&arc)).arg(there.join(&arc)).ok();
    }
    // Nothing is left but the key and the table.
    let other = lab.path("anew");
    fs::create_dir(&other).expect("mkdir");
    tool("chmod").arg("700").arg(&other).ok();
    fs::write(other.join("dest.toml"), &text).expect("write");
    fs::copy(lab.repo().join("key.conf"), other.join("key.conf")).expect("copy");
    lab.assay_on(&other, "recover", ["--from", "drive", "--arcs"]).ok();
    lab.assay_on(&other, "selftest", ["-v", "4"]).ok();
}

/// An encrypted connection, credentials from where dest.toml says, and no secret in anything that stays.
#[test]
fn a_bucket_is_reached_by_tls_with_credentials_of_the_environment() {
    let lab = Lab::with_files(&[("a", b"some bytes")]);
    let moto = Server::moto(&lab);
    let table = |name: &str, secret: &str| {
        format!(
            "[[destination]]\nname = \"{name}\"\ntype = \"s3\"\nendpoint = \"https://localhost:{}\"\nbucket = \"bucket\"\n\
             prefix = \"{name}\"\naccess-key = \"id\"\n{secret}\n",
            moto.port
        )
    };
    let text = table("by-env", "secret-key-env = \"B2_SECRET\"")
        + &table("by-command", "credential-command = \"printenv B2_SECRET\"");
    fs::write(lab.repo().join("dest.toml"), text).expect("write");
    let cert = lab.path("tls.pem");
    let with = |args: &[&str]| dest(&lab, args).env("B2_SECRET", SECRET).env("SSL_CERT_FILE", &cert);
    let mut said = String::new();
    // Nobody vouches for the certificate.
    let refused = dest(&lab, &["setid", "by-env"]).env("B2_SECRET", SECRET).unset("SSL_CERT_FILE").run().code(1);
    assert!(refused.err().contains("DEST_FAILED") && refused.err().contains("certificate"), "{}", refused.err());
    said += &refused.text();
    let no_secret = dest(&lab, &["setid", "by-env"]).env("SSL_CERT_FILE", &cert).run().code(1);
    assert!(
        no_secret.err().contains("DEST_DENIED") && no_secret.err().contains("B2_SECRET is not set"),
        "{}",
        no_secret.err()
    );
    for (number, name) in ["by-env", "by-command"].into_iter().enumerate() {
        let set = with(&["setid", name]).ok();
        for words in [
            &format!("copy {}", number + 1),
            "Refuses   to replace an object",
            "Accepts   a wrong sha256, a wrong Content-MD5",
            "what is sent is read back",
        ] {
            assert!(set.out().contains(words), "no {words}: {}", set.out());
        }
        said += &set.text();
        said += &with(&["ls", name]).ok().text();
    }
    said += &dest(&lab, &["ls", "--json"]).ok().text();
    for file in ["dest.toml", "dest.known", "logs/runs.log"] {
        said += &fs::read_to_string(lab.repo().join(file)).expect("read");
    }
    assert!(!said.contains(SECRET), "{said}");
}

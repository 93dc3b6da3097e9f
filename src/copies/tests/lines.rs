//! Copies sent to real servers, over a line that can be bad.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;

use super::*;
use crate::dest::tests::google::Google;
use crate::dest::tests::servers::{AZURE_KEY, KEY, Server};

/// What happens when so many bytes have gone to the server, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trick {
    Nothing,
    Flip,
    Reset,
    Stall,
    /// The answer is 503, with Retry-After.
    Busy,
    /// From then on: bytes a second.
    Slow(u64),
}

/// A line to a server.
struct Line {
    port: u16,
    sent: Arc<AtomicU64>,
    trick: Arc<Mutex<(u64, Trick)>>,
    done: Arc<AtomicUsize>,
}

impl Line {
    fn to(server: u16) -> Line {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let line = Line {
            port: listener.local_addr().unwrap().port(),
            sent: Arc::default(),
            trick: Arc::new(Mutex::new((u64::MAX, Trick::Nothing))),
            done: Arc::default(),
        };
        let (sent, trick, done) = (line.sent.clone(), line.trick.clone(), line.done.clone());
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::result::Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
                let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (sent, trick, done) = (sent.clone(), trick.clone(), done.clone());
                std::thread::spawn(move || relay(client, server, &sent, &trick, &done));
            }
        });
        line
    }

    /// Does this once so many more bytes have gone.
    fn after(&self, bytes: u64, trick: Trick) {
        *lock(&self.trick) = (self.sent.load(Ordering::Relaxed) + bytes, trick);
        self.done.store(0, Ordering::Relaxed);
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }
}

fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    sent: &AtomicU64,
    trick: &Mutex<(u64, Trick)>,
    done: &AtomicUsize,
) {
    let mut bytes = [0; 16 << 10];
    loop {
        let count = match client.read(&mut bytes) {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        let total = sent.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        let now = {
            let mut trick = lock(trick);
            match *trick {
                (at, now) if total >= at => {
                    done.fetch_add(1, Ordering::Relaxed);
                    if !matches!(now, Trick::Slow(_)) {
                        *trick = (u64::MAX, Trick::Nothing);
                    }
                    now
                }
                _ => Trick::Nothing,
            }
        };
        match now {
            Trick::Nothing => {}
            Trick::Flip => bytes[count / 2] ^= 1,
            Trick::Reset => break,
            Trick::Stall => std::thread::sleep(Duration::from_secs(25)),
            Trick::Busy => {
                let _ = client.write_all(
                    b"HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
                break;
            }
            Trick::Slow(rate) => std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64)),
        }
        if server.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

fn s3_table(name: &str, port: u16) -> String {
    format!(
        "[[destination]]\nname = \"{name}\"\ntype = \"s3\"\nendpoint = \"http://127.0.0.1:{port}\"\nbucket = \"bucket\"\n\
         prefix = \"{name}\"\naccess-key = \"{KEY}\"\nsecret-key-env = \"SECRET\"\n"
    )
}

fn patient(world: &World) -> Vec<Report> {
    *lock(&world.ears.0) = Default::default();
    let dir = world.dir();
    let mut around = world.around(&dir, Arc::new(|_, _, _| None));
    around.limits = Limits { retry: Duration::from_secs(90), idle: Duration::from_secs(60), ..around.limits };
    let sending = Sending::new(around);
    let options = Options { paths: vec![world.source.path().to_path_buf()], ..Options::default() };
    backup::run_sending(&dir, &options, Some(&sending), world.ears.as_ref()).unwrap();
    sending.finish().unwrap()
}

#[test]
fn real_servers_get_whole_copies() {
    let (moto, rclone, sshd) = (Server::moto().with_bucket(), Server::rclone(), Server::sshd());
    let sftp = sshd.sftp();
    let home = format!(
        "[[destination]]\nname = \"home\"\ntype = \"sftp\"\nhost = \"{}\"\npath = \"{}\"\nssh-command = \"{}\"\n",
        sftp.host,
        sftp.path,
        sftp.ssh_command.join(" ")
    );
    let (webdav, azure, google) = (Server::rclone_webdav(), Server::azurite(), Google::start(None));
    let more = format!(
        "[[destination]]\nname = \"dav\"\ntype = \"webdav\"\nurl = \"http://127.0.0.1:{}/some/where\"\n\
         user = \"{KEY}\"\npassword-env = \"SECRET\"\n\
         [[destination]]\nname = \"azure\"\ntype = \"azure\"\nendpoint = \"http://127.0.0.1:{}/testaccount\"\n\
         account = \"testaccount\"\ncontainer = \"container\"\ncredential-command = \"echo {AZURE_KEY}\"\n\
         [[destination]]\nname = \"google\"\ntype = \"gcs\"\nendpoint = \"http://127.0.0.1:{}\"\nbucket = \"bucket\"\n",
        webdav.port, azure.port, google.port,
    );
    let world = World::of(&|_| s3_table("moto", moto.port) + &s3_table("rclone", rclone.port) + &home + &more);
    for round in 1..3 {
        let reports = patient(&world);
        assert!(reports.iter().all(|one| one.exit() == Exit::Ok && one.proven == 5 && one.behind == 0), "{reports:?}");
        // What the servers have in their own files.
        let dav = webdav.dir.path().join("data/some/where");
        for place in [rclone.dir.path().join("data/bucket/rclone"), sshd.dir.path().join("data"), dav] {
            let arcs = world.arcs("b");
            assert_eq!(arcs.len(), 5 * round);
            for arc in arcs {
                let same = fs::read(world.path("b").join(&arc)).unwrap() == fs::read(place.join(&arc)).unwrap();
                assert!(same, "{arc} in {place:?}");
            }
        }
        world.change();
    }
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    for name in ["moto", "azure", "google"] {
        let found = verify(&around, name).unwrap();
        assert_eq!((found.good, found.missing + found.wrong + found.unknown), (10, 0), "{name}");
    }
    let v4 = crate::selftest::Options::of(crate::findings::Level::AllCopies);
    let report = crate::selftest::run_everywhere(&around, &v4, world.ears.as_ref()).unwrap();
    assert!(
        report.findings.is_empty() && report.copies.len() == dest::all(&world.dir()).unwrap().len(),
        "{:?}",
        report.findings
    );
    for copy in &report.copies {
        assert_eq!((copy.arcs, copy.unproven), (10, 0), "{copy:?}");
        println!("{}: {} requests, {} bytes", copy.name, copy.requests, copy.fetched_bytes);
    }
}

#[test]
fn a_bad_line_costs_time_and_nothing_else() {
    let rclone = Server::rclone();
    let line = Line::to(rclone.port);
    let world = World::of(&|_| s3_table("cloud", line.port) + "workers = 2\n");
    for trick in [Trick::Flip, Trick::Reset, Trick::Busy, Trick::Stall, Trick::Slow(400_000)] {
        line.after(700_000, trick);
        let reports = patient(&world);
        assert!(line.done() > 0, "{trick:?} did not happen");
        line.after(u64::MAX / 2, Trick::Nothing);
        assert_eq!((reports[0].exit(), reports[0].behind), (Exit::Ok, 0), "{trick:?}: {reports:?}");
        for arc in world.arcs("b") {
            let there = rclone.dir.path().join("data/bucket/cloud").join(&arc);
            assert!(fs::read(world.path("b").join(&arc)).unwrap() == fs::read(there).unwrap(), "{trick:?}: {arc}");
        }
        world.change();
    }
}

//! `selftest -v4` against a server of our own that has the right objects, and gives something else.

use std::time::Instant;

use super::*;
use crate::dest::tests::servers::{KEY, Liar, Reply};
use crate::findings::Level;
use crate::selftest::{self, Options as Test};

/// What it does with a range of the arc that it lies about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Nothing,
    Short,
    Long,
    Shifted,
    Ignored,
    /// The right range, and other bytes.
    Changed,
    Reset,
    /// From some time on it does so whatever is asked.
    ResetAll,
    Cut,
    Stall,
    Busy,
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\n{headers}\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

/// S3 over a directory, for readers.
fn serve(place: &std::path::Path, lie: Lie, head: &str) -> Reply {
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if target.contains("list-type") {
        let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap());
        let object = |entry: fs::DirEntry| {
            let (name, len) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len());
            format!(
                "<Contents><Key>place/{name}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>\
                 <ETag>\"e\"</ETag><Size>{len}</Size></Contents>"
            )
        };
        let list: String = names.map(object).collect();
        let text = format!(
            "<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>{list}</ListBucketResult>"
        );
        return Reply::Bytes(reply("200 OK", "", text.as_bytes()));
    }
    let name = target.rsplit('/').next().unwrap_or_default();
    let Ok(all) = fs::read(place.join(name)) else { return Reply::Bytes(reply("404 Not Found", "", b"")) };
    if method == "HEAD" {
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\n\
             Content-Length: {}\r\n\r\n",
            all.len()
        );
        return Reply::Bytes(head.into_bytes());
    }
    let range = head.lines().find_map(|line| {
        let range = line.to_lowercase();
        let (from, to) = range.strip_prefix("range: bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.trim().parse::<usize>().ok()?))
    });
    let Some((from, to)) = range else { return Reply::Bytes(reply("200 OK", "", &all)) };
    let to = to.min(all.len() - 1);
    let told = |from: usize, to: usize| format!("Content-Range: bytes {from}-{to}/{}\r\n", all.len());
    let right = reply("206 Partial Content", &told(from, to), &all[from..=to]);
    if !name.starts_with("arc.0.2") {
        return Reply::Bytes(right);
    }
    Reply::Bytes(match lie {
        Lie::Nothing | Lie::ResetAll => right,
        Lie::Short => reply("206 Partial Content", &told(from, to - 5), &all[from..=to - 5]),
        Lie::Long if from == 0 => reply("206 Partial Content", &told(from, to + 5), &all[from..=to + 5]),
        Lie::Long => reply("206 Partial Content", &told(from - 5, to), &all[from - 5..=to]),
        Lie::Shifted if from == 0 => reply("206 Partial Content", &told(from + 1, to + 1), &all[from + 1..=to + 1]),
        Lie::Shifted => reply("206 Partial Content", &told(from - 1, to - 1), &all[from - 1..to]),
        Lie::Ignored => reply("200 OK", "", &all),
        Lie::Changed => {
            let mut bytes = right;
            let last = bytes.len() - 20;
            bytes[last] ^= 1;
            bytes
        }
        Lie::Reset => Vec::new(),
        Lie::Cut => right[..right.len() - 7].to_vec(),
        Lie::Stall => return Reply::Stall(right[..right.len() / 2].to_vec(), Duration::from_secs(90)),
        Lie::Busy => reply("503 Slow Down", "Retry-After: 3600\r\n", b""),
    })
}

#[test]
fn nothing_but_the_range_that_was_asked_for_is_believed_and_nobody_waits_for_ever() {
    let world = World::new(&["cloud", "usb"]);
    world.backup();
    let table = fs::read_to_string(world.path("b/dest.toml")).unwrap();
    let place = world.path("cloud");
    for (lie, code) in [
        (Lie::Nothing, None),
        (Lie::Short, Some("DEST_WRONG_RANGE")),
        (Lie::Long, Some("DEST_WRONG_RANGE")),
        (Lie::Shifted, Some("DEST_WRONG_RANGE")),
        (Lie::Ignored, Some("DEST_WRONG_RANGE")),
        (Lie::Changed, Some("ARC_TAG_MISMATCH")),
        (Lie::Reset, Some("ARC_UNREADABLE")),
        (Lie::ResetAll, Some("DEST_FAILED")),
        (Lie::Cut, None),
        (Lie::Stall, Some("DEST_TIMED_OUT")),
        (Lie::Busy, Some("DEST_BUSY")),
    ] {
        let (at, asked) = (place.clone(), lie);
        let requests = AtomicUsize::new(0);
        let liar = Liar::start(move |head| match asked {
            Lie::ResetAll if requests.fetch_add(1, Ordering::Relaxed) > 8 => Reply::Bytes(Vec::new()),
            _ => serve(&at, asked, head),
        });
        let cloud = format!(
            "[[destination]]\nname = \"cloud\"\ntype = \"s3\"\nendpoint = \"http://127.0.0.1:{}\"\nbucket = \"bucket\"\n\
             prefix = \"place\"\naccess-key = \"{KEY}\"\nsecret-key-env = \"SECRET\"\n",
            liar.port
        );
        let rest = table.find("[[destination]]\nname = \"usb\"").unwrap();
        fs::write(world.path("b/dest.toml"), cloud + &table[rest..]).unwrap();
        let begun = Instant::now();
        let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
        let report = selftest::run_everywhere(&around, &Test::of(Level::AllCopies), world.ears.as_ref()).unwrap();
        // Two deadlines of a request, and the patience.
        assert!(begun.elapsed() < Duration::from_secs(75), "{lie:?}: {:?}", begun.elapsed());
        let found: Vec<_> = report.findings.iter().map(|found| (found.error.code(), found.at.clone())).collect();
        println!("{lie:?}: {found:?} after {:?}, {} requests", begun.elapsed(), report.copies[0].requests);
        let (cloud, usb, all) = (&report.copies[0], &report.copies[1], world.arcs("b").len() as u64);
        assert_eq!((usb.arcs, usb.unproven), (all, 0), "{lie:?}");
        match lie {
            Lie::Nothing => assert!(found.is_empty() && cloud.arcs == all, "{found:?}"),
            // Either is true of it: the place answers, and never gives that object.
            Lie::Cut => assert!(!found.is_empty() && cloud.arcs < all, "{found:?}"),
            Lie::Changed | Lie::Reset => {
                assert!(found.iter().any(|(found, _)| Some(*found) == code), "{lie:?}: {found:?}");
                assert_eq!((cloud.arcs, cloud.damaged), (all - 1, 1), "{lie:?}: {cloud:?}");
            }
            _ => {
                assert_eq!(found, [(code.unwrap(), Some("cloud".into()))], "{lie:?}");
                assert!(cloud.damaged == 0 && cloud.arcs < all && cloud.unproven > 0, "{lie:?}: {cloud:?}");
            }
        }
    }
}

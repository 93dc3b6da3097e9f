//! Services that are reached by HTTP: what is refused, slow, broken or without end, and servers that send other bytes than
//! they were asked for.

use std::fs;
use std::time::Instant;

use super::servers::{self, Liar, Reply, SECRET, Server};
use super::{account_sas, code, credentials, google, open_azure, open_gcs, open_webdav, said};
use crate::dest::cloud::Cloud;
use crate::dest::http::MAX_ANSWER_BYTES;
use crate::dest::{Checksum, Compared, Lie, MAX_OBJECTS, Object, READ_LIMIT, STALL_LIMIT, Storage};
use crate::dest::{s3, settings, webdav};
use crate::error::{Error, Trouble};

#[test]
fn an_s3_place_tells_what_keeps_it_from_being_used() {
    let server = Server::rclone();
    let open = |change: &dyn Fn(&mut crate::dest::settings::S3), secret: &str| {
        let mut settings = server.s3();
        change(&mut settings);
        let credentials = crate::dest::secret::Credentials { secret: secret.to_string().into(), ..credentials() };
        s3::S3::open("cloud", &settings, &credentials).unwrap()
    };
    let no_bucket = open(&|settings| settings.bucket = "no-such-bucket".into(), SECRET);
    assert_eq!((code(no_bucket.list()), code(no_bucket.stat("arc.0.1"))), ("DEST_ABSENT", "DEST_ABSENT"));
    let wrong_key = open(&|_| {}, "another-secret");
    for denied in [wrong_key.list().unwrap_err(), wrong_key.put("arc.0.1", &&b"x"[..]).unwrap_err()] {
        assert_eq!(denied.code(), "DEST_DENIED");
        said(&denied);
    }
    let storage = open(&|_| {}, SECRET);
    drop(server);
    assert_eq!((code(storage.stat("arc.0.1")), code(storage.put("x", &&b"x"[..]))), ("DEST_FAILED", "DEST_FAILED"));
}

fn open_liar(liar: &Liar) -> Cloud<s3::S3> {
    s3::S3::open("cloud", &servers::s3(liar.port), &credentials()).unwrap()
}

/// What every service that is reached by HTTP must do.
fn each(test: impl Fn(&dyn Fn(&Liar) -> Box<dyn Storage>)) {
    test(&|liar| Box::new(open_liar(liar)));
    test(&|liar| Box::new(open_webdav(&servers::webdav(liar.port))));
    test(&|liar| Box::new(open_azure(&servers::azure(liar.port), servers::AZURE_KEY)));
    test(&|liar| Box::new(open_gcs(&google::settings(liar.port), None)));
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Reply {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\n{headers}\r\n").into_bytes();
    bytes.extend(body);
    Reply::Bytes(bytes)
}

/// Bytes 10 to 20 of 100 are asked for; nothing but just these is data.
#[test]
fn a_range_that_is_short_long_shifted_or_ignored_is_an_error_with_a_name() {
    let all: Vec<u8> = (0..100).collect();
    let of = |range: &str, len: usize, body: std::ops::Range<usize>| {
        reply("206 Partial Content", &format!("Content-Range: {range}\r\nContent-Length: {len}\r\n"), &all[body])
    };
    let right = of("bytes 10-19/100", 10, 10..20);
    let cases = [
        ("short", of("bytes 10-14/100", 5, 10..15)),
        ("short, and not told", of("bytes 10-19/100", 5, 10..15)),
        ("cut", of("bytes 10-19/100", 10, 10..15)),
        ("long", of("bytes 10-24/100", 15, 10..25)),
        ("long, and not told", of("bytes 10-19/100", 15, 10..25)),
        ("shifted", of("bytes 11-20/100", 10, 11..21)),
        ("ignored", reply("200 OK", "Content-Length: 100\r\n", &all)),
        ("no range named", reply("206 Partial Content", "Content-Length: 10\r\n", &all[10..20])),
        ("nonsense", of("bytes a-b/c", 10, 10..20)),
        ("past the end", reply("416 Range Not Satisfiable", "Content-Length: 0\r\n", &[])),
    ];
    // A part that is not called one.
    let part = reply("200 OK", "Content-Range: bytes 10-19/100\r\nContent-Length: 10\r\n", &all[10..20]);
    each(|open| {
        for (what, answer) in cases.clone() {
            let liar = Liar::start(move |_| answer.clone());
            let error = open(&liar).read("arc.0.1", 10..20).unwrap_err();
            assert_eq!((error.code(), liar.asked()), ("DEST_WRONG_RANGE", 1), "{what}: {error}");
        }
        for answer in [right.clone(), part.clone()] {
            let liar = Liar::start(move |_| answer.clone());
            assert_eq!(open(&liar).read("arc.0.1", 10..20).unwrap(), &all[10..20]);
        }
    });
}

#[test]
fn a_busy_or_broken_server_is_asked_once_and_its_word_is_kept() {
    each(|open| {
        let liar = Liar::start(move |_| reply("503 Slow Down", "Retry-After: 17\r\nContent-Length: 0\r\n", &[]));
        let storage = open(&liar);
        let put = || storage.put("a", &&b"x"[..]).map(drop);
        let errors = [storage.read("a", 0..1).map(drop), storage.list().map(drop), storage.stat("a").map(drop), put()];
        for error in errors.map(Result::unwrap_err) {
            let Error::Dest { trouble: Trouble::Busy { retry_after_s: Some(17), .. }, .. } = error else {
                panic!("{error}")
            };
        }
        assert_eq!(liar.asked(), 4);
        let liar = Liar::start(|_| Reply::Bytes(Vec::new()));
        let storage = open(&liar);
        assert_eq!((code(storage.read("a", 0..1)), code(storage.list())), ("DEST_FAILED", "DEST_FAILED"));
        let liar = Liar::start(|_| reply("200 OK", "Content-Length: 4\r\n", b"junk"));
        assert_eq!(code(open(&liar).list()), "DEST_FAILED");
    });
}

#[test]
fn refusals_of_all_services_have_the_same_names() {
    each(|open| {
        for (status, expected) in [
            ("401 Unauthorized", "DEST_DENIED"),
            ("403 Forbidden", "DEST_DENIED"),
            ("412 Precondition Failed", "DEST_EXISTS"),
            ("429 Too Many Requests", "DEST_BUSY"),
            ("507 Insufficient Storage", "DEST_FULL"),
            ("500 Internal Server Error", "DEST_FAILED"),
            ("301 Moved Permanently", "DEST_REFUSED"),
        ] {
            let liar = Liar::start(move |asked| match asked.starts_with("PUT") {
                true => reply(status, "Content-Length: 0\r\n", &[]),
                false if asked.starts_with("HEAD") => reply("200 OK", "Content-Length: 1\r\n", &[]),
                false => reply("404 Not Found", "Content-Length: 0\r\n", &[]),
            });
            let storage = open(&liar);
            assert_eq!(code(storage.lie("a", b"x", Lie::Replace)), expected, "{status}");
            // What is not found has no bytes; what is not found when it is to be removed is gone; no place is no empty one.
            assert_eq!(code(storage.put("a", &&b"x"[..])), "DEST_EXISTS");
            assert_eq!((code(storage.read("a", 0..1)), code(storage.list())), ("DEST_NOT_FOUND", "DEST_ABSENT"));
            storage.remove("a").unwrap();
        }
    });
}

/// Whatever a server sends, memory has its bounds.
#[test]
fn answers_without_end_are_refused() {
    each(|open| {
        let endless = |status: &str| {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 100000000000\r\nConnection: close\r\n\r\n");
            let mut bytes = head.into_bytes();
            bytes.resize(bytes.len() + MAX_ANSWER_BYTES + 1, b' ');
            Reply::Bytes(bytes)
        };
        let list = endless("200 OK");
        let liar = Liar::start(move |_| list.clone());
        let error = open(&liar).list().unwrap_err();
        assert!(error.code() == "DEST_REFUSED" && error.to_string().contains("more than 2 MiB"), "{error}");
        // Of an error no more is read than explains it.
        let error = endless("403 Forbidden");
        let liar = Liar::start(move |_| error.clone());
        assert_eq!((code(open(&liar).list()), code(open(&liar).read("a", 0..1))), ("DEST_DENIED", "DEST_DENIED"));
    });
}

#[test]
fn a_listing_whose_pages_have_no_end_is_refused() {
    let mut page = "<ListBucketResult><Name>bucket</Name><IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>".to_string();
    for number in 0..1000 {
        page += &format!(
            "<Contents><Key>some/where/x{number}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
        );
    }
    page += "</ListBucketResult>";
    let liar = Liar::start(move |_| reply("200 OK", &format!("Content-Length: {}\r\n", page.len()), page.as_bytes()));
    let error = open_liar(&liar).list().unwrap_err();
    assert!(error.code() == "DEST_REFUSED" && error.to_string().contains("objects"), "{error}");
    assert_eq!(liar.asked(), MAX_OBJECTS / 1000 + 1);
}

#[test]
fn an_azure_place_tells_what_keeps_it_from_being_used() {
    let server = Server::azurite();
    let no_container = settings::Azure { container: "no-such-container".into(), ..server.azure() };
    let no_container = open_azure(&no_container, servers::AZURE_KEY);
    assert_eq!((code(no_container.list()), code(no_container.stat("arc.0.1"))), ("DEST_ABSENT", "DEST_ABSENT"));
    assert_eq!(code(no_container.put("arc.0.1", &&b"x"[..])), "DEST_ABSENT");
    let expired = account_sas("2020-01-01T00:00:00Z");
    for (secret, part) in [("b3RoZXIga2V5", "b3RoZXIga2V5"), (&expired, "sig=")] {
        let storage = open_azure(&server.azure(), secret);
        for denied in [storage.list().unwrap_err(), storage.put("arc.0.1", &&b"x"[..]).unwrap_err()] {
            assert_eq!(denied.code(), "DEST_DENIED");
            assert!(!said(&denied).contains(part), "{denied}");
        }
    }
    for secret in ["no base64!", "sv=1&sig"] {
        let opened = crate::dest::azure::Azure::open("cloud", &server.azure(), &secret.to_string().into());
        assert_eq!(code(opened.map(drop)), "DEST_DENIED");
    }
    // No address with a signature in it is told either.
    let storage = open_azure(&server.azure(), &account_sas("2126-11-28T00:00:00Z"));
    drop(server);
    for failed in [storage.stat("arc.0.1").map(drop), storage.put("x", &&b"x"[..]).map(drop), storage.remove("x")] {
        let failed = failed.unwrap_err();
        assert!(failed.code() == "DEST_FAILED" && !said(&failed).contains("sig="), "{failed}");
    }
}

#[test]
fn a_google_place_tells_what_keeps_it_from_being_used() {
    let (key, account) = google::account();
    let server = google::Google::start(Some(key));
    let no_bucket = settings::Gcs { bucket: "no-such-bucket".into(), ..server.settings() };
    let no_bucket = open_gcs(&no_bucket, Some(&account));
    assert_eq!((code(no_bucket.list()), code(no_bucket.stat("arc.0.1"))), ("DEST_ABSENT", "DEST_ABSENT"));
    let (_, another) = google::account();
    for account in [Some(&another), None] {
        let storage = open_gcs(&server.settings(), account);
        assert_eq!((code(storage.list()), code(storage.put("x", &&b"x"[..]))), ("DEST_DENIED", "DEST_DENIED"));
        assert_eq!(code(storage.read("x", 0..1)), "DEST_DENIED");
    }
    assert_eq!(server.objects.lock().unwrap().len(), 0);
    let no_key = account.replace("BEGIN", "BGN");
    for account in ["{}", "{\"private_key\": \"a-secret-of-the-tests\"", no_key.as_str()] {
        let opened = crate::dest::gcs::Gcs::open("cloud", &server.settings(), Some(&account.to_string().into()));
        let error = opened.map(drop).unwrap_err();
        assert_eq!(error.code(), "DEST_DENIED");
        said(&error);
    }
}

#[test]
fn what_a_service_computed_of_what_came_is_compared_with_what_was_sent() {
    let answered = |header: &'static str| {
        Liar::start(move |asked| match asked.starts_with("PUT") {
            true => reply("201 Created", &format!("{header}\r\nContent-Length: 0\r\n"), &[]),
            false if asked.starts_with("HEAD") => reply("404 Not Found", "Content-Length: 0\r\n", &[]),
            false if asked.contains("restype=container") => {
                let text = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";
                reply("200 OK", &format!("Content-Length: {}\r\n", text.len()), text)
            }
            false => {
                let text = b"<ListBucketResult><Name>bucket</Name></ListBucketResult>";
                reply("200 OK", &format!("Content-Length: {}\r\n", text.len()), text)
            }
        })
    };
    let bytes = b"x".as_slice();
    // `printf x | md5sum`
    let md5 = |value: &str| Checksum { algorithm: "md5".into(), value: value.into() };
    let (right, other) = (md5("9dd4e461268c8034f5c8564e155c67a6"), md5("00000000000000000000000000000000"));
    for (header, found) in [
        (
            "x-goog-hash: crc32c=AAAAAA==,md5=ndTkYSaMgDT1yFZOFVxnpg==\r\nContent-MD5: ndTkYSaMgDT1yFZOFVxnpg==",
            Some(&right),
        ),
        ("x-goog-hash: md5=AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-MD5: AAAAAAAAAAAAAAAAAAAAAA==", Some(&other)),
        ("x-goog-hash: crc32c=AAAAAA==", None),
    ] {
        let told =
            found.map_or(Compared::Nothing, |found| Compared::Told { source: right.clone(), found: found.clone() });
        let liar = answered(header);
        assert_eq!(
            open_azure(&servers::azure(liar.port), servers::AZURE_KEY).put("a", &bytes).unwrap(),
            told,
            "{header}"
        );
        let liar = answered(header);
        assert_eq!(open_gcs(&google::settings(liar.port), None).put("a", &bytes).unwrap(), told, "{header}");
    }
}

#[test]
fn a_webdav_place_tells_what_keeps_it_from_being_used() {
    let server = Server::rclone_webdav();
    let no_collection = open_webdav(&settings::WebDav { url: server.webdav().url + "/deeper", ..server.webdav() });
    assert_eq!((code(no_collection.list()), code(no_collection.stat("a"))), ("DEST_ABSENT", "DEST_ABSENT"));
    assert_eq!(code(no_collection.put("a", &&b"x"[..])), "DEST_ABSENT");
    assert!(!server.dir.path().join("data/some/where/deeper").exists());
    let file = server.dir.path().join("data/some/file");
    fs::write(&file, "bytes").unwrap();
    let no_collection =
        open_webdav(&settings::WebDav { url: server.webdav().url.replace("where", "file"), ..server.webdav() });
    assert_eq!((code(no_collection.list()), code(no_collection.stat("a"))), ("DEST_ABSENT", "DEST_ABSENT"));
    let secret = "another-secret".to_string().into();
    let wrong_key = webdav::WebDav::open("cloud", &server.webdav(), Some(&secret)).unwrap();
    let nobody = webdav::WebDav::open("cloud", &settings::WebDav { user: None, ..server.webdav() }, None).unwrap();
    for storage in [wrong_key, nobody] {
        for denied in [storage.list().unwrap_err(), storage.put("arc.0.1", &&b"x"[..]).unwrap_err()] {
            assert_eq!(denied.code(), "DEST_DENIED");
            assert!(!said(&denied).contains("another-secret"));
        }
    }
    let storage = open_webdav(&server.webdav());
    drop(server);
    assert_eq!((code(storage.stat("arc.0.1")), code(storage.put("x", &&b"x"[..]))), ("DEST_FAILED", "DEST_FAILED"));
}

/// What is not said to be all of it is no listing; nothing is taken from it.
#[test]
fn a_webdav_listing_is_whole_or_an_error() {
    let response = |href: &str, props: &str| {
        format!(
            "<D:response><D:href>{href}</D:href><D:propstat><D:prop>{props}</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
        )
    };
    let root = response("/some/where/", "<D:resourcetype><D:collection/></D:resourcetype>");
    let of = |name: &str| response(name, "<D:resourcetype/><D:getcontentlength>7</D:getcontentlength>");
    let all =
        |members: &str| format!("<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{members}</D:multistatus>");
    let list = |text: String| {
        let head = format!("Content-Length: {}\r\n", text.len());
        let liar = Liar::start(move |_| reply("207 Multi-Status", &head, text.as_bytes()));
        open_webdav(&servers::webdav(liar.port)).list()
    };
    let object = |name: &str| Object { name: name.into(), len_bytes: 7 };
    assert_eq!(list(all(&root)).unwrap(), []);
    let good =
        format!("{root}{}{}{}", of("/some/where/b"), of("http://elsewhere/some/where/a%20x"), of("/some/where/c.part"));
    assert_eq!(list(all(&good)).unwrap(), [object("a x"), object("b")]);
    // A property that a server does not have is told apart from those that it has.
    let two = root.replace("</D:response>", "<D:propstat><D:prop><D:getcontentlength/></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response>");
    assert_eq!(list(all(&two)).unwrap(), []);
    let cut = all(&good);
    for (what, text) in [
        ("no root", all(&of("/some/where/b"))),
        ("nothing", all("")),
        ("cut", cut[..cut.len() - 40].to_string()),
        ("cut before the end tag", cut.replace("</D:multistatus>", "")),
        ("elsewhere", all(&format!("{root}{}", of("/some/b")))),
        ("above", all(&format!("{root}{}", of("/some/where/../b")))),
        ("deeper", all(&format!("{root}{}", of("/some/where/b/c")))),
        ("no length", all(&format!("{root}{}", response("/some/where/b", "<D:resourcetype/>")))),
        ("a file", all(&of("/some/where"))),
        (
            "full",
            all(&format!(
                "{root}<D:response><D:href>/some/where/</D:href><D:status>HTTP/1.1 507 Insufficient Storage</D:status></D:response>"
            )),
        ),
    ] {
        let error = list(text).unwrap_err();
        assert!(["DEST_FAILED", "DEST_ABSENT"].contains(&error.code()), "{what}: {error}");
    }
}

/// The name of a put that was answered by nothing is not known to be free or taken.
#[test]
fn nothing_is_waited_for_longer_than_a_deadline() {
    let begun = Instant::now();
    let stall = |head: &'static str| {
        Liar::start(move |asked| match asked.starts_with("HEAD") {
            true => reply("404 Not Found", "Content-Length: 0\r\n", &[]),
            // The bucket is there, and empty.
            false if asked.contains("list-type") && head == "put" => {
                let empty = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>";
                reply("200 OK", &format!("Content-Length: {}\r\n", empty.len()), empty)
            }
            false => Reply::Stall(head.as_bytes().to_vec(), 4 * (READ_LIMIT + STALL_LIMIT)),
        })
    };
    let (silent, half, put) = (
        stall(""),
        stall(
            "HTTP/1.1 206 Partial Content\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n12345",
        ),
        stall("put"),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(code(open_liar(&silent).read("a", 0..10)), "DEST_TIMED_OUT"));
        scope.spawn(|| assert_eq!(code(open_liar(&half).read("a", 0..10)), "DEST_TIMED_OUT"));
        scope.spawn(|| assert_eq!(code(open_liar(&silent).list()), "DEST_TIMED_OUT"));
        scope.spawn(|| assert_eq!(code(open_webdav(&servers::webdav(silent.port)).list()), "DEST_TIMED_OUT"));
        scope.spawn(|| assert_eq!(code(open_webdav(&servers::webdav(silent.port)).remove("a")), "DEST_TIMED_OUT"));
        // More than what the kernel takes without anybody reading it.
        let bytes = vec![7; 32 << 20];
        assert_eq!(code(open_liar(&put).put("a", &bytes.as_slice())), "DEST_TIMED_OUT");
    });
    assert!(begun.elapsed() < 2 * (READ_LIMIT + STALL_LIMIT), "{:?}", begun.elapsed());
}

/// A line as slow as this takes longer than any deadline, and is no trouble: bytes go.
#[test]
fn an_upload_may_take_longer_than_a_deadline_as_long_as_bytes_go() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    const BYTES: usize = 24 << 20;
    let server = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let body = match head.starts_with(b"PUT") {
                false if head.starts_with(b"HEAD") => {
                    stream
                        .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                        .unwrap();
                    continue;
                }
                false => {
                    let empty =
                        "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>";
                    let head =
                        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", empty.len());
                    stream.write_all((head + empty).as_bytes()).unwrap();
                    continue;
                }
                true => BYTES,
            };
            // So that all of it takes 1.5 times as long as nothing may go.
            let (mut left, mut piece) = (body, vec![0; BYTES / 100]);
            while left > 0 {
                let count = piece.len().min(left);
                stream.read_exact(&mut piece[..count]).unwrap();
                left -= count;
                std::thread::sleep((STALL_LIMIT + STALL_LIMIT / 2) / 100);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            return;
        }
    });
    let storage = s3::S3::open("cloud", &servers::s3(port), &credentials()).unwrap();
    let begun = Instant::now();
    storage.put("arc.0.1", &vec![7; BYTES].as_slice()).unwrap();
    assert!(begun.elapsed() > STALL_LIMIT, "{:?}", begun.elapsed());
    server.join().unwrap();
}

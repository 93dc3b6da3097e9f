//! A small Google Cloud Storage: the requests of the XML API that Gcs makes, as Google's reference has them. (The emulators
//! that can be had know no listing, no HEAD, no DELETE and no precondition there.)

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use sha2::Digest;

use crate::dest::secret::Secret;
use crate::dest::settings::{Gcs, SecretFrom};
use crate::sync::lock;

/// So that a listing has pages.
const PAGE_OBJECTS: usize = 4;

pub struct Google {
    pub port: u16,
    pub objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer(u16, Vec<(&'static str, String)>, Vec<u8>);

/// The key of a service account, made for a test.
pub fn account() -> (PKey<Private>, Secret) {
    let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
    let pem = String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let json = serde_json::json!({
        "type": "service_account", "private_key_id": "1", "private_key": pem, "client_email": "tests@example.org",
    });
    (key, json.to_string().into())
}

impl Google {
    /// `key`: of the one account that is let in; without it everybody is.
    pub fn start(key: Option<PKey<Private>>) -> Google {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let objects = Arc::new(Mutex::new(BTreeMap::new()));
        let all = objects.clone();
        // It ends with the process: nobody asks it after its test.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (all, key) = (all.clone(), key.clone());
                std::thread::spawn(move || serve(stream, &all, key.as_ref()));
            }
        });
        Google { port, objects }
    }

    pub fn settings(&self) -> Gcs {
        settings(self.port)
    }
}

pub fn settings(port: u16) -> Gcs {
    Gcs {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        bucket: "bucket".into(),
        prefix: "some/where/".into(),
        secret: SecretFrom::Usual,
        class: None,
    }
}

fn serve(mut stream: TcpStream, all: &Mutex<BTreeMap<String, Vec<u8>>>, key: Option<&PKey<Private>>) {
    let Some(request) = read(&stream) else { return };
    let Answer(status, headers, body) = match is_let_in(&request, key) {
        true => answer(&request, &mut lock(all)),
        false => error(401, "AuthenticationRequired"),
    };
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !head.contains("Content-Length") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    let _ = stream.write_all((head + "\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&body);
    }
}

/// A request with all of its body; None where the connection ended before.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_string())
    };
    let first = line()?;
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_string(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().to_string();
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (plain(name), plain(value)));
    let query = query.split('&').filter_map(pair).collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |len| len.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path: plain(path), query, headers, body })
}

/// By a token that the account has signed itself.
fn is_let_in(request: &Request, key: Option<&PKey<Private>>) -> bool {
    let Some(key) = key else { return true };
    let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let Some((signed, signature)) = token.and_then(|token| token.rsplit_once('.')) else { return false };
    let mut verifier = openssl::sign::Verifier::new(MessageDigest::sha256(), key).unwrap();
    let signature = Base64UrlUnpadded::decode_vec(signature).unwrap_or_default();
    let claims = signed.split_once('.').and_then(|(_, claims)| Base64UrlUnpadded::decode_vec(claims).ok());
    let is_ours = claims.is_some_and(|claims| String::from_utf8_lossy(&claims).contains("tests@example.org"));
    verifier.verify_oneshot(&signature, signed.as_bytes()).unwrap_or(false) && is_ours
}

fn error(status: u16, code: &str) -> Answer {
    Answer(status, Vec::new(), format!("<?xml version='1.0'?><Error><Code>{code}</Code></Error>").into_bytes())
}

fn answer(request: &Request, all: &mut BTreeMap<String, Vec<u8>>) -> Answer {
    let Some(path) = request.path.strip_prefix("/bucket") else { return error(404, "NoSuchBucket") };
    let name = path.trim_start_matches('/').to_string();
    match (request.method.as_str(), all.get(&name)) {
        ("GET", _) if name.is_empty() => list(&request.query, all),
        ("PUT", found) => {
            if request.headers.get("x-goog-if-generation-match").is_some_and(|wanted| wanted == "0") && found.is_some()
            {
                return error(412, "PreconditionFailed");
            }
            let md5 = Base64::encode_string(&md5::Md5::digest(&request.body));
            if request.headers.get("content-md5").is_some_and(|told| *told != md5) {
                return error(400, "BadDigest");
            }
            all.insert(name, request.body.clone());
            let hashes = vec![("x-goog-hash", "crc32c=AAAAAA==".into()), ("x-goog-hash", format!("md5={md5}"))];
            Answer(200, hashes, Vec::new())
        }
        (_, None) => error(404, "NoSuchKey"),
        ("DELETE", Some(_)) => {
            all.remove(&name);
            Answer(204, vec![("Content-Length", "0".into())], Vec::new())
        }
        ("GET" | "HEAD", Some(bytes)) => {
            let mut headers = vec![
                ("ETag", "\"e\"".to_string()),
                ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".into()),
                ("x-goog-generation", "1".into()),
            ];
            let Some(range) = request.headers.get("range") else {
                headers.push(("Content-Length", bytes.len().to_string()));
                return Answer(200, headers, bytes.clone());
            };
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            if first >= bytes.len() {
                return error(416, "InvalidRange");
            }
            let last = last.min(bytes.len() - 1);
            headers.push(("Content-Range", format!("bytes {first}-{last}/{}", bytes.len())));
            Answer(206, headers, bytes[first..=last].to_vec())
        }
        _ => error(405, "MethodNotAllowed"),
    }
}

fn list(query: &BTreeMap<String, String>, all: &BTreeMap<String, Vec<u8>>) -> Answer {
    assert_eq!((query["list-type"].as_str(), query["delimiter"].as_str()), ("2", "/"));
    let prefix = query.get("prefix").map_or("", String::as_str);
    let most = query["max-keys"].parse::<usize>().unwrap().min(PAGE_OBJECTS);
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let is_here = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.contains('/'));
    let found: Vec<_> = all.iter().filter(|(name, _)| is_here(name) && **name > after).collect();
    let mut text = "<?xml version='1.0'?><ListBucketResult><Name>bucket</Name>".to_string();
    let page = &found[..found.len().min(most)];
    for (name, bytes) in page {
        let size = bytes.len();
        text += &format!("<Contents><Key>{name}</Key><Generation>1</Generation><MetaGeneration>1</MetaGeneration>");
        text += &format!(
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
        );
    }
    if let (true, Some((last, _))) = (page.len() < found.len(), page.last()) {
        text += &format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>");
    }
    Answer(200, Vec::new(), (text + "</ListBucketResult>").into_bytes())
}

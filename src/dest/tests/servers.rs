//! Real servers on the loopback interface, started by the tests that need them; one that can't be started fails the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::dest::settings::{self, SecretFrom};

/// rclone takes none that is shorter than three letters.
pub const KEY: &str = "key-of-the-tests";
pub const SECRET: &str = "a-secret-of-the-tests";
/// In Base64, as keys of Azure are.
pub const AZURE_KEY: &str = "YS1zZWNyZXQtb2YtdGhlLXRlc3Rz";
/// Starting a server in Python takes its time on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A process that ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: TempDir,
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
    fn start(dir: TempDir, command: impl FnOnce(&Path, u16) -> Command) -> Server {
        let port = free_port();
        let mut command = command(dir.path(), port);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let started = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = started.unwrap_or_else(|error| {
            panic!("{command:?}: {error}: run contrib/debian-packages test and contrib/test-servers")
        });
        let mut server = Server { child, port, dir };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < START_LIMIT, "{command:?} does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// rclone over a directory of its own, with one bucket.
    pub fn rclone() -> Server {
        // Else it reads a whole object for each answer.
        Server::rclone_serve("s3", "bucket", &["--auth-key", &format!("{KEY},{SECRET}"), "--etag-hash", ""])
    }

    /// The same by WebDAV, with a collection.
    pub fn rclone_webdav() -> Server {
        Server::rclone_serve("webdav", "some/where", &["--user", KEY, "--pass", SECRET])
    }

    fn rclone_serve(protocol: &str, place: &str, more: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("data").join(place)).unwrap();
        Server::start(dir, |dir, port| {
            let mut command = Command::new(test_servers().join("rclone"));
            command.args(["serve", protocol, "--addr", &format!("127.0.0.1:{port}")]);
            // What it remembers of the directory would answer for what is there; with 0 it does nothing but forget.
            command.args(["--config", "/dev/null", "--vfs-cache-mode", "off", "--dir-cache-time", "1ms"]);
            command.args(more).arg(dir.join("data"));
            command
        })
    }

    /// Azurite, with its objects in memory, and one container.
    pub fn azurite() -> Server {
        let server = Server::start(tempfile::tempdir().unwrap(), |dir, port| {
            let mut command = Command::new(test_servers().join("azurite/node_modules/.bin/azurite-blob"));
            command.env("AZURITE_ACCOUNTS", format!("testaccount:{AZURE_KEY}"));
            command.args(["--blobPort", &port.to_string(), "--inMemoryPersistence", "--skipApiVersionCheck"]);
            command.args(["--silent", "--disableTelemetry"]).current_dir(dir);
            command
        });
        crate::dest::azure::make_container(&server.azure(), AZURE_KEY);
        server
    }

    pub fn azure(&self) -> settings::Azure {
        azure(self.port)
    }

    /// moto, without a bucket.
    pub fn moto() -> Server {
        Server::start(tempfile::tempdir().unwrap(), |_, port| {
            let mut command = Command::new(test_servers().join("venv/bin/moto_server"));
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        })
    }

    pub fn s3(&self) -> settings::S3 {
        s3(self.port)
    }

    pub fn webdav(&self) -> settings::WebDav {
        webdav(self.port)
    }

    /// Makes the bucket, where the server takes any word for who we are.
    pub fn with_bucket(self) -> Server {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let auth = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        write!(stream, "PUT /bucket HTTP/1.1\r\nHost: localhost\r\nAuthorization: {auth}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        self
    }

    /// OpenSSH's own server, with keys of its own, for the user who runs the tests.
    pub fn sshd() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.expect("ssh-keygen: apt-get install openssh-client").success());
        }
        std::fs::copy(at("user.pub"), at("authorized")).unwrap();
        // Where it is root's, it wants this to be there.
        let _ = std::fs::create_dir_all("/run/sshd");
        std::fs::create_dir(at("data")).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nMaxStartups 100\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
            at("host"),
            at("authorized")
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let host_key = std::fs::read_to_string(at("host.pub")).unwrap();
        let server = Server::start(dir, |dir, port| {
            let mut command = Command::new("/usr/sbin/sshd");
            command.args(["-D", "-e", "-p", &port.to_string(), "-f"]).arg(dir.join("sshd_config"));
            command
        });
        let at = |name: &str| server.dir.path().join(name).to_str().unwrap().to_string();
        std::fs::write(at("known"), format!("[127.0.0.1]:{} {host_key}", server.port)).unwrap();
        let client = format!(
            "Host there\nHostName 127.0.0.1\nPort {}\nIdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n",
            server.port,
            at("user"),
            at("known")
        );
        std::fs::write(at("config"), client).unwrap();
        server
    }

    pub fn sftp(&self) -> settings::Sftp {
        let at = |name: &str| self.dir.path().join(name).to_str().unwrap().to_string();
        let ssh_command = vec!["ssh".to_string(), "-F".to_string(), at("config")];
        settings::Sftp { host: "there".into(), user: None, port: None, path: at("data"), ssh_command }
    }
}

pub fn s3(port: u16) -> settings::S3 {
    settings::S3 {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        bucket: "bucket".into(),
        prefix: "some/where/".into(),
        region: "us-east-1".into(),
        access_key: Some(KEY.into()),
        secret: SecretFrom::Variable("SECRET".into()),
        class: None,
    }
}

pub fn azure(port: u16) -> settings::Azure {
    settings::Azure {
        endpoint: Some(format!("http://127.0.0.1:{port}/testaccount")),
        account: "testaccount".into(),
        container: "container".into(),
        prefix: "some/where/".into(),
        secret: SecretFrom::Variable("SECRET".into()),
        class: None,
    }
}

pub fn webdav(port: u16) -> settings::WebDav {
    settings::WebDav {
        url: format!("http://127.0.0.1:{port}/some/where"),
        user: Some(KEY.into()),
        password: SecretFrom::Variable("SECRET".into()),
    }
}

fn test_servers() -> PathBuf {
    let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers");
    std::env::var_os("ASSAY_TEST_SERVERS").map_or_else(usual, PathBuf::from)
}

/// What a server that is broken, or lies, answers: bytes as they go over the line.
#[derive(Clone)]
pub enum Reply {
    Bytes(Vec<u8>),
    /// The bytes, and then nothing, for so long.
    Stall(Vec<u8>, Duration),
}

/// A server of our own that reads requests (head, and body by its length) and answers what it is told to.
pub struct Liar {
    pub port: u16,
    asked: Arc<AtomicUsize>,
}

impl Liar {
    pub fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::new(answer), asked.clone());
        // It ends with the process: nobody asks it after its test.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, count) = (answer.clone(), count.clone());
                std::thread::spawn(move || serve(stream, answer.as_ref(), &count));
            }
        });
        Liar { port, asked }
    }

    /// Requests that came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&str) -> Reply, count: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    count.fetch_add(1, Ordering::Relaxed);
    let reply = answer(&head);
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    if let Reply::Stall(_, time) = &reply
        && length.is_some()
    {
        // The body is not read either.
        return std::thread::sleep(*time);
    }
    let _ = std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink());
    match reply {
        Reply::Bytes(bytes) => drop(stream.write_all(&bytes)),
        Reply::Stall(bytes, time) => {
            let _ = stream.write_all(&bytes);
            std::thread::sleep(time);
        }
    }
}

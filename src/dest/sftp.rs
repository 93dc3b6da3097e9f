//! A directory on a machine that is reached by ssh, by the SFTP protocol.
//!
//! Invariants: the connection is the user's own `ssh -s sftp` (its configuration, agent, jump hosts and known hosts), which
//! may ask nothing; requests of all callers share it, and one that is lost is made anew; an object gets its name when all of
//! it was written, and made durable where the server can do that.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error as Client;
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use tokio::runtime::Handle;

use super::dir::PART;
use super::ssh::Ssh;
use super::{Body, Compared, Lie, MAX_OBJECTS, Object, READ_LIMIT, STALL_LIMIT, Storage, settings};
use super::{check_range, pieces, runtime, too_many, trouble, wrong_range};
use crate::error::{Error, Result, Trouble};
use crate::sync::lock;
use crate::text::one_line;

/// Bytes of one request, which every server takes, and how many requests of an object are on their way.
const REQUEST_BYTES: u64 = 32 << 10;
const IN_FLIGHT: usize = 64;

pub struct Sftp {
    name: String,
    settings: settings::Sftp,
    session: Mutex<Option<Arc<Session>>>,
    runtime: Handle,
}

/// A connection, and what the server said of itself.
struct Session {
    raw: RawSftpSession,
    ssh: Ssh,
    can_fsync: bool,
}

/// What ends an act early.
enum Stop {
    Client(Client),
    Ours(Error),
}

fn lost() -> Client {
    Client::IO("it ended".into())
}

impl From<Client> for Stop {
    fn from(error: Client) -> Stop {
        Stop::Client(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Ours(error)
    }
}

impl Sftp {
    /// # Errors
    /// `Absent` where the directory is not there; what keeps ssh from connecting.
    pub fn open(name: &str, settings: &settings::Sftp) -> Result<Sftp> {
        let (name, settings) = (name.to_string(), settings.clone());
        let sftp = Sftp { name, settings, session: Mutex::default(), runtime: runtime::handle()? };
        sftp.session()?;
        Ok(sftp)
    }

    /// As if the line had been cut.
    #[cfg(test)]
    pub fn kill_connection(&self) {
        if let Some(session) = &*lock(&self.session) {
            session.ssh.kill();
        }
    }

    fn path(&self, object: &str) -> String {
        format!("{}/{object}", self.settings.path.trim_end_matches('/'))
    }

    /// The connection, and whether it is a new one.
    fn session(&self) -> Result<(Arc<Session>, bool)> {
        let mut session = lock(&self.session);
        if let Some(session) = &*session {
            return Ok((session.clone(), false));
        }
        let ssh = Ssh::start(&self.name, &self.settings, &self.runtime)?;
        let made = self.runtime.block_on(runtime::within(READ_LIMIT, &self.name, "", "no connection", self.greet(ssh)));
        let made = Arc::new(made??);
        *session = Some(made.clone());
        Ok((made, true))
    }

    async fn greet(&self, mut ssh: Ssh) -> Result<Session> {
        let raw = RawSftpSession::new(ssh.take_stream()?);
        // Our own deadlines are of what goes, not of one request.
        raw.set_timeout(u64::from(u32::MAX));
        let version = match ssh.unless_lost(raw.init()).await.unwrap_or(Err(lost())) {
            Ok(version) => version,
            Err(error) => return Err(trouble(&self.name, "", ssh.why_lost(&error.to_string()))),
        };
        let fsync = version.extensions.get(russh_sftp::extensions::FSYNC);
        let session = Session { raw, ssh, can_fsync: fsync.is_some_and(|version| version == "1") };
        let checked = session.ssh.unless_lost(self.check_root(&session)).await;
        checked.unwrap_or(Err(lost().into())).map_err(|stop| self.failed(&session, "", stop))?;
        Ok(session)
    }

    /// Without its root nothing is missing: the place is absent.
    async fn check_root(&self, session: &Session) -> Result<(), Stop> {
        let absent = |what: &str| trouble(&self.name, "", Trouble::Absent(format!("{}: {what}", self.settings.path)));
        match session.raw.stat(self.settings.path.clone()).await {
            Ok(found) if found.attrs.file_type().is_dir() => Ok(()),
            Ok(_) => Err(absent("it is no directory").into()),
            Err(Client::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                Err(absent("no such directory").into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn failed(&self, session: &Session, object: &str, stop: Stop) -> Error {
        let error = match stop {
            Stop::Ours(error) => return error,
            Stop::Client(error) => error,
        };
        let kind = match &error {
            Client::Status(status) => match status.status_code {
                StatusCode::NoSuchFile => Trouble::NotFound,
                StatusCode::PermissionDenied => Trouble::Denied(one_line(&status.error_message)),
                StatusCode::Failure => Trouble::Failed(one_line(&status.error_message)),
                _ => Trouble::Refused(one_line(&status.error_message)),
            },
            lost => session.ssh.why_lost(&lost.to_string()),
        };
        trouble(&self.name, object, kind)
    }

    /// Does something over the connection; over a new one if that was lost, and the act can be done again.
    fn act<T>(&self, object: &str, again: bool, act: impl AsyncFn(&Session) -> Result<T, Stop>) -> Result<T> {
        loop {
            let (session, is_new) = self.session()?;
            let acted = self.runtime.block_on(session.ssh.unless_lost(act(&session)));
            let stop = match acted.unwrap_or(Err(lost().into())) {
                Ok(done) => return Ok(done),
                Err(stop) => stop,
            };
            let is_lost = match &stop {
                Stop::Client(error) => !matches!(error, Client::Status(_)),
                Stop::Ours(error) => matches!(error, Error::Dest { trouble: Trouble::TimedOut { .. }, .. }),
            };
            if is_lost {
                lock(&self.session).take_if(|current| Arc::ptr_eq(current, &session));
            }
            if !is_lost || is_new || !again || matches!(stop, Stop::Ours(_)) {
                return Err(self.failed(&session, object, stop));
            }
        }
    }

    /// As `act`, for what takes a moment and can be done again.
    fn short<T>(&self, object: &str, act: impl AsyncFn(&Session) -> Result<T, Stop>) -> Result<T> {
        self.act(object, true, async |session| self.soon(object, act(session)).await?)
    }

    /// What a request gives, within the time that one may take.
    async fn soon<T>(&self, object: &str, request: impl Future<Output = T>) -> Result<T> {
        runtime::within(READ_LIMIT, &self.name, object, "no answer", request).await
    }

    async fn stat_in(&self, session: &Session, object: &str) -> Result<Option<u64>, Stop> {
        match session.raw.lstat(self.path(object)).await {
            Ok(found) if found.attrs.file_type().is_file() => match found.attrs.size {
                Some(size) => Ok(Some(size)),
                None => Err(trouble(&self.name, object, Trouble::Refused("the server tells no length".into())).into()),
            },
            Ok(_) => Err(trouble(&self.name, object, Trouble::Refused("it is no regular file".into())).into()),
            Err(Client::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                self.check_root(session).await.map(|()| None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all of it under another name, durably where the server can do that.
    async fn write_part(&self, session: &Session, object: &str, body: &dyn Body) -> Result<(), Stop> {
        let raw = &session.raw;
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let private = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
        let opening = raw.open(self.path(object) + PART, flags, private);
        let file = self.soon(object, opening).await??.handle;
        let written = self.write_all(session, object, body, &file).await;
        // What is open takes room, also when it has no name any more.
        let closed = self.soon(object, raw.close(file)).await;
        written?;
        closed??;
        Ok(())
    }

    async fn write_all(&self, session: &Session, object: &str, body: &dyn Body, file: &str) -> Result<(), Stop> {
        let (raw, name) = (&session.raw, &self.name);
        let mut writes = FuturesUnordered::new();
        for piece in pieces(body, REQUEST_BYTES) {
            let (at, bytes) = piece?;
            writes.push(raw.write(file, at, bytes));
            if writes.len() >= IN_FLIGHT {
                let written = runtime::within(STALL_LIMIT, name, object, "nothing could be sent", writes.next());
                written.await?.transpose()?;
            }
        }
        while !writes.is_empty() {
            let written = runtime::within(STALL_LIMIT, name, object, "nothing could be sent", writes.next());
            written.await?.transpose()?;
        }
        if session.can_fsync {
            runtime::within(SYNC_LIMIT, name, object, "not on its disk", raw.fsync(file)).await??;
        }
        Ok(())
    }

    /// Writes an object and gives it its name, which must not be taken.
    async fn put_in(&self, session: &Session, object: &str, body: &dyn Body) -> Result<(), Stop> {
        let part = self.path(object) + PART;
        let written = self.write_part(session, object, body).await;
        let named = match written {
            Ok(()) => {
                let renaming = session.raw.rename(part.clone(), self.path(object));
                self.soon(object, renaming).await?.map(drop)
            }
            Err(Stop::Client(error)) => Err(error),
            Err(Stop::Ours(error)) => return Err(error.into()),
        };
        let Err(error) = named else { return Ok(()) };
        // The protocol's "failure" has no reason; these are the two that matter.
        if matches!(&error, Client::Status(status) if status.status_code == StatusCode::Failure) {
            let _ = self.soon(object, session.raw.remove(part)).await?;
            if self.soon(object, self.stat_in(session, object)).await??.is_some() {
                return Err(trouble(&self.name, object, Trouble::Exists).into());
            }
            let room = self.soon(object, session.raw.statvfs(self.settings.path.clone())).await?;
            if room.is_ok_and(|room| room.blocks_avail.saturating_mul(room.fragment_size) < body.len_bytes()) {
                return Err(trouble(&self.name, object, Trouble::Full("no space left on its disk".into())).into());
            }
        }
        Err(error.into())
    }

    async fn read_piece(
        &self,
        session: &Session,
        object: &str,
        file: &str,
        part: Range<u64>,
        all: &Range<u64>,
    ) -> Result<Vec<u8>, Stop> {
        let mut bytes: Vec<u8> = Vec::new();
        let len = part.end - part.start;
        while (bytes.len() as u64) < len {
            let have = bytes.len() as u64;
            let read = session.raw.read(file, part.start + have, (len - have) as u32).await;
            let got = match read {
                Ok(data) => data.data,
                Err(Client::Status(status)) if status.status_code == StatusCode::Eof => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            if got.is_empty() || got.len() as u64 > len - have {
                let found = format!("{} bytes at {}", got.len(), part.start + have);
                return Err(wrong_range(&self.name, object, all, found).into());
            }
            bytes.extend(got);
        }
        Ok(bytes)
    }

    async fn read_in(&self, session: &Session, object: &str, range: &Range<u64>) -> Result<Vec<u8>, Stop> {
        let file = session.raw.open(self.path(object), OpenFlags::READ, FileAttributes::empty()).await?.handle;
        let starts = (0..(range.end - range.start).div_ceil(REQUEST_BYTES)).map(|no| range.start + no * REQUEST_BYTES);
        let reads = starts.map(|start| {
            let part = start..range.end.min(start + REQUEST_BYTES);
            self.read_piece(session, object, &file, part, range)
        });
        let read = stream::iter(reads).buffered(IN_FLIGHT).try_concat().await;
        session.raw.close(file.clone()).await?;
        read
    }

    async fn list_in(&self, session: &Session) -> Result<Vec<Object>, Stop> {
        let opening = async {
            match session.raw.opendir(self.settings.path.clone()).await {
                Err(Client::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                    self.check_root(session).await?;
                    Err(Stop::from(Client::Status(status)))
                }
                other => Ok(other?.handle),
            }
        };
        let dir = self.soon("", opening).await??;
        let mut objects = Vec::new();
        loop {
            let names = match self.soon("", session.raw.readdir(dir.clone())).await? {
                Ok(names) => names.files,
                Err(Client::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(error) => return Err(error.into()),
            };
            for file in names {
                if let (true, Some(len_bytes)) = (file.attrs.file_type().is_file(), file.attrs.size)
                    && !file.filename.ends_with(PART)
                {
                    objects.push(Object { name: file.filename, len_bytes });
                }
            }
            if objects.len() > MAX_OBJECTS {
                return Err(trouble(&self.name, "", too_many()).into());
            }
        }
        self.soon("", session.raw.close(dir)).await??;
        objects.sort();
        Ok(objects)
    }
}

/// A disk may take its time to have it all.
const SYNC_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

impl Storage for Sftp {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        // Some servers' rename replaces.
        if self.stat(object)?.is_some() {
            return Err(trouble(&self.name, object, Trouble::Exists));
        }
        self.act(object, false, async |session| self.put_in(session, object, body).await)?;
        Ok(Compared::Nothing)
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        self.short(object, async |session| self.stat_in(session, object).await)
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        check_range(&self.name, object, &range)?;
        self.short(object, async |session| self.read_in(session, object, &range).await)
    }

    fn list(&self) -> Result<Vec<Object>> {
        self.act("", true, async |session| self.list_in(session).await)
    }

    fn remove(&self, object: &str) -> Result<()> {
        self.short(object, async |session| match session.raw.remove(self.path(object)).await {
            Err(Client::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                self.check_root(session).await
            }
            other => Ok(other.map(drop)?),
        })
    }

    fn lies(&self) -> &'static [Lie] {
        &[Lie::Replace]
    }

    fn lie(&self, object: &str, bytes: &[u8], _: Lie) -> Result<()> {
        self.act(object, false, async |session| self.put_in(session, object, &bytes).await)
    }
}

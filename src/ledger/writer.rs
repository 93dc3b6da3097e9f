//! The segment that this process appends to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{By, Extent, How, Record};
use crate::crypto::Keys;
use crate::error::Result;
use crate::ids::{ArcSerial, CopyId, FrameNo, Logid};

/// Takes notes from any thread; `flush` makes them durable.
pub struct LedgerWriter {
    _dir: PathBuf,
    _keys: Arc<Keys>,
}

impl LedgerWriter {
    /// Nothing is written before the first `flush` that has something to say.
    pub fn new(dir: &Path, keys: Arc<Keys>, _by: By) -> LedgerWriter {
        LedgerWriter { _dir: dir.to_path_buf(), _keys: keys }
    }

    /// A frame was verified just now. Never waits for the disk.
    pub fn frame(&self, _arc: ArcSerial, _copy: CopyId, _no: FrameNo, _how: How) {}

    /// A file was read just now, to this extent. Never waits for the disk.
    pub fn file(&self, _logid: Logid, _extent: Extent) {}

    pub fn record(&self, _record: Record) {}

    /// Appends what was noted since the last time.
    pub fn flush(&self) -> Result<()> {
        Ok(())
    }
}

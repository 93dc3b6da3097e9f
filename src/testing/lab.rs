//! The backup dir that the tests damage, kept in memory, and what its versions must look like.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::Rng;
use super::questions::{Reader, Truth};
use crate::backup::{self, Options, Summary};
use crate::backupdir::{BackupDir, Config};
use crate::catalog::{Child, Kind};
use crate::ids::{ArcName, ArcSerial, Version};
use crate::index::IndexWriter;
use crate::ledger::Ledger;
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::os::{DirFd, xattr};
use crate::recover::OnLoss;
use crate::run::{Run, records};

/// File name → bytes.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A directory in memory if there is room for one: damaged copies need no disk.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Four versions of a small tree, and all that can be asked about them.
pub struct Lab {
    pub files: Files,
    pub truth: Truth,
}

/// Made once, for all tests that damage copies of it.
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let source = Source::new();
        let copy = Copy::init();
        let fixed = Options { fixed_block: Some(512), ..Options::default() };
        let mut snapshots = Vec::new();
        for step in 0..4 {
            source.change(step);
            let options = if step == 0 { fixed.clone() } else { Options::default() };
            copy.backup(&source, &options);
            snapshots.push(source.snapshot());
        }
        let reader = copy.reader();
        for (n, snapshot) in snapshots.iter().enumerate() {
            assert_same(&reader, Version(n as u32), source.path(), snapshot);
        }
        Lab { files: copy.files(), truth: Truth::of(&reader) }
    })
}

/// A directory that is backed up.
pub struct Source(TempDir);

impl Source {
    pub fn new() -> Source {
        Source(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.join(name).parent().unwrap()).unwrap();
        fs::write(self.join(name), bytes).unwrap();
    }

    pub fn set_xattr(&self, name: &str, attribute: &str, value: &[u8]) {
        let dir = DirFd::open(self.path()).unwrap();
        xattr::set(xattr::Subject::At(&dir, name.as_bytes()), attribute.as_bytes(), value).unwrap();
    }

    /// What each version of the lab changes.
    fn change(&self, step: u64) {
        let mut rng = Rng::new(step + 1);
        match step {
            0 => self.make(&mut rng),
            1 => {
                self.write("dirs/d1/f0", b"changed");
                fs::remove_dir_all(self.join("dirs/d2")).unwrap();
                fs::remove_file(self.join("dirs/d3/f0")).unwrap();
                self.write("dirs/d3/f0/now", b"a directory took a file's place");
                fs::remove_dir_all(self.join("dirs/d4")).unwrap();
                self.write("dirs/d4", b"a file took a directory's place");
                fs::hard_link(self.join("hard"), self.join("dirs/d5/hard3")).unwrap();
                fs::rename(self.join("dirs/d6"), self.join("dirs/e6")).unwrap();
                self.set_xattr("small", "user.big", &rng.noise(2500));
            }
            2 => {
                self.write("noise", &rng.noise(9000));
                self.write("dirs/d1/f0", b"changed again");
                let long = fs::OpenOptions::new().write(true).open(self.join("long")).unwrap();
                long.write_all_at(b"CHANGED", 20_000).unwrap();
                fs::remove_file(self.join("hard2")).unwrap();
                fs::set_permissions(self.join("dirs/d7"), fs::Permissions::from_mode(0o2751)).unwrap();
            }
            _ => {
                self.write("dirs/d2/back", b"a name that was gone for a version");
                fs::remove_file(self.join("dirs/d4")).unwrap();
                for n in 0..40 {
                    self.write(&format!("wide/{n:03}"), format!("file {n}").as_bytes());
                }
            }
        }
    }

    fn make(&self, rng: &mut Rng) {
        for n in 0..9 {
            for m in 0..3 {
                self.write(&format!("dirs/d{n}/f{m}"), format!("file {m} of directory {n}").as_bytes());
            }
        }
        self.write("dirs/d8/deep/er/file", b"deep");
        fs::create_dir(self.join("dirs/d8/nothing")).unwrap();
        self.write("empty", b"");
        self.write("small", b"small");
        self.set_xattr("small", "user.big", &rng.noise(3000));
        self.set_xattr("dirs", "user.of-a-directory", b"value");
        self.write("hard", b"three names");
        fs::hard_link(self.join("hard"), self.join("hard2")).unwrap();
        fs::hard_link(self.join("hard"), self.join("dirs/d0/hard")).unwrap();
        symlink("small", self.join("link")).unwrap();
        symlink(format!("/nowhere/{}", "x".repeat(900)), self.join("dangling")).unwrap();
        // Six blocks of 512 bytes that zstd can't shrink: frames of equal length.
        self.write("blocks", &rng.noise(3000));
        // 72 different blocks that shrink well: more segments than a node carries itself.
        let long: String = (0..72)
            .map(|n| format!("{n:02} {}\n", "one line of a block ".repeat(26))[..512].into())
            .collect::<Vec<String>>()
            .concat();
        self.write("long", long.as_bytes());
        let sparse = fs::File::create(self.join("sparse")).unwrap();
        sparse.set_len(300_000).unwrap();
        sparse.write_all_at(b"island", 100_000).unwrap();
        let here = DirFd::open(self.path()).unwrap();
        here.mknod_at(b"fifo", Kind::Fifo, 0o640, 0, 0).unwrap();
        fs::write(self.path().join(OsStr::from_bytes(b"not utf-8 \xff\n")), b"odd").unwrap();
        fs::write(self.path().join("n".repeat(255)), b"long name").unwrap();
        fs::set_permissions(self.join("small"), fs::Permissions::from_mode(0o4711)).unwrap();
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut found = Snapshot::new();
        look(self.path(), Vec::new(), &mut found);
        found
    }
}

/// What std::fs says of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snap {
    pub kind: Kind,
    pub perm: u32,
    pub owner: (u32, u32),
    pub size: u64,
    pub mtime: (i64, i64),
    pub nlink: u64,
    pub ino: u64,
    /// Bytes of a file, target of a symlink.
    pub content: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Path relative to the source (empty for itself) → what is there.
pub type Snapshot = BTreeMap<Vec<u8>, Snap>;

fn look(path: &Path, relative: Vec<u8>, into: &mut Snapshot) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = crate::os::stat::kind_of(meta.mode()).unwrap();
    let content = match kind {
        Kind::File => fs::read(path).unwrap(),
        Kind::Symlink => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let parent = DirFd::open(path.parent().unwrap()).unwrap();
    let subject = xattr::Subject::At(&parent, path.file_name().unwrap().as_bytes());
    let mut xattrs: Vec<_> = xattr::list(subject)
        .unwrap()
        .into_iter()
        .map(|name| (name.clone(), xattr::get(subject, &name).unwrap()))
        .collect();
    xattrs.sort();
    if kind == Kind::Dir {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let mut below = relative.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(entry.file_name().as_bytes());
            look(&entry.path(), below, into);
        }
    }
    let snap = Snap {
        kind,
        perm: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        size: meta.size(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        nlink: meta.nlink(),
        ino: meta.ino(),
        content,
        xattrs,
    };
    into.insert(relative, snap);
}

/// Proves that a version shows exactly what the snapshot has, and that its totals add up.
pub fn assert_same(reader: &Reader, v: Version, source: &Path, wanted: &Snapshot) {
    let shown = reader.below(v, source.as_os_str().as_bytes());
    let names = |all: &BTreeMap<Vec<u8>, _>| all.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
    let (left, right): (Vec<String>, Vec<String>) = (names(&shown.keys().map(|k| (k.clone(), ())).collect()), {
        names(&wanted.keys().map(|k| (k.clone(), ())).collect())
    });
    assert_eq!(left, right, "names in {v}");
    let mut inodes = BTreeSet::new();
    for (path, child) in &shown {
        let at = String::from_utf8_lossy(path).into_owned();
        let mut want = wanted[path].clone();
        let (attr, content, xattrs) = match child {
            Child::Dir(dirno) => {
                let state = reader.tree.dir(v, *dirno).unwrap().state;
                (state.attr, Vec::new(), state.xattrs)
            }
            Child::Node(logid) => {
                let node = reader.tree.node(*logid).unwrap();
                inodes.insert((want.ino, *logid));
                let content = match node.attr.kind {
                    Kind::File => reader.bytes(*logid, 0, u64::MAX).unwrap(),
                    _ => node.target.clone(),
                };
                (node.attr.clone(), content, node.xattrs.clone())
            }
        };
        let got = Snap {
            kind: attr.kind,
            perm: u32::from(attr.perm),
            owner: (attr.uid, attr.gid),
            size: attr.size,
            mtime: (attr.mtime.sec, i64::from(attr.mtime.nsec)),
            nlink: u64::from(attr.nlink),
            ino: attr.source_ino,
            content,
            xattrs,
        };
        if want.kind == Kind::Dir && want.nlink == 1 {
            want.nlink = got.nlink;
        }
        assert_eq!(got, want, "{at} in {v}");
    }
    let distinct = inodes.iter().map(|(ino, _)| ino).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct, inodes.len(), "hard links share one inode in {v}: {inodes:?}");
}

/// A backup dir of its own that may be damaged.
pub struct Copy {
    dir: TempDir,
}

impl Copy {
    /// A new, empty backup dir with the smallest blocks.
    pub fn init() -> Copy {
        let dir = scratch();
        let config = Config { block_size: 4 << 10, ..Config::default() };
        BackupDir::init(dir.path(), None, &config).unwrap();
        Copy { dir }
    }

    pub fn of(files: &Files) -> Copy {
        let dir = scratch();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        Copy { dir }
    }

    /// Key, settings and arcs, but no index.
    pub fn without_index(files: &Files) -> Copy {
        let mut files = files.clone();
        files.retain(|name, _| !name.starts_with("index.db"));
        Copy::of(&files)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn open(&self) -> BackupDir {
        BackupDir::open(self.dir.path(), &|_| None).unwrap()
    }

    /// All files but the lock and what is in directories (the ledger grows by itself).
    pub fn files(&self) -> Files {
        let mut files = Files::new();
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name != "lock" && !name.ends_with("-shm") && entry.path().is_file() {
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
        files
    }

    pub fn arc_names(&self) -> Vec<ArcName> {
        self.open().arcs().list().unwrap()
    }

    pub fn reader(&self) -> Reader {
        Reader::new(&self.open())
    }

    /// What counts of its ledger.
    pub fn ledger(&self) -> Ledger {
        let dir = self.open();
        let commits = dir.open_index().unwrap().commits().unwrap();
        Ledger::load(dir.own(), dir.keys(), &commits).unwrap().0
    }

    pub fn lose_index(&self) {
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            let _ = fs::remove_file(self.path(name));
        }
    }

    pub fn recover(&self) -> crate::recover::Recovered {
        crate::recover::run(&self.open(), OnLoss::Report, &Silent).unwrap()
    }

    /// Every row of the index.
    pub fn rows(&self) -> Vec<String> {
        let dir = self.open();
        crate::index::model::dump_with(&dir.index_path(), &dir.keys().index_key())
    }

    /// Changes rows of the index.
    pub fn vandal(&self) -> crate::index::vandal::Vandal {
        let dir = self.open();
        crate::index::vandal::Vandal::of(&dir.index_path(), &dir.keys().index_key())
    }

    /// A run that is cut when all its arcs are closed, before its commit: one of these blocks, one of catalog frames.
    pub fn cut_run(&self, blocks: &[Vec<u8>]) -> Version {
        let dir = self.open();
        let lock = dir.lock().unwrap();
        Run::begin(&dir, &lock, &Silent).unwrap().reserve().unwrap().cut(|out| {
            for plain in blocks {
                out.block(plain.clone(), dir.keys().block_hash(plain)).unwrap();
            }
            records::drops(out, [ArcSerial(7)]).unwrap();
            out.finish().unwrap();
        })
    }

    /// The next catalog will be a base, as if the deltas had grown.
    pub fn make_a_base_due(&self) {
        let dir = self.open();
        let mut writer = IndexWriter::open(&dir.index_path(), &dir.keys().index_key()).unwrap();
        writer.leave_behind(1, None).unwrap();
        writer.checkpoint().unwrap();
    }

    /// Backs the source up; all must go well.
    pub fn backup(&self, source: &Source, options: &Options) -> Summary {
        let (summary, said) = self.try_backup(&[source.path()], options).unwrap();
        assert!(said.failures.is_empty(), "{said:?}");
        summary
    }

    pub fn try_backup(&self, paths: &[&Path], options: &Options) -> crate::Result<(Summary, Said)> {
        let options = Options { paths: paths.iter().map(|path| path.to_path_buf()).collect(), ..options.clone() };
        let ears = Ears::default();
        let summary = backup::run(&self.open(), &options, &ears)?;
        let wrong = crate::selftest::written_wrong(&self.open());
        assert!(wrong.as_ref().is_ok_and(Vec::is_empty), "the writer broke rules of v2: {wrong:?}");
        Ok((summary, ears.0.into_inner().unwrap()))
    }
}

/// What a run said.
#[derive(Debug, Default)]
pub struct Said {
    pub paths: Vec<String>,
    pub warnings: Vec<String>,
    pub failures: Vec<String>,
}

#[derive(Default)]
struct Ears(std::sync::Mutex<Said>);

impl Monitor for Ears {
    fn progress(&self, _: Progress) {}
    fn event(&self, event: Event<'_>) {
        let mut said = self.0.lock().unwrap();
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        match event {
            Event::Path(path) => said.paths.push(text(path)),
            Event::LeftOut { .. } => {}
            Event::Warning { path, what } => said.warnings.push(format!("{}: {what}", text(path))),
            Event::Failure { path, error } => said.failures.push(format!("{}: {error}", text(path))),
        }
    }
}

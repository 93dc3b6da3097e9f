//! Makes a backup dir with millions of entries and almost no data, by the code that a backup uses.
//!
//! `many BACKUPDIR ENTRIES BIG_DIR_ENTRIES SAMPLE`: projects of 1,000 directories with 19 files each, and one
//! directory with many names; 64 small blocks hold all content. SAMPLE gets paths spread over the tree, one a line,
//! without a leading slash. Prints one JSON object.

#![allow(clippy::indexing_slicing)]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use assay::bench::{
    Attr, CatalogBuilder, Content, Contents, Dirno, FileHash, FileHasher, Kind, Names, NewVersion, Node, Output, Run,
    Segment, Timespec, VersionInfo, Whole,
};
use assay::{BackupDir, BlockId, Config, Logid, Silent};

type Done<T> = Result<T, Box<dyn Error>>;

const FILES_PER_DIR: u64 = 19;
const DIRS_PER_PROJECT: u64 = 1000;
const SAMPLES: u64 = 20_000;
const STEMS: [&str; 16] = [
    "index",
    "README",
    "component-list",
    "utils",
    "test_parser",
    "package",
    "config.default",
    "user_model",
    "styles.module",
    "LICENSE",
    "main",
    "types.generated",
    "api-client",
    "snapshot",
    "Makefile",
    "database-migration-initial",
];
const ENDINGS: [&str; 6] = ["ts", "js", "md", "py", "json", "d.ts.map"];

/// Small numbers that look random and are the same in each run.
fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

struct Maker<'a, 'o> {
    out: &'a mut Output<'o>,
    catalog: CatalogBuilder<'a>,
    blocks: Vec<(BlockId, u32, FileHash)>,
    next_logid: u64,
    next_dirno: u64,
    files: u64,
    dirs: u64,
    tree_bytes: u64,
    /// Every so many files one path goes into the sample.
    sample_step: u64,
    sample: std::io::BufWriter<std::fs::File>,
}

impl Maker<'_, '_> {
    fn attr(&self, kind: Kind, size: u64, nlink: u32) -> Attr {
        let n = mix(self.files + self.dirs * 7);
        let mtime = Timespec { sec: 1_500_000_000 + (n % 200_000_000) as i64, nsec: (n >> 32) as u32 % 1_000_000_000 };
        let ctime = Timespec { sec: mtime.sec + 3600, nsec: mtime.nsec };
        let perm = if kind == Kind::Dir { 0o755 } else { 0o644 };
        let source_ino = 1_000_000 + self.next_logid + self.next_dirno;
        Attr { kind, perm, uid: 1000, gid: 1000, size, mtime, ctime, nlink, rdev_major: 0, rdev_minor: 0, source_ino }
    }

    fn file(&mut self, name: String, dir: &str) -> Done<()> {
        let at = mix(self.next_logid) as usize % self.blocks.len();
        let (block, len, sha1) = self.blocks[at];
        let node = Node {
            logid: Logid(self.next_logid),
            attr: self.attr(Kind::File, u64::from(len), 1),
            data_bytes: u64::from(len),
            racy: false,
            sha1: Some(sha1),
            target: Vec::new(),
            xattrs: Vec::new(),
            content: Content::Inline(vec![Segment::Data { block, len }]),
        };
        if self.files.is_multiple_of(self.sample_step) {
            writeln!(self.sample, "{dir}/{name}")?;
        }
        self.next_logid += 1;
        self.files += 1;
        self.tree_bytes += u64::from(len);
        self.catalog.put(name.into(), &node, true);
        Ok(())
    }

    fn enter(&mut self, parent: Dirno, name: &str) -> Done<Dirno> {
        let dirno = Dirno(self.next_dirno);
        self.next_dirno += 1;
        self.dirs += 1;
        self.catalog.enter(dirno, parent, name.into(), None, Names::All, false);
        Ok(dirno)
    }

    fn leave(&mut self) -> Done<()> {
        let attr = self.attr(Kind::Dir, 4096, 2 + self.catalog.subdirs() as u32);
        self.catalog.leave(self.out, attr, Vec::new())?;
        Ok(())
    }

    fn fill(&mut self, root: Dirno, entries: u64, big: u64) -> Done<()> {
        let top = self.enter(root, "srv")?;
        self.enter(top, "big")?;
        for i in 0..big {
            self.file(format!("message-{:08x}-{i:06}.eml", mix(i) as u32), "srv/big")?;
        }
        self.leave()?;
        let mut project = 0u64;
        while self.files + self.dirs < entries {
            let project_name = format!("project-{project:05}");
            let project_no = self.enter(top, &project_name)?;
            for d in 0..DIRS_PER_PROJECT {
                let name = format!("module_{d:04}-{:04x}", mix(d + project) as u16);
                let path = format!("srv/{project_name}/{name}");
                self.enter(project_no, &name)?;
                for f in 0..FILES_PER_DIR {
                    let n = mix(self.next_logid) as usize;
                    let (stem, ending) = (STEMS[n % STEMS.len()], ENDINGS[(n >> 8) % ENDINGS.len()]);
                    self.file(format!("{stem}.{f:02}.{ending}"), &path)?;
                }
                self.leave()?;
                if self.files + self.dirs >= entries {
                    break;
                }
            }
            self.leave()?;
            project += 1;
        }
        self.leave()
    }
}

fn main() -> Done<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, entries, big, sample] = args.as_slice() else {
        return Err("usage: many BACKUPDIR ENTRIES BIG_DIR_ENTRIES SAMPLE".into());
    };
    let (entries, big): (u64, u64) = (entries.parse()?, big.parse()?);
    let started = Instant::now();
    BackupDir::init(Path::new(path), None, &Config::default())?;
    let dir = BackupDir::open(Path::new(path), &|_| None)?;
    let lock = dir.lock()?;
    let reserved = Run::begin(&dir, &lock, &Silent)?.reserve()?;
    let (committed, (files, dirs)) = reserved.write(Whole::Remove, |out| {
        let failed = |what: Box<dyn Error>| assay::Error::SelfCheck { what: what.to_string() };
        let (contents, counts) = make(&dir, out, entries, big, sample).map_err(failed)?;
        Ok((contents, counts))
    })?;
    let catalog_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let commit = committed.apply().whole()?.commit;
    println!(
        "{}",
        serde_json::json!({
            "entries": files + dirs, "catalog_s": catalog_s, "apply_s": started.elapsed().as_secs_f64(),
            "index_bytes": std::fs::metadata(dir.index_path())?.len(),
            "arc_bytes": commit.arcs.iter().map(|arc| arc.arc_bytes).sum::<u64>(),
        })
    );
    Ok(())
}

/// Writes the one version: what to commit, and how many files and directories are in it.
fn make(dir: &BackupDir, out: &mut Output<'_>, entries: u64, big: u64, sample: &str) -> Done<(Contents, (u64, u64))> {
    let mut blocks = Vec::new();
    for i in 0..64u64 {
        let plain: Vec<u8> = (0..200 + i * 97).map(|at| b' ' + (mix(i << 32 | at) % 90) as u8).collect();
        let mut hasher = FileHasher::default();
        hasher.update(&plain);
        let (len, hash) = (plain.len() as u32, dir.keys().block_hash(&plain));
        blocks.push((out.block(plain, hash)?, len, hasher.finish()));
    }
    let mut maker = Maker {
        out,
        catalog: CatalogBuilder::new(None),
        blocks,
        next_logid: Logid::FIRST.0,
        next_dirno: 1,
        files: 0,
        dirs: 0,
        tree_bytes: 0,
        sample_step: (entries / SAMPLES).max(1),
        sample: std::io::BufWriter::new(std::fs::File::create(sample)?),
    };
    maker.catalog.enter(Dirno::ROOT, Dirno::ROOT, Vec::new(), None, Names::All, false);
    maker.fill(Dirno::ROOT, entries, big)?;
    maker.leave()?;
    maker.sample.flush()?;
    let (catalog, root) = maker.catalog.finish(maker.out)?;
    let arcs = maker.out.finish()?;
    let now = Timespec { sec: 1_700_000_000, nsec: 0 };
    let info = VersionInfo {
        name: "2023-11-14-2213-r0".into(),
        started: now,
        finished: now,
        paths: vec![b"/srv".to_vec()],
        files: maker.files,
        // The root directory has no name that was entered.
        dirs: maker.dirs + 1,
        tree_bytes: maker.tree_bytes,
        new: maker.files + maker.dirs,
        ..VersionInfo::default()
    };
    let (next_logid, next_dirno) = (maker.next_logid, maker.next_dirno);
    let version = NewVersion { info, root, base: Some(Vec::new()), next_logid, next_dirno };
    Ok((Contents { arcs, catalog, roots: Vec::new(), version: Some(version) }, (maker.files, maker.dirs)))
}

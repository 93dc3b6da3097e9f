//! A tree with at least one of everything that backup tools get wrong.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::rng::Rng;
use super::{is_root, sys, tool};

/// Levels and component of `deep_tree`: 21 × 240 bytes, more than PATH_MAX.
pub const DEEP_LEVELS: usize = 21;

pub fn deep_name() -> String {
    "d".repeat(239)
}

/// Fills an empty directory. Devices, foreign owners, `trusted.*` and capabilities only when run as root.
pub fn odd_tree(root: &Path, rng: &mut Rng) {
    plain(&root.join("plain"), rng);
    links(&root.join("links"), &root.join("links2"));
    special(&root.join("special"), root);
    modes(&root.join("modes"));
    names(&root.join("names"));
    holes(&root.join("holes"));
    many(&root.join("many"));
    xattrs(&root.join("xattr"));
    acls(&root.join("acl"));
    // Last: what is made later would move the times.
    times(&root.join("times"));
}

fn mkdir(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

fn plain(dir: &Path, rng: &mut Rng) {
    mkdir(&dir.join("nested/empty"));
    mkdir(&dir.join("empty"));
    put(&dir.join("empty-file"), b"");
    put(&dir.join("one-byte"), b"x");
    put(&dir.join("no-newline"), b"last line without end");
    put(&dir.join("zeros"), vec![0; 200_000]);
    put(&dir.join("text"), rng.text(700_000));
    put(&dir.join("random"), rng.bytes(1_500_001));
    let twin = rng.bytes(150_000);
    put(&dir.join("twin-1"), &twin);
    put(&dir.join("twin-2"), &twin);
    for len in [511, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_145] {
        put(&dir.join(format!("len-{len}")), rng.bytes(len));
    }
    for number in 0..40 {
        let len = rng.below(9000) as usize;
        put(&dir.join(format!("nested/small-{number}")), rng.text(len));
    }
}

fn links(dir: &Path, other: &Path) {
    mkdir(dir);
    mkdir(other);
    put(&dir.join("first"), b"three names, one file");
    fs::hard_link(dir.join("first"), dir.join("second")).expect("link");
    fs::hard_link(dir.join("first"), other.join("third")).expect("link");
    put(&other.join("pair"), vec![7; 100_000]);
    fs::hard_link(other.join("pair"), dir.join("pair")).expect("link");
    symlink("first", dir.join("sym")).expect("symlink");
    symlink("nowhere/at/all", dir.join("dangling")).expect("symlink");
    symlink("/etc/hostname", dir.join("absolute")).expect("symlink");
    symlink("..", dir.join("to-dir")).expect("symlink");
    symlink(OsStr::from_bytes(b"not \xff UTF-8 \n"), dir.join("odd-target")).expect("symlink");
    symlink("t/".repeat(2047) + "x", dir.join("long-target")).expect("symlink");
    // A symlink with two names.
    fs::hard_link(dir.join("sym"), dir.join("sym-again")).expect("link");
}

fn special(dir: &Path, short: &Path) {
    mkdir(dir);
    tool("mkfifo").arg("-m").arg("0640").arg(dir.join("fifo")).ok();
    fs::hard_link(dir.join("fifo"), dir.join("fifo-again")).expect("link");
    // A socket's path has at most 107 bytes: bind near the root, then move.
    let bound = short.join("s");
    drop(UnixListener::bind(&bound).expect("bind"));
    fs::rename(bound, dir.join("socket")).expect("rename");
    if is_root() {
        for (name, kind, major, minor) in
            [("null", "c", "1", "3"), ("big-char", "c", "500", "1048575"), ("loop", "b", "7", "200")]
        {
            tool("mknod").arg("-m").arg("0601").arg(dir.join(name)).args([kind, major, minor]).ok();
        }
    }
}

fn modes(dir: &Path) {
    mkdir(dir);
    let modes = [0o4755, 0o2711, 0o6555, 0o1644, 0o7777, 0o400, 0o000, 0o002];
    for mode in modes {
        let file = dir.join(format!("file-{mode:04o}"));
        put(&file, format!("mode {mode:o}"));
        let sub = dir.join(format!("dir-{mode:04o}"));
        mkdir(&sub);
        // Someone else's set-id bits fall when the owner changes: owner first.
        if is_root() {
            std::os::unix::fs::chown(&file, Some(4_000_000_000), Some(54_321)).expect("chown");
            std::os::unix::fs::chown(&sub, Some(12_345), Some(4_294_967_294)).expect("chown");
        }
        for path in [&file, &sub] {
            if mode & 0o400 == 0 && !is_root() {
                continue;
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
    }
}

fn names(dir: &Path) {
    mkdir(dir);
    let long = vec![b'n'; 255];
    let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let list: [&[u8]; 18] = [
        b"not \xff\xfe UTF-8",
        b"new\nline",
        b"tab\tand\x01control\x7f",
        b"-n",
        b" leading and trailing ",
        b"quo'te\"s",
        b"back\\slash",
        b"\\012",
        b"*?[a-z]{x,y}",
        b"$HOME `id` ;&|",
        b"...",
        b".hidden",
        b"latest",
        b"r0",
        b"arc.0.0",
        "écrit".as_bytes(),
        "e\u{301}crit".as_bytes(),
        "🦀 名前".as_bytes(),
    ];
    for name in list {
        put(&dir.join(OsStr::from_bytes(name)), name);
    }
    put(&dir.join(OsStr::from_bytes(&long)), b"255 bytes");
    for half in all.chunks(200) {
        put(&dir.join(OsStr::from_bytes(half)), b"every byte");
    }
    mkdir(&dir.join(OsStr::from_bytes(b"dir \xff\n")));
    put(&dir.join(OsStr::from_bytes(b"dir \xff\n")).join("inside"), b"x");
}

fn sparse(path: &Path, len: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).expect("create");
    file.set_len(len).expect("truncate");
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).expect("pwrite");
    }
}

fn holes(dir: &Path) {
    mkdir(dir);
    let data = vec![0xAB; 70_000];
    sparse(&dir.join("begin"), 1_070_000, &[(1_000_000, &data)]);
    sparse(&dir.join("middle"), 2_070_000, &[(0, &data), (2_000_000, &data)]);
    sparse(&dir.join("end"), 3_000_000, &[(0, &data)]);
    sparse(&dir.join("only"), 1_234_567, &[]);
    sparse(&dir.join("tiny-only"), 1, &[]);
    sparse(&dir.join("last-byte"), 1_000_001, &[(1_000_000, b"!")]);
    sparse(&dir.join("first-byte"), 1_000_000, &[(0, b"!")]);
    let many: Vec<(u64, &[u8])> = (0..300).map(|n| (n * 16_384, b"data".as_slice())).collect();
    sparse(&dir.join("many"), 300 * 16_384, &many);
}

/// Files of more than 4 GiB that take next to no space.
pub fn huge_tree(dir: &Path) {
    mkdir(dir);
    sparse(&dir.join("only-hole"), 5 << 30, &[]);
    sparse(
        &dir.join("data-past-4g"),
        (9 << 29) + 77,
        &[(0, b"begin"), (9 << 29, b"data past 4.5 GiB"), (1 << 32, b"4G")],
    );
}

/// A path of more than 4,096 bytes with a file at its end.
pub fn deep_tree(dir: &Path, bytes: &[u8]) {
    mkdir(dir);
    sys::write_deep(dir, &deep_name(), DEEP_LEVELS, "leaf", bytes).expect("deep tree");
}

fn many(dir: &Path) {
    mkdir(dir);
    for number in 0..5000 {
        File::create(dir.join(format!("name-{number:05}-{}", "x".repeat(number % 60)))).expect("create");
    }
}

/// Sets an attribute; the value as raw bytes. Returns setfattr's success.
pub fn try_setfattr(path: &Path, name: &str, value: &[u8]) -> bool {
    let hex = if value.is_empty() {
        "\"\"".to_string()
    } else {
        value.iter().fold("0x".to_string(), |text, byte| text + &format!("{byte:02x}"))
    };
    let cmd = tool("setfattr").args(["-h", "-n", name]);
    if hex.len() < 100_000 {
        return cmd.args(["-v", hex.as_str()]).arg(path).run().code == Some(0);
    }
    // Longer than one argument may be.
    let file = [b"# file: ", path.as_os_str().as_bytes(), b"\n", name.as_bytes(), b"=", hex.as_bytes(), b"\n"].concat();
    tool("setfattr").arg("--restore=-").run_with_input(&file).code == Some(0)
}

pub fn setfattr(path: &Path, name: &str, value: &[u8]) {
    assert!(try_setfattr(path, name, value), "setfattr {name} on {} failed", path.display());
}

/// Sets the longest `user.*` value that the file system takes, at most 60,000 bytes; returns its length.
pub fn set_long_xattr(path: &Path, byte: u8) -> usize {
    let lens = [60_000, 30_000, 15_000, 7_000, 3_500, 1_500];
    lens.into_iter().find(|len| try_setfattr(path, "user.long", &vec![byte; *len])).expect("no long xattr at all")
}

fn xattrs(dir: &Path) {
    mkdir(dir);
    let file = |name: &str| {
        let path = dir.join(name);
        put(&path, name);
        path
    };
    let few = file("few");
    setfattr(&few, "user.comment", b"hello");
    setfattr(&few, "user.empty", b"");
    setfattr(&few, "user.binary", &[0, 255, 10, 0]);
    setfattr(&few, &format!("user.{}", "n".repeat(200)), b"long name");
    set_long_xattr(&file("long"), b'L');
    let lots = file("lots");
    for number in 0..60 {
        setfattr(&lots, &format!("user.key{number:02}"), format!("value {number}").as_bytes());
    }
    let sub = dir.join("dir");
    mkdir(&sub);
    setfattr(&sub, "user.on-a-directory", b"yes");
    set_long_xattr(&sub, b'D');
    if is_root() {
        setfattr(&few, "trusted.secret", b"only root sees it");
        symlink("few", dir.join("link")).expect("symlink");
        setfattr(&dir.join("link"), "trusted.on-a-symlink", b"yes");
        tool("setcap").arg("cap_net_raw,cap_net_bind_service+ep").arg(file("capable")).ok();
    }
}

fn acls(dir: &Path) {
    mkdir(dir);
    let file = dir.join("file");
    put(&file, b"acl");
    tool("setfacl").args(["-m", "u:4242:rw,g:4343:r,m::r"]).arg(&file).ok();
    let sub = dir.join("with-default");
    mkdir(&sub);
    tool("setfacl").args(["-m", "d:u:4242:rwx,d:g:4343:rx,d:o::-"]).arg(&sub).ok();
    mkdir(&sub.join("inherited"));
    put(&sub.join("inherited-file"), b"x");
    let long = dir.join("long");
    put(&long, b"many entries");
    let entries: Vec<String> = (0..60).map(|n| format!("u:{}:r", 6000 + n)).collect();
    tool("setfacl").args(["-m", &entries.join(",")]).arg(&long).ok();
}

fn times(dir: &Path) {
    mkdir(dir);
    let stamps = [
        ("before-1970", "@-1.123456789"),
        ("epoch", "@0.000000000"),
        ("minus-half", "@-0.500000000"),
        ("year-1902", "@-2145916799.000000001"),
        ("after-2038", "@2147483648.999999999"),
        ("year-2106", "@4294967297.000000003"),
        ("year-2400", "@13569465600.987654321"),
        ("ordinary", "@1600000000.111222333"),
    ];
    for (name, stamp) in stamps {
        put(&dir.join(name), name);
        mkdir(&dir.join(format!("dir-{name}")));
        symlink("target", dir.join(format!("link-{name}"))).expect("symlink");
        for path in [name.to_string(), format!("dir-{name}"), format!("link-{name}")] {
            tool("touch").args(["-h", "-d", stamp]).arg(dir.join(path)).ok();
        }
    }
}

/// Appends to a file in place.
pub fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    OpenOptions::new().append(true).open(path).expect("open").write_all(bytes).expect("append");
}

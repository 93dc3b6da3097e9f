"""What is backed up: a source tree of many small files, and a few large files. The same on each run of a machine."""

import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
import io

from measure import say

PLACES = ["~/.cargo/registry/src", "~/.rustup/toolchains", "/usr/include", "/usr/share", "/usr/lib"]
WORDS = ("the of and block frame index version entry read write open seal verify file directory catalog commit for "
         "let mut return if else match fn struct impl use pub self result error offset length bytes hash key").split()


class Corpus:
    def __init__(self, name, path):
        self.name, self.path = name, path
        self.entries = self.bytes = 0

    def count(self):
        """Counts entries and bytes, and names the directory with the most names and the larger files."""
        self.entries, self.bytes, self.files, self.widest, most = 0, 0, [], self.path, 0
        for at, dirs, files in os.walk(self.path):
            self.entries += len(dirs) + len(files)
            if len(dirs) + len(files) > most:
                most, self.widest = len(dirs) + len(files), at
            for name in files:
                path = os.path.join(at, name)
                if not os.path.islink(path):
                    size = os.lstat(path).st_size
                    self.bytes += size
                    self.files.append((size, path))
        self.widest_entries = most
        self.files.sort(key=lambda file: file[1])
        return self

    def change(self, seed):
        """Changes 100 things: small files are replaced, large ones get 4 KiB written in places."""
        rng = random.Random(seed)
        regular = [(size, path) for size, path in self.files if size > 0]
        for i in range(100):
            size, path = rng.choice(regular)
            if i % 10 == 0 and size < 1 << 20:
                with open(os.path.join(os.path.dirname(path), f"new-{seed}-{i}.txt"), "w") as new:
                    new.write(text(rng, 3000))
            else:
                with open(path, "r+b") as old:
                    old.seek(rng.randrange(max(size - 4096, 1)))
                    old.write(rng.randbytes(min(4096, size)))


def text(rng, length):
    line, out = [], []
    while length > 0:
        line.append(rng.choice(WORDS))
        if len(line) == 12:
            out.append(" ".join(line) + f" {rng.randrange(1 << 30)}\n")
            length -= len(out[-1])
            line = []
    return "".join(out)


def copy_of(path, to):
    """A copy that may be changed."""
    if not os.path.exists(to):
        say(f"  copying {path}")
        subprocess.run(["cp", "-a", "--sparse=always", path, to + ".new"], check=True)
        os.rename(to + ".new", to)
    return to


def source(to, small):
    """Small files that are on this machine, made up to the count with text; one directory of many names."""
    if os.path.exists(to):
        return to
    wanted, wide = (1500, 400) if small else (110_000, 21_000)
    say(f"  making a tree of {wanted + wide} files")
    new = to + ".new"
    shutil.rmtree(new, ignore_errors=True)
    made = 0
    for top in map(os.path.expanduser, PLACES):
        if made >= wanted * 4 // 5:
            break
        for at, dirs, files in os.walk(top):
            dirs.sort()
            here = os.path.join(new, "found", at.lstrip("/"))
            for name in sorted(files):
                path = os.path.join(at, name)
                try:
                    if made >= wanted * 4 // 5 or os.path.islink(path) or os.path.getsize(path) > 256 << 10:
                        continue
                    os.makedirs(here, exist_ok=True)
                    shutil.copy2(path, os.path.join(here, name))
                    made += 1
                except OSError:
                    continue
    rng = random.Random(1)
    while made < wanted:
        here = os.path.join(new, "made", f"{made // 2000:03}", f"{made // 25 % 80:02}")
        os.makedirs(here, exist_ok=True)
        with open(os.path.join(here, f"part-{made:06}.txt"), "w") as out:
            out.write(text(rng, int(rng.lognormvariate(8, 1.2)) % 200_000))
        made += 1
    here = os.path.join(new, "wide")
    os.makedirs(here)
    for i in range(wide):
        with open(os.path.join(here, f"{rng.randrange(1 << 32):08x}-message-{i:06}"), "w") as out:
            out.write(text(rng, 300 + i % 3000))
    os.rename(new, to)
    return to


def large(to, small):
    """A disk image with holes, an SQLite file, a tar of noise."""
    if os.path.exists(to):
        return to
    new = to + ".new"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    scale = 1 if small else 32
    say("  making a disk image, an SQLite file and a tar of noise")
    inside = os.path.join(new, "inside")
    os.makedirs(inside)
    room = 16 * scale << 20
    for at, dirs, files in os.walk("/usr/lib"):
        dirs.sort()
        for name in sorted(files):
            path = os.path.join(at, name)
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < min(room, 8 << 20):
                room -= os.path.getsize(path)
                shutil.copy2(path, os.path.join(inside, f"{room:010}-{name}"))
    image = os.path.join(new, "disk.img")
    with open(image, "wb") as out:
        out.truncate(32 * scale << 20)
    mkfs = shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-U", "00000000-0000-4000-8000-000000000001", "-E", "lazy_itable_init=0", "-d",
                    inside, image], check=True)
    shutil.rmtree(inside)
    rng = random.Random(2)
    database = sqlite3.connect(os.path.join(new, "data.sqlite"))
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE log(id INTEGER PRIMARY KEY, at REAL, who TEXT, what TEXT, extra BLOB)")
    database.executemany("INSERT INTO log(at, who, what, extra) VALUES(?,?,?,?)",
                         ((rng.random() * 1e9, rng.choice(WORDS), text(rng, 500), rng.randbytes(150))
                          for _ in range(20_000 * scale)))
    database.execute("CREATE INDEX log_at ON log(at)")
    database.commit()
    database.close()
    with tarfile.open(os.path.join(new, "noise.tar"), "w") as tar:
        for i in range(8 * scale):
            info = tarfile.TarInfo(f"noise-{i}")
            info.size = 1 << 20
            tar.addfile(info, io.BytesIO(rng.randbytes(1 << 20)))
    os.rename(new, to)
    return to

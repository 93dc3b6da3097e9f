"""The programs that are compared: how each is made to back up and to mount.

`tree(point, corpus)` is where the newest backup of a corpus appears below a mount point.
"""

import os
import shutil
import subprocess
import time

from measure import run


class Tool:
    name = ""
    needs = ()

    def __init__(self, top):
        self.dir = os.path.join(top, self.name)
        self.mount_peak_mib = 0.0
        os.makedirs(self.dir, exist_ok=True)

    def repo(self, corpus):
        return os.path.join(self.dir, corpus.name)

    def programs(self):
        """What is loaded before a cold run: the data is cold, the programs are not."""
        return ["find", "diff", "cat", "umount", *self.needs]

    def missing(self):
        return [p for p in self.needs if not shutil.which(p)]


class Assay(Tool):
    name = "assay"

    def __init__(self, top, program):
        super().__init__(top)
        self.program = program

    def programs(self):
        return [*super().programs(), self.program]

    def init(self, corpus):
        run([self.program, "-c", self.repo(corpus), "init"])

    def backup(self, corpus):
        return run([self.program, "-q", "-c", self.repo(corpus), "backup", corpus.path], ok=(0, 3))

    def check(self, corpus, level=3):
        return run([self.program, "-q", "-c", self.repo(corpus), "selftest", f"-v{level}"])

    def mount_command(self, point, corpus):
        return [self.program, "-c", self.repo(corpus), "mount", point], {}

    def tree(self, point, corpus):
        return os.path.join(point, "latest") + corpus.path


class Restic(Tool):
    name = "restic"
    needs = ("restic",)

    def env(self, corpus):
        return {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": self.repo(corpus),
                "RESTIC_CACHE_DIR": os.path.join(self.dir, "cache")}

    def init(self, corpus):
        run(["restic", "init", "-q"], self.env(corpus))

    def backup(self, corpus):
        return run(["restic", "backup", "-q", corpus.path], self.env(corpus), ok=(0, 3))

    def check(self, corpus):
        return run(["restic", "check", "-q", "--read-data"], self.env(corpus))

    def mount_command(self, point, corpus):
        return ["restic", "mount", "-q", point], self.env(corpus)

    def tree(self, point, corpus):
        return os.path.join(point, "snapshots", "latest") + corpus.path


class Rustic(Tool):
    """Its mount is not measured."""

    name = "rustic"
    needs = ("rustic",)

    def env(self, corpus):
        return {"RUSTIC_PASSWORD": "bench", "RUSTIC_REPOSITORY": self.repo(corpus), "RUSTIC_NO_PROGRESS": "true",
                "RUSTIC_LOG_LEVEL": "error", "RUSTIC_CACHE_DIR": os.path.join(self.dir, "cache")}

    def init(self, corpus):
        run(["rustic", "init"], self.env(corpus))

    def backup(self, corpus):
        return run(["rustic", "backup", corpus.path], self.env(corpus))

    def check(self, corpus):
        return run(["rustic", "check", "--read-data"], self.env(corpus))


class Borg(Tool):
    name = "borg"
    needs = ("borg",)

    def env(self):
        return {"BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": os.path.join(self.dir, "base"),
                "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}

    def init(self, corpus):
        run(["borg", "init", "-e", "repokey-blake2", self.repo(corpus)], self.env())

    def backup(self, corpus):
        archive = f"{self.repo(corpus)}::{time.time():.6f}"
        return run(["borg", "create", "-C", "zstd,3", archive, corpus.path], self.env(), ok=(0, 1))

    def check(self, corpus):
        return run(["borg", "check", "--verify-data", self.repo(corpus)], self.env())

    def mount_command(self, point, corpus):
        return ["borg", "mount", "-f", f"{self.repo(corpus)}::{self.newest(corpus)}", point], self.env()

    def newest(self, corpus):
        listed = subprocess.run(["borg", "list", "--short", "--last", "1", self.repo(corpus)], capture_output=True,
                                text=True, check=True, env={**os.environ, **self.env()})
        return listed.stdout.strip()

    def tree(self, point, corpus):
        return point + corpus.path


class Squashfuse(Tool):
    """Verifies nothing: what FUSE and zstd allow."""

    name = "squashfuse"
    needs = ("mksquashfs", "squashfuse")

    def init(self, corpus):
        run(["mksquashfs", corpus.path, self.repo(corpus), "-comp", "zstd", "-Xcompression-level", "3", "-noappend",
             "-no-progress", "-quiet"])

    def mount_command(self, point, corpus):
        return ["squashfuse", "-f", self.repo(corpus), point], {}

    def tree(self, point, corpus):
        return point


class Plain(Tool):
    """A second copy on the same file system."""

    name = "plain"

    def init(self, corpus):
        shutil.rmtree(self.repo(corpus), ignore_errors=True)
        run(["cp", "-a", "--sparse=always", corpus.path, self.repo(corpus)])

    def mount_command(self, point, corpus):
        return None, {}

    def tree(self, point, corpus):
        return self.repo(corpus)

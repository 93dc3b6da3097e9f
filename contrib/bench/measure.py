"""Running, timing and counting; rows of the result."""

import os
import re
import signal
import subprocess
import sys
import time

CACHES = "/proc/sys/vm/drop_caches"


def say(text):
    print(text, file=sys.stderr, flush=True)


def drop_caches(*programs):
    """True if the page cache is empty now but for these programs; only root can do that."""
    os.sync()
    try:
        with open(CACHES, "w") as caches:
            caches.write("3\n")
    except OSError:
        return False
    for program in programs:
        subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True


class Done:
    """How a command ended: seconds, peak memory in MiB, exit code."""

    def __init__(self, seconds, peak_mib, code):
        self.seconds, self.peak_mib, self.code = seconds, peak_mib, code


def run(command, env=None, cwd=None, ok=(0,), timeout_s=1800, stdout=subprocess.DEVNULL):
    """Runs a command and says what it took; its memory is the largest of its processes'."""
    full_env = {**os.environ, **(env or {})}
    started = time.monotonic()
    child = subprocess.Popen(command, env=full_env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout,
                             stderr=subprocess.PIPE)
    said = []
    os.set_blocking(child.stderr.fileno(), False)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        said.append(child.stderr.read() or b"")
        if time.monotonic() - started > timeout_s:
            child.kill()
        time.sleep(0.001)
    seconds = time.monotonic() - started
    said.append(child.stderr.read() or b"")
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode not in ok:
        text = b"".join(said).decode(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}: {text}")
    return Done(seconds, usage.ru_maxrss / 1024, child.returncode)


def peak_mib(pid):
    """Peak resident memory of a running process."""
    try:
        with open(f"/proc/{pid}/status") as status:
            found = re.search(r"VmHWM:\s*(\d+) kB", status.read())
        return int(found.group(1)) / 1024 if found else 0.0
    except OSError:
        return 0.0


class Mounted:
    """A mount with its process; `with` ends it. `ready_s` is the time until `look` could be listed."""

    alive = []

    def __init__(self, tool, corpus, cold):
        self.tool, self.point = tool, os.path.join(tool.dir, "mnt")
        os.makedirs(self.point, exist_ok=True)
        command, env = tool.mount_command(self.point, corpus)
        if cold:
            drop_caches(*tool.programs())
        self.root = tool.tree(self.point, corpus)
        self.process = None
        Mounted.alive.append(self)
        before = os.stat(self.point).st_dev
        log = open(os.path.join(tool.dir, "mount.log"), "ab")
        started = time.monotonic()
        if command:
            self.process = subprocess.Popen(command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        while True:
            try:
                if not command or os.stat(self.point).st_dev != before:
                    self.first = os.listdir(self.root)
                    break
            except OSError:
                pass
            if self.process and self.process.poll() is not None:
                raise RuntimeError(f"the mount of {tool.name} ended with {self.process.returncode}; see {log.name}")
            if time.monotonic() - started > 300:
                raise RuntimeError(f"the mount of {tool.name} does not get ready; see {log.name}")
            time.sleep(0.0005)
        self.ready_s = time.monotonic() - started
        log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        if self not in Mounted.alive:
            return
        Mounted.alive.remove(self)
        if not self.process:
            return
        self.tool.mount_peak_mib = max(self.tool.mount_peak_mib, peak_mib(self.process.pid))
        for _ in range(50):
            if subprocess.run(["umount", self.point], stderr=subprocess.DEVNULL).returncode == 0:
                break
            if subprocess.run(["fusermount3", "-u", self.point], stderr=subprocess.DEVNULL).returncode == 0:
                break
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    @staticmethod
    def end_all():
        for mounted in list(Mounted.alive):
            mounted.end()


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


class Rows:
    """Results: a row is one kind of work, a sample belongs to a tool."""

    def __init__(self):
        self.rows = {}

    def add(self, name, unit, tool, value, better="lower"):
        row = self.rows.setdefault(name, {"unit": unit, "better": better, "samples": {}, "notes": []})
        row["samples"].setdefault(tool, []).append(value)
        say(f"    {name} · {tool}: {number(value)} {unit}")

    def note(self, name, text):
        if name in self.rows and text not in self.rows[name]["notes"]:
            self.rows[name]["notes"].append(text)

    def get(self, name, tool):
        samples = self.rows.get(name, {}).get("samples", {}).get(tool)
        return median(samples) if samples else None

    def ratio(self, name, tool):
        """How many times better than `tool` assay is; below 1 it is worse."""
        ours, theirs = self.get(name, "assay"), self.get(name, tool)
        if not ours or not theirs:
            return None
        return theirs / ours if self.rows[name]["better"] == "lower" else ours / theirs


def number(value):
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def table(rows, targets, order):
    """The results as Markdown: medians, and in brackets how many times better assay is."""
    tools = [t for t in order if any(t in row["samples"] for row in rows.rows.values())]
    lines = ["| work | unit | " + " | ".join(tools) + " | target | met |", "|---" * (len(tools) + 4) + "|"]
    for name, row in rows.rows.items():
        cells = []
        for tool in tools:
            cell = number(rows.get(name, tool))
            ratio = rows.ratio(name, tool) if tool != "assay" else None
            cells.append(f"{cell} ({number(ratio)}×)" if ratio else cell)
        text, met = judge(rows, name, targets)
        lines.append(f"| {name} | {row['unit']} | " + " | ".join(cells) + f" | {text} | {met} |")
        row["target"], row["met"] = text, met
    notes = [f"{name}: {note}" for name, row in rows.rows.items() for note in row["notes"]]
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


def judge(rows, name, targets):
    for pattern, wanted in targets:
        if not re.fullmatch(pattern, name):
            continue
        texts, met = [], True
        for kind, bound in wanted:
            if kind == "value":
                ours = rows.get(name, "assay")
                lower = rows.rows[name]["better"] == "lower"
                texts.append(f"{'≤' if lower else '≥'} {number(bound)}")
                right = ours is not None and (ours <= bound if lower else ours >= bound)
            else:
                ratio = rows.ratio(name, kind)
                if ratio is None:
                    continue
                texts.append(f"{number(bound)}× {kind}")
                right = ratio >= bound
            met = met and right
        return (", ".join(texts), "yes" if met else "NO") if texts else ("", "")
    return "", ""

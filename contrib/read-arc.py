#!/usr/bin/python3
"""Reads arcs without Assay: a second reader of the format, written from docs/format.md alone.

It exists to prove that docs/format.md is complete, and to get at data when Assay itself is gone.
Needs Debian's python3-cryptography and python3-zstandard.

  read-arc.py key.conf arc.3.1 ...                 list header, frames and trailer of each arc
  read-arc.py --records key.conf arc.3.0 arc.3.2   print commit and catalog records too
  read-arc.py --extract 7 key.conf arc.3.1 > blocks
                                                   write the plain bytes of frame 7: of all its blocks
  read-arc.py --file /home/ann/x key.conf BACKUPDIR > x
                                                   write the newest state of a file, from arcs alone
  read-arc.py --roots key.conf BACKUPDIR           compute each version's root digest from the catalogs, and compare it
                                                   with its commit record; a line a version, as `assay versions --digest`

Output is one JSON object a line; bytes that are no UTF-8 are shown as \\udcXX (Python's surrogateescape).
Each frame is verified as Assay does it: head, AES-256-GCM tag, table, zstd, length, hash of each block.
A key that is wrapped by a passphrase is asked for in ASSAY_PASSPHRASE and needs python3-argon2.
Exit code 4: something is damaged; what was printed before is good.
"""
import argparse
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import tomllib

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HEADER_LEN, TRAILER_LEN, HEAD_LEN, TAG_LEN, BLOCK_LEN = 112, 96, 32, 16, 24
MAX_BLOCKS = 128
MAX_PLAIN_LEN = 64 << 20
FRAME, HEADER, FOOTER, TRAILER, HEAD = 0, 1, 2, 3, 6  # nonce domains
FOOTER_NO = 0xFFFFFFFF
KINDS = {1: "block", 2: "catalog", 3: "commit", 4: "footer"}
ROLES = {1: "data", 2: "catalog", 3: "commit"}
TYPES = {1: "file", 2: "dir", 3: "symlink", 4: "fifo", 5: "socket", 6: "chardevice", 7: "blockdevice"}
LISTINGS = {1: "delta", 2: "full", 3: "full-more", 4: "lost"}


class Damage(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Damage(what)


def text(raw):
    return raw.decode("utf-8", "surrogateescape")


# --- keys -------------------------------------------------------------------------------------------------------


def hkdf(master, salt, info, length):
    """HKDF-SHA256, RFC 5869."""
    prk = hmac.new(salt, master, hashlib.sha256).digest()
    out, block, n = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([n]), hashlib.sha256).digest()
        out, n = out + block, n + 1
    return out[:length]


class Keys:
    def __init__(self, path):
        with open(path, "rb") as f:
            conf = tomllib.loads(f.read().decode())
        need(conf["format"] == 2, "key.conf: another format")
        wrapped = conf.get("wrapped")
        if wrapped:
            parts = "/".join(str(wrapped[k]) for k in ("kdf", "memory_kib", "passes", "lanes", "salt", "sealed"))
            summed = f'2/{conf["backup_id"]}/None/Some("{parts}")'
        else:
            summed = f'2/{conf["backup_id"]}/Some("{conf["key"]}")/None'
        need(hashlib.sha256(summed.encode()).hexdigest()[:32] == conf["checksum"], "key.conf: checksum")
        self.backup_id = bytes.fromhex(conf["backup_id"])
        self.master = self.unwrap(wrapped) if wrapped else bytes.fromhex(conf["key"])
        self.hash_key = hkdf(self.master, self.backup_id, b"assay block hash v2", 32)

    def unwrap(self, wrapped):
        import argon2.low_level

        need(wrapped["kdf"] == "argon2id", "key.conf: kdf")
        key = argon2.low_level.hash_secret_raw(
            os.environ["ASSAY_PASSPHRASE"].encode(), bytes.fromhex(wrapped["salt"]), wrapped["passes"],
            wrapped["memory_kib"], wrapped["lanes"], 32, argon2.low_level.Type.ID)
        sealed = bytes.fromhex(wrapped["sealed"])
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], self.backup_id)

    def block_hash(self, plain):
        return hmac.new(self.hash_key, plain, hashlib.sha1).digest()

    def arc_cipher(self, arc_id, salt):
        return ArcCipher(hkdf(self.master, self.backup_id, b"assay arc v2" + arc_id + salt, 32),
                         b"assay v2" + self.backup_id + arc_id)


class ArcCipher:
    def __init__(self, key, associated):
        self.key, self.aead, self.associated = key, AESGCM(key), associated

    def unseal(self, domain, number, header, sealed):
        try:
            return self.aead.decrypt(struct.pack(">IQ", domain, number), sealed, self.associated + header)
        except InvalidTag:
            raise Damage("AES-GCM tag mismatch") from None

    def peek(self, domain, number, sealed):
        """The first bytes without their tag: nothing is believed of them before all of it opens."""
        counter = struct.pack(">IQI", domain, number, 2)
        return Cipher(algorithms.AES(self.key), modes.CTR(counter)).decryptor().update(sealed)


# --- arcs -------------------------------------------------------------------------------------------------------


class Arc:
    def __init__(self, path, keys):
        self.keys = keys
        with open(path, "rb") as f:
            self.bytes = f.read()
        self.header = self.trailer = None
        self.problems = []
        try:
            self.header = self.read_header()
        except Damage as e:
            self.problems.append(f"header: {e}")
        try:
            self.trailer = self.read_trailer()
        except Damage as e:
            self.problems.append(f"trailer: {e}")
        known = self.header or self.trailer
        need(known, "; ".join(self.problems))
        self.cipher = keys.arc_cipher(known["id"], known["salt"])
        self.table = self.read_table()

    def read_header(self):
        b = self.bytes[:HEADER_LEN]
        need(len(b) == HEADER_LEN and b[:8] == b"ASSAYARC", "no arc header")
        fmt, compatible, read_only, incompatible, version, number = struct.unpack("<HHHHII", b[8:24])
        need(fmt == 2 and incompatible == 0, "a format that this reader does not know")
        need(b[24:40] == self.keys.backup_id, "an arc of another backup dir")
        arc_id, salt = b[40:56], b[56:88]
        role, zero = struct.unpack("<B7s", self.keys.arc_cipher(arc_id, salt).unseal(HEADER, 0, b[:88], b[88:]))
        need(role in ROLES and zero == bytes(7), "a format that this reader does not know")
        return {"version": version, "number": number, "role": role, "id": arc_id, "salt": salt}

    def read_trailer(self):
        b = self.bytes[-TRAILER_LEN:]
        need(len(b) == TRAILER_LEN and b[:8] == b"ASSAYEND", "no arc trailer")
        arc_id, salt = b[8:24], b[24:56]
        plain = self.keys.arc_cipher(arc_id, salt).unseal(TRAILER, 0, b[:56], b[56:])
        offset, length, frames, role, zero, fmt = struct.unpack("<QIIB5sH", plain)
        need(fmt == 2 and role in ROLES and zero == bytes(5), "a format that this reader does not know")
        return {"role": role, "id": arc_id, "salt": salt, "offset": offset, "length": length, "frames": frames}

    def read_table(self):
        """From the footer; from the frames themselves if that is damaged."""
        if self.trailer:
            try:
                info = self.claim(self.trailer["offset"], FOOTER_NO)
                need(info[0] == 4, "no footer frame")
                d = Decoder(self.open_at(self.trailer["offset"], FOOTER_NO, info))
                table = []
                while d.more():
                    table.append((d.u8(), d.u8(), d.uint(), d.list(lambda: (d.uint(), d.take(20)))))
                need(len(table) == self.trailer["frames"], "number of frames")
                return table
            except Damage as e:
                self.problems.append(f"footer: {e}")
        table, at = [], HEADER_LEN
        end = self.trailer["offset"] if self.trailer else len(self.bytes)
        try:
            while at < end:
                table.append(self.claim(at, len(table)))
                at += frame_len(table[-1])
        except Damage as e:
            # Without a trailer nothing says where the last frame ends.
            if self.trailer:
                self.problems.append(f"frame {len(table)}: {e}")
        return table

    def claim(self, at, number):
        """What the head and the table of a frame say; it is believed when the frame opens."""
        head = self.cipher.unseal(HEAD, number, b"", self.bytes[at:at + HEAD_LEN])
        found, kind, codec, blocks, stored, plain = struct.unpack("<IBBHII", head)
        need(found == number and kind in KINDS and codec in (0, 1) and 1 <= blocks <= MAX_BLOCKS, "frame head")
        sealed = self.bytes[at + HEAD_LEN:at + HEAD_LEN + blocks * BLOCK_LEN]
        table = self.cipher.peek(FOOTER if kind == 4 else FRAME, number, sealed)
        need(len(table) == blocks * BLOCK_LEN, "cut short")
        entries = [struct.unpack("<I20s", table[i:i + BLOCK_LEN]) for i in range(0, len(table), BLOCK_LEN)]
        need(sum(length for length, _ in entries) == plain, "plain lengths")
        return kind, codec, stored, entries

    def open_at(self, at, number, info):
        """The plain bytes of a frame's blocks, one after the other."""
        kind, codec, stored, blocks = info
        plain_len = sum(length for length, _ in blocks)
        need(plain_len <= MAX_PLAIN_LEN and stored <= plain_len, "frame lengths")
        head = struct.pack("<IBBHII", number, kind, codec, len(blocks), stored, plain_len)
        end = at + frame_len(info)
        b = self.bytes[at:end]
        need(len(b) == end - at, "cut short")
        need(self.cipher.unseal(HEAD, number, b"", b[:HEAD_LEN]) == head, "frame head differs from the frame table")
        body = self.cipher.unseal(FOOTER if kind == 4 else FRAME, number, head, b[HEAD_LEN:])
        table = b"".join(struct.pack("<I20s", *block) for block in blocks)
        need(body.startswith(table), "blocks differ from the frame table")
        plain = body[len(table):]
        if codec == 1:
            try:
                plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=plain_len)
            except zstandard.ZstdError as e:
                raise Damage(f"zstd: {e}") from None
        need(len(plain) == plain_len, "plain length")
        start = 0
        for length, digest in blocks:
            need(self.keys.block_hash(plain[start:start + length]) == digest, "block hash")
            start += length
        return plain

    def frames(self):
        """(number, info, plain bytes or Damage) of each frame."""
        at = HEADER_LEN
        for number, info in enumerate(self.table):
            try:
                yield number, info, self.open_at(at, number, info)
            except Damage as e:
                yield number, info, e
            at += frame_len(info)

    def frame(self, wanted):
        at = HEADER_LEN + sum(map(frame_len, self.table[:wanted]))
        need(wanted < len(self.table), "no such frame")
        return self.open_at(at, wanted, self.table[wanted])

    def block(self, wanted, slot):
        plain, lengths = self.frame(wanted), [length for length, _ in self.table[wanted][3]]
        need(slot < len(lengths), "no such block")
        start = sum(lengths[:slot])
        return plain[start:start + lengths[slot]]


def frame_len(info):
    kind, codec, stored, blocks = info
    return HEAD_LEN + len(blocks) * BLOCK_LEN + stored + TAG_LEN


# --- records ----------------------------------------------------------------------------------------------------


class Decoder:
    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def more(self):
        return self.at < len(self.raw)

    def take(self, n):
        need(self.at + n <= len(self.raw), "record cut short")
        self.at += n
        return self.raw[self.at - n:self.at]

    def u8(self):
        return self.take(1)[0]

    def uint(self):
        value, shift = 0, 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                need(value < 1 << 64, "number too long")
                return value
            shift += 7
            need(shift < 64, "number too long")

    def int(self):
        raw = self.uint()
        return raw >> 1 ^ -(raw & 1)

    def string(self):
        return self.take(self.uint())

    def time(self):
        return [self.int(), self.uint()]

    def list(self, read):
        return [read() for _ in range(self.uint())]


def read_attr(d):
    kind = d.u8()
    need(kind in TYPES, "file type")
    attr = {"type": TYPES[kind], "perm": oct(d.uint()), "uid": d.uint(), "gid": d.uint(), "size": d.uint(),
            "mtime": d.time(), "ctime": d.time(), "nlink": d.uint(), "source_ino": d.uint()}
    if kind in (6, 7):
        attr["rdev"] = [d.uint(), d.uint()]
    return attr


def read_xattrs(d):
    return d.list(lambda: [text(d.string()), d.string().hex()])


def place(block):
    return {"arc": block >> 24, "frame": block >> 7 & 0x1FFFF, "slot": block & 0x7F}


def read_segments(d):
    expected, out = 0, []
    for _ in range(d.uint()):
        head = d.uint()
        if head & 1:
            out.append({"hole": head >> 1})
        else:
            block = expected + d.int()
            expected = block + 1
            out.append(place(block) | {"len": head >> 1})
    return out


def read_node(d):
    node = {"logid": d.uint()}
    start = d.at
    node |= read_attr(d)
    node["data_bytes"] = d.uint()
    at, flags = d.at - start, d.u8()
    node["racy"] = bool(flags & 1)
    if flags & 2:
        node["sha1"] = d.take(20).hex()
    node["segments"] = None if flags & 4 else read_segments(d)
    if flags & 4:
        node["segments_digest"] = d.take(32).hex()
    node["target"] = text(d.string())
    node["xattrs"] = read_xattrs(d)
    raw = bytearray(d.raw[start:d.at])
    raw[at] &= ~1
    node["digest"] = hashlib.sha256(b"assay node v2" + raw).hexdigest()[:32]
    return node


def read_state(d):
    start = d.at
    state = read_attr(d) | {"children": d.uint(), "xattrs": read_xattrs(d)}
    state["raw"], state["listing"] = d.raw[start:d.at].hex(), d.take(32).hex()
    return state


def number(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def read_record(d):
    code = d.u8()
    if code == 1:
        record = {"record": "dir", "dirno": d.uint(), "parent": d.uint(), "name": text(d.string()),
                  "listing": LISTINGS.get(d.u8()), "state": None}
        if d.u8():
            record["state"] = read_state(d)
        return record
    if code == 2:
        record = {"record": "put", "name": text(d.string()), "type": TYPES.get(d.u8())}
        record["node"] = None if record["type"] == "dir" else read_node(d)
        record["child"] = record["node"]["logid"] if record["node"] else d.uint()
        return record
    if code == 3:
        return {"record": "remove", "name": text(d.string())}
    if code == 4:
        return {"record": "extents", "logid": d.uint(), "start": d.uint(), "segments": read_segments(d)}
    if code == 5:
        return {"record": "remove-version", "version": d.uint()}
    if code == 6:
        return {"record": "relocate", "from": d.uint(), "to": d.uint()}
    if code == 7:
        return {"record": "drop-arc", "serial": d.uint()}
    if code == 8:
        what = d.u8()
        need(1 <= what <= 4, f"unknown loss {what}")
        names = {1: ["run"], 2: ["serial", "offset"], 3: ["serial", "frame"], 4: ["serial"]}[what]
        return {"record": "accept-loss", "what": what} | {name: d.uint() for name in names}
    if code == 9:
        return {"record": "remove-path", "dirno": d.uint(), "name": text(d.string())}
    raise Damage(f"unknown record {code}")


def read_version_info(d):
    info = {key: text(d.string()) for key in ("name", "tag", "host")}
    info["started"], info["finished"] = d.time(), d.time()
    for key in ("paths", "kept_paths", "not_entered"):
        info[key] = d.list(lambda: text(d.string()))
    for key in ("files", "dirs", "others", "tree_bytes", "new", "changed", "removed", "errors", "excluded",
                "vanished", "torn", "incomplete", "bytes_read", "blocks_new", "blocks_deduped", "plain_bytes",
                "stored_bytes"):
        info[key] = d.uint()
    need(not d.more(), "version info: bytes left over")
    return info


def read_arc_entry(d):
    entry = {"serial": d.uint(), "name": f"arc.{d.uint()}.{d.uint()}", "role": ROLES[d.u8()], "id": d.take(16).hex(),
             "salt": d.take(32).hex(), "arc_bytes": d.uint(), "digest": d.take(32).hex(), "frames": d.uint(),
             "footer_offset": d.uint(), "footer_len": d.uint(), "plain_bytes": d.uint()}
    need(not d.more(), "arc entry: bytes left over")
    return entry


def read_catalog_frame(d):
    frame = {"arc": d.uint(), "frame": d.uint(), "dirs": []}
    last = 0
    for _ in range(d.uint()):
        first = last + d.int()
        count = d.uint()
        last = first + count
        frame["dirs"].append([first, count])
    return frame


def read_commit(raw):
    d = Decoder(raw)
    need(d.u8() == 2, "commit record of another format")
    commit = {"record": "commit", "run": d.uint(), "run_id": d.take(16).hex()}
    flags = d.u8()
    commit["previous"] = [d.uint(), d.take(32).hex()] if flags & 1 else None
    commit["version"] = read_version_info(Decoder(d.string())) if flags & 2 else None
    commit["roots"] = d.list(lambda: [d.uint(), d.take(32).hex()])
    commit["base"] = bool(flags & 4)
    commit["arcs"] = d.list(lambda: read_arc_entry(Decoder(d.string())))
    commit["catalog"] = d.list(lambda: read_catalog_frame(d))
    commit["next"] = {"serial": d.uint(), "logid": d.uint(), "dirno": d.uint()}
    need(not d.more(), "commit record: bytes left over")
    commit["digest"] = hashlib.sha256(raw).hexdigest()
    return commit


# --- a whole backup ---------------------------------------------------------------------------------------------


class Backup:
    """The newest tree, from commit records and catalogs in the order of runs. In memory: a reader, not a tool."""

    def __init__(self, path, keys, roots=False):
        self.path, self.keys, self.arcs = path, keys, {}
        # Arc names by serial, directories by dirno, nodes and segments by logid, blocks that were relocated.
        self.names, self.children, self.nodes, self.extents, self.moved = {}, {0: {}}, {}, {}, {}
        # States of directories, those of which not all names are known, and (version, folder name, root digest).
        self.states, self.partly, self.roots = {}, set(), []
        runs = sorted(int(m[1]) for m in map(re.compile(r"arc\.(\d+)\.0$").match, os.listdir(path)) if m)
        last = None
        for run in runs:
            arc = self.open(f"arc.{run}.0")
            copies = [plain for _, _, plain in arc.frames() if not isinstance(plain, Damage)]
            need(copies, f"both commit records of r{run} are damaged")
            commit = read_commit(copies[0])
            need(commit["previous"] == last or commit["base"], f"r{run} does not follow the run before")
            last = [run, commit["digest"]]
            self.apply(commit)
            if roots and commit["version"]:
                self.roots.append((run, commit["version"]["name"], self.check_root(commit)))

    def check_root(self, commit):
        root = self.dir_digest(0)
        need([commit["run"], root] in commit["roots"], f"r{commit['run']} has another root than its commit record says")
        return root

    def dir_digest(self, top):
        """From the names up: the listing digests that states carry are only compared."""
        done, waiting = {}, [(top, False)]
        while waiting:
            dirno, ready = waiting.pop()
            names = self.children.get(dirno, {})
            if not ready:
                waiting.append((dirno, True))
                waiting += [(child, False) for kind, child in names.values() if kind == "dir"]
                continue
            listing = hashlib.sha256(b"assay listing v2" + bytes([dirno in self.partly]))
            for name, kind, child in sorted((n.encode("utf-8", "surrogateescape"), k, c) for n, (k, c) in names.items()):
                digest = done[child] if kind == "dir" else self.node_digest(self.nodes[child])
                code = next(code for code, name_of in TYPES.items() if name_of == kind)
                listing.update(number(len(name)) + name + bytes([code]) + bytes.fromhex(digest))
            state = self.states[dirno]
            # Made when not all names were known, it says nothing of those that are known now.
            of_all = not state["listing"].endswith(16 * "0")
            need(not of_all or listing.hexdigest() == state["listing"], f"directory {dirno} lists other names than it had")
            raw = bytes.fromhex(state["raw"]) + bytes.fromhex(state["listing"])
            done[dirno] = hashlib.sha256(b"assay dir v2" + raw).hexdigest()
        return done[top]

    def node_digest(self, node):
        if node["segments"] is None:
            digest, expected = hashlib.sha256(b"assay segments v2"), 0
            for segment in self.segments(node):
                if "hole" in segment:
                    digest.update(number(segment["hole"] * 2 + 1))
                    continue
                block = segment["arc"] << 24 | segment["frame"] << 7 | segment["slot"]
                off, expected = block - expected, block + 1
                digest.update(number(segment["len"] * 2) + number(off * 2 if off >= 0 else -off * 2 - 1))
            need(digest.hexdigest() == node["segments_digest"], f"file {node['logid']} has other blocks than it had")
        return node["digest"]

    def open(self, name):
        if name not in self.arcs:
            self.arcs[name] = Arc(os.path.join(self.path, name), self.keys)
        return self.arcs[name]

    def apply(self, commit):
        by_serial = {entry["serial"]: entry["name"] for entry in commit["arcs"]}
        self.names |= by_serial
        for place in commit["catalog"]:
            d = Decoder(self.open(by_serial[place["arc"]]).frame(place["frame"]))
            directory = None
            while d.more():
                r = read_record(d)
                if r["record"] == "dir":
                    directory = self.children.setdefault(r["dirno"], {})
                    if r["listing"] == "full":
                        directory.clear()
                        self.partly.discard(r["dirno"])
                    if r["listing"] == "lost":
                        self.partly.add(r["dirno"])
                    if r["state"]:
                        self.states[r["dirno"]] = r["state"]
                elif r["record"] == "put":
                    directory[r["name"]] = (r["type"], r["child"])
                    if r["node"]:
                        self.nodes[r["child"]] = r["node"]
                elif r["record"] == "remove":
                    directory.pop(r["name"], None)
                elif r["record"] == "extents":
                    self.extents.setdefault(r["logid"], {})[r["start"]] = r["segments"]
                elif r["record"] == "relocate":
                    self.moved[r["from"]] = r["to"]
                elif r["record"] == "remove-path":
                    self.children.get(r["dirno"], {}).pop(r["name"], None)

    def find(self, path):
        directory, kind, child = self.children[0], "dir", 0
        for name in filter(None, path.split("/")):
            need(kind == "dir" and name in self.children.get(child, {}), f"{path} is not in the newest version")
            kind, child = self.children[child][name]
        need(kind == "file", f"{path} is no regular file")
        return self.nodes[child]

    def segments(self, node):
        if node["segments"] is not None:
            return node["segments"]
        chunks = self.extents[node["logid"]]
        return [segment for start in sorted(chunks) for segment in chunks[start]]

    def content(self, node):
        for segment in self.segments(node):
            if "hole" in segment:
                yield bytes(segment["hole"])
            else:
                block = segment["arc"] << 24 | segment["frame"] << 7 | segment["slot"]
                at = place(self.moved.get(block, block))
                plain = self.open(self.names[at["arc"]]).block(at["frame"], at["slot"])
                need(len(plain) == segment["len"], "block length")
                yield plain


# --- command line -----------------------------------------------------------------------------------------------


def show(value):
    print(json.dumps(value))


def describe(path, arc, records):
    known = arc.header or arc.trailer
    show({"arc": os.path.basename(path), "role": ROLES[known["role"]], "id": known["id"].hex(),
          "bytes": len(arc.bytes), "sha256": hashlib.sha256(arc.bytes).hexdigest(), "frames": len(arc.table),
          "problems": arc.problems})
    bad = bool(arc.problems)
    for number, (kind, codec, stored, blocks), plain in arc.frames():
        line = {"frame": number, "kind": KINDS[kind], "codec": ("plain", "zstd")[codec], "stored": stored,
                "plain": sum(length for length, _ in blocks),
                "blocks": [{"plain": length, "hash": digest.hex()} for length, digest in blocks]}
        if isinstance(plain, Damage):
            bad = True
            show(line | {"damage": str(plain)})
            continue
        show(line | {"sha1": hashlib.sha1(plain).hexdigest()})
        if records and kind == 3:
            show(read_commit(plain))
        if records and kind == 2:
            d = Decoder(plain)
            while d.more():
                show(read_record(d))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", action="store_true", help="print commit and catalog records")
    parser.add_argument("--extract", type=int, metavar="FRAME", help="write the plain bytes of one frame")
    parser.add_argument("--file", metavar="PATH", help="write the newest state of a file of a backup dir")
    parser.add_argument("--roots", action="store_true", help="check the root digest of each version of a backup dir")
    parser.add_argument("key", help="key.conf")
    parser.add_argument("arc", nargs="+", help="arc files (with --file and --roots: the backup dir)")
    args = parser.parse_args()
    bad = False
    try:
        keys = Keys(args.key)
        if args.file is not None:
            backup = Backup(args.arc[0], keys)
            node, digest = backup.find(args.file), hashlib.sha1()
            for piece in backup.content(node):
                digest.update(piece)
                sys.stdout.buffer.write(piece)
            need(digest.hexdigest() == node["sha1"], "the file's SHA-1 is another one")
            return 0
        if args.roots:
            for version, name, root in Backup(args.arc[0], keys, roots=True).roots:
                print(f"r{version} {name} {root}")
            return 0
        for path in args.arc:
            arc = Arc(path, keys)
            if args.extract is not None:
                sys.stdout.buffer.write(arc.frame(args.extract))
            else:
                bad |= describe(path, arc, args.records)
    except Damage as e:
        print(f"read-arc: {e}", file=sys.stderr)
        bad = True
    return 4 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

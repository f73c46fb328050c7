"""Small .hic files, written byte by byte after the format's own description, versions 8 and 9."""

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np


def text(value):
    return value.encode() + b"\0"


class HicFile:
    """What is in a file: chromosomes by length, a matrix of all bins, divisors of each chromosome."""

    def __init__(self, lengths, matrices, vectors=None, version=8, assembly="test1"):
        self.version, self.vectors = version, vectors or {}
        self.matrices = matrices  # by bin size, shape (n, n), symmetric
        self.lengths, self.assembly = lengths, assembly
        self.wide = "q" if version > 8 else "i"
        self.places = {}

    def edges(self, size):
        return np.cumsum([0, *(-(-n // size) for n in self.lengths.values())]).tolist()

    def header(self, footer, norms=(0, 0)):
        names = {"ALL": max(1, sum(self.lengths.values()) // 1000), **self.lengths}
        out = b"HIC\0" + struct.pack("<iq", self.version, footer) + text(self.assembly)
        out += struct.pack("<qq", *norms) if self.version > 8 else b""
        out += struct.pack("<i", 1) + text("software") + text("tests")
        out += struct.pack("<i", len(names))
        for name, length in names.items():
            out += text(name) + struct.pack(f"<{self.wide}", length)
        sizes = sorted(self.matrices, reverse=True)
        return out + struct.pack(f"<i{len(sizes)}ii", len(sizes), *sizes, 0)

    def block(self, values, upper):
        """Return one block that holds a whole matrix of two chromosomes."""
        values = np.triu(values) if upper else values
        whole = (values == np.rint(values)).all() and np.abs(values).max() < 2**15
        kind = "h" if whole else "f"
        rows, n = b"", 0
        # rows are of the second chromosome, columns of the first
        for y in np.flatnonzero(values.any(axis=0)).tolist():
            xs = np.flatnonzero(values[:, y])
            rows += struct.pack("<hh", y, len(xs))
            for x in xs.tolist():
                value = values[x, y]
                rows += struct.pack(f"<h{kind}", x, int(value) if whole else float(value))
            n += len(xs)
        flags = bytes([not whole, 0, 0] if self.version > 8 else [not whole])
        n_rows = np.count_nonzero(values.any(axis=0))
        out = struct.pack("<iii", n, 0, 0) + flags + b"\1" + struct.pack("<h", n_rows) + rows
        return zlib.compress(out)

    def write(self, path):
        """Write everything; `places` then says where each part lies, as (start, length)."""
        out = bytearray(self.header(0))
        index = []
        for a, b in itertools.combinations_with_replacement(range(len(self.lengths)), 2):
            parts = {}
            for size, matrix in self.matrices.items():
                e = self.edges(size)
                values = matrix[e[a] : e[a + 1], e[b] : e[b + 1]]
                if values.any():
                    parts[size] = self.block(values, a == b), values
            if not parts:
                continue
            for size, (block, _) in parts.items():
                self.places["block", a, b, size] = len(out), len(block)
                out += block
            start = len(out)
            out += struct.pack("<iii", a + 1, b + 1, len(parts))
            for k, (size, (_, values)) in enumerate(sorted(parts.items(), reverse=True)):
                place = self.places["block", a, b, size]
                out += text("BP") + struct.pack("<iffff", k, float(values.sum()), 0, 0, 0)
                out += struct.pack("<iiii", size, 1000, 1, 1) + struct.pack("<iqi", 0, *place)
            index.append((f"{a + 1}_{b + 1}", start, len(out) - start))
        footer = len(out)
        tail = struct.pack("<i", len(index))
        for key, *place in index:
            tail += text(key) + struct.pack("<qi", *place)
        tail += struct.pack("<i", 0)  # expected values
        out += struct.pack(f"<{self.wide}", len(tail)) + tail
        self.places["footer"] = footer, len(tail)
        out += struct.pack("<i", 0)  # expected values, normalised
        norms = self.norms(out)
        out[: len(self.header(0))] = self.header(footer, norms)
        Path(path).write_bytes(out)
        return path

    def norms(self, out):
        """Write the index of divisors and the divisors behind it; return where the index is."""
        entries = [
            (name, k, size, vector[a:b])
            for (name, size), vector in self.vectors.items()
            for k, (a, b) in enumerate(
                zip(self.edges(size)[:-1], self.edges(size)[1:], strict=True)
            )
        ]
        kind = "<f4" if self.version > 8 else "<f8"
        head = len(out)
        length = 4 + sum(
            len(text(e[0])) + 4 + 3 + 4 + 8 + (8 if self.version > 8 else 4) for e in entries
        )
        index, values = struct.pack("<i", len(entries)), b""
        for name, k, size, vector in entries:
            each = struct.pack(f"<{self.wide}", len(vector)) + vector.astype(kind).tobytes()
            index += text(name) + struct.pack("<i", k + 1) + text("BP")
            index += struct.pack(f"<iq{self.wide}", size, head + length + len(values), len(each))
            values += each
        assert len(index) == length
        out += index + values
        return head, length

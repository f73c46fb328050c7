"""Small stores, ways to damage them, and a process that reads them and may crash."""

import json
import math
import multiprocessing
import re
import traceback
from contextlib import suppress
from functools import lru_cache, partial
from typing import NamedTuple

import google_crc32c
import numpy as np
import pandas as pd
import scipy.sparse
import zarr

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader.errors import PlanError, XloaderError
from xloader.store.layout import BLOCK_ROWS, checksum, read_root, write_root
from xloader.store.write import manifest

RESOLUTIONS = (10_000, 20_000)
ABSENT = 2**64 - 1
WAYS = ("csr", "whole")  # xarray keeps what it reads as a whole
ALL_WAYS = ("csr", "dense", "panel", "whole")
CHILD_SECONDS = 60


class Outcome(NamedTuple):
    """What reading a store came to."""

    kind: str
    """An error of xloader by name, "equal", "wrong" or "crash"."""
    text: str = ""


# --- reading everything ---------------------------------------------------------------------------


def openings(store):
    """Return what opens each Dataset of a store."""
    if store.name.startswith("cells"):
        return [partial(xl.open_cells, store, chunks=None)]
    return [partial(xl.open_contacts, store, resolution=r, chunks=None) for r in RESOLUTIONS]


def contents(ds, way):
    """Return every value of a Dataset, read as a whole or through a loader."""
    parts = [ds.compute()] if way == "whole" else epoch(ds, way)
    return {(k, *key): v for k, part in enumerate(parts) for key, v in frozen(part).items()}


def epoch(ds, way):
    """Return the batches of one shuffled epoch."""
    if "cell" not in ds.dims:
        shape = xl.windows.diagonal(size=48, stride=16)
        return xl.Loader(ds, windows=shape, batch_size=8, shuffle=True)
    if way == "panel":
        ds = ds.isel(gene=slice(None, None, -2))
    return xl.Loader(ds, batch_size=40, shuffle=True, layout="dense" if way == "dense" else "csr")


def frozen(ds):
    """Return arrays as what can be compared bit by bit."""
    found = {("attrs",): repr(ds.attrs)}
    for name, variable in ds.variables.items():
        data, sparse_parts = variable.data, ("data", "indices", "indptr")
        if all(hasattr(data, part) for part in sparse_parts):
            arrays = {part: getattr(data, part) for part in sparse_parts}
        else:
            arrays = {"values": np.asarray(variable.values)}
        for part, array in arrays.items():
            bits = repr(array.tolist()) if array.dtype.hasobject else array.tobytes()
            found[name, part] = (array.dtype.str, variable.shape, bits)
    return found


@lru_cache
def original(whole, place, way):
    """Return the contents of a store that was never damaged."""
    return contents(openings(whole)[place](), way)


def attempt(function, *args):
    """Return what a function returns, or the outcome if it fails."""
    try:
        return function(*args)
    except XloaderError as e:
        return Outcome(type(e).__name__, str(e))
    except Exception:  # noqa: BLE001 # any other is what is looked for
        return Outcome("crash", traceback.format_exc())


def outcome(store, whole, ways):
    """Read a store in several ways and compare it with one that was never damaged."""
    found = []
    for place, opening in enumerate(openings(store)):
        ds = attempt(opening)
        if isinstance(ds, Outcome):
            found.append(ds)
            continue
        for way in ways:
            values = attempt(contents, ds, way)
            if isinstance(values, Outcome):
                found.append(values)
            elif values != (expected := original(whole, place, way)):
                wrong = [key for key in expected if values.get(key) != expected[key]]
                found.append(Outcome("wrong", f"{way}: {wrong[:3]}"))
    for kind in ("crash", "wrong"):
        found.sort(key=lambda each, kind=kind: each.kind != kind)
    return found[0] if found else Outcome("equal")


def serve(pipe):
    """Read stores, one after the other."""
    for task in iter(pipe.recv, None):
        pipe.send(outcome(*task))


class Child:
    """A process that reads stores; one that dies is replaced."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def read(self, store, whole, ways=WAYS):
        self.pipe.send((store, whole, ways))
        try:
            if self.pipe.poll(CHILD_SECONDS):
                return self.pipe.recv()
            how = f"no answer within {CHILD_SECONDS} s"
        except EOFError:
            self.process.join()
            how = f"the process died with exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.__init__()
        return Outcome("crash", how)

    def close(self):
        self.pipe.send(None)
        self.process.join(CHILD_SECONDS)


# --- stores and their files -----------------------------------------------------------------------


def write_cells(folder, name, seed=0, **options):
    """Write a store of cells with counts, a layer of fractions, dense factors and labels."""
    x = sparse(150, 40, high=300)
    x[x > 0] = np.random.default_rng(seed).integers(1, 300, int((x > 0).sum()))
    obs = {"kind": pd.Categorical(list("abc" * 50)), "score": np.linspace(0, 1, 150) ** 2}
    obs["other"] = obs["score"][::-1]
    source = write_h5ad(
        folder / f"{name}.h5ad",
        scipy.sparse.csr_matrix(x),
        obs=pd.DataFrame(obs, index=[f"cell {k}" for k in range(150)]),
        obsm={"U": np.random.default_rng(seed).normal(size=(150, 1_000)).astype(np.float32)},
        layers={"half": scipy.sparse.csr_matrix(x / 2 + (x > 0) * np.float32(0.25))},
    )
    xl.convert(source, folder / name, progress=False, **options)
    return x


def write_shards(folder, name, x):
    """Write a store of a matrix alone, in several shards of several chunks."""
    ds = xl.open_cells(write_h5ad(folder / f"{name}.h5ad", scipy.sparse.csr_matrix(x)))[["X"]]
    for budget in (4_000 << k for k in range(14)):  # shards are as large as the budget allows
        with suppress(PlanError):
            xl.convert(ds, folder / name, memory_budget=budget, overwrite=True, progress=False)
            shard, chunk = sharding_of(folder / name / "X" / "values" / "c" / "0" / "0")
            if shard[0] > chunk[0]:
                break
    assert (folder / name / "X" / "values" / "c" / "2" / "0").exists()


def write_contacts(folder, name, seed=0, **options):
    """Write a store of two resolutions."""
    source = xl.simulate.contacts(
        folder / f"{name}.mcool",
        chromosomes={"c1": 1_600_000, "c2": 1_100_000},
        resolutions=RESOLUTIONS,
        seed=seed,
    )
    xl.convert(source, folder / name, progress=False, **options)
    return source


def metadata_of(file):
    """Return the zarr metadata of the array that a file belongs to."""
    folder = next(p for p in file.parents if (p / "zarr.json").exists())
    return json.loads((folder / "zarr.json").read_text())


def sharding_of(file):
    """Return the shapes of a shard and of its chunks; None if it is no shard."""
    metadata = metadata_of(file)
    codec = metadata["codecs"][0]
    if codec["name"] != "sharding_indexed":
        return None
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return np.array(shard), np.array(codec["configuration"]["chunk_shape"])


def read_shard(file):
    """Return the bytes of all chunks, and offset and length of each (row-major order)."""
    shard, chunk = sharding_of(file)
    content = file.read_bytes()
    at = len(content) - 16 * math.prod(shard // chunk) - 4
    return content[:at], np.frombuffer(content[at:-4], "<u8").reshape(-1, 2).copy()


def write_shard(file, body, spans):
    """Write a shard with a correct checksum of its index."""
    index = spans.astype("<u8").tobytes()
    put(file, body + index + int(google_crc32c.value(index)).to_bytes(4, "little"))


def put(file, content):
    """Write a new file, where the old one may be linked or mapped elsewhere."""
    file.unlink()
    file.write_bytes(content)


def regions_of(file):
    """Return the parts of a file, by what they hold: half-open ranges of bytes."""
    size = file.stat().st_size
    if file.name == "zarr.json":
        document = json.loads(file.read_text())
        root = "root " * ("xloader" in document["attributes"])
        return {f"{root}metadata of {document['node_type']}": [(0, size)]}
    if sharding_of(file) is None:
        return {"label": [(0, size - 4)], "label checksum": [(size - 4, size)]}
    body, spans = read_shard(file)
    ends = [(int(a), int(a + n)) for a, n in spans if a != ABSENT]
    assert sum(b - a for a, b in ends) == len(body)  # no byte is left out
    return {
        "chunk": [(a, b - 4) for a, b in ends],
        "chunk checksum": [(b - 4, b) for _, b in ends],
        "index": [(len(body), size - 4)],
        "index checksum": [(size - 4, size)],
    }


def reseal(store):
    """Make every checksum fit again after files were changed."""
    root = read_root(store)
    write_root(store, {"kind": root["kind"], "groups": root["groups"], "arrays": manifest(store)})


def held_by(file, chunk):
    """Return the rows, or the bins of both axes, that a chunk of a shard holds."""
    shard, side = sharding_of(file)
    array = next(p for p in file.parents if (p / "zarr.json").exists())
    place = np.array([int(k) for k in file.relative_to(array / "c").parts])
    at = place * (shard // side) + np.unravel_index(chunk, shard // side)
    shape = metadata_of(file)["shape"]
    if array.name in {"values", "deltas"}:
        indptr = zarr.open_array(str(array.parent / "indptr"), mode="r")[...]
        edges = np.append(np.arange(0, len(indptr) - 1, BLOCK_ROWS), len(indptr) - 1)
        blocks = np.diff(indptr[edges])
        block = int(np.repeat(np.arange(len(blocks)), -(-blocks // shape[1]))[at[0]])
        return [(int(edges[block]), int(edges[block + 1]))]
    n_axes = 2 if array.name == "count" else 1
    ends = np.minimum((at + 1) * side, shape)
    return [(int(a), int(b)) for a, b in zip(at * side, ends, strict=True)][:n_axes]


def whole_range(file):
    """Return the first and last of what a shard holds."""
    _, spans = read_shard(file)
    each = [held_by(file, k) for k in np.flatnonzero(spans[:, 0] != ABSENT)]
    return [(min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*each, strict=True)]


def named_ranges(text):
    """Return the ranges of rows or bins that a message names."""
    found = re.findall(r"(?:rows|bins?\d?) (\d+)-(\d+)(?: (?:x|of|and) (\d+)-(\d+))?", text)
    flat = [[int(k) for k in numbers if k] for numbers in found]
    return [(n[k], n[k + 1]) for n in flat for k in range(0, len(n), 2)]


def edit_root(store, change):
    """Change the description of a store, and its checksum with it."""
    document = json.loads((store / "zarr.json").read_text())
    change(document["attributes"]["xloader"])
    document["attributes"]["xloader_crc32c"] = checksum(document["attributes"]["xloader"])
    (store / "zarr.json").write_text(json.dumps(document))

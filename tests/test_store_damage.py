"""A damaged store never gives wrong numbers: it is an error that says where, or nothing changed."""

import os
import re
import shutil
import threading
import time
from collections import Counter

import cooler
import numpy as np
import pytest
import scipy.sparse
import zarr

import xloader as xl
from tests import damage
from tests.damage import ABSENT, RESOLUTIONS
from tests.sources import sparse
from xloader.errors import ReadError
from xloader.store.layout import BLOCK_ROWS, read_root

N_FLIPS = int(os.environ.get("XLOADER_FUZZ", "320"))
LONG = scipy.sparse.random(720, 40_000, 0.002, "csr", np.float32, 0)


@pytest.fixture(scope="module")
def child():
    made = damage.Child()
    yield made
    made.close()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a folder of stores; those of the same kind differ in their numbers alone."""
    folder = tmp_path_factory.mktemp("stores")
    damage.write_cells(folder, "cells")
    damage.write_cells(folder, "cells-other", seed=1)
    damage.write_cells(folder, "cells-small-shuffled", codec="small", shuffle=True)
    damage.write_shards(folder, "cells-shards", sparse(600, 40, high=300))
    damage.write_shards(folder, "cells-long", LONG)
    damage.write_contacts(folder, "contacts")
    damage.write_contacts(folder, "contacts-other", seed=1)
    damage.write_contacts(folder, "contacts-small", codec="small")
    return folder


@pytest.fixture
def copy_of(stores, tmp_path):
    """Return a function that copies a store to where no cache knows it."""

    def copy(name):
        return shutil.copytree(stores / name, tmp_path / name)

    return copy


# --- random damage --------------------------------------------------------------------------------


def test_contents__are_the_originals(tmp_path):
    for name, options in (("cells", {}), ("cells-s", {"codec": "small", "shuffle": True})):
        x = damage.write_cells(tmp_path, name, **options)
        ds = xl.open_cells(tmp_path / name, chunks=None).load()
        order = [int(cell.removeprefix("cell ")) for cell in ds.cell.values]
        assert (order == list(range(150))) == (name == "cells")
        np.testing.assert_array_equal(ds.X.values, x[order])
        np.testing.assert_array_equal(ds.half.values, (x / 2 + (x > 0) / 4)[order])
        assert ds.kind.values.tolist() == [("abc" * 50)[k] for k in order]
        factors = np.random.default_rng(0).normal(size=(150, 1_000)).astype(np.float32)
        np.testing.assert_array_equal(ds.U.values, factors[order])
        ids = []
        for batch in damage.epoch(xl.open_cells(tmp_path / name, chunks=None), "csr"):
            rows = [order[k] for k in batch.sample_id.values]
            np.testing.assert_array_equal(batch.X.data.todense(), x[rows])
            np.testing.assert_array_equal(batch.U.values, factors[rows])
            ids += rows
        assert sorted(ids) == list(range(150))
    source = damage.write_contacts(tmp_path, "contacts")
    for resolution in RESOLUTIONS:
        clr = cooler.Cooler(f"{source}::resolutions/{resolution}")
        counts = clr.matrix(balance=False)[:]
        ds = xl.open_contacts(tmp_path / "contacts", resolution=resolution, chunks=None)
        seen = 0
        for batch in damage.epoch(ds, "csr"):
            for k in range(batch.sizes["sample"]):
                i, j = (batch[f"bin{axis}"].values[k] for axis in (1, 2))
                np.testing.assert_array_equal(batch["count"].values[k], counts[np.ix_(i, j)])
                weights = clr.bins()["weight"][:].to_numpy()[i]
                np.testing.assert_array_equal(batch.weight1.values[k], weights)
                seen += 1
        assert seen > 3
        np.testing.assert_array_equal(ds["count"].values, counts)


def plan_flips(files, n):
    """Return places to damage: each file once, then each kind of place equally often."""
    rng = np.random.default_rng(20)
    parts = {file: damage.regions_of(file) for file in files}
    kinds = sorted({kind for found in parts.values() for kind in found})
    targets = [(file, str(rng.choice(list(parts[file])))) for file in files]
    while len(targets) < n:
        kind = kinds[len(targets) % len(kinds)]
        having = [file for file in files if kind in parts[file]]
        targets.append((having[rng.integers(len(having))], kind))
    for file, kind in targets:
        a, b = parts[file][kind][rng.integers(len(parts[file][kind]))]
        yield file, kind, int(rng.integers(a, b)), int(rng.integers(8))


def test_flips__are_errors_or_harmless(stores, tmp_path, child, record_property):
    names = ("cells", "cells-small-shuffled", "cells-shards", "contacts", "contacts-small")
    files = [p for name in names for p in sorted((stores / name).rglob("*")) if p.is_file()]
    assert len(files) < N_FLIPS  # each is damaged
    links = {name: tmp_path / f"{name}-linked" for name in names}
    for name, copy in links.items():
        shutil.copytree(stores / name, copy, copy_function=os.link)
    tried, silent = Counter(), []
    for k, (file, kind, byte, bit) in enumerate(plan_flips(files, N_FLIPS)):
        path = file.relative_to(stores)
        name = path.parts[0]
        # nothing is known of the place that the copy moves to
        copy = links[name] = links[name].rename(tmp_path / f"{name}-{k}")
        content = bytearray(file.read_bytes())
        content[byte] ^= 1 << bit
        damaged = tmp_path.joinpath(f"{name}-{k}", *path.parts[1:])
        damage.put(damaged, content)
        result = child.read(copy, stores / name)
        damaged.unlink()
        damaged.hardlink_to(file)
        tried[kind, "harmless" if result.kind == "equal" else "error"] += 1
        if result.kind not in {"ReadError", "SchemaError", "equal"}:
            silent.append(f"{path}, byte {byte}, bit {bit} ({kind}): {result.kind}, {result.text}")
    counts = "; ".join(f"{kind} {what}: {n}" for (kind, what), n in sorted(tried.items()))
    record_property("flips", counts)
    print(f"{tried.total()} flips. {counts}")
    assert not silent, "\n".join(silent)
    assert {what for _, what in tried} == {"error", "harmless"}
    # outside of metadata nothing is harmless
    assert all("metadata" in kind for kind, what in tried if what == "harmless")


# --- damage that is aimed -------------------------------------------------------------------------

TARGETS = {
    "values": ("cells-shards", "X/values/c/1/0"),
    "deltas": ("cells-shards", "X/deltas/c/1/0"),
    "dense": ("cells", "U/c/0/0"),
    "tiles": ("contacts", "resolutions/10000/count/c/0/0"),
}
"""A shard of each kind of array."""


def assert_told(result, file, held):
    """Check that a ReadError names a shard and rows or bins of it, `held` among them."""
    assert result.kind == "ReadError", result
    assert str(file) in result.text
    assert re.search("chunk|block|tile", result.text)
    named = damage.named_ranges(result.text)
    assert len(named) == len(held), result.text
    assert all(a <= c < d <= b for (a, b), (c, d) in zip(named, held, strict=True)), result.text


@pytest.mark.parametrize("length", ["nothing", "half", "one byte less", "index only"])
@pytest.mark.parametrize("target", TARGETS)
def test_shard__truncated(target, length, copy_of, stores, child):
    name, path = TARGETS[target]
    store = copy_of(name)
    content = (store / path).read_bytes()
    body, spans = damage.read_shard(store / path)
    held = damage.held_by(store / path, int(np.flatnonzero(spans[:, 0] != ABSENT)[0]))
    whole = damage.whole_range(store / path)
    cut = {
        "nothing": b"",
        "half": content[: len(content) // 2],
        "one byte less": content[:-1],
        "index only": content[len(body) :],
    }[length]
    damage.put(store / path, cut)
    # where the index is whole, chunks are read one after the other
    found = child.read(store, stores / name)
    assert_told(found, store / path, held if length == "index only" else whole)


@pytest.mark.parametrize("target", TARGETS)
def test_chunk__flipped(target, copy_of, stores, child):
    name, path = TARGETS[target]
    store = copy_of(name)
    body, spans = damage.read_shard(store / path)
    chunk = int(np.flatnonzero(spans[:, 0] != ABSENT)[-1])
    damaged = bytearray(body)
    damaged[int(spans[chunk, 0]) + 20] ^= 1
    damage.write_shard(store / path, bytes(damaged), spans)
    result, held = child.read(store, stores / name), damage.held_by(store / path, chunk)
    assert_told(result, store / path, held)
    assert damage.named_ranges(result.text) == held


INDEX = {
    "offset beyond the file": lambda span, size: (size + 10, span[1]),
    "length beyond the file": lambda span, size: (span[0], size),
    "length beyond the file by one byte": lambda span, size: (span[0], size - span[0] + 1),
    "sum that overflows": lambda span, _: (2**64 - 8, span[1] + 16),
    "offset that is negative": lambda span, _: (2**63 + 5, span[1]),
    "only the offset absent": lambda span, _: (ABSENT, span[1]),
    "only the length absent": lambda span, _: (span[0], ABSENT),
    "no byte": lambda span, _: (span[0], 0),
    "three bytes": lambda span, _: (span[0], 3),
    "a header alone": lambda span, _: (span[0], 16),
    "absent": lambda *_: (ABSENT, ABSENT),
}
"""What an entry of an index, otherwise correct, may be changed to."""


@pytest.mark.parametrize("change", INDEX)
@pytest.mark.parametrize("target", TARGETS)
def test_index__entry_that_is_wrong(target, change, copy_of, stores, child):
    name, path = TARGETS[target]
    store = copy_of(name)
    body, spans = damage.read_shard(store / path)
    chunk = int(np.flatnonzero(spans[:, 0] != ABSENT)[-1])
    spans[chunk] = INDEX[change]([int(k) for k in spans[chunk]], len(body))
    held = damage.held_by(store / path, chunk)
    damage.write_shard(store / path, body, spans)
    assert_told(child.read(store, stores / name), store / path, held)


@pytest.mark.parametrize("target", TARGETS)
def test_index__two_chunks_swapped(target, copy_of, stores, child):
    name, path = TARGETS[target]
    store = copy_of(name)
    body, spans = damage.read_shard(store / path)
    a, b = np.flatnonzero(spans[:, 0] != ABSENT)[:2]
    spans[[a, b]] = spans[[b, a]]
    damage.write_shard(store / path, body, spans)
    held = damage.held_by(store / path, int(a))
    assert_told(child.read(store, stores / name), store / path, held)


REPLACED = {
    "values by the next shard": ("cells-shards", "X/values/c/0/0", "X/values/c/1/0"),
    "deltas by the next shard": ("cells-shards", "X/deltas/c/0/0", "X/deltas/c/1/0"),
    "values by deltas": ("cells-shards", "X/values/c/0/0", "X/deltas/c/0/0"),
    "values by those of another store": ("cells", "X/values/c/0/0", "../cells-other/X/values/c/0/0"),
    "dense by that of another store": ("cells", "U/c/0/0", "../cells-other/U/c/0/0"),
    "tiles by those of another store": (
        "contacts",
        "resolutions/10000/count/c/0/0",
        "../contacts-other/resolutions/10000/count/c/0/0",
    ),
    "tiles by another resolution": (
        "contacts",
        "resolutions/10000/count/c/0/0",
        "resolutions/20000/count/c/0/0",
    ),
    "label by another": ("cells", "coords/score/c/0", "coords/other/c/0"),
    "codes by others": ("contacts", "resolutions/10000/coords/start1/c/0", "resolutions/10000/coords/end1/c/0"),
    "index of rows by another": ("cells", "X/indptr/c/0", "../cells-small-shuffled/X/indptr/c/0"),
}  # fmt: skip
"""A store, one of its files, and the whole file that takes its place."""


@pytest.mark.parametrize("case", REPLACED)
def test_file__replaced_by_another(case, copy_of, stores, child):
    name, path, other = REPLACED[case]
    store = copy_of(name)
    content = (stores / name / other).read_bytes()
    assert content != (store / path).read_bytes()
    damage.put(store / path, content)
    result = child.read(store, stores / name)
    assert result.kind == "ReadError", result
    array = next(p for p in (store / path).parents if (p / "zarr.json").exists())
    assert str(array) in result.text


@pytest.mark.parametrize("what", ["arrays", "files"])
def test_arrays__swapped(what, copy_of, stores, child):
    store = copy_of("cells-shards")
    values, deltas = (store / "X" / name for name in ("values", "deltas"))
    kept = store / "X" / "kept"
    types = {zarr.open_array(str(array), mode="r").dtype for array in (values, deltas)}
    assert types == {np.dtype(np.uint16)}  # what one holds may be read as the other
    if what == "files":
        values, deltas, kept = values / "c", deltas / "c", kept / "c"
        kept.parent.mkdir()
    values.rename(kept)
    deltas.rename(values)
    kept.rename(deltas)
    result = child.read(store, stores / "cells-shards")
    assert result.kind == "ReadError", result
    assert str(store / "X") in result.text


# --- wrong numbers under correct checksums: nothing out of bounds is read or written --------------


def falling(indptr):
    indptr[60] = indptr[62] + 1


def beyond(indptr):
    indptr[-1] += 10**6


def far_beyond(indptr):
    indptr[61:] += 2**62


def overflowing(indptr):
    indptr[1:-1] = 2**63 - 1
    indptr[-1] = -(2**63)


def negative(indptr):
    indptr[1:5] = -3


def late(indptr):
    indptr[0] = 1


def empty(indptr):
    indptr[:] = 0


@pytest.mark.parametrize(
    "change", [falling, beyond, far_beyond, overflowing, negative, late, empty]
)
def test_indptr__that_fits_no_rows(change, copy_of, stores, child):
    store = copy_of("cells-shards")
    array = zarr.open_array(str(store / "X" / "indptr"), mode="r+")
    indptr = array[...]
    change(indptr)
    array[...] = indptr
    damage.reseal(store)
    result = child.read(store, stores / "cells-shards", damage.ALL_WAYS)
    assert result.kind == "ReadError", result
    assert str(store / "X") in result.text
    if change is falling:
        assert indptr[59] <= indptr[60] > indptr[61]  # row 60 ends before it begins
        assert any(a <= 60 < b for a, b in damage.named_ranges(result.text)), result.text


@pytest.mark.parametrize("by", [40, 65_535])
def test_columns__beyond_the_genes(by, copy_of, stores, child):
    store = copy_of("cells-shards")
    deltas = zarr.open_array(str(store / "X" / "deltas"), mode="r+")
    indptr = zarr.open_array(str(store / "X" / "indptr"), mode="r")[...]
    assert (indptr[32:193:32] - indptr[:161:32] <= deltas.shape[1]).all()  # a chunk is a block
    row = 161 + int(np.flatnonzero(np.diff(indptr[161:]))[0])
    chunk = deltas[5]
    chunk[indptr[row + 1] - 1 - indptr[160]] = by
    deltas[5] = chunk
    damage.reseal(store)
    result = child.read(store, stores / "cells-shards", damage.ALL_WAYS)
    assert result.kind == "ReadError", result
    assert "column" in result.text
    assert str(store / "X") in result.text
    assert any(a <= row < b <= a + BLOCK_ROWS for a, b in damage.named_ranges(result.text)), (
        result.text
    )


# --- what the store says about itself -------------------------------------------------------------


@pytest.mark.parametrize(
    "files", [[], [[0, 1]], [[0, 99]], [[1, 3]], [[0]], None, [["a", "b"]], [[-1, 3]], [[3, 0]]],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("array", ["X/values", "X/indptr"])
def test_manifest__lists_other_files(array, files, copy_of, stores, child):
    store = copy_of("cells-shards")

    def change(root):
        root["arrays"][array]["files"] = files

    right = read_root(store)["arrays"][array]["files"]
    damage.edit_root(store, change)
    result = child.read(store, stores / "cells-shards")
    assert result.kind == ("equal" if files == right else "ReadError"), result


@pytest.mark.parametrize(
    ("array", "file"),
    [
        ("X/values", "X/values/c/1/0"),
        ("X/indptr", "X/indptr/c/0"),
        ("coords/row", "coords/row/c/0"),
    ],
)
def test_manifest__lacks_an_array(array, file, copy_of, stores, child):
    store = copy_of("cells-shards")
    damage.edit_root(store, lambda root: root["arrays"].pop(array))
    (store / file).unlink()  # which zarr would read as zeros
    result = child.read(store, stores / "cells-shards")
    assert result.kind == "ReadError", result


@pytest.mark.parametrize("version", ["3", 2.5, None, True, [2], "none"], ids=repr)
def test_format__that_is_no_known_number(version, copy_of, stores, child):
    store = copy_of("cells-shards")

    def change(root):
        root["format"] = version
        if version == "none":
            del root["format"]

    damage.edit_root(store, change)
    result = child.read(store, stores / "cells-shards")
    assert result.kind in {"ReadError", "SchemaError"}, result
    assert str(store) in result.text


# --- while a process goes on ----------------------------------------------------------------------


def flip(file):
    """Change the last byte that the first chunk decodes to, where decoding cannot notice."""
    _, spans = damage.read_shard(file)
    offset, length = spans[np.flatnonzero(spans[:, 0] != ABSENT)[0]]
    content = bytearray(file.read_bytes())
    content[int(offset + length) - 5] ^= 1
    with file.open("r+b") as f:
        f.write(content)


IN_PLACE = {
    "a flipped bit": flip,
    "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "replaced": lambda file: damage.put(file, b"something else"),
    "removed": lambda file: file.unlink(),
}
"""What may happen to a file that was read before."""


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("target", TARGETS)
def test_process__opens_a_store_again_after_it_changed(target, change, copy_of, stores, child):
    name, path = TARGETS[target]
    store = copy_of(name)
    assert child.read(store, stores / name).kind == "equal"
    content = (store / path).read_bytes()
    IN_PLACE[change](store / path)
    result = child.read(store, stores / name)
    # a file that was replaced may still be there, whole, for the process that has it open
    assert result.kind in {"ReadError", "equal" if change == "replaced" else ""}, result
    (store / path).write_bytes(content)
    assert child.read(store, stores / name).kind == "equal"


@pytest.mark.parametrize("change", ["a flipped bit", "emptied", "replaced", "removed"])
def test_loader__meets_damage_on_the_way(change, copy_of):
    x, store = LONG, copy_of("cells-long")
    file = max((store / "X" / "values" / "c").glob("*/0"), key=lambda p: int(p.parent.name))
    content = file.read_bytes()

    def loader():
        # batches so large that few are made ahead
        ds = xl.open_cells(store, chunks=None)
        return xl.Loader(ds, batch_size=120, layout="dense", memory_budget="100kB")

    def check(batches):
        for k, batch in enumerate(batches):
            expected = x[120 * k : 120 * (k + 1)].toarray()
            np.testing.assert_array_equal(batch.X.values, expected)
            yield k

    first = loader()
    batches = check(first)
    assert next(batches) == 0
    IN_PLACE[change](file)
    start = time.perf_counter()
    seen = []
    with pytest.raises(ReadError, match=re.escape(str(file))):
        seen.extend(batches)
    assert time.perf_counter() - start < 5
    assert len(seen) >= 2
    assert not [t for t in threading.enumerate() if t.name.startswith("xloader-read")]
    file.write_bytes(content)
    for again in (first, loader()):
        assert list(check(again)) == list(range(6))


@pytest.mark.parametrize("target", TARGETS)
def test_loader__made_before_a_shard_was_removed(target, copy_of):
    name, path = TARGETS[target]
    store = copy_of(name)
    (ds, *_) = (opening() for opening in damage.openings(store))
    batches = damage.epoch(ds, "csr")
    (store / path).unlink()
    with pytest.raises(ReadError, match=re.escape(str(store / path))):
        list(batches)

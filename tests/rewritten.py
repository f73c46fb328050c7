"""Two stores, the same arrays in other chunks and codecs, and what they must be equal to."""

import functools
import itertools

import numpy as np
import scipy.sparse
import xarray as xr
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader import trace
from xloader.store.layout import read_root


def opened(kind, path, **options):
    return (xl.open_cells if kind == "cells" else xl.open_contacts)(path, **options)


def epoch(kind, path, **options):
    """Read one shuffled epoch in several pools."""
    if kind == "contacts":
        options |= {"windows": xl.windows.diagonal(size=48, stride=16), "memory_budget": "3MB"}
    else:
        options |= {"layout": "dense", "memory_budget": "100kB"}
    ds = opened(kind, path)
    loader = xl.Loader(ds, batch_size=16, shuffle=True, seed=3, **options)
    assert loader.plan.n_pools(0) > 1
    return [batch.compute() for batch in loader]


def assert_equal_stores(kind, path, other):
    """Compare everything, whole and as batches."""
    assert opened(kind, path).compute().identical(opened(kind, other).compute())
    mine, theirs = epoch(kind, path), epoch(kind, other)
    assert len(mine) > 5
    for a, b in zip(mine, theirs, strict=True):
        xr.testing.assert_identical(a, b)


def arrays_of(ds):
    """Return the arrays that chunks of the data variables are read with."""
    views = [trace.view(v.variable).array for v in ds.data_vars.values()]
    return [a for v in views for a in vars(v).values() if hasattr(a, "read_chunks")]


def write_stores(folder):
    """Write one store of each kind, as `xl.convert` does."""
    x = sparse(333, 60)
    x[40:75] = 0  # a block without values
    dense = np.random.default_rng(0).normal(size=(333, 7))
    source = write_h5ad(folder / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": dense})
    xl.convert(source, folder / "cells", progress=False)
    mcool = xl.simulate.contacts(
        folder / "a.mcool", chromosomes={"c": 12_000_000, "d": 2_234_567}, resolutions=(10_000,)
    )
    xl.convert(mcool, folder / "contacts", progress=False)
    return {kind: folder / kind for kind in ("cells", "contacts")}


def rewrite(store, target, how):
    """Write every array of a store anew with zarr; `how` makes arguments from shape and dtype."""
    root = read_root(store)
    zarr.open_group(str(target), mode="w").attrs.update(zarr.open_group(str(store)).attrs.asdict())
    for name in root["arrays"]:
        old = zarr.open_array(str(store / name), mode="r")
        options = how(old.shape, old.dtype)
        new = zarr.create_array(
            str(target / name), shape=old.shape, dtype=options.pop("dtype", old.dtype), **options
        )
        if old.size:
            new[...] = old[...]
    return target


def side(n, k):
    """Return a length of chunks: at most nine along a dimension."""
    return max(1, min(n, max(k, n // 8)))


def whole_files(shape, dtype, *, sides=(7, 300), **options):
    """Chunks without shards; strings keep the codec that they must have."""
    chunks = tuple(side(n, k) for n, k in zip(shape, itertools.cycle(sides), strict=False))
    if dtype.kind not in "biuf":
        options.pop("serializer", None)
        options.pop("filters", None)
    return {"chunks": chunks, **options}


def shards(shape, dtype, *, sides=(5, 40), **options):
    """Shards of 3 x 3 chunks with an index as asked for."""
    if dtype.kind not in "biuf" or 0 in shape:
        return {"chunks": tuple(max(1, n) for n in shape)}
    chunks = tuple(side(n, k) for n, k in zip(shape, itertools.cycle(sides), strict=False))
    inner = [BytesCodec(), *options.pop("inner", [ZstdCodec()])]
    return {
        "chunks": tuple(3 * c for c in chunks),
        "serializer": ShardingCodec(chunk_shape=chunks, codecs=inner, **options),
        "compressors": None,
        "filters": None,
    }


def transposed(shape, dtype):
    many = len(shape) > 1
    filters = [TransposeCodec(order=tuple(reversed(range(len(shape)))))] if many else []
    return whole_files(shape, dtype, filters=filters, compressors=[GzipCodec()])


REWRITES = {
    "defaults": lambda *_: {},
    "gzip": functools.partial(whole_files, compressors=[GzipCodec(level=1)]),
    "raw": functools.partial(whole_files, sides=(3, 10_000), compressors=None),
    "big_endian": functools.partial(
        whole_files, serializer=BytesCodec(endian="big"), compressors=[BloscCodec(), Crc32cCodec()]
    ),
    "transposed": transposed,
    "dots": functools.partial(
        whole_files, chunk_key_encoding={"name": "default", "separator": "."}
    ),
    "v2_keys": functools.partial(whole_files, chunk_key_encoding={"name": "v2", "separator": "."}),
    "shards": shards,
    "index_first": functools.partial(shards, index_location="start", inner=[GzipCodec()]),
    "index_unchecked": functools.partial(shards, index_codecs=[BytesCodec()], inner=[]),
    "index_big_endian": functools.partial(
        shards, index_codecs=[BytesCodec(endian="big"), Crc32cCodec()], inner=[Crc32cCodec()]
    ),
    "shards_of_blosc": functools.partial(shards, inner=[BloscCodec(cname="lz4")], sides=(2, 9_000)),
}

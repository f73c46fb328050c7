# mypy: disable-error-code="import-not-found, misc"
"""
Cells that the benchmarks read: a simulated atlas as `.h5ad`, and the stores made of it.

Counts are exact negative binomials, drawn sparsely. NB(mean m, size r) is a compound Poisson: a
Poisson number of bursts with rate ``r ln(1 + m / r)``, each of log-series size with parameter
``m / (m + r)``. So the cost grows with the non-zeros, and the matrix is never in memory.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tests.benchmarks.runner import apart, code_stamp

Array = npt.NDArray[Any]
Rows = tuple[Array, Array, Array]  # lengths, genes, counts
DENSITY = 0.0662
N_TYPES, N_BATCHES, N_DEPTHS, N_MITO = 12, 8, 7, 13
CATEGORY = "type 03"  # of `cell_type`, whose cells are counted
PIECE = 1_000  # cells that are drawn at once


@dataclass
class Tables:
    """For each cell type and depth, the bursts: how many, of which genes, how large."""

    rate: Array  # (table,) bursts per cell
    keep: Array  # (table, gene) alias method: the share of a slot that is its own gene's
    other: Array  # (table, gene) the gene that has the rest
    size: Array  # (table, gene) parameter of the log-series

    @classmethod
    def draw(cls, rng: np.random.Generator, n_genes: int, table: Array) -> Self:
        mean = np.repeat(rng.lognormal(0, 1.8, n_genes)[None], N_TYPES, axis=0)
        for row in mean:
            changed = rng.choice(n_genes, n_genes // 10, replace=False)
            row[changed] *= rng.lognormal(0, 1.2, len(changed))
        size = np.clip(rng.lognormal(np.log(0.7), 0.5, n_genes), 0.3, 20)
        depth = np.exp(0.45 * np.linspace(-2, 2, N_DEPTHS))
        means = (mean[:, None] * depth[:, None]).reshape(-1, n_genes)
        share = np.bincount(table, minlength=len(means)) / len(table)
        low, high = 1e-6, 10.0
        for _ in range(30):  # the level at which the density is right
            level = np.sqrt(low * high)
            zero = ((1 + level * means / size) ** -size).mean(axis=1) @ share
            low, high = (level, high) if 1 - zero < DENSITY else (low, level)
        means *= low
        rates = size * np.log1p(means / size)
        keep, other = zip(*map(_alias, rates), strict=True)
        return cls(rates.sum(axis=1), np.array(keep), np.array(other), means / (means + size))


def _alias(weights: Array) -> tuple[Array, Array]:
    """Return the tables with which one of `weights` is drawn in constant time (Walker, Vose)."""
    n = len(weights)
    share = (weights * (n / weights.sum())).tolist()
    other = list(range(n))
    small = [k for k, x in enumerate(share) if x < 1]
    large = [k for k, x in enumerate(share) if x >= 1]
    while small and large:
        less, more = small.pop(), large[-1]
        other[less] = more
        share[more] -= 1 - share[less]
        if share[more] < 1:
            small.append(large.pop())
    return np.array(share), np.array(other, np.int32)


_tables: Tables | None = None  # of a process that draws


def _set_tables(tables: Tables) -> None:
    global _tables  # noqa: PLW0603  given once to each process, not with each piece
    _tables = tables


def _draw(seed: int, start: int, table: Array) -> Rows:
    """Draw the cells from `start`, of which each has a table."""
    tables = _tables
    assert tables is not None
    rng = np.random.default_rng((seed, start))
    n_genes = tables.keep.shape[1]
    order = np.argsort(table, kind="stable")  # one table after the other: they stay in the cache
    bursts = rng.poisson(tables.rate[table[order]])
    which = np.repeat(table[order], bursts)
    place = rng.random(len(which)) * n_genes
    slot = place.astype(np.int64)
    own = place - slot < tables.keep[which, slot]
    gene = np.where(own, slot, tables.other[which, slot])
    size = rng.logseries(tables.size[which, gene])
    # cell, gene and size in one number, which one sort brings together
    key = np.sort(((np.repeat(order, bursts) * n_genes + gene) << 20) + size)
    first = np.flatnonzero(np.diff(key >> 20, prepend=-1))
    counts = np.add.reduceat(key & ((1 << 20) - 1), first)
    cell, gene = np.divmod(key[first] >> 20, n_genes)
    lengths = np.bincount(cell, minlength=len(table))
    return lengths, gene.astype(np.int32), counts.astype(np.float32)


def simulate(path: Path, n_cells: int, n_genes: int, seed: int = 0) -> None:
    """Write an atlas whose batches, of unlike composition, stand one after the other."""
    rng = np.random.default_rng(seed)
    batch = np.sort(rng.integers(N_BATCHES, size=n_cells))
    share = rng.dirichlet(np.full(N_TYPES, 2.0), N_BATCHES).cumsum(axis=1)
    kind = (rng.random((n_cells, 1)) > share[batch]).sum(axis=1).clip(max=N_TYPES - 1)
    table = kind * N_DEPTHS + rng.binomial(N_DEPTHS - 1, 0.5, n_cells)
    tables = Tables.draw(rng, n_genes, table)
    obs = {
        "cell_type": (kind, [f"type {k:02d}" for k in range(N_TYPES)]),
        "batch": (batch, [f"batch {k}" for k in range(N_BATCHES)]),
        "split": (rng.choice(3, n_cells, p=[0.8, 0.1, 0.1]), ["train", "val", "test"]),
    }
    pieces = [(seed, k, table[k : k + PIECE]) for k in range(0, n_cells, PIECE)]
    write(path, _drawn(tables, pieces), (n_cells, n_genes), obs)


def _drawn(tables: Tables, pieces: list[tuple[int, int, Array]]) -> Iterator[Rows]:
    """Draw pieces in processes, a few of them ahead of the one that is written."""
    if len(pieces) < 10:
        _set_tables(tables)
        yield from (_draw(*piece) for piece in pieces)
        return
    pending: deque[Future[Rows]] = deque()
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=_set_tables, initargs=(tables,)
    ) as pool:
        for piece in pieces:
            pending.append(pool.submit(_draw, *piece))
            if len(pending) > 16:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def write(
    path: Path,
    parts: Iterable[Rows],
    shape: tuple[int, int],
    obs: Mapping[str, tuple[Array, list[str]]],
    **packed: Any,
) -> None:
    """Write an `.h5ad` file from rows that come in parts; it is there when it is complete."""
    partial = path.with_suffix(".partial")
    packed = packed or {"compression": "gzip", "compression_opts": 4}
    options = {"shape": (0,), "maxshape": (None,), "chunks": (32_768,), **packed}
    lengths, totals, mito = [], [], []
    with h5py.File(partial, "w") as f, tqdm(total=shape[0], desc=path.name, unit="cell") as bar:
        f.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = f.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        data = x.create_dataset("data", dtype="f4", **options)
        indices = x.create_dataset("indices", dtype="i4", **options)
        for length, genes, counts in parts:
            n = len(data)
            for dataset, values in ((indices, genes), (data, counts)):
                dataset.resize((n + len(values),))
                dataset[n:] = values
            cell = np.repeat(np.arange(len(length)), length)
            lengths.append(length)
            totals.append(np.bincount(cell, counts, len(length)))
            mito.append(np.bincount(cell, counts * (genes < N_MITO), len(length)))
            bar.update(len(length))
        x["indptr"] = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        total = np.concatenate(totals)
        columns: dict[str, Any] = dict(obs)
        columns["n_counts"] = total.astype("f4")
        columns["pct_mito"] = (100 * np.concatenate(mito) / total.clip(min=1)).astype("f4")
        _frame(f, "obs", [f"cell{k:07d}" for k in range(shape[0])], columns)
        _frame(f, "var", [f"ENSG{k:011d}" for k in range(shape[1])], {})
        for empty in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            f.create_group(empty).attrs.update(
                {"encoding-type": "dict", "encoding-version": "0.1.0"}
            )
    partial.rename(path)


def _frame(f: h5py.File, name: str, index: list[str], columns: Mapping[str, Any]) -> None:
    text = h5py.string_dtype()
    frame = f.create_group(name)
    order = np.array(list(columns), dtype=text)
    frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
    frame.attrs.update({"_index": "_index", "column-order": order})
    frame.create_dataset("_index", data=index, dtype=text)
    frame["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for key, values in columns.items():
        if not isinstance(values, tuple):
            frame[key] = values
            frame[key].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            continue
        group = frame.create_group(key)
        group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0"})
        group.attrs["ordered"] = False
        group["codes"] = values[0].astype("i1")
        group["codes"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        group.create_dataset("categories", data=values[1], dtype=text)
        group["categories"].attrs.update(
            {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        )


def atlas(folder: Path, small: bool) -> None:
    """Simulate the cells, and sum up what a loader must deliver."""
    path, told = folder / "cells.h5ad", folder / "cells.json"
    if not path.exists():
        simulate(path, *((5_000, 2_000) if small else (100_000, 20_000)))
    if not told.exists():
        told.write_text(json.dumps(_sums(path)))


def _sums(path: Path) -> dict[str, float]:
    with h5py.File(path) as f:
        data, indices = f["X/data"], f["X/indices"]
        pieces = [slice(k, k + (1 << 22)) for k in range(0, len(data), 1 << 22)]
        chosen = f["obs/cell_type/codes"][:] == int(CATEGORY[-2:])
        return {
            "rows": float(len(chosen)),
            "nnz": float(len(data)),
            "counts": float(sum(data[k].sum(dtype=np.float64) for k in pieces)),
            "columns": float(sum(indices[k].sum(dtype=np.int64) for k in pieces)),
            "labelled": float(chosen.sum()),
            "labelled_counts": float(f["obs/n_counts"][:][chosen].sum(dtype=np.float64)),
        }


def store(folder: Path, source: str, codec: str = "fast", **options: Any) -> None:
    """Convert a file to a store, again where the code that writes stores has changed."""
    target = folder / f"{source}.{codec}.xl"
    if not is_fresh(target):
        apart(_convert, folder / f"{source}.h5ad", target, codec, options)
        target.with_suffix(".stamp").write_text(code_stamp())


def is_fresh(target: Path) -> bool:
    """Say whether a store is of the present state of the code that writes stores."""
    stamp = target.with_suffix(".stamp")
    return target.exists() and stamp.exists() and stamp.read_text() == code_stamp()


def _convert(source: Path, target: Path, codec: str, options: dict[str, Any]) -> None:
    import xloader as xl

    xl.convert(source, target, codec=codec, overwrite=True, **options)


def ours(folder: Path, small: bool) -> None:
    """Make our store."""
    atlas(folder, small)
    store(folder, "cells", shuffle=True)


def with_annbatch(folder: Path, small: bool) -> None:
    """Make both codecs of our store, and the store of annbatch."""
    ours(folder, small)
    if not (folder / "cells.annbatch.zarr").exists():
        apart(annbatch_store, folder / "cells.h5ad", folder / "cells.annbatch.zarr")


def both_codecs(folder: Path, small: bool) -> None:
    """Make all stores whose size is compared."""
    with_annbatch(folder, small)
    store(folder, "cells", "small", shuffle=True)


def annbatch_store(source: Path, target: Path) -> None:
    """Convert with the defaults of annbatch."""
    import annbatch
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    partial = target.with_suffix(".partial.zarr")
    shutil.rmtree(partial, ignore_errors=True)
    rng = np.random.default_rng(0)
    annbatch.DatasetCollection(partial).add_adatas([source], rng=rng)
    partial.rename(target)


def with_homeobox(folder: Path, small: bool) -> None:
    """Make our store and an atlas of homeobox."""
    ours(folder, small)
    if not (folder / "cells.homeobox").exists():
        apart(_homeobox_atlas, folder / "cells.h5ad", folder / "cells.homeobox")


def _homeobox_atlas(source: Path, target: Path) -> None:
    import anndata as ad
    import homeobox as hox
    import polars as pl

    class Gene(hox.FeatureBaseSchema):
        gene_symbol: str = hox.StableUIDField.declare(default=...)

    class Cell(hox.HoxBaseSchema):
        gene_expression: hox.SparseZarrPointer | None = hox.PointerField.declare(
            feature_space="gene_expression"
        )

    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    atlas = hox.create_or_open_atlas(
        atlas_path=str(partial),
        obs_schemas={"cells": Cell},
        dataset_table_name="datasets",
        dataset_schema=hox.DatasetSchema,
        registry_schemas={"gene_expression": Gene},
    )
    adata = ad.read_h5ad(source)
    adata.X = adata.X.astype(np.uint32)
    adata.obs = adata.obs[[]]
    genes = adata.var_names.to_frame(name="gene_symbol")
    Gene.compute_stable_uids(genes)
    atlas.register_features("gene_expression", pl.from_pandas(genes))
    adata.var = genes
    record = hox.DatasetSchema(
        zarr_group="cells", feature_space="gene_expression", n_rows=adata.n_obs
    )
    hox.add_from_anndata(
        atlas, adata, field_name="gene_expression", zarr_layer="counts", dataset_record=record
    )
    atlas.optimize()
    atlas.snapshot()
    partial.rename(target)


def ten_times(folder: Path, small: bool) -> None:
    """Make a store of ten permuted copies of all cells."""
    ours(folder, small)
    if is_fresh(folder / "copies.fast.xl"):
        return
    apart(_copy, folder / "cells.h5ad", folder / "copies.h5ad")
    store(folder, "copies")
    (folder / "copies.h5ad").unlink()


def _copy(source: Path, target: Path) -> None:
    with h5py.File(source) as f:
        data, indices, indptr = (f["X"][name][:] for name in ("data", "indices", "indptr"))
        frame, n_genes = f["obs"], int(f["X"].attrs["shape"][1])
        coded = {
            name: (frame[name]["codes"][:], frame[name]["categories"].asstr()[:].tolist())
            for name in ("cell_type", "batch", "split")
        }
    n = len(indptr) - 1
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(n) for _ in range(10)])

    def parts() -> Iterator[Rows]:
        for k in range(0, len(order), PIECE):
            rows = order[k : k + PIECE]
            length = indptr[rows + 1] - indptr[rows]
            ends = np.cumsum(length)
            place = np.arange(ends[-1]) + np.repeat(indptr[rows] - ends + length, length)
            yield length, indices[place], data[place]

    obs = {name: (codes[order], names) for name, (codes, names) in coded.items()}
    write(target, parts(), (len(order), n_genes), obs, compression=None)


def few_genes(folder: Path, small: bool) -> None:
    """Make a store of many cells with hardly any data, where only the labels cost time."""
    if not (folder / "few.h5ad").exists():
        simulate(folder / "few.h5ad", 5_000 if small else 100_000, 8)
    store(folder, "few")


def nothing(folder: Path, small: bool) -> None:
    """Need no data."""

"""Sources that are replaced, removed or cut in the middle of an epoch: what they were, or an error."""

import os
import shutil
import warnings

import cooler
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr

import xloader as xl
import xloader.torch as xt
from tests.faulty import Child, X
from tests.sources import write_h5ad
from xloader.backends import anndata_matrices
from xloader.errors import PerformanceWarning, ReadError

BINS, SIDE = 900, 8
MAP = np.random.default_rng(1).poisson(3, (BINS, BINS)).astype(np.int32)
MAP += MAP.T


# --- sources, of values and of three times the values ---------------------------------------------


def write_cells(path, factor):
    write_h5ad(path, scipy.sparse.csr_matrix(factor * X))


def write_map(path, factor):
    bins = pd.DataFrame({"chrom": "c", "start": np.arange(BINS) * 1_000})
    i, j = np.nonzero(np.triu(MAP))
    pixels = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": factor * MAP[i, j]})
    cooler.create_cooler(str(path), bins.assign(end=bins.start + 1_000), pixels)


def write_zarr(path, factor, form=3):
    array = zarr.create_array(
        str(path / "X"),
        shape=X.shape,
        chunks=(40, 60),
        dtype=X.dtype,
        zarr_format=form,
        fill_value=0 if form == 3 else -1,  # which xarray takes for missing in version 2
        **({"dimension_names": ["cell", "gene"]} if form == 3 else {}),
    )
    array[...] = factor * X
    if form == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["cell", "gene"]
    zarr.open_group(str(path), mode="a", zarr_format=form)


def write_old_zarr(path, factor):
    write_zarr(path, factor, 2)


def open_zarr(path, chunks=None):
    return xr.open_zarr(path, chunks=chunks, consolidated=False)


SOURCES = {
    "h5ad": (write_cells, lambda path: xl.open_cells(path, chunks=None)),
    "cool": (write_map, lambda path: xl.open_contacts(path, chunks=None)),
    "zarr": (write_zarr, open_zarr),
    "zarr with dask": (write_zarr, lambda path: open_zarr(path, {}) + 0),
    "zarr 2": (write_old_zarr, open_zarr),
}


def copy(source, target):
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, (write, _) in SOURCES.items():
        for factor in (1, 3):
            write(folder / f"{name} {factor}", factor)
    return folder


# --- ways to lose one -----------------------------------------------------------------------------


def remove(path, _):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace(path, other):
    if path.is_dir():
        path.rename(path.with_name("old"))
    other.replace(path)


def overwrite(path, other):
    """Write the other values where the file lies."""
    path.write_bytes(other.read_bytes())


def cut(path, _):
    os.truncate(path, path.stat().st_size // 3)


def chunk_of(path):
    """Return the last chunk."""
    return max(path.glob("X/c/*/0"), key=lambda p: int(p.parent.name), default=path / "X" / "39.0")


def remove_chunk(path, _):
    chunk_of(path).unlink()


def replace_chunk(path, other):
    chunk_of(other).replace(chunk_of(path))


def cut_chunk(path, _):
    cut(chunk_of(path), _)


OF_FILES, OF_FOLDERS = (
    [remove, replace, overwrite, cut],
    [remove, replace, remove_chunk, replace_chunk, cut_chunk],
)
CASES = [
    *((name, lose) for name in ("h5ad", "cool") for lose in OF_FILES),
    *((name, lose) for name in ("zarr", "zarr with dask") for lose in OF_FOLDERS),
    *(("zarr 2", lose) for lose in (remove, remove_chunk)),
]


# --- what is served then --------------------------------------------------------------------------


def make(name, path):
    ds = SOURCES[name][1](path)
    if name == "cool":
        shape = xl.windows.diagonal(size=SIDE, stride=2)
        return xl.Loader(ds, windows=shape, batch_size=10, memory_budget="1MB")
    return xl.Loader(ds, batch_size=40, layout="dense", memory_budget="170kB")


def values_of(name, batch):
    """Return sample numbers, values, and what the values were when the source was opened."""
    ids = batch["sample_id"].numpy()
    if name != "cool":
        return ids, batch["X"].numpy(), X[ids]
    return ids, batch["count"].numpy(), np.stack([MAP[i : i + SIDE, i : i + SIDE] for i in 2 * ids])


def check(name, batches, factor=1):
    seen = [np.zeros(0, np.int64)]
    for batch in batches:
        ids, values, expected = values_of(name, batch)
        np.testing.assert_array_equal(values, factor * expected)
        seen.append(ids)
    return np.concatenate(seen)


def changing(name, workers, lose, sources, folder):
    anndata_matrices.BLOCK_VALUES = 500
    warnings.filterwarnings("ignore", category=PerformanceWarning)  # a busy machine is slow
    path, other = folder / "here", folder / "other"
    copy(sources / f"{name} 1", path)
    copy(sources / f"{name} 3", other)
    start = {"start_method": "fork", "prefetch_factor": 1} if workers else {}
    loader = make(name, path)
    assert len(loader) >= 40
    served = xt.make_loader(loader, num_workers=workers, **start)
    batches = iter(served)
    seen = [check(name, [next(batches)])]
    lose(path, other)
    said = ""
    try:
        seen.extend(check(name, [batch]) for batch in batches)
    except ReadError as e:
        said = str(e)
    assert str(path) in said
    assert len(seen) < len(loader)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(sum(map(len, seen))))
    with pytest.raises(ReadError, match="here"):
        loader.batch(0, len(loader) - 1)
    if lose in (replace, overwrite):
        again = xt.make_loader(make(name, path), num_workers=0)
        assert len(check(name, again, factor=3)) == len(loader.plan.windows)
    # HDF5 would share what it remembers of a file that was written over, while anybody holds that
    if name in ("h5ad", "cool") and lose in (remove, replace):
        path.unlink(missing_ok=True)
        copy(sources / f"{name} 1", path)  # with its time
        served.load_state_dict(served.state_dict())
        np.testing.assert_array_equal(
            np.concatenate([*seen, check(name, served)]), np.arange(len(loader.plan.windows))
        )


@pytest.fixture(scope="module")
def child():
    with Child() as process:
        yield process


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("name", "lose"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_changed__in_the_middle_of_an_epoch(name, lose, workers, sources, child, tmp_path):
    child.run(changing, name, workers, lose, sources, tmp_path)

"""Small data in every form that a Loader reads, stored arrays that log what is read, and the oracle."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from typing_extensions import override

import xloader as xl
from xloader.arrays import RowArray, StoredArray, TileArray
from xloader.axes import regions_of
from xloader.csr import CSRArray
from xloader.schema import cells_dataset, contacts_dataset, string_column
from xloader.windows import Bins, ContactBins

CELLS = (
    "numpy",
    "dask",
    "zarr",
    "zarr-dask",
    "netcdf",
    "rows",
    "rows-dask",
    "csr",
    "h5ad",
    "store",
)
CONTACTS = ("numpy", "dask", "zarr", "zarr-dask", "tiles", "tiles-dask", "cool", "store")
BIN = 1_000


def to_csr(dense: np.ndarray) -> CSRArray:
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=1))])
    return CSRArray(dense[rows, columns], columns.astype(np.int32), indptr, dense.shape)


class Rows(RowArray):
    """Sparse rows in memory; `log` holds every block that was decoded."""

    def __init__(self, dense: np.ndarray, block_rows: int = 8) -> None:
        super().__init__(dense.shape, dense.dtype, block_rows)
        self.dense = dense
        self.log: list[int] = []

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:
        self.log += range(start // self.block_rows, -(-stop // self.block_rows))
        return to_csr(self.dense[start:stop])

    @override
    def nnz_of(self, starts: Any, stops: Any) -> Any:
        total = np.concatenate([[0], np.cumsum((self.dense != 0).sum(axis=1))])
        return total[stops] - total[starts]


class Tiles(TileArray):
    """A symmetric matrix in memory; `log` holds every tile that was decoded."""

    def __init__(self, dense: np.ndarray, tile: int = 8) -> None:
        super().__init__(len(dense), dense.dtype, tile, symmetric=True)
        n = -(-len(dense) // tile) * tile
        self.padded = np.zeros((n, n), dense.dtype)
        self.padded[: len(dense), : len(dense)] = dense
        self.log: list[tuple[int, int]] = []

    @override
    def read_tiles(self, ij: Any) -> Any:
        self.log += [tuple(pair) for pair in ij.tolist()]
        t = self.tile
        return np.stack([self.padded[i * t : i * t + t, j * t : j * t + t] for i, j in ij.tolist()])


class Dense(StoredArray):
    """A dense array in memory; `log` holds every key that was read."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values.shape, values.dtype)
        self.values = values
        self.log: list[Any] = []

    @override
    def _raw(self, key: Any) -> Any:
        self.log.append(key)
        return self.values[key]


def counts(n: int = 61, g: int = 17, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return ((rng.random((n, g)) < 0.3) * rng.integers(1, 9, (n, g))).astype(dtype)


def contact_map(n: int = 101, dtype: str = "int32", seed: int = 0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).poisson(3, (n, n)))
    return (upper + np.triu(upper, 1).T).astype(dtype)


def cells(array: Any = None, n: int = 61, g: int = 17) -> xr.Dataset:
    """Return a cell-by-gene array with labels of every kind; `array` is its `X`."""
    rng = np.random.default_rng(1)
    kinds = string_column(np.array(["T", "B", "NK"], object)[rng.integers(0, 3, n)])
    return cells_dataset(
        {
            "X": (("cell", "gene"), counts(n, g) if array is None else array, {"units": "reads"}),
            "X_pca": (("cell", "pc"), rng.random((n, 3)).astype("float32"), {}),
            "loadings": (("gene", "pc"), rng.random((g, 3)), {}),
        },
        cell=np.array([f"c{i}" for i in range(n)], object),
        gene=np.array([f"g{i}" for i in range(g)], object),
        obs={"cell_type": kinds, "depth": (rng.random(n), {"units": "reads"})},
        var={"length": (rng.integers(100, 999, g), {})},
        attrs={"title": "some cells"},
    )


def contacts(array: Any = None, chroms: tuple[int, ...] = (61, 40)) -> xr.Dataset:
    """Return a contact map of a few chromosomes; `array` is its `count`."""
    chrom = np.repeat([f"chr{i + 1}" for i in range(len(chroms))], chroms)
    start = np.concatenate([np.arange(n) for n in chroms]) * BIN
    weight = np.random.default_rng(2).random(len(chrom))
    weight[::7] = np.nan
    return contacts_dataset(
        Tiles(contact_map(len(chrom))) if array is None else array,
        chrom=chrom,
        start=start,
        end=start + BIN,
        weights={"weight": (weight, {"divisive": False}), "KR": (1 / weight, {"divisive": True})},
        attrs={"binsize": BIN, "assembly": "test"},
    )


def bins_of(
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray] | None = None,
    binsize: int | None = None,
) -> ContactBins:
    """Return what windows are drawn from: names of chromosomes and numbers of bins of each axis."""

    def asis(what: Any) -> Any:
        return what

    first, second = (
        Bins(dim, regions_of(*side), asis, asis)
        for dim, side in (("bin1", rows), ("bin2", columns or rows))
    )
    return ContactBins(first, second, binsize=binsize)


def grid(n: int = 23, m: int = 31) -> xr.Dataset:
    """Return what has nothing to do with genomes: a map over time."""
    rng = np.random.default_rng(3)
    return xr.Dataset(
        {
            "v": (("time", "lat", "lon"), rng.random((4, n, m)), {"units": "K"}),
            "mask": (("lat", "lon"), rng.random((n, m)) < 0.5),
            "area": ("lat", rng.random(n)),
        },
        {"lat": np.arange(n) * 2.0, "lon": np.arange(m), "zone": ("lon", np.arange(m) % 3)},
    )


def stored(ds: xr.Dataset, path: Path, chunks: dict[str, int]) -> Path:
    """Write a Dataset as plain zarr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings have no final place in zarr v3 yet
        ds.chunk(chunks).drop_encoding().to_zarr(path, consolidated=False, zarr_format=3)
    return path


def plain(ds: xr.Dataset) -> xr.Dataset:
    """Return what any file format can hold."""
    ds = ds.load().copy()
    for variable in ds.variables.values():
        variable.attrs = {k: v for k, v in variable.attrs.items() if k == "units"}
    return ds


def cells_in(form: str, folder: Path) -> xr.Dataset:
    """Return the same cells from memory, a file or a store."""
    if form in {"rows", "rows-dask"}:
        ds = cells(Rows(counts()))
        return ds.chunk({"cell": 16, "gene": 17}) if form == "rows-dask" else ds
    if form == "csr":
        ds = cells()
        return ds.assign(X=(("cell", "gene"), to_csr(counts()), ds.X.attrs))
    if form == "h5ad":
        return xl.open_cells(_h5ad(folder / "cells.h5ad"))
    if form == "store":
        return xl.convert(_h5ad(folder / "source.h5ad"), folder / "cells.store", progress=False)
    return _in(form, folder, cells(), {"cell": 13, "gene": 10})


def contacts_in(form: str, folder: Path) -> xr.Dataset:
    """Return the same contact map from memory, a file or a store."""
    if form in {"tiles", "tiles-dask"}:
        ds = contacts()
        return ds.chunk({"bin1": 24, "bin2": 40}) if form == "tiles-dask" else ds
    if form == "cool":
        return xl.open_contacts(_cool(folder / "map.cool"))
    if form == "store":
        return xl.convert(_cool(folder / "source.cool"), folder / "map.store", progress=False)
    return _in(form, folder, contacts(), {"bin1": 24, "bin2": 40})


def _in(form: str, folder: Path, ds: xr.Dataset, chunks: dict[str, int]) -> xr.Dataset:
    if form == "numpy":
        return ds.load()
    if form == "dask":
        return ds.load().chunk(chunks)
    if form == "netcdf":
        plain(ds).to_netcdf(folder / "data.nc", engine="scipy")
        return xr.open_dataset(folder / "data.nc", engine="scipy")
    path = stored(plain(ds), folder / "data.zarr", chunks)
    lazily: Any = {} if form == "zarr-dask" else None
    return xr.open_dataset(path, engine="zarr", chunks=lazily, consolidated=False)


def _h5ad(path: Path) -> Path:
    import anndata as ad
    import scipy.sparse

    ds = cells()
    obs = ds[["cell_type", "depth"]].drop_vars("row").to_dataframe()
    obs["cell_type"] = obs["cell_type"].astype("category")
    var = ds[["length"]].drop_vars("column").to_dataframe()
    x = scipy.sparse.csr_matrix(counts())
    ad.AnnData(x, obs, var, obsm={"X_pca": ds.X_pca.data}).write_h5ad(path)
    return path


def _cool(path: Path) -> Path:
    import cooler

    bins = contacts().drop_dims("bin2").to_dataframe()
    bins = bins.rename(columns=lambda c: c.removesuffix("1"))[["chrom", "start", "end", "weight"]]
    i, j = np.nonzero(np.triu(contact_map()))
    pixels = {"bin1_id": i, "bin2_id": j, "count": contact_map()[i, j]}
    cooler.create_cooler(str(path), bins.reset_index(drop=True), pixels)
    return path


def dense(ds: xr.Dataset) -> xr.Dataset:
    """Return a batch without sparse arrays."""
    sparse = {k: v for k, v in ds.data_vars.items() if isinstance(v.data, CSRArray)}
    return ds.assign({k: v.copy(data=v.data.todense()) for k, v in sparse.items()})


def assert_equals_naive(
    loader: xl.Loader, ds: xr.Dataset, *batches: xr.Dataset, epoch: int = 0
) -> None:
    """Compare every value, label and attribute of batches with what plain `isel` cuts."""
    whole, w = dense(ds.compute()), loader.plan.windows
    whole = whole[list(loader.variables)].assign_coords(whole.coords)
    for served in batches:
        ids = served.sample_id.values
        assert served.sizes[loader.sample_dim] == len(ids)
        batch = dense(served).drop_vars(["sample_id", "valid"], errors="ignore")
        for k, starts in enumerate(w.starts_of(ids, epoch).tolist()):
            cuts = zip(w.dims, starts, w.size, strict=True)
            expected = whole.isel({d: slice(s, s + n) for d, s, n in cuts})
            if w.by_row:  # samples come first
                expected = expected.transpose(*w.dims, ...)
            sample = batch.isel({loader.sample_dim: [k] if w.by_row else k})
            assert set(sample.variables) == set(expected.variables)
            for name, variable in expected.variables.items():
                got = sample.variables[name]
                assert got.to_base_variable().identical(variable.to_base_variable()), name
                assert got.dtype == variable.dtype, name
            assert sample.attrs == expected.attrs

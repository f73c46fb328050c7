"""A simulated single-cell experiment, written as an AnnData file."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from xloader.backends.new_files import new_file
from xloader.errors import PlanError

_CHUNK_CELLS = 500
_MARKERS = 40

Floats = npt.NDArray[np.float64]


def cells(
    path: str | Path,
    *,
    n_cells: int = 6_000,
    n_genes: int = 2_000,
    n_types: int = 6,
    n_donors: int = 5,
    n_batches: int = 3,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """
    Simulate a cell-by-gene array and write it as an ``.h5ad`` file (AnnData encoding 0.1.0).

    Counts are negative binomial: Poisson around a mean that varies as a gamma with shape 2. The
    mean is gene level x markers of the type x donor effect x batch effect x library size. Types
    are unequally frequent, and neighbouring types share half of their markers.

    Parameters
    ----------
    path : str or Path
        File to write.
    n_cells, n_genes : int, optional
        Size of the array.
    n_types, n_donors, n_batches : int, optional
        Number of cell types, donors and batches.
    seed : int, optional
        Seed of everything random.
    overwrite : bool, optional
        Whether an existing file is replaced.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Path
        The file: `X` (CSR, float32 counts), `obs` with `cell_type`, `donor`, `batch`, `split`,
        `n_counts` and `age` (missing for one donor), `var` with `marker` and `level`, and the latent position of each cell in `obsm`.

    Raises
    ------
    ReadError
        If the file exists, or its folder does not.
    PlanError
        If a number is too small to simulate.
    """
    if min(n_cells, n_types, n_batches) < 1 or n_donors < 3 or n_genes < _MARKERS:
        msg = (
            f"cannot simulate {n_cells} cells x {n_genes} genes, {n_types} types, {n_donors} donors, "
            f"{n_batches} batches; take at least 1 cell, {_MARKERS} genes, 1 type, 3 donors, 1 batch"
        )
        raise PlanError(msg)
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, n_types + 1) ** 0.6
    kind = rng.choice(n_types, n_cells, p=share / share.sum())
    donor = rng.integers(n_donors, size=n_cells)
    batch = rng.integers(n_batches, size=n_cells)
    profile, is_marker = _profiles(rng, n_types, n_genes)
    donor_effect = rng.lognormal(0, 0.25, (n_donors, n_genes))
    batch_effect = rng.lognormal(0, 0.25, (n_batches, n_genes))
    depth = rng.lognormal(np.log(n_genes * 0.35), 0.45, n_cells)
    with (
        new_file(path, overwrite=overwrite) as f,
        tqdm(total=n_cells, desc="simulate cells", unit="cell", disable=not progress) as bar,
    ):
        f.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        rows = _Rows(f, (n_cells, n_genes))
        for start in range(0, n_cells, _CHUNK_CELLS):
            part = slice(start, start + _CHUNK_CELLS)
            mean = profile[kind[part]] * donor_effect[donor[part]] * batch_effect[batch[part]]
            mean *= (depth[part] / mean.sum(axis=1))[:, None]
            rows.append(rng.poisson(mean * rng.gamma(2, 0.5, mean.shape)))
            bar.update(len(mean))
        totals = rows.close()
        names = [f"type {chr(ord('A') + k)}" for k in range(n_types)]
        split = np.array([0] * (n_donors - 2) + [1, 2])[donor]
        obs = _frame(f, "obs", np.array([f"cell{i:06d}" for i in range(n_cells)], object))
        _categorical(obs, "cell_type", kind, names)
        _categorical(obs, "donor", donor, [f"donor{k + 1}" for k in range(n_donors)])
        _categorical(obs, "batch", batch, [f"batch{k + 1}" for k in range(n_batches)])
        _categorical(obs, "split", split, ["train", "val", "test"])
        _array(obs, "n_counts", totals)
        _nullable(obs, "age", rng.integers(20, 80, n_donors)[donor], donor == 0)
        var = _frame(f, "var", np.array([f"gene{i:05d}" for i in range(n_genes)], object))
        _array(var, "marker", is_marker)
        _array(var, "level", profile.mean(axis=0))
        latent = rng.normal(0, 1, (n_types, 8))[kind] + rng.normal(0, 0.4, (n_cells, 8))
        obsm = _dict(f, "obsm")
        _array(obsm, "X_latent", latent.astype("f4"), ordered=False)
        for empty in ("layers", "obsp", "varm", "varp", "uns"):
            _dict(f, empty)
    return Path(path)


def _profiles(
    rng: np.random.Generator, n_types: int, n_genes: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the level of each gene in each type, and which genes mark some type."""
    profile = np.tile(rng.lognormal(0, 1.6, n_genes), (n_types, 1))
    marks = [rng.choice(n_genes, _MARKERS, replace=False) for _ in range(n_types)]
    is_marker = np.zeros(n_genes, bool)
    for k, genes in enumerate(marks):
        shared = marks[k - 1][: _MARKERS // 2]
        chosen = np.concatenate([genes[: _MARKERS // 2], shared])
        profile[k, chosen] *= rng.lognormal(0.8, 0.4, len(chosen))
        is_marker[chosen] = True
    return profile, is_marker


class _Rows:
    """Appends rows to a CSR matrix on disk."""

    def __init__(self, f: h5py.File, shape: tuple[int, int]) -> None:
        self.group = f.create_group("X")
        self.group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": np.array(shape, np.int64),
            }
        )
        packed: dict[str, Any] = {"maxshape": (None,), "chunks": (65_536,), "compression": "gzip"}
        self.data = self.group.create_dataset("data", (0,), "f4", **packed)
        self.indices = self.group.create_dataset("indices", (0,), "i4", **packed)
        self.lengths = [np.zeros(1, np.int64)]
        self.totals: list[npt.NDArray[np.int64]] = []

    def append(self, counts: npt.NDArray[np.int64]) -> None:
        row, column = np.nonzero(counts)
        n = len(self.data)
        for dataset, values in ((self.data, counts[row, column]), (self.indices, column)):
            dataset.resize((n + len(row),))
            dataset[n:] = values
        self.lengths.append(np.bincount(row, minlength=len(counts)))
        self.totals.append(counts.sum(axis=1))

    def close(self) -> npt.NDArray[np.int64]:
        """Write the row pointer and return the total of each row."""
        self.group["indptr"] = np.cumsum(np.concatenate(self.lengths))
        return np.concatenate(self.totals)


def _frame(f: h5py.File, name: str, index: npt.NDArray[Any]) -> h5py.Group:
    frame = f.create_group(name)
    frame.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": "_index",
            "column-order": np.array([], dtype=h5py.string_dtype()),
        }
    )
    _array(frame, "_index", index, ordered=False)
    return frame


def _dict(f: h5py.File, name: str) -> h5py.Group:
    group = f.create_group(name)
    group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    return group


def _add(parent: h5py.Group, name: str) -> None:
    order = [*parent.attrs["column-order"], name]
    parent.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _array(
    parent: h5py.Group, name: str, values: npt.NDArray[Any], *, ordered: bool = True
) -> None:
    text = values.dtype == object
    dtype = h5py.string_dtype() if text else values.dtype
    dataset = parent.create_dataset(name, data=values, dtype=dtype)
    kind = "string-array" if text else "array"
    dataset.attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})
    if ordered:
        _add(parent, name)


def _categorical(
    frame: h5py.Group, name: str, codes: npt.NDArray[np.int64], categories: list[str]
) -> None:
    group = frame.create_group(name)
    group.attrs.update(
        {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
    )
    _array(group, "codes", codes.astype("i1"), ordered=False)
    _array(group, "categories", np.array(categories, object), ordered=False)
    _add(frame, name)


def _nullable(
    frame: h5py.Group, name: str, values: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_]
) -> None:
    group = frame.create_group(name)
    group.attrs.update({"encoding-type": "nullable-integer", "encoding-version": "0.1.0"})
    _array(group, "values", values, ordered=False)
    _array(group, "mask", missing, ordered=False)
    _add(frame, name)

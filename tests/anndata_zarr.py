"""AnnData written in every form that is read in place."""

import contextlib
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.experimental import write_dispatched

from tests.anndata_files import counts

FORMS = ("h5ad", "zarr2", "zarr3", "sharded")


def _sharded(unit):
    """Return what cuts arrays into chunks of so many elements, three in a shard."""

    def callback(write_func, store, key, elem, dataset_kwargs, iospec):
        kwargs = dict(dataset_kwargs)
        if iospec.encoding_type in {"csr_matrix", "csc_matrix"}:
            kwargs |= {"chunks": (unit,), "shards": (3 * unit,)}
        elif iospec.encoding_type in {"array", "string-array"} and np.size(elem):
            sides = (unit // 4,) * np.ndim(elem)
            kwargs |= {"chunks": sides, "shards": tuple(3 * s for s in sides)}
        write_func(store, key, elem, dataset_kwargs=kwargs)

    return callback


def write_form(folder, adata, form, name="x", unit=64):
    """Write an AnnData in one of the forms and return its path."""
    path = folder / f"{name}.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr and anndata, about formats to come
        if form == "h5ad":
            adata.write_h5ad(path, convert_strings_to_categoricals=False)
        elif form == "sharded":
            group = zarr.open_group(str(path), mode="w", zarr_format=3)
            write_dispatched(group, "/", adata, callback=_sharded(unit))
        else:
            with ad.settings.override(zarr_write_format=int(form[-1])):
                adata.write_zarr(path, convert_strings_to_categoricals=False)
    return path


@contextlib.contextmanager
def changed(path):
    """Give the file as h5py does, or the store as zarr does, to change it in place."""
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as f:
            yield f
    else:
        yield zarr.open_group(str(path), mode="r+", use_consolidated=False)


def put(group, name, values, **kwargs):
    """Replace an array; its attributes are lost."""
    if name in group:
        del group[name]
    values = np.asarray(values)
    if isinstance(group, h5py.Group):
        group.create_dataset(name, data=values)
    else:
        group.create_array(name, shape=values.shape, dtype=values.dtype, **kwargs)[...] = values


def example(n=300, n_genes=40, seed=0):
    """Return cells with layers, embeddings and labels of every kind."""
    x = counts(n, n_genes, seed=seed)
    rng = np.random.default_rng(seed)
    kinds = np.array(["B", "T", "NK", None], object)[rng.integers(0, 4, n)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(kinds, ["T", "NK", "B", "unused"]),
            "n": rng.integers(0, 99, n),
            "score": rng.random(n, np.float32),
            "name": [f"é{i}" for i in range(n)],
            "holes": pd.array([None if i % 7 == 0 else i for i in range(n)], dtype="Int64"),
            "sure": pd.array([None if i % 5 == 0 else bool(i % 2) for i in range(n)], "boolean"),
        },
        index=pd.Index([f"c{seed}_{i}" for i in range(n)], name="barcode"),
    )
    var = pd.DataFrame({"id": range(n_genes)}, index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(
        x,
        obs=obs,
        var=var,
        layers={"log": x.log1p().tocsc(), "dense": x.toarray()},
        obsm={"X_pca": rng.random((n, 3)), "table": obs[["n", "score"]]},
        uns={"note": "text", "n": 3, "more": {"a": np.arange(3)}},
    )

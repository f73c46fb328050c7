"""Small source files for tests of stores and conversion."""

import warnings

import anndata
import numpy as np
import xarray as xr


def sparse(n_rows, n_columns, seed=0, high=9, dtype=np.float32):
    """Return a mostly zero matrix, a fifth of its rows empty."""
    rng = np.random.default_rng(seed)
    x = (rng.random((n_rows, n_columns)) < 0.15) * rng.integers(1, high, (n_rows, n_columns))
    x[rng.random(n_rows) < 0.2] = 0
    return x.astype(dtype)


def write_h5ad(path, x, **kwargs):
    """Write cells with anndata itself."""
    anndata.AnnData(x, **kwargs).write_h5ad(path)
    return path


def saved(ds, how, folder):
    """Return a small Dataset after a round trip through a file, ``"zarr"`` or ``"netcdf"``."""
    path = folder / f"saved.{how}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings have no final place in zarr v3 yet
        if how == "zarr":
            ds.to_zarr(path, consolidated=False)
            return xr.open_zarr(path, consolidated=False).load()
        ds.to_netcdf(path, engine="scipy")
        return xr.open_dataset(path, engine="scipy").load()


class Stopped(BaseException):
    """Ends something as a signal does: nothing is tidied up."""


def stop_at(monkeypatch, places):
    """Count calls of methods in ``seen``, and stop before one when ``left`` have been made."""
    state = {"left": -1, "seen": 0}

    def counted(real):
        def call(*args, **kwargs):
            state["seen"] += 1
            if state["left"] == 0:
                raise Stopped
            state["left"] -= 1
            return real(*args, **kwargs)

        return call

    for kind, name in places:
        monkeypatch.setattr(kind, name, counted(getattr(kind, name)))
    return state

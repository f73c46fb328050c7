"""Random genes hidden from a model that is to predict them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import SampleRandom, Transform
from xloader.csr import CSRArray
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.threads import cut, n_threads, run
from xloader.transforms.base import Randomly, float_of

Mask = npt.NDArray[np.bool_]


def mask_genes(
    fraction: float = 0.15,
    *,
    variable: str = "X",
    value: float = 0,
    expressed: bool = False,
    into: str | None = None,
    mask: str = "masked",
) -> Transform:
    """
    Hide random values of each cell: for models that learn to predict them.

    `variable` stays as it is, as the target; the model gets `into`, and its loss is that of the places
    where `mask` is True.

    Parameters
    ----------
    fraction : float, optional
        Probability that a value is hidden, above 0 and less than 1.
    variable : str, optional
        Values ``(cell, gene)``.
    value : float, optional
        What hidden ones become, such as 0 or -1.
    expressed : bool, optional
        Whether only values other than zero may be hidden; then everything sparse stays sparse.
    into : str, optional
        Name of the values with some hidden. Default: `variable` and ``_masked``.
    mask : str, optional
        Name of what says which are hidden, bool ``(cell, gene)``.

    Returns
    -------
    Transform
        Adds `into`, of the shape and dtype of `variable` (floats if it cannot hold `value`), and `mask`;
        random by (seed, epoch, sample) and column, whatever the layout. Of sparse values `into` is
        sparse if `value` is 0 or `expressed`, and `mask` if `expressed`: with the same stored places
        as `variable`, False at some of them. NaN is never hidden.

    Raises
    ------
    SchemaError
        If `fraction` is out of range; when it runs, if a name is taken.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[5, 0, 6, 7, 8]])})
    >>> rng = SampleRandom(0, epoch=0, sample_id=np.array([7]))
    >>> batch = mask_genes(0.5, value=-1)(ds, rng=rng)
    >>> batch.X_masked.values, batch.masked.values
    (array([[ 5, -1, -1,  7, -1]]), array([[False,  True,  True, False,  True]]))
    """
    if not 0 < fraction < 1:
        msg = f"mask_genes({fraction}) is impossible; choose a probability above 0 and below 1"
        raise SchemaError(msg)
    return Randomly(
        "mask_genes",
        _mask_genes,
        fraction=float(fraction),
        variable=variable,
        value=value,
        expressed=expressed,
        into=f"{variable}_masked" if into is None else into,
        mask=mask,
    )


def _mask_genes(
    batch: xr.Dataset,
    *,
    rng: SampleRandom,
    fraction: float,
    variable: str,
    value: float,
    expressed: bool,
    into: str,
    mask: str,
) -> xr.Dataset:
    require(batch, [variable], "transform 'mask_genes'")
    x = batch.variables[variable]
    taken = sorted(({into, mask} - {variable}) & set(map(str, batch.variables)))
    if taken or mask in (variable, into) or x.ndim != 2 or len(rng) != x.shape[0]:
        msg = (
            f"transform 'mask_genes' makes {into!r} and {mask!r} of values (cell, gene); the batch has "
            f"{taken or variable} already, or {variable!r} {dict(x.sizes)}: choose other names"
        )
        raise SchemaError(msg)
    dtype = x.dtype if _holds(x.dtype, value) else float_of(x.dtype)
    data: Any = x.data
    if isinstance(data, CSRArray):
        hidden, values = _sparse(
            data.astype(dtype, copy=False), rng, fraction, value, expressed=expressed
        )
    else:
        hidden = _chosen(rng, fraction, data.shape)
        if expressed:
            hidden &= data != 0
        hidden &= ~np.isnan(data)
        values = np.where(hidden, dtype.type(value), data.astype(dtype, copy=False))
    return batch.assign({into: x.copy(data=values), mask: xr.Variable(x.dims, hidden)})


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind not in "iu":
        return dtype.kind == "f"
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _sparse(
    x: CSRArray, rng: SampleRandom, fraction: float, value: float, *, expressed: bool
) -> tuple[Any, Any]:
    """Return which values are hidden, and all values with these hidden."""
    if expressed:
        from xloader.kernels.masking import choose_stored

        indptr, stored = np.asarray(x.indptr, np.int64), np.empty(x.nnz, bool)
        args = rng.keys(), np.asarray(x.indices), indptr, fraction, stored
        run("gather", choose_stored, [(*args, a, b) for a, b in cut(len(x), n_threads())])
        stored &= (x.data != 0) & ~np.isnan(x.data)
        hidden = CSRArray(stored, x.indices, x.indptr, x.shape)
        return hidden, np.where(hidden, x.dtype.type(value), x)
    chosen = _chosen(rng, fraction, x.shape)
    missing = np.isnan(x.data)
    rows = x.row_ids()
    if missing.any():
        chosen[rows[missing], x.indices[missing]] = False
    if value:
        return chosen, np.where(chosen, x.dtype.type(value), x.todense())
    kept = np.where(chosen[rows, x.indices], x.dtype.type(0), x.data)
    return chosen, CSRArray(kept, x.indices, x.indptr, x.shape)


def _chosen(rng: SampleRandom, fraction: float, shape: tuple[int, ...]) -> Mask:
    from xloader.kernels.masking import choose

    out = np.empty(shape, bool)
    args = rng.keys(), fraction, out
    run("gather", choose, [(*args, a, b) for a, b in cut(len(out), n_threads())])
    return out

"""Highly variable genes, from statistics alone: the binned dispersions of Seurat and of Cell Ranger."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader.errors import PlanError, SchemaError
from xloader.schema import require

Floats = npt.NDArray[np.float64]

_FLAVORS = ("seurat", "cell_ranger")
_BOUNDS = {"min_mean": 0.0125, "max_mean": 3.0, "min_disp": 0.5, "max_disp": np.inf}
_BINS = 20
_SMALL = 1e-12
_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal distribution


def highly_variable(
    stats: xr.Dataset,
    *,
    n_top: int | None = None,
    flavor: str = "seurat",
    by_group: bool = False,
    n_bins: int | None = None,
    **bounds: float,
) -> xr.Dataset:
    """
    Choose the genes that vary more than others of their mean, as scanpy's ``pp.highly_variable_genes`` does.

    The sources are Satija et al. (2015) for ``"seurat"``: the logarithm of variance over mean, as deviation
    from the mean of genes in one of 20 bins of equal width of ``log(1 + mean)``; and Zheng et al. (2017)
    for ``"cell_ranger"``: variance over mean, as deviation from the median in bins of 5 % of the genes.

    Parameters
    ----------
    stats : xarray.Dataset
        What `statistics` returned: for ``"seurat"`` of cells that were normalised, without logarithm, such
        as with ``transform=xl.transforms.normalize_total()``; for ``"cell_ranger"`` with logarithm.
    n_top : int, optional
        How many genes; ties count. Default: those within `bounds`.
    flavor : {"seurat", "cell_ranger"}, optional
        Which formula.
    by_group : bool, optional
        Whether genes are chosen in each group of ``by=`` apart, such as each dataset, and those first that
        most groups choose (scanpy's ``batch_key``).
    n_bins : int, optional
        Bins of ``"seurat"``. Default: 20.
    **bounds : float
        `min_mean` (default 0.0125), `max_mean` (3), `min_disp` (0.5) and `max_disp` (no bound): what
        `means` and `dispersions_norm` lie between; in place of `n_top`.

    Returns
    -------
    xarray.Dataset
        Along the genes: `means`, `dispersions` and `dispersions_norm`, float64, NaN where no cell has measured a
        gene; `highly_variable`, bool; with `by_group`, means over groups, and `n_groups`, int64, that
        chose the gene.

    Raises
    ------
    PlanError
        If options contradict each other, or there are fewer genes than `n_top`.
    SchemaError
        If the statistics are no such ones, or too many genes have one mean.

    Examples
    --------
    >>> from xloader import statistics
    >>> x = np.random.default_rng(0).poisson(np.arange(40) / 8, (300, 40)) * np.arange(1, 41) % 7
    >>> stats = statistics(xr.Dataset({"X": (("cell", "gene"), x)}, {"cell": np.arange(300)}))
    >>> int(highly_variable(stats, n_top=5).highly_variable.sum())
    5
    """
    _check(stats, n_top, flavor, n_bins, bounds)
    limits, bins = {**_BOUNDS, **bounds}, n_bins or _BINS
    (dim,) = map(str, stats["mean"].dims)
    if not by_group:
        frame = _dispersions(stats["mean"].to_numpy(), stats["variance"].to_numpy(), flavor, bins)
        frame["highly_variable"] = _chosen(frame, n_top, limits)
    else:
        frame = _of_groups(stats, n_top, flavor, bins, limits)
    coords = {dim: stats[dim]} if dim in stats.coords else {}
    return xr.Dataset({str(k): (dim, v.to_numpy()) for k, v in frame.items()}, coords)


def _check(
    stats: xr.Dataset, n_top: int | None, flavor: str, n_bins: int | None, bounds: dict[str, float]
) -> None:
    """Refuse what cannot be, or would be ignored."""
    if flavor not in _FLAVORS:
        msg = (
            f"flavor={flavor!r} is unknown; choose one of {_FLAVORS} (seurat_v3 needs a second pass over all counts: "
            "use scanpy for it)"
        )
        raise PlanError(msg)
    unknown = sorted(set(bounds) - set(_BOUNDS))
    if unknown or (n_top is not None and bounds) or (n_bins is not None and flavor != "seurat"):
        msg = (
            f"{[*unknown, *bounds] or ['n_bins']} do not apply: bounds are {list(_BOUNDS)} and go without n_top, n_bins "
            "with 'seurat'; leave them out"
        )
        raise PlanError(msg)
    if stats.attrs.get("kind") != "cells":
        msg = "highly_variable() needs what xl.statistics() gives of cells"
        raise SchemaError(msg)
    if flavor == "seurat" and "log1p" in stats.attrs["steps"]:
        msg = (
            f"flavor='seurat' takes the logarithm itself, and these statistics are of {stats.attrs['steps']!r}; make "
            "them with transform=xl.transforms.normalize_total() alone, or choose flavor='cell_ranger'"
        )
        raise SchemaError(msg)


def _dispersions(mean: Floats, variance: Floats, flavor: str, n_bins: int) -> pd.DataFrame:
    """Return means, dispersions, and how far they are from those of genes of like means."""
    known = ~np.isnan(variance)
    m = np.where(mean[known] == 0, _SMALL, mean[known])
    dispersion = variance[known] / m
    edges: Any = n_bins
    if flavor == "seurat":
        dispersion[dispersion == 0] = np.nan
        dispersion, m = np.log(dispersion), np.log1p(m)
    else:
        edges = np.r_[-np.inf, np.percentile(m, np.arange(10, 105, 5)), np.inf]
        if len(np.unique(edges)) < len(edges):
            msg = (
                f"more than 5 % of {len(m):,} genes have one mean, so that there are no bins of 5 %; leave out the "
                "genes that few cells have, such as by ds.isel(gene=stats.n_detected > 10)"
            )
            raise SchemaError(msg)
    frame = pd.DataFrame({"means": m, "dispersions": dispersion})
    of_bin = frame["dispersions"].groupby(pd.cut(frame["means"], edges), observed=True)
    if flavor == "seurat":
        center, spread = of_bin.transform("mean"), of_bin.transform("std")
        alone = spread.isna()  # in its bin: 1 by convention
        center, spread = center.where(~alone, 0), spread.where(~alone, center)
    else:
        center = of_bin.transform("median")
        off = (frame["dispersions"] - center).abs()
        spread = off.groupby(pd.cut(frame["means"], edges), observed=True).transform("median")
        spread /= _NORMAL
    frame["dispersions_norm"] = (frame["dispersions"] - center) / spread
    frame.index = pd.Index(np.flatnonzero(known))
    return frame.reindex(np.arange(len(mean)))


def _chosen(
    frame: pd.DataFrame, n_top: int | None, limits: dict[str, float]
) -> npt.NDArray[np.bool_]:
    """Say which genes are chosen."""
    found = frame["dispersions_norm"].to_numpy()
    if n_top is None:
        norm, means = np.nan_to_num(found), frame["means"].to_numpy()
        return np.asarray(
            (means > limits["min_mean"])
            & (means < limits["max_mean"])
            & (norm > limits["min_disp"])
            & (norm < limits["max_disp"])
        )
    known = np.sort(found[~np.isnan(found)])
    if not 0 < n_top <= len(known):
        msg = f"n_top={n_top} of {len(known):,} genes that have a dispersion; ask for 1 to {len(known):,}"
        raise PlanError(msg)
    return np.asarray(np.nan_to_num(found, nan=-np.inf) >= known[-n_top])


def _of_groups(
    stats: xr.Dataset, n_top: int | None, flavor: str, n_bins: int, limits: dict[str, float]
) -> pd.DataFrame:
    """Choose in each group, and then by how many groups chose a gene."""
    by = stats.attrs["by"]
    if not by:
        msg = "by_group=True needs statistics of groups; make them with xl.statistics(..., by=...)"
        raise SchemaError(msg)
    names = [f"{name}_by_{by}" for name in ("mean", "variance", "detection_rate")]
    require(stats, names, "highly_variable()")
    frames = []
    for mean, variance, rate in zip(*(stats[name].to_numpy() for name in names), strict=True):
        here = rate > 0  # genes that no cell of the group has are not chosen in it
        frame = _dispersions(mean[here], variance[here], flavor, n_bins)
        frame["chosen"] = _chosen(frame, n_top, limits).astype(np.int64)
        frame.index = pd.Index(np.flatnonzero(here))
        frames.append(frame.reindex(np.arange(len(here)), fill_value=0))
    every = pd.concat(frames).groupby(level=0)
    frame = every[["means", "dispersions", "dispersions_norm"]].mean()
    frame["n_groups"] = every["chosen"].sum().astype(np.int64)
    if n_top is None:
        frame["dispersions_norm"] = frame["dispersions_norm"].fillna(0)
        frame["highly_variable"] = _chosen(frame, None, limits)
    else:
        best = frame.sort_values(
            ["n_groups", "dispersions_norm"], ascending=False, na_position="last"
        )
        frame["highly_variable"] = frame.index.isin(best.index[:n_top])
    return frame

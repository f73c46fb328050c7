"""Pictures of contact maps, batches and windows; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import genome, schema
from xloader.axes import Windows, regions_of
from xloader.errors import SchemaError

_COLOURS = "Reds"
_MASKED = "0.85"


def _colours(plt: Any) -> Any:
    """Return colours in which nothing looks unlike not known."""
    return plt.get_cmap(_COLOURS).with_extremes(bad=_MASKED, under="white")


def _shown(values: npt.NDArray[np.float64], norm: Any) -> npt.NDArray[np.float64]:
    """Return values that the norm has a colour for, NaN where nothing is known."""
    return np.where(values <= 0, norm.vmin / 2, values) if norm.vmin > 0 else values


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        msg = "pictures need matplotlib: pip install 'xloader[plot]' or conda install matplotlib"
        raise ImportError(msg) from e
    return plt


def plot_contacts(
    ds: xr.Dataset,
    region: str | None = None,
    region2: str | None = None,
    *,
    variable: str | None = None,
    balance: str | None = None,
    log: bool = True,
    triangle: bool = False,
    max_bins: int = 1000,
    ax: Any = None,
) -> Any:
    """
    Draw a part of a contact map, with positions in Mb.

    Parameters
    ----------
    ds : xarray.Dataset
        A contact map.
    region, region2 : str, optional
        Chromosome, or part as ``"chr2:1,000,000-2,000,000"`` (bp, 0-based half-open), along the rows
        and along the columns. Default: everything; the same on both axes.
    variable : str, optional
        What to draw. Default: the first variable on both axes.
    balance : str, optional
        Name of the balancing vector to correct with. Default: raw values.
    log : bool, optional
        Whether colours follow the logarithm.
    triangle : bool, optional
        Whether the upper half is drawn, turned by 45 degrees, with the diagonal below.
    max_bins : int, optional
        Bins drawn along an axis; of more, neighbours are added up (raw) or averaged (balanced).
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Masked bins are grey, zeros white.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message names the command.
    SchemaError
        If there is no such region, variable or vector, or a triangle of two different regions.
    """
    plt = _pyplot()
    schema.require(
        ds, [f"{n}{s}" for n in ("chrom", "start", "end") for s in "12"], "plot_contacts"
    )
    if triangle and region2 not in (None, region):
        msg = f"a triangle has one region, not {region!r} and {region2!r}; leave out region2"
        raise SchemaError(msg)
    name = _matrix_of(ds, variable)
    sides = (region, region if region2 is None else region2)
    if region is not None:
        places = (_places(ds, r, side) for r, side in zip(sides, "12", strict=True))
        ds = ds.isel(dict(zip(("bin1", "bin2"), places, strict=True)))
    values, factor = _drawn(ds, name, balance, max_bins)
    ax = (
        plt.subplots(figsize=(7, 4 if triangle else 6), layout="constrained")[1]
        if ax is None
        else ax
    )
    norm = _norm(values, log=log)
    colours = _colours(plt)
    values = _shown(values, norm)
    rows, columns = (_Axis(ds, side, factor) for side in "12")
    if triangle:
        image = _turned(ax, values, norm, colours)
        columns.label(ax.xaxis, ax.axvline)
        ax.set_ylabel("distance (bins)" if factor == 1 else f"distance ({factor} bins)")
    else:
        image = ax.imshow(
            values, norm=norm, cmap=colours, interpolation="none", origin="upper",
            extent=(0, values.shape[1], values.shape[0], 0),
        )  # fmt: skip
        columns.label(ax.xaxis, ax.axvline)
        rows.label(ax.yaxis, ax.axhline)
    label = name if balance is None else f"{name}, balanced by {balance}"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return ax


def _places(ds: xr.Dataset, region: str | None, side: str) -> npt.NDArray[np.int64]:
    bins = genome.bins_of(ds, side)
    wanted = genome.as_table(region, genome.ends_of(bins))
    return np.flatnonzero(genome.touched(wanted, bins))


def _matrix_of(ds: xr.Dataset, variable: str | None) -> str:
    there = [str(k) for k, v in ds.data_vars.items() if v.dims[-2:] == ("bin1", "bin2")]
    matrices = [k for k in there if ds[k].ndim == 2]
    name = variable if variable is not None else next(iter(matrices), None)
    if name not in matrices:
        msg = f"variable {name!r} is no map (bin1, bin2); there are {matrices}"
        raise SchemaError(msg)
    return str(name)


def _drawn(
    ds: xr.Dataset, name: str, balance: str | None, max_bins: int
) -> tuple[npt.NDArray[np.float64], int]:
    """Return the values to draw, and how many bins one of them is."""
    values = ds[name].reset_coords(drop=True)
    if balance is not None:
        from xloader.transforms import balance as balanced

        values = balanced(balance, name)(ds)[name].reset_coords(drop=True)
    factor = -(-max(values.shape) // max(1, max_bins))
    if factor > 1:
        coarse = values.coarsen(bin1=factor, bin2=factor, boundary="pad")
        values = coarse.sum() if balance is None else coarse.mean()
    return np.asarray(values.values, np.float64), factor


def _norm(values: npt.NDArray[np.float64], *, log: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    seen = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(seen) == 0:
        return Normalize(0, 1)
    high = float(np.percentile(seen, 99.5))
    low = float(seen.min())
    high = high if high > low else low * 10 if low > 0 else low + 1
    return LogNorm(low, high) if log else Normalize(low, high)


def _turned(ax: Any, values: npt.NDArray[np.float64], norm: Any, colours: Any) -> Any:
    n = len(values)
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    # beyond the limits of the axis lies the lower half
    image = ax.pcolormesh(
        (i + j) / 2, j - i, np.ma.masked_invalid(values), norm=norm, cmap=colours, rasterized=True
    )
    ax.set_xlim(0, n)
    ax.set_ylim(0, n)
    return image


class _Axis:
    """Positions along one axis of a map."""

    def __init__(self, ds: xr.Dataset, side: str, factor: int) -> None:
        self.names, self.starts, self.ends = (
            np.asarray(ds[f"{n}{side}"].values) for n in ("chrom", "start", "end")
        )
        self.factor = factor
        self.regions = regions_of(self.names, np.arange(len(self.names)))

    def label(self, axis: Any, line: Any) -> None:
        """Write Mb where there is one chromosome, else names of chromosomes."""
        n = len(self.names) / self.factor
        if len(self.regions) == 1 and (self.starts[1:] == self.ends[:-1]).all():
            from matplotlib.ticker import MaxNLocator

            low, high = self.starts[0] / 1e6, self.ends[-1] / 1e6
            at = [t for t in MaxNLocator(6).tick_values(low, high) if low <= t <= high]
            where = np.interp(
                at, np.append(self.starts, self.ends[-1]) / 1e6, np.arange(len(self.names) + 1)
            )
            axis.set_ticks(where / self.factor, [f"{t:g}" for t in at])
            axis.set_label_text(f"{self.names[0]} (Mb)")
            return
        middles = [(r.start + r.stop) / 2 / self.factor for r in self.regions]
        wide = [len(r) / self.factor > n / 60 for r in self.regions]
        axis.set_ticks(
            [m for m, w in zip(middles, wide, strict=True) if w],
            [r.name for r, w in zip(self.regions, wide, strict=True) if w],
        )
        axis.set_tick_params(length=0, labelrotation=90 if axis.axis_name == "x" else 0)
        for r in self.regions[1:]:
            line(r.start / self.factor, color="0.4", linewidth=0.4)


def plot_batch(
    batch: xr.Dataset, *, variable: str | None = None, n: int = 8, log: bool = False
) -> Any:
    """
    Draw the first windows of a batch.

    Parameters
    ----------
    batch : xarray.Dataset
        What a Loader of contact windows serves.
    variable : str, optional
        What to draw. Default: all variables with two dimensions besides the samples, one a row.
    n : int, optional
        How many windows.
    log : bool, optional
        Whether colours follow the logarithm.

    Returns
    -------
    matplotlib.figure.Figure
        A column for each window, titled with its region.

    Raises
    ------
    SchemaError
        If there is no such variable.
    """
    plt = _pyplot()
    there = [str(k) for k, v in batch.data_vars.items() if v.ndim == 3 and v.dims[0] == "sample"]
    names = there if variable is None else [variable]
    if not names or not set(names) <= set(there):
        msg = f"{variable or 'the batch'!r} is no batch of windows (sample, rows, columns); there are {there}"
        raise SchemaError(msg)
    n = min(n, batch.sizes["sample"])
    size = (1.7 * n + 0.8, 1.9 * len(names) + 0.3)
    figure, axes = plt.subplots(len(names), n, figsize=size, squeeze=False, layout="constrained")
    colours = _colours(plt)
    for name, row in zip(names, axes, strict=True):
        values = np.asarray(batch[name].values[:n], np.float64)
        norm = _norm(values, log=log)
        for k, ax in enumerate(row):
            image = ax.imshow(
                _shown(values[k], norm), norm=norm, cmap=colours, interpolation="none"
            )
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=list(row), shrink=0.8)
    for k, ax in enumerate(axes[0]):
        ax.set_title("\n".join(_titles(batch, k)), fontsize=7)
    return figure


def _titles(batch: xr.Dataset, k: int) -> list[str]:
    places = []
    for side in "12":
        names = [f"{n}{side}" for n in ("chrom", "start", "end")]
        if all(n in batch.coords for n in names):
            chrom, start, end = (batch[n].values[k] for n in names)
            places.append(f"{chrom[0]}:{start[0] / 1e6:g}-{end[-1] / 1e6:g} Mb")
    return list(dict.fromkeys(places)) or [f"sample {batch['sample_id'].values[k]}"]


def plot_windows(parts: Mapping[str, tuple[xr.Dataset, Windows]], *, ax: Any = None) -> Any:
    """
    Draw where windows lie on each chromosome: how many cover each bin.

    Parameters
    ----------
    parts : mapping of str to (Dataset, Windows)
        What windows are cut from, and where they lie, by the name of the split.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line for each chromosome, with windows along rows and columns of the map above each other,
        wherever they may be shifted to.

    Raises
    ------
    SchemaError
        If windows are not of a contact map.
    """
    plt = _pyplot()
    depths = {name: _depth(ds, windows) for name, (ds, windows) in parts.items()}
    chroms: dict[str, float] = {}
    for depth in depths.values():
        for chrom, edges, _ in depth:
            chroms[chrom] = max(chroms.get(chrom, 0), float(edges[-1]))
    size = (8, 0.28 * len(chroms) + 1.2)
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    lines = {chrom: k for k, chrom in enumerate(chroms)}
    for chrom, end in chroms.items():
        ax.plot([0, end / 1e6], [lines[chrom]] * 2, color="0.6", linewidth=0.8)
    tallest = max((float(d.max()) for depth in depths.values() for *_, d in depth), default=1)
    for k, (name, depth) in enumerate(depths.items()):
        shown = {"color": f"C{k}", "alpha": 0.6, "linewidth": 0}
        for chrom, edges, d in depth:
            height = lines[chrom] - 0.8 * np.append(d, d[-1]) / max(tallest, 1)
            ax.fill_between(edges / 1e6, lines[chrom], height, step="post", **shown)
        n = len(parts[name][1])
        ax.fill_between([], [], [], label=f"{name}: {n:,} window{'s' if n != 1 else ''}", **shown)
    ax.set_yticks(range(len(lines)), list(lines))
    ax.set_ylim(len(lines) - 0.5, -1)
    ax.set_xlabel("position (Mb)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, frameon=False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return ax


def _depth(
    ds: xr.Dataset, windows: Windows
) -> Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """Return, for each run of bins, its chromosome, the edges of its bins and the windows on each."""
    sides = [d[-1] for d in windows.dims if d in ("bin1", "bin2")]
    if not sides:
        msg = (
            f"windows along {windows.dims} lie on no chromosome; plot_windows draws contact windows"
        )
        raise SchemaError(msg)
    first, stop = windows.shown_of(np.arange(len(windows)))
    out = []
    for side in sides:
        axis = windows.dims.index(f"bin{side}")
        n = ds.sizes[f"bin{side}"]
        change = np.bincount(first[:, axis], minlength=n + 1)
        change -= np.bincount(stop[:, axis], minlength=n + 1)
        depth = np.cumsum(change)[:n]
        names, start, end = (ds[f"{c}{side}"].values for c in ("chrom", "start", "end"))
        for r in regions_of(names, ds[f"bin{side}"].values):
            edges = np.append(start[r.start : r.stop], end[r.stop - 1])
            out.append((r.name, edges, depth[r.start : r.stop]))
    return out

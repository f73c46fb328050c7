"""Parts of a Dataset to train, validate and test on: each a lazy view, none shares anything with another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from typing_extensions import override

from xloader import genome, schema
from xloader.dealing import cut, deal
from xloader.errors import PlanError, SchemaError
from xloader.labels import cell_names, has_datasets, with_vocabularies
from xloader.leakage import check_leakage
from xloader.planned import as_table, as_text

Int64 = npt.NDArray[np.int64]
Place = Callable[[Sequence[float]], Int64]
"""Deals units out to parts of the given shares; returns the part of each unit."""

_REST = "rest"


class Views(dict[str, xr.Dataset]):
    """
    Lazy views of a Dataset by name, which shows how large they are.

    Parameters
    ----------
    views : mapping of str to xarray.Dataset
        What they are called.
    n_left_out : int, optional
        Bins or cells that belong to no view; None where that is not known, because views were made
        by hand.
    """

    def __init__(self, views: Mapping[str, xr.Dataset], n_left_out: int | None = None) -> None:
        super().__init__(views)
        self.n_left_out = n_left_out

    @property
    def dim(self) -> str:
        """
        Return the dimension that the views divide.

        Returns
        -------
        str
            ``"bin1"`` for contacts.
        """
        first = next(iter(self.values()))
        return "bin1" if schema.kind(first) == "contacts" else "cell"

    def _facts(self) -> dict[str, str]:
        what = self.dim.removesuffix("1")
        sizes = {name: view.sizes[self.dim] for name, view in self.items()}
        total = max(1, sum(sizes.values()) + (self.n_left_out or 0))
        facts = {}
        for name, n in sizes.items():
            facts[name] = f"{n:,} {what}s ({n / total:.1%})"
            if self.dim == "bin1":
                chroms = [str(c) for c in pd.unique(self[name]["chrom1"].values)]
                more = ", ..." if len(chroms) > 6 else ""
                facts[name] += f" of {', '.join(chroms[:6])}{more}"
        if self.n_left_out:
            facts["no view"] = f"{self.n_left_out:,} {what}s ({self.n_left_out / total:.1%})"
        return facts

    @override
    def __repr__(self) -> str:
        return as_text("xloader.Views", f"{len(self)} views", self._facts())

    def _repr_html_(self) -> str:
        return as_table("xloader.Views", f"{len(self)} views", self._facts())


def split(
    source: Any,
    parts: Mapping[str, Any] | None = None,
    *,
    by: str | None = None,
    stratify: str | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Views:
    """
    Cut a Dataset into views to train, validate and test on, none of which shares anything.

    Views of a contact map have the same bins on both axes, so that no window of one holds a bin of
    another. What is drawn by share or by fold follows from `seed` and from names alone: not from
    the order of cells or files, nor from the process. Of another selection, others are drawn: split
    first, and select from the views. Text labels remember the classes of the whole Dataset.

    Parameters
    ----------
    source : xarray.Dataset or mapping of str to xarray.Dataset
        A contact map, cells, or views made by hand, which are checked (see `check_leakage`) and
        returned.
    parts : mapping of str to object, optional
        What each view holds: all of it as names, as shares or as folds.

        Names: for contacts chromosomes and regions as text (``"chr2:1,000,000-2,000,000"``), a BED
        file, or a table with `chrom`, `start`, `end`; for cells the values of `by`. Shares: numbers of which
        the sum is at most 1; whole chromosomes or groups are dealt out, by length or number of
        cells. Folds: numbers from 0, one or a list. One view may be ``"rest"``. Default, for folds:
        a view for each.
    by : str, optional
        For cells, the coordinate whose groups, such as donors, stay whole; cells without a group are in
        no view. Default: cells one by one.
    stratify : str, optional
        For shares and folds of cells, a coordinate of classes that each view gets in proportion; cells
        without one are a class of their own. Cell by cell, each view has less than one cell more or
        less of each class than its share; with `by`, whole groups come as near as 64 random orders
        find.
    folds : int, optional
        Into how many parts of equal share to deal out.
    seed : int, optional
        Of what is dealt out.

    Returns
    -------
    Views
        A dict of lazy Datasets; it shows what they hold, and how much belongs to none of them.

    Raises
    ------
    PlanError
        If views overlap, one is empty, or shares and folds do not fit.
    SchemaError
        If there is no such chromosome, region, coordinate or group.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"cell": list("abcdef"), "donor": ("cell", list("xxyyzz"))})
    >>> views = split(ds, {"train": "rest", "val": "y"}, by="donor")
    >>> views["train"].cell.values.tolist()
    ['a', 'b', 'e', 'f']
    """
    if not isinstance(source, xr.Dataset):
        return _made_already(source, parts, folds, by, stratify)
    wanted = _wanted(parts, folds)
    kind = schema.kind(source)
    if kind == "contacts":
        _refuse_groups(by=by, stratify=stratify)
        sides = _contact_parts(source, wanted, folds, seed)
    elif kind == "cells":
        source = with_vocabularies(source, "cell")
        sides = {"cell": _cell_parts(source, wanted, by, stratify, folds, seed)}
    else:
        msg = f"split() knows contact maps (bin1, bin2) and cells (cell), not {dict(source.sizes)}"
        raise SchemaError(msg)
    return _cut_out(source, list(wanted), sides)


def _cut_out(source: xr.Dataset, names: Sequence[str], sides: Mapping[str, Int64]) -> Views:
    """Return a view for each number along all dimensions."""
    views = {}
    for k, name in enumerate(names):
        places = {dim: np.flatnonzero(part == k) for dim, part in sides.items()}
        empty = [dim for dim, p in places.items() if len(p) == 0]
        if empty:
            msg = f"the view {name!r} is empty along {empty[0]!r}; give it more, or leave it out"
            raise PlanError(msg)
        views[name] = source.isel(places)
    return Views(views, int((next(iter(sides.values())) < 0).sum()))


def _refuse_groups(**options: str | None) -> None:
    for option, given in options.items():
        if given is not None:
            msg = f"{option}={given!r} is about cells; contact maps are split by chromosome or region: leave it out"
            raise PlanError(msg)


def _made_already(
    source: Any, parts: Any, folds: int | None, by: str | None, stratify: str | None
) -> Views:
    """Return views made by hand, if they share nothing."""
    if parts is not None or folds is not None or stratify is not None:
        msg = "these views are made already, and are only checked; leave out `parts`, `folds` and `stratify`"
        raise PlanError(msg)
    given: dict[str, Any] = dict(source) if isinstance(source, Mapping) else {}
    odd = [name for name, view in given.items() if not isinstance(view, xr.Dataset)]
    if odd or not given:
        msg = (
            f"split() takes a Dataset, or Datasets by name, not {type(source).__name__} with {odd or 'nothing'}; "
            "xl.check_leakage checks Loaders too"
        )
        raise SchemaError(msg)
    check_leakage(given, by=by)
    return Views(given)


def _wanted(parts: Mapping[str, Any] | None, folds: int | None) -> dict[str, Any]:
    """Return what each view holds, checked as far as that needs no data."""
    if parts is None:
        if folds is None:
            msg = "say what the views hold: `parts`, such as {'train': 'rest', 'val': ['chr2']}, or `folds`"
            raise PlanError(msg)
        parts = {f"fold{k}": k for k in range(folds)}
    wanted = dict(parts)
    rest = [name for name, spec in wanted.items() if _is_rest(spec)]
    if len(rest) > 1 or not wanted:
        msg = f"{rest or 'no view'}: one view at most is 'rest', and there is at least one; name what each holds"
        raise PlanError(msg)
    if folds is not None:
        _check_folds(wanted, folds)
    elif _are_shares(wanted):
        shares = [spec for spec in wanted.values() if not _is_rest(spec)]
        if (
            not all(isinstance(s, float | int) and 0 < s <= 1 for s in shares)
            or sum(shares) > 1 + 1e-9
        ):
            msg = f"parts={wanted}: shares are numbers above 0 whose sum is at most 1; mend them"
            raise PlanError(msg)
    return wanted


def _is_rest(spec: Any) -> bool:
    return isinstance(spec, str) and spec == _REST


def _are_shares(wanted: Mapping[str, Any]) -> bool:
    return any(isinstance(spec, float) for spec in wanted.values())


def _check_folds(wanted: Mapping[str, Any], folds: int) -> None:
    given = [
        k for spec in wanted.values() if not _is_rest(spec) for k in np.atleast_1d(spec).tolist()
    ]
    unknown = [k for k in given if not isinstance(k, int) or not 0 <= k < folds]
    if folds < 2 or unknown or len(set(given)) < len(given):
        msg = (
            f"parts={dict(wanted)} with folds={folds}: there are at least 2 folds, views hold numbers from 0 "
            "to folds - 1 or 'rest', and each fold is in one view"
        )
        raise PlanError(msg)


def _contact_parts(
    ds: xr.Dataset, wanted: Mapping[str, Any], folds: int | None, seed: int
) -> dict[str, Int64]:
    """Return the view of each bin along both dimensions, -1 for none."""
    both = [f"{c}{side}" for side in "12" for c in genome.COLUMNS]
    schema.require(ds, both, "splitting a contact map")
    tables = {f"bin{side}": genome.bins_of(ds, side) for side in "12"}
    everything = pd.concat(tables.values(), ignore_index=True)
    if folds is None and not _are_shares(wanted):
        ends = genome.ends_of(everything)
        regions = {
            name: genome.as_table(spec, ends) for name, spec in wanted.items() if not _is_rest(spec)
        }
        return {dim: _regions_of(bins, wanted, regions) for dim, bins in tables.items()}
    chroms = pd.unique(everything["chrom"])
    bins = tables["bin1"]
    length = (bins["end"] - bins["start"]).groupby(bins["chrom"]).sum()
    weights = length.reindex(chroms, fill_value=0).to_numpy(np.float64)
    part = _dealt(wanted, folds, lambda shares: deal(weights, shares, seed))
    index = pd.Index(chroms)
    return {dim: part[index.get_indexer(b["chrom"])] for dim, b in tables.items()}


def _regions_of(
    bins: pd.DataFrame, wanted: Mapping[str, Any], regions: Mapping[str, pd.DataFrame]
) -> Int64:
    """Return the view of each bin; refuse those that several views touch."""
    part = np.full(len(bins), -1)
    names = list(wanted)
    for name, table in regions.items():
        mine = genome.touched(table, bins)
        taken = np.flatnonzero(mine & (part >= 0))
        if len(taken):
            both = genome.merged(bins.iloc[taken])
            n_bp = int((both["end"] - both["start"]).sum())
            msg = (
                f"the views {names[part[taken[0]]]!r} and {name!r} overlap in {len(taken):,} bins ({n_bp:,} bp), "
                f"the first of them in {genome.as_text(*both.iloc[0])}: what one is trained on would be in "
                "the other; give each bin to one view, with bounds that are multiples of the bin size"
            )
            raise PlanError(msg)
        part[mine] = names.index(name)
    for name, spec in wanted.items():
        if _is_rest(spec):
            part[part < 0] = names.index(name)
    return part


def _cell_parts(
    ds: xr.Dataset,
    wanted: Mapping[str, Any],
    by: str | None,
    stratify: str | None,
    folds: int | None,
    seed: int,
) -> Int64:
    """Return the view of each cell, -1 for none."""
    shared_out = folds is not None or _are_shares(wanted)
    if by is None and not shared_out:
        msg = (
            f"parts={dict(wanted)} names groups of cells, but not of which coordinate; say by='donor' or "
            f"another of {_labels(ds)}, or give shares such as 0.8"
        )
        raise PlanError(msg)
    if stratify is not None and (not shared_out or stratify == by):
        msg = (
            f"stratify={stratify!r} keeps the proportions of what is dealt out by shares or folds, but "
            + (f"groups of {by!r} are named" if not shared_out else "groups of it stay whole")
            + "; leave it out"
        )
        raise PlanError(msg)
    strata = np.zeros(ds.sizes["cell"], np.int64)
    if stratify is not None:
        strata, classes = _groups(ds, stratify, "stratify")
        if classes.dtype.kind == "f" and "categories" not in ds[stratify].attrs:
            msg = f"stratify={stratify!r} holds measurements, which are no classes; bin them first, as pandas.cut does"
            raise SchemaError(msg)
        strata = np.where(strata < 0, len(classes), strata)
    if by is None:
        schema.require(ds, ["cell"], "splitting cells")
        names = cell_names(ds, of_dataset=has_datasets(ds))
        return _dealt(wanted, folds, lambda shares: cut(names, strata, shares, seed))
    codes, groups = _groups(ds, by, "by")
    if shared_out:
        here = codes >= 0
        table = pd.crosstab(codes[here], strata[here]).to_numpy(np.float64)
        sizes = np.column_stack([table.sum(axis=1), table])
        part = _dealt(wanted, folds, lambda shares: deal(sizes, shares, seed))
    else:
        part = _named(wanted, groups, by)
    whose: Int64 = np.append(part, -1)[codes]  # cells without a group are in no view
    return whose


def _groups(ds: xr.Dataset, name: str, option: str) -> tuple[Int64, "pd.Index[Any]"]:
    """Return the group of each cell, -1 for none, and the groups, sorted."""
    if name not in ds.coords or ds[name].dims != ("cell",):
        msg = f"{option}={name!r} is no coordinate of cells; there are {_labels(ds)}"
        raise SchemaError(msg)
    codes, groups = pd.factorize(np.asarray(ds[name]), sort=True)
    return codes.astype(np.int64), pd.Index(groups)


def _labels(ds: xr.Dataset) -> list[str]:
    return sorted(str(c) for c in ds.coords if ds[c].dims == ("cell",))


def _named(wanted: Mapping[str, Any], groups: "pd.Index[Any]", by: str) -> Int64:
    """Return the view of each group that views name."""
    part = np.full(len(groups), -1)
    names = list(wanted)
    for k, spec in enumerate(wanted.values()):
        if _is_rest(spec):
            continue
        values = np.atleast_1d(np.asarray(spec, object)).tolist()
        at = groups.get_indexer(values)
        unknown = [v for v, place in zip(values, at, strict=True) if place < 0]
        if unknown:
            msg = f"{unknown[:5]} are not among the {len(groups)} values of {by!r}: {groups[:10].tolist()}"
            raise SchemaError(msg)
        taken = part[at] >= 0
        if taken.any():
            both = [v for v, t in zip(values, taken.tolist(), strict=True) if t]
            msg = (
                f"the views {names[part[at][taken][0]]!r} and {names[k]!r} overlap: both hold {by} {both[:5]}; "
                "name each group in one view"
            )
            raise PlanError(msg)
        part[at] = k
    rest = [k for k, spec in enumerate(wanted.values()) if _is_rest(spec)]
    part[part < 0] = rest[0] if rest else -1
    return part


def _dealt(wanted: Mapping[str, Any], folds: int | None, place: Place) -> Int64:
    """Return the view of each unit that is dealt out by shares or into folds."""
    specs = list(wanted.values())
    rest = next((k for k, spec in enumerate(specs) if _is_rest(spec)), -1)
    if folds is not None:
        views = np.full(folds, rest)
        for k, spec in enumerate(specs):
            if k != rest:
                views[np.atleast_1d(spec)] = k
        return np.asarray(views[place([1 / folds] * folds)])
    shares = [0.0 if k == rest else float(spec) for k, spec in enumerate(specs)]
    left = 1 - sum(shares)
    # what is left is a part of its own, or of a share that it may be too small to be
    views = np.append(np.arange(len(specs)), rest)
    keep = [k for k, share in enumerate([*shares, left]) if share > 1e-9]
    return np.asarray(views[np.array(keep)[place([[*shares, left][k] for k in keep])]])

"""From file or Dataset to training store: tasks of whole shards, visible when complete."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from xloader import schema
from xloader.appending import PREFIX, conform
from xloader.converting import DESCRIPTION, Job, Options, complete, forget, join, tidy
from xloader.errors import PlanError, ReadError, SchemaError
from xloader.joined import concat
from xloader.memory import nbytes_of
from xloader.open import identify, open_cells, open_contacts, resolutions
from xloader.state import digest
from xloader.store.building import building, building_part, check_place, finishing, locked, publish
from xloader.store.journal import Journal, key_in, missing_parts, rungs_in
from xloader.store.layout import FORMAT, read_root, root_attributes, write_root
from xloader.store.new_files import is_unfinished
from xloader.store.write import CODECS, manifest


def convert(
    source: str | os.PathLike[str] | xr.Dataset | Sequence[Any],
    store: str | os.PathLike[str],
    *,
    shuffle: bool = False,
    seed: int = 0,
    codec: str = "fast",
    memory_budget: int | str = "1GB",
    max_distance: int | None = None,
    overwrite: bool = False,
    append: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """
    Write a training store: zarr v3, sharded, with every label.

    It is built beside its final place and moved there when it is complete. A conversion that was
    killed or interrupted goes on where it was when it is called again in the same way.

    Parameters
    ----------
    source : str, path-like, xarray.Dataset, or a list of them
        A ``.cool``, ``.mcool`` or ``.hic`` (all their resolutions) or ``.h5ad`` file, one cell of a
        ``.scool`` file (``file::/cells/ID``), another store, or an opened Dataset with whatever was
        selected from it. A list of cells goes into one store as `concat` joins them, all genes
        kept; ``convert(xl.concat(paths, join=...), store)`` keeps others, and takes names.
    store : str or path-like
        Directory to make.
    shuffle : bool, optional
        Whether cells are written in a random order; `row` keeps where each came from.
    seed : int, optional
        Seed of that order.
    codec : {"fast", "small"}, optional
        Quick to decode (lz4), or few bytes (zstd).
    memory_budget : int or str, optional
        Bytes that the tasks running at the same time may take.
    max_distance : int, optional
        Contacts farther apart than this, in bp, and between chromosomes are left out, tile by tile.
    overwrite : bool, optional
        Whether an existing store is replaced, once the new one is complete. Anything else that is
        at its place is never replaced.
    append : bool, optional
        Whether cells are added to an existing store, with the same features, variables and labels. Nothing
        that is there is written again; with `shuffle`, the new cells alone are put in another order.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        The opened store; the finest resolution, if it has several.

    Raises
    ------
    PlanError
        If options do not fit the data, or a task does not fit the budget.
    ReadError
        If the source cannot be read, or the store exists already, or something else is there.
    SchemaError
        If the source is of no supported kind.
    """
    target = Path(os.fsdecode(store))
    if not append:
        check_place(target, overwrite=overwrite)
    groups, kind, options = _request(source, shuffle, seed, codec, memory_budget, max_distance)
    if append:
        if overwrite or kind != "cells":
            msg = "append=True adds cells to a store that is there: leave out overwrite=True, and contacts"
            raise PlanError(msg)
        _append(groups[""], target, options, progress=progress)
        return open_cells(target)
    with building(target) as partial, _bar(target, progress=progress) as bar:
        key = _key(groups, options)
        if "xloader" in root_attributes(partial) and key_in(partial) == key:
            forget(partial)  # it was killed when all else was done
        else:
            described = Job(partial, groups, options, Journal(partial, key), bar).run()
            complete(partial, kind, described)
        publish(target)
    return _opened(target, kind)


def _append(ds: xr.Dataset, target: Path, options: Options, *, progress: bool) -> None:
    """Write a group of its own for new cells, then the list of the store, in which it first appears."""
    read_root(target)
    with locked(target, target, what="appending to"):
        for path in target.iterdir():
            if is_unfinished(path.name):  # of a process that was killed just before it was done
                path.unlink()
        root = read_root(target)
        for name in root["groups"]:
            if name.startswith(PREFIX):
                forget(target / name)
        ds = conform(ds, open_cells(target), target)
        name = f"{PREFIX}{len(root['groups'])}"
        with (
            building(target, target / name) as place,
            _bar(target, " (append)", progress=progress) as bar,
        ):
            journal = Journal(place, _key({"": ds}, options))
            described = Job(place, {"": ds}, options, journal, bar).run()
            tidy(place)
            arrays = {f"{name}/{path}": entry for path, entry in manifest(place).items()}
        groups = {**root["groups"], name: described[""]}
        told = {"kind": "cells", "groups": groups, "arrays": {**root["arrays"], **arrays}}
        write_root(target, told)
        forget(place)


def convert_part(
    source: str | os.PathLike[str] | xr.Dataset | Sequence[Any],
    store: str | os.PathLike[str],
    part: int,
    n_parts: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    codec: str = "fast",
    memory_budget: int | str = "1GB",
    max_distance: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """
    Do one part of a conversion, such as one task of a job array; `finalise` makes the store of them.

    Parts may run at the same time or one after the other, in processes and on machines that share
    the folder of the store. The bytes of the store are those of `convert`. A part that was killed goes on where
    it was when it is called again in the same way.

    Parameters
    ----------
    source : str, path-like, xarray.Dataset, or a list of them
        As for `convert`; the same for all parts.
    store : str or path-like
        As for `convert`; the same for all parts.
    part : int
        Which part, from 1 to `n_parts`.
    n_parts : int
        How many parts there are.
    shuffle, seed, codec, memory_budget, max_distance, overwrite
        As for `convert`; the same for all parts.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    bool
        True if the part is complete. False if rows have to be put in order first (``shuffle=True``, or a
        selection) and other parts have not done their share of it: call it again after them.

    Raises
    ------
    PlanError, ReadError, SchemaError
        As for `convert`; if parts of another conversion are there; or if the source is a Dataset of which
        it cannot be told whether it is the same in every part.
    """
    if not 1 <= part <= n_parts:
        msg = f"part {part} of {n_parts}: parts are counted from 1 to their number"
        raise PlanError(msg)
    target = Path(os.fsdecode(store))
    check_place(target, overwrite=overwrite)
    groups, kind, options = _request(source, shuffle, seed, codec, memory_budget, max_distance)
    key = _key(groups, options)
    if not key:
        msg = (
            "it cannot be told whether this Dataset is the same in every part; give a path, or open it with "
            "chunks={}"
        )
        raise PlanError(msg)
    which = part, n_parts
    with (
        building_part(target, which) as partial,
        _bar(target, f" ({part}/{n_parts})", progress=progress) as bar,
    ):
        journal = Journal(partial, key, which)
        return Job(partial, groups, options, journal, bar).run_part(which, kind)


def finalise(
    store: str | os.PathLike[str], *, overwrite: bool = False, progress: bool = True
) -> xr.Dataset:
    """
    Make a store of the parts that `convert_part` did.

    Parameters
    ----------
    store : str or path-like
        Directory of the store.
    overwrite : bool, optional
        Whether an existing store is replaced.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        The opened store; the finest resolution, if it has several.

    Raises
    ------
    ReadError
        If parts are missing, which are named, or are being done at this moment.
    """
    target = Path(os.fsdecode(store))
    check_place(target, overwrite=overwrite)
    with finishing(target) as partial:
        if "xloader" not in root_attributes(partial):  # else killed before it was moved
            told = _description(partial, target)
            rungs = rungs_in(partial)
            paths = [
                f"{name}/{variable['path']}".lstrip("/")
                for name, group in told["groups"].items()
                for variable in group["variables"].values()
                if variable["layout"] != "label"
            ]
            with _bar(target, " (finalise)", unit="array", progress=progress) as bar:
                bar.total = len(paths)
                for path in paths:
                    join(partial / path, rungs[path], told["budget"])
                    bar.update()
            complete(partial, told["kind"], told["groups"])
        forget(partial)  # there still, if it was killed when all else was done
        kind = read_root(partial)["kind"]
        publish(target)
    return _opened(target, kind)


def _description(partial: Path, target: Path) -> dict[str, Any]:
    """Return what the first part left, if all parts are complete."""
    missing, n = missing_parts(partial)
    if n == 0:
        msg = (
            f"no part of store {str(target)!r} was begun: its conversion is in one piece; run xl.convert "
            "again, which goes on where it was"
        )
        raise ReadError(msg)
    file = partial / DESCRIPTION
    if not missing and file.exists():
        return dict(json.loads(file.read_bytes()))
    missing = missing or [1]
    named = ", ".join(map(str, missing))
    msg = (
        f"store {str(target)!r} lacks part{'s' * (len(missing) > 1)} {named} of {n}: not begun, killed, or "
        "rows were only put in order; run them (again), then finalise"
    )
    raise ReadError(msg)


@contextmanager
def _bar(target: Path, what: str = "", *, unit: str = "task", progress: bool) -> Iterator[Any]:
    with tqdm(desc=f"convert to {target.name}{what}", unit=unit, disable=not progress) as bar:
        yield bar


def _opened(target: Path, kind: str) -> xr.Dataset:
    if kind == "cells":
        return open_cells(target)
    return open_contacts(target, resolution=min(resolutions(target), default=None))


def _request(
    source: Any,
    shuffle: bool,  # noqa: FBT001 # as the user named it
    seed: int,
    codec: str,
    memory_budget: int | str,
    max_distance: int | None,
) -> tuple[dict[str, xr.Dataset], str, Options]:
    """Return what is converted, its kind, and how; refuse what cannot be."""
    if codec not in CODECS:
        msg = f"codec={codec!r} is unknown; choose one of {CODECS}"
        raise PlanError(msg)
    if seed < 0:
        msg = f"seed={seed} is negative; choose any whole number from 0 on"
        raise PlanError(msg)
    budget = nbytes_of(memory_budget)
    groups = _groups(source)
    kind = schema.kind(next(iter(groups.values())))
    _check(groups, kind, shuffle=shuffle, max_distance=max_distance)
    return groups, kind, Options(codec, budget, seed if shuffle else None, max_distance)


def _groups(source: Any) -> dict[str, xr.Dataset]:
    """Return what is converted, by the name of its group."""
    if isinstance(source, list | tuple):
        return {"": concat(source)}
    if not isinstance(source, xr.Dataset):
        if not isinstance(source, str | os.PathLike):
            msg = (
                f"cannot convert a {type(source).__name__}; give a path or an opened Dataset, a list of cells, or "
                "what xl.concat makes of several"
            )
            raise SchemaError(msg)
        if identify(source)[1] == "cells":
            return {"": open_cells(source)}
        sizes: list[int | None] = [*resolutions(source)]
        maps = [open_contacts(source, resolution=size) for size in sizes or [None]]
        return {_group_name(ds): ds for ds in maps}
    return {_group_name(source) if schema.kind(source) == "contacts" else "": source}


def _group_name(ds: xr.Dataset) -> str:
    resolution = ds.attrs.get("resolution")
    return f"resolutions/{'variable' if resolution is None else int(resolution)}"


def _check(
    groups: Mapping[str, xr.Dataset], kind: str, *, shuffle: bool, max_distance: int | None
) -> None:
    """Refuse what cannot be written, before anything is read."""
    for ds in groups.values():
        empty = [str(d) for d, n in ds.sizes.items() if n == 0]
        if empty or not ds.data_vars:
            msg = f"there is nothing to convert: {dict(ds.sizes)}, variables {list(ds.data_vars)}"
            raise PlanError(msg)
        own = [d for d in map(str, ds.sizes) if d.endswith("_cell") and d in ds.coords]
        if own and "cell" in ds.sizes:
            msg = (
                f"a store holds one source, not several of different cells ({own}), as xl.merge makes "
                "them; convert each by itself, and merge the stores"
            )
            raise PlanError(msg)
        if kind == "contacts" and "cell" in ds.sizes:
            msg = (
                f"a store holds one contact map, not those of {ds.sizes['cell']} cells; convert each "
                "cell by itself: its path, such as 'cells.scool::/cells/ID', or isel(cell=0)"
            )
            raise PlanError(msg)
        if kind == "contacts" and ds.sizes["bin1"] != ds.sizes["bin2"]:
            msg = (
                f"a store of contacts is square, but the selection is {dict(ds.sizes)}; select the same "
                "bins on bin1 and bin2"
            )
            raise PlanError(msg)
    if kind == "arrays":
        msg = (
            f"a store holds contacts (dims bin1, bin2) or cells (dim cell), not {list(ds.sizes)}; "
            "the Loader reads other Datasets as they are"
        )
        raise SchemaError(msg)
    if shuffle and kind != "cells":
        msg = "shuffle=True permutes cells; the bins of a contact map stay in order: leave it out"
        raise PlanError(msg)
    if max_distance is not None and kind != "contacts":
        msg = "max_distance is about contacts; leave it out for cells"
        raise PlanError(msg)


def _key(groups: Mapping[str, xr.Dataset], options: Options) -> str:
    """Return what tells a conversion from others, empty if some values cannot be told from others."""
    arrays = [v.variable for ds in groups.values() for v in ds.data_vars.values()]
    if not all(v.chunks or v._in_memory for v in arrays):
        return ""
    # the name of a dask array says of which file, of what date, it is which part
    told: list[Any] = [v.data.name if v.chunks else v.values for v in arrays]
    named = [(k, list(ds.data_vars), dict(ds.sizes)) for k, ds in groups.items()]
    return digest([FORMAT, named, told, astuple(options)])

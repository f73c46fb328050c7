"""Reading a store again, every file of it, to find what was damaged since it was written."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
from tqdm import tqdm

from xloader.errors import ReadError
from xloader.store.keys import Keys
from xloader.store.layout import checksum, metadata_of, read_root
from xloader.store.places import Place, listing, place_of, read_files
from xloader.store.write import mark_of, tail_length
from xloader.threads import n_cpus

_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written."""

    file: str
    """Its path below the store."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True)
class Verification:
    """What reading a whole store again has shown."""

    store: str
    """Its directory or URL."""
    n_files: int
    """Files that belong to it."""
    nbytes: int
    """Bytes that were read of them."""
    damaged: tuple[Damage, ...]
    """Those that are missing or damaged, and strange ones, by path."""

    @property
    def is_whole(self) -> bool:
        """
        Say whether nothing is wrong.

        Returns
        -------
        bool
            True if no file is damaged.
        """
        return not self.damaged


def verify(store: str | os.PathLike[str], *, progress: bool = True) -> Verification:
    """
    Read every file of a store again and compare every checksum.

    Files are found that are missing, truncated, exchanged or changed in any bit, and that do not belong
    there. Nothing is decoded; of chunks that another tool wrote without checksums, only the index and the
    last one are compared.

    Parameters
    ----------
    store : str or path-like
        Directory of the store, or any URL of it that fsspec opens.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Verification
        Which files are damaged, if any, and why.

    Raises
    ------
    ReadError
        If no store is there, or the metadata that list its files are damaged.
    SchemaError
        If something else is there.

    Examples
    --------
    >>> import tempfile, xloader as xl
    >>> folder = tempfile.mkdtemp()
    >>> path = xl.simulate.cells(f"{folder}/a.h5ad", n_cells=100, n_genes=50)
    >>> _ = xl.convert(path, f"{folder}/store", progress=False)
    >>> xl.verify(f"{folder}/store", progress=False).damaged
    ()
    """
    place = place_of(store)
    listed = read_root(place)["arrays"]
    damaged: list[Damage] = []
    checks: list[tuple[str, Callable[[], int]]] = []
    for name, entry in listed.items():
        try:
            checks += _checks(place, name, entry, damaged)
        except ReadError as e:
            damaged.append(Damage(f"{name}/zarr.json", str(e)))
    nbytes = 0
    with (
        tqdm(desc=f"verify {place}", total=len(checks), unit="file", disable=not progress) as bar,
        ThreadPoolExecutor(n_cpus()) as pool,
    ):
        for (file, _), result in zip(checks, pool.map(_outcome, checks), strict=True):
            if isinstance(result, int):
                nbytes += result
            else:
                damaged.append(Damage(file, result))
            bar.update()
    n_files = 1 + len(listed) + sum(b - a for e in listed.values() for a, b in e["files"])
    return Verification(str(place), n_files, nbytes, tuple(sorted(damaged, key=lambda d: d.file)))


def _checks(
    store: Place, name: str, entry: Mapping[str, Any], damaged: list[Damage]
) -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield each file of an array that should be there, and what returns its bytes or raises."""
    place = store / name
    metadata = metadata_of(place)
    if checksum(metadata) != entry["metadata"]:
        msg = "the metadata do not match their checksum"
        raise ReadError(msg)
    keys = Keys(metadata)
    numbers = [k for a, b in entry["files"] for k in range(a, b)]
    found = listing(place)
    if found is not None:
        strange = set(keys.numbers(found).tolist()) - set(numbers)
        damaged += [
            Damage(f"{name}/{_name(keys, k)}", "is not in the list of the store") for k in strange
        ]
    for number, mark in zip(numbers, entry["marks"], strict=True):
        yield (
            f"{name}/{_name(keys, number)}",
            partial(_check, place / _name(keys, number), metadata, mark),
        )


def _name(keys: Keys, number: int) -> str:
    return keys.name(np.unravel_index(number, keys.grid))


def _outcome(check: tuple[str, Callable[[], int]]) -> int | str:
    try:
        return check[1]()
    except ReadError as e:
        return str(e)


def _check(file: Place, metadata: Mapping[str, Any], mark: int) -> int:
    """Return the bytes of a file, after all its checksums were compared."""
    raw = read_files([file])[0]
    if raw is None:
        msg = "is missing"
        raise ReadError(msg)
    length = tail_length(metadata)
    codecs = metadata["codecs"]
    if length is None:
        _is(mark_of(raw) == mark, "is another file than the one that was written")
        if codecs[-1]["name"] == "crc32c":
            _is(_is_checked(raw), "does not match its checksum")
        return len(raw)
    _is(len(raw) >= length, f"has {len(raw)} bytes, and its index alone takes {length}")
    _is(
        mark_of(raw[-length:]) == mark,
        "is another file than the one that was written, or ends early",
    )
    n = (length - 8) // 16
    _is(_is_checked(raw[-16 * n - 4 :]), "has an index that does not match its checksum")
    index = np.frombuffer(raw, "<u8", 2 * n, len(raw) - 16 * n - 4).reshape(n, 2)
    if codecs[0]["configuration"]["codecs"][-1]["name"] != "crc32c":
        return len(raw)
    for k, (start, size) in enumerate(index.tolist()):
        if start != _ABSENT:
            _is(_is_checked(raw[start : start + size]), f"has a damaged chunk, number {k} of {n}")
    return len(raw)


def _is(whole: bool, why: str) -> None:  # noqa: FBT001 # what is told is said by its name
    if not whole:
        raise ReadError(why)


def _is_checked(raw: bytes) -> bool:
    return int(google_crc32c.value(raw[:-4])) == int.from_bytes(raw[-4:], "little")

"""Joining what tasks wrote in types of different width: in the end a variable has one."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import blosc
from typing_extensions import override

from xloader.errors import ReadError
from xloader.store.layout import metadata_of
from xloader.store.new_files import is_unfinished
from xloader.store.shard_writer import Shard, Shards
from xloader.store.tasks import Work


def place_of_rung(path: Path, rung: int) -> Path:
    """
    Return where a variable is written in one type, until it is known that no task needs a wider one.

    Parameters
    ----------
    path : Path
        Where the variable goes.
    rung : int
        Which type of its ladder.

    Returns
    -------
    Path
        A sibling.

    Examples
    --------
    >>> place_of_rung(Path("store/X"), 1).as_posix()
    'store/X~1'
    """
    return path.with_name(f"{path.name}~{rung}")


class Widening(Work):
    """
    Writes the shards of tasks whose type turned out too narrow once more, in the type of the others.

    The bytes are those that the task itself would have written.

    Parameters
    ----------
    path : Path
        Where the variable goes.
    rungs : mapping of int to int
        The rung that each task wrote.
    """

    def __init__(self, path: Path, rungs: Mapping[int, int]) -> None:
        self.path = path
        self.rung = max(rungs.values())
        self.narrow = [(k, rung) for k, rung in sorted(rungs.items()) if rung < self.rung]
        self.n_tasks = len(self.narrow)
        files = [
            f for k, r in self.narrow for array in _arrays(self._at(r)) for f in _shards(array, k)
        ]
        self.task_nbytes = 2 * max((f.stat().st_size for f in files), default=0)

    def _at(self, rung: int) -> Path:
        return place_of_rung(self.path, rung)

    @override
    def do(self, task: int) -> int:  # numpydoc ignore=GL08
        number, rung = self.narrow[task]
        low, high = self._at(rung), self._at(self.rung)
        for array in _arrays(low):
            target = high / array.relative_to(low)
            same = metadata_of(array) == metadata_of(target)
            for file in _shards(array, number):
                to = target / file.relative_to(array)
                to.parent.mkdir(parents=True, exist_ok=True)
                if same:
                    file.replace(to)
                else:
                    _widen(file, array, target)
        return self.rung

    def join(self) -> None:
        """Move all to its place, once every task is done; may be done again from any point."""
        for rung in range(self.rung):
            shutil.rmtree(self._at(rung), ignore_errors=True)
        top = self._at(self.rung)
        if top.exists():
            self.path.mkdir(exist_ok=True)
            for folder, _, names in os.walk(top):
                for name in filter(is_unfinished, names):
                    Path(folder, name).unlink()
            for child in top.iterdir():
                child.rename(self.path / child.name)
            top.rmdir()


def _arrays(place: Path) -> list[Path]:
    """Return the arrays that are written in one type: one, or one below the other."""
    return sorted(file.parent for file in place.rglob("zarr.json"))


def _shards(array: Path, task: int) -> Iterator[Path]:
    first = array / "c" / str(task)
    if first.is_file():
        yield first
    else:
        files = (file for file in first.rglob("*") if file.is_file())
        yield from (file for file in files if not is_unfinished(file.name))


def _written(path: Path) -> Shards:
    """Return an array that exists, as it was described when it was created."""
    metadata = metadata_of(path)
    (sharding,) = (codec["configuration"] for codec in metadata["codecs"])
    codecs = {codec["name"]: codec.get("configuration", {}) for codec in sharding["codecs"]}
    array = Shards(
        path,
        codec="fast",
        kind="dense",
        dtype=np.dtype(metadata["data_type"]),
        chunks=sharding["chunk_shape"],
        shards=metadata["chunk_grid"]["configuration"]["chunk_shape"],
        fill_value=float(metadata["fill_value"]),
    )
    compressed = codecs["blosc"]
    array.compression = compressed["cname"], compressed["clevel"], compressed["shuffle"]
    return array


def _widen(file: Path, array: Path, target: Path) -> None:
    """Write one shard in the type of another array, its chunks in the order that they have."""
    narrow, wide = _written(array), _written(target)
    raw = file.read_bytes()
    n = int(np.prod(narrow.per_shard))
    index = np.frombuffer(raw, "<u8", 2 * n, len(raw) - 16 * n - 4).reshape(-1, 2)
    shard = Shard(wide, [int(part) for part in file.relative_to(array / "c").parts])
    present = np.flatnonzero(index[:, 0] != 2**64 - 1)
    for k in present[np.argsort(index[present, 0])].tolist():
        start, length = map(int, index[k])
        chunk = _decoded(raw[start : start + length - 4], narrow, file)
        shard.add(np.unravel_index(k, narrow.per_shard), chunk.astype(wide.dtype))
    shard.close()


def _decoded(encoded: bytes, array: Shards, file: Path) -> npt.NDArray[Any]:
    try:
        return np.frombuffer(blosc.decompress(encoded), array.dtype).reshape(array.chunk_shape)
    except (RuntimeError, ValueError) as e:
        msg = f"shard {str(file)!r}, written a moment ago, cannot be read: {e}; convert again"
        raise ReadError(msg) from e

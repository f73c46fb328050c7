"""Which tasks of a conversion are done, so that one that was killed goes on where it was."""

import json
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xloader.errors import ReadError

_NAME = "~journal"
_OF_PART = re.compile(r"~journal-(\d+)-of-(\d+)")

Part = tuple[int, int]
"""Which part of how many, counted from 1."""


@dataclass
class _Told:
    """What one journal says."""

    key: str | None = None
    n_tasks: dict[str, int] = field(default_factory=dict)
    """By path of the work."""
    done: dict[str, dict[int, int]] = field(default_factory=dict)
    """Rung of each task that is done, by path of the work."""
    nbytes: int = 0
    """Length of the lines that are whole."""


class Journal:
    """
    Done tasks, one line each, in the directory of a store that is being built.

    Each part of a conversion has a journal of its own, and reads those of the others.

    Parameters
    ----------
    folder : Path
        The directory; a conversion of the whole removes what others left in it.
    key : str
        What tells this conversion from others; empty if nothing does.
    part : (int, int), optional
        Which part of how many. Default: the whole, done alone.

    Raises
    ------
    ReadError
        If parts of another conversion are there, which may be all that somebody has.
    """

    def __init__(self, folder: Path, key: str, part: Part | None = None) -> None:
        self.folder, self.part = folder, part
        self._path = folder / (_NAME if part is None else "{}-{}-of-{}".format(_NAME, *part))
        self._lock = threading.Lock()
        if part is not None:
            self._check_others(key, part)
        self._own = _read(self._path)
        if not key or self._own.key != key:
            self._own = _Told(key)
        if part is None:
            self._clear(folder, "")
        if self._own.nbytes:
            with self._path.open("r+b") as file:  # a torn line at its end would spoil the next
                file.truncate(self._own.nbytes)
        else:
            self._path.unlink(missing_ok=True)
            self._add({"key": key})

    def _check_others(self, key: str, part: Part) -> None:
        others = parts_in(self.folder)
        same = all(n == part[1] and _read(path).key == key for (_, n), path in others.items())
        if not same or (self.folder / _NAME).exists():
            told = sorted({n for _, n in others})
            msg = (
                f"{str(self.folder)!r} holds a conversion in {told or 'no'} parts of another source, or with other "
                f"options, not this one in {part[1]}; go on with that one, or remove the folder first"
            )
            raise ReadError(msg)

    def _clear(self, folder: Path, below: str) -> None:
        """Remove all but what tasks wrote: labels and metadata are quick to write again."""
        kept = self._own.n_tasks
        for child in folder.iterdir():
            here = below + child.name
            if here == _NAME or any(here == p or here.startswith(f"{p}~") for p in kept):
                continue
            if any(p.startswith(f"{here}/") for p in kept):
                self._clear(child, f"{here}/")
            elif child.is_dir():
                shutil.rmtree(child)
            else:
                child.unlink()

    def _others(self) -> list[_Told]:
        return [_read(path) for path in parts_in(self.folder).values() if path != self._path]

    def begin(self, path: str, n_tasks: int) -> dict[int, int]:
        """
        Note that a work is begun, unless it was before.

        Parameters
        ----------
        path : str
            What it writes.
        n_tasks : int
            Number of its tasks.

        Returns
        -------
        dict of int to int
            As `done` returns.

        Raises
        ------
        ReadError
            If it was cut into another number of tasks before.
        """
        for told in (self._own, *self._others()):
            if told.n_tasks.get(path, n_tasks) != n_tasks:
                msg = (
                    f"`{path}` was begun in {told.n_tasks[path]} tasks, and is {n_tasks} now: the source or "
                    f"the version of xloader changed; remove {str(self.folder)!r} and begin again"
                )
                raise ReadError(msg)
        if path not in self._own.n_tasks:
            self._own.n_tasks[path], self._own.done[path] = n_tasks, {}
            self._add({"path": path, "tasks": n_tasks})
        return self.done(path)

    def done(self, path: str) -> dict[int, int]:
        """
        Return the tasks that are done, by all parts.

        Parameters
        ----------
        path : str
            What they write.

        Returns
        -------
        dict of int to int
            Number and rung of each.
        """
        return {
            task: rung
            for told in (self._own, *self._others())
            for task, rung in told.done.get(path, {}).items()
        }

    def add(self, path: str, task: int, rung: int) -> None:
        """
        Note that a task is done.

        Parameters
        ----------
        path : str
            What it writes.
        task : int
            Which task.
        rung : int
            The rung that it wrote.
        """
        self._own.done[path][task] = rung
        self._add({"path": path, "task": task, "rung": rung})

    def _add(self, line: dict[str, Any]) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read(path: Path) -> _Told:
    """Read a journal as far as it is whole: its process may have been killed while it wrote."""
    told = _Told()
    for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            line = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            line = None
        if line is None:
            break
        told.nbytes += len(raw)
        if "key" in line:
            told.key = line["key"]
        elif "tasks" in line:
            told.n_tasks[line["path"]], told.done[line["path"]] = line["tasks"], {}
        else:
            told.done[line["path"]][line["task"]] = line["rung"]
    return told


def parts_in(folder: Path) -> dict[Part, Path]:
    """
    Return the journals of parts.

    Parameters
    ----------
    folder : Path
        Directory of a store that is built.

    Returns
    -------
    dict of (int, int) to Path
        By part and number of parts, in order.
    """
    found = ((_OF_PART.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted(((int(m[1]), int(m[2])), path) for m, path in found if m))


def share(part: Part | None, n_tasks: int) -> Sequence[int]:
    """
    Return the tasks of one part.

    Parameters
    ----------
    part : (int, int) or None
        Which part of how many; None for everything.
    n_tasks : int
        Number of tasks.

    Returns
    -------
    sequence of int
        Every n-th.

    Examples
    --------
    >>> list(share((2, 3), 8))
    [1, 4, 7]
    """
    return range(n_tasks) if part is None else range(part[0] - 1, n_tasks, part[1])


def missing_parts(folder: Path) -> tuple[list[int], int]:
    """
    Return which parts of a conversion have not done all of their tasks.

    Parameters
    ----------
    folder : Path
        Directory of the store that is built.

    Returns
    -------
    missing : list of int
        Numbers of parts, from 1.
    n : int
        How many parts there are; 0 if none has begun.
    """
    journals = {i: _read(path) for (i, _), path in parts_in(folder).items()}
    n = next((n for _, n in parts_in(folder)), 0)
    n_tasks = {path: k for told in journals.values() for path, k in told.n_tasks.items()}
    missing = [
        i
        for i in range(1, n + 1)
        if i not in journals
        or any(
            not journals[i].done.get(path, {}).keys() >= set(share((i, n), k))
            for path, k in n_tasks.items()
        )
    ]
    return missing, n


def rungs_in(folder: Path) -> dict[str, dict[int, int]]:
    """
    Return what all parts of a conversion have done.

    Parameters
    ----------
    folder : Path
        Directory of the store that is built.

    Returns
    -------
    dict of str to dict of int to int
        By path of the work, the rung of each task.
    """
    rungs: dict[str, dict[int, int]] = {}
    for path in parts_in(folder).values():
        for name, done in _read(path).done.items():
            rungs.setdefault(name, {}).update(done)
    return rungs


def key_in(folder: Path) -> str | None:
    """
    Return what tells the conversion that is written to a directory from others.

    Parameters
    ----------
    folder : Path
        Directory that a store is built in.

    Returns
    -------
    str or None
        None if no conversion of the whole was begun there.
    """
    return _read(folder / _NAME).key


def remove_journals(folder: Path) -> None:
    """
    Leave nothing of them in a finished store.

    Parameters
    ----------
    folder : Path
        Its directory.
    """
    for path in (folder / _NAME, *parts_in(folder).values()):
        path.unlink(missing_ok=True)

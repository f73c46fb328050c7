"""Which tasks of a conversion are done, so that one that was killed goes on where it was."""

import json
import os
import threading
from pathlib import Path
from typing import Any

_NAME = "~journal"


class Journal:
    """
    Done tasks, one line each, in the directory of a store that is being built.

    Parameters
    ----------
    folder : Path
        The directory; everything in it is removed unless it is of the same conversion.
    key : str
        What tells this conversion from others; empty if nothing does.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / _NAME
        self._lock = threading.Lock()
        self._done: dict[str, tuple[Any, set[int]]] = {}
        lines = self._lines() if key else []
        if lines[:1] == [{"key": key}]:
            for line in lines[1:]:
                if "plan" in line:
                    self._done[line["path"]] = line["plan"], set()
                else:
                    self._done[line["path"]][1].add(line["task"])
        self._clear(folder)
        if not self._done:
            self._add({"key": key})

    def _clear(self, folder: Path) -> None:
        """Remove all but done tasks: labels and metadata are quick to write again."""
        if not self._done:
            self._path.unlink(missing_ok=True)
        kept = [folder / path for path in self._done]
        for parent, _, names in os.walk(folder):
            of_task = any(Path(parent).is_relative_to(path) for path in kept)
            for name in names:
                file = Path(parent, name)
                if file != self._path and (name == "zarr.json" or not of_task):
                    file.unlink()

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        if self._path.exists():
            for text in self._path.read_text().splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:  # the process was killed while it wrote the last one
                    break
        return lines

    def done(self, path: str, plan: Any) -> set[int]:
        """
        Return the tasks of a variable that are done.

        Parameters
        ----------
        path : str
            Which variable.
        plan : object
            Strict JSON: what decides which task writes what, and how.

        Returns
        -------
        set of int
            Their numbers; empty if they were cut differently.
        """
        known, done = self._done.get(path, (None, set()))
        return done if known == plan else set()

    def last_rung(self, path: str) -> int:
        """
        Return the rung that tasks of a variable were last given.

        Parameters
        ----------
        path : str
            Which variable.

        Returns
        -------
        int
            0 if it was not begun.
        """
        plan, _ = self._done.get(path, ({}, set()))
        return int(plan.get("rung", 0))

    def begin(self, path: str, plan: Any) -> None:
        """
        Note that a variable is written anew.

        Parameters
        ----------
        path : str
            Which variable.
        plan : object
            As for `done`.
        """
        self._done[path] = plan, set()
        self._add({"path": path, "plan": plan})

    def add(self, path: str, task: int) -> None:
        """
        Note that a task is done.

        Parameters
        ----------
        path : str
            Which variable.
        task : int
            Which task.
        """
        self._add({"path": path, "task": task})

    def remove(self) -> None:
        """Leave nothing of this in the finished store."""
        self._path.unlink()

    def _add(self, line: dict[str, Any]) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

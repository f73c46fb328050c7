"""Files and folders that must stay as they are while something is read from them."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from xloader.errors import ReadError

Mark = tuple[int, int]
"""Time of the last change, in ns since 1970, and bytes."""


class Unchanged:
    """
    Files and folders as they are when this object is made: who reads them gets that, or an error.

    It may be pickled, so that other processes are held to the same. A file is known by its time of
    change and its bytes; of a folder the same tells whether files came, went or took another's
    place, and not whether one was written over where it lies.

    Parameters
    ----------
    paths : iterable of str
        Files and folders; nothing is said of what lies in folders of a folder.

    Attributes
    ----------
    marks : dict of str to Mark
        How each of them was.

    Raises
    ------
    ReadError
        If one of them is not there.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = file.write_text("one")
    >>> then = Unchanged([str(file)])
    >>> with then.reading():
    ...     text = file.read_text()
    >>> _ = file.write_text("three")
    >>> with then.reading():
    ...     text = file.read_text()
    Traceback (most recent call last):
    xloader.errors.ReadError: '...a' was replaced or changed after it was opened (3 bytes of ...
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._made = time.time_ns()
        self.marks = {path: _mark(path) for path in paths}

    def require(self) -> None:
        """
        Refuse what has changed.

        Raises
        ------
        ReadError
            If anything was replaced, changed or removed; names it.
        """
        for path, then in self.marks.items():
            now = _mark(path)
            if now != then:
                msg = (
                    f"{path!r} was replaced or changed after it was opened ({_text(then)} then, "
                    f"{_text(now)} now); open it again"
                )
                raise ReadError(msg)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """
        Read in the body; only what was still the same after it counts.

        Looking before would not do, as libraries read zeros where a file was cut or is gone.

        Yields
        ------
        None
            Errors of the body pass, unless a change explains them.

        Raises
        ------
        ReadError
            If anything was replaced, changed or removed; names it.
        """
        try:
            yield
        except Exception as e:
            self.require()
            for file in self._written():
                msg = f"{file!r} was changed after its folder was opened ({e}); open it again"
                raise ReadError(msg) from e
            raise
        self.require()

    def _written(self) -> Iterator[str]:
        """Yield files in folders that were written over, which marks of folders do not show."""
        for folder in self.marks:
            with suppress(NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and entry.stat().st_mtime_ns > self._made:
                        yield entry.path


def _mark(path: str) -> Mark:
    try:
        status = os.stat(path)  # noqa: PTH116 # folders may be many, and this is quicker
    except OSError as e:
        msg = f"cannot read {path!r}: {e.strerror}; check the path"
        raise ReadError(msg) from e
    return status.st_mtime_ns, status.st_size


def _text(mark: Mark) -> str:
    when = datetime.fromtimestamp(mark[0] / 1e9).isoformat(" ", "milliseconds")
    return f"{mark[1]} bytes of {when}"

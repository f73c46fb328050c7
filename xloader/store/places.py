"""Where files lie: in a local directory, or below a URL that fsspec opens."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from xloader.errors import ReadError

Span = tuple[int, int | None]
"""First byte and the one after the last; a negative first counts from the end of the file."""

_GAP = 2**15
_LARGEST = 2**23
_WHOLE: Span = (0, None)


@dataclass(frozen=True, repr=False)
class Url:
    """A file or directory below a URL; nothing is opened before it is read."""

    root: str
    """URL as fsspec takes it; its user, password and query are never shown."""
    key: str = ""
    """What lies below it."""

    def __truediv__(self, name: str) -> "Url":
        return Url(self.root, f"{self.key}/{name}".strip("/"))

    @override
    def __str__(self) -> str:
        return "/".join([_public(self.root).rstrip("/"), *filter(None, [self.key])])

    __repr__ = __str__

    def locate(self) -> tuple[Any, str]:
        """
        Return where fsspec finds it.

        Returns
        -------
        filesystem : fsspec.AbstractFileSystem
            Of this process: fsspec keeps them, and makes new ones after a fork.
        path : str
            On that file system.

        Raises
        ------
        ReadError
            If fsspec has nothing that opens this kind of URL.
        """
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            filesystem, path = url_to_fs(self.root)
        except Exception as e:  # noqa: BLE001 # by a file system of any make
            raise unreadable(self, e) from None
        return filesystem, _below(path, self.key)

    def exists(self) -> bool:
        """
        Say whether the metadata of a zarr array or group are there.

        Returns
        -------
        bool
            There are no directories behind most URLs.
        """
        return read_files([self / "zarr.json"])[0] is not None


def _below(path: str, key: str) -> str:
    path, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return "/".join(filter(None, [path.rstrip("/"), key])) + mark + query


Place = Path | Url
"""What is read alike."""


def place_of(path: str | os.PathLike[str]) -> Place:
    """
    Return what a user means by a path.

    Parameters
    ----------
    path : str or path-like
        Path, or URL.

    Returns
    -------
    Path or Url
        A path too for ``file://``.

    Examples
    --------
    >>> place_of("https://me:secret@host/store?token=1") / "X" / "zarr.json"
    https://host/store/X/zarr.json
    """
    text = os.fsdecode(path).removeprefix("file://")
    return Url(text) if "://" in text else Path(text)


def read_files(places: Sequence[Place], spans: Sequence[Span] | None = None) -> list[bytes | None]:
    """
    Read several files of one store, or parts of them; from a URL all at the same time.

    Parameters
    ----------
    places : sequence of Path or Url
        Files; one may be named several times.
    spans : sequence of (int, int or None), optional
        Part of each. Default: everything.

    Returns
    -------
    list of bytes or None
        None for what is not there; less than asked for where a file ends earlier.

    Raises
    ------
    ReadError
        If something is there, or may be, but cannot be read.
    """
    spans = spans or [_WHOLE] * len(places)
    pairs = zip(places, spans, strict=True)
    urls = [p for p in places if isinstance(p, Url)]
    return _fetch(urls, spans) if urls else [_read(Path(str(p)), *span) for p, span in pairs]


def _read(path: Path, start: int, stop: int | None) -> bytes | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size + start) if start < 0 else min(start, size)
            file.seek(start)
            return file.read(max(0, (size if stop is None else min(stop, size)) - start))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as e:
        msg = f"cannot read {str(path)!r}: {e.strerror}"
        raise ReadError(msg) from e


def _fetch(urls: Sequence[Url], spans: Sequence[Span]) -> list[bytes | None]:
    filesystem, root = Url(urls[0].root).locate()
    runs = list(_runs_of(urls, spans))
    paths = [_below(root, urls[run[0]].key) for run in runs]
    starts: list[int | None] = [min(spans[k][0] for k in run) for run in runs]
    stops = [None if spans[r[0]][1] is None else max(spans[k][1] or 0 for k in r) for r in runs]
    starts = [
        None if (start, stop) == _WHOLE else start
        for start, stop in zip(starts, stops, strict=True)
    ]
    try:
        answers = filesystem.cat_ranges(paths, starts, stops, on_error="return")
    except Exception as e:  # noqa: BLE001 # by a file system of any make
        raise unreadable(urls[0], e) from None
    out: list[bytes | None] = [None] * len(urls)
    for run, start, stop, answer in zip(runs, starts, stops, answers, strict=True):
        if isinstance(answer, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            continue
        if isinstance(answer, BaseException):
            raise unreadable(urls[run[0]], answer) from None
        _check_length(urls[run[0]], start, stop, len(answer))
        for k in run:
            first, last = spans[k]
            out[k] = answer if len(run) == 1 else answer[first - (start or 0) : _less(last, start)]
    return out


def _less(last: int | None, start: int | None) -> int | None:
    return None if last is None else last - (start or 0)


def _runs_of(urls: Sequence[Url], spans: Sequence[Span]) -> Iterator[list[int]]:
    """Join what lies close together in one file: a request costs more than some bytes between."""
    run: list[int] = []
    low = high = 0
    for k in sorted(range(len(urls)), key=lambda k: (urls[k].key, spans[k][0])):
        start, stop = spans[k]
        if (
            run
            and urls[run[0]] == urls[k]
            and spans[run[0]][1] is not None
            and stop is not None
            and start - high <= _GAP
            and max(stop, high) - low <= _LARGEST
        ):
            run.append(k)
            high = max(high, stop)
            continue
        if run:
            yield run
        run, low, high = [k], start, stop or 0
    if run:
        yield run


def _check_length(url: Url, start: int | None, stop: int | None, length: int) -> None:
    wanted = None if start is None else -start if stop is None else stop - start
    if wanted is not None and length > wanted:
        msg = (
            f"cannot read {str(url)!r}: {wanted} bytes of it were asked for and {length} came; its "
            "server does not send parts of files (HTTP range requests): use one that does, or copy "
            "the store to a disk"
        )
        raise ReadError(msg)


def listing(place: Place) -> list[str] | None:
    """
    List all files below a place.

    Parameters
    ----------
    place : Path or Url
        A directory.

    Returns
    -------
    list of str or None
        Paths below `place`, sorted; None where files cannot be listed, as with HTTP.
    """
    if isinstance(place, Path):
        root = len(str(place)) + 1
        walked = os.walk(place)
        return sorted(f"{folder}/{name}"[root:] for folder, _, names in walked for name in names)
    if re.search(r"\bhttps?://", place.root):  # a page with links is no list
        return None
    filesystem, path = place.locate()
    try:
        filesystem.invalidate_cache()
        found = filesystem.find(path)
    except Exception:  # noqa: BLE001 # what is not there is noticed when it is read
        return None
    return sorted(name.removeprefix(path.rstrip("/")).lstrip("/") for name in found)


def unreadable(url: Url, error: BaseException) -> ReadError:
    """
    Return the error for a file that may be there.

    Parameters
    ----------
    url : Url
        What was read.
    error : BaseException
        What the file system said; passwords that it repeats are left out.

    Returns
    -------
    ReadError
        Raise it ``from None``: the text of `error` is not safe to show.
    """
    advice = "check the address, your access to it and the network, then try again"
    status = getattr(error, "status", None)
    if status:
        why = f"the server answered {status} {_public(str(getattr(error, 'message', '')))}"
    elif isinstance(error, TimeoutError):
        why = "no answer came in time"
    elif isinstance(error, ImportError):
        why, advice = _public(str(error)), "install what is missing"
    else:
        why = f"{type(error).__name__}: {_public(str(error))}"
    return ReadError(f"cannot read {str(url)!r}: {why.strip()}; {advice}")


def _public(text: str) -> str:
    """Leave out what may be secret in the URLs of a text."""
    text = re.sub(r"(\w://)[^/\s'\"]*@", r"\1", text)
    return re.sub(r"(://[^\s'\"?#]*)[?#][^\s'\"]*", r"\1", text)

"""
The process that reads .hic files, because hictkpy keeps a processor busy from its import on.

It is run as a script, answers requests on its standard input and ends when none come. A request is
a line of JSON; an answer is the length of its JSON, that JSON and the bytes of the arrays that it
announces. Nothing of xloader is imported here, and this file is imported by nobody.
"""

import json
import os
import select
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_OPEN = 8
_PROBE_BINS = 512
_PROBE_VALUES = 100_000
_DAMAGED = "the file is truncated or damaged, get a new copy"


class Refused(Exception):
    """What is asked for cannot be read; the message says why, and what to do."""


class Map:
    """
    One resolution of a file.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Size of the bins, in bp.
    """

    def __init__(self, path: str, resolution: int) -> None:
        import hictkpy  # from here on a processor is busy

        self.file = hictkpy.File(path, resolution)
        self.resolution = resolution
        lengths = self.file.chromosomes()
        self.names = list(lengths)
        self.lengths = list(lengths.values())
        n_bins = [-(-length // resolution) for length in self.lengths]
        self.edges = np.cumsum([0, *n_bins]).tolist()
        if self.edges[-1] != self.file.nbins():
            msg = f"{self.edges[-1]} bins of {resolution} bp are needed, {self.file.nbins()} are there: {_DAMAGED}"
            raise Refused(msg)
        self.empty: dict[tuple[int, int], bool] = {}

    def parts(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """
        Cut a range of bins where chromosomes end.

        Parameters
        ----------
        first, last : int
            Half-open range of bins.

        Yields
        ------
        tuple of int
            Number of a chromosome, and the half-open range of bins in it.
        """
        for k, (start, end) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            if max(first, start) < min(last, end):
                yield k, max(first, start), min(last, end)

    def region(self, chrom: int, first: int, last: int) -> tuple[str, int, int]:
        """
        Return the bp of a range of bins.

        Parameters
        ----------
        chrom : int
            Number of the chromosome.
        first, last : int
            Half-open range of bins.

        Returns
        -------
        tuple of str, int and int
            Chromosome, start and end.
        """
        start, end = ((bin_ - self.edges[chrom]) * self.resolution for bin_ in (first, last))
        return self.names[chrom], start, min(end, self.lengths[chrom])

    def rectangle(self, r0: int, r1: int, c0: int, c1: int) -> Floats | None:
        """
        Read counts of some rows and columns.

        Parameters
        ----------
        r0, r1, c0, c1 : int
            Half-open bounds, in bins; ``r0 <= c0``.

        Returns
        -------
        ndarray of float32, shape (r1 - r0, c1 - c0), or None
            As stored, where both triangles are shown; None if there is no contact between these
            chromosomes.
        """
        out = None
        for a, i0, i1 in self.parts(r0, r1):
            for b, j0, j1 in self.parts(c0, c1):
                if self._is_empty(min(a, b), max(a, b)):
                    continue
                out = np.zeros((r1 - r0, c1 - c0), np.float32) if out is None else out
                values = self._read((a, i0, i1), (b, j0, j1))
                out[i0 - r0 : i1 - r0, j0 - c0 : j1 - c0] = values
        return out

    def _read(self, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> Floats:
        """Read within two chromosomes; of a square on the diagonal, both triangles."""
        if rows[:2] > columns[:2]:  # hictkpy reads only the upper triangle
            return np.asarray(self._read(columns, rows).T)
        first, second = (self.region(*part) for part in (rows, columns))
        try:
            return np.asarray(self._fetch(first, second).to_numpy("full"))
        except RuntimeError as e:
            msg = f"at {told(first)} x {told(second)}: {e}; {_DAMAGED}"
            raise Refused(msg) from e

    def _fetch(self, first: tuple[str, int, int], second: tuple[str, int, int]) -> Any:
        rows, columns = ("\t".join(map(str, region)) for region in (first, second))
        # as stored; the default would cut fractions off
        return self.file.fetch(rows, columns, count_type="float32", query_type="BED")

    def _is_empty(self, a: int, b: int) -> bool:
        """Say whether two chromosomes have no contact, so that nothing is filled with zeros."""
        if (a, b) not in self.empty:
            whole = [(self.names[k], 0, self.lengths[k]) for k in (a, b)]
            try:
                self.empty[a, b] = next(iter(self._fetch(*whole)), None) is None
            except RuntimeError as e:
                msg = f"at {told(whole[0])} x {told(whole[1])}: {e}; {_DAMAGED}"
                raise Refused(msg) from e
        return self.empty[a, b]

    def squares(self) -> Iterator[Floats]:
        """
        Read squares along the diagonal.

        Yields
        ------
        ndarray of float32
            Counts of some hundred bins, where there are any.
        """
        for k in range(len(self.names)):
            for i in range(self.edges[k], self.edges[k + 1], _PROBE_BINS):
                j = min(i + _PROBE_BINS, self.edges[k + 1])
                values = self.rectangle(i, j, i, j)
                if values is not None and values.any():
                    yield values

    def check(self, values: Floats, r0: int, c0: int, *, integers: bool) -> None:
        """
        Refuse what are no counts.

        Parameters
        ----------
        values : ndarray of float32, shape (n_rows, n_columns)
            What was read.
        r0, c0 : int
            First row and column, in bins.
        integers : bool
            Whether whole numbers are expected.

        Raises
        ------
        Refused
            Naming the first that is negative, not finite, or not whole.
        """
        wrong = ~(np.isfinite(values) & (values >= 0))
        if integers and not wrong.any():
            wrong = (values != np.rint(values)) | (values >= 2**31)
        if wrong.any():
            i, j = np.argwhere(wrong)[0].tolist()
            (row,), (column,) = (list(self.parts(at, at + 1)) for at in (r0 + i, c0 + j))
            value = values[i, j]
            what = (
                f"the count at {told(self.region(*row))} x {told(self.region(*column))} is {value}"
            )
            if np.isfinite(value) and value >= 0:
                msg = (
                    f"{what}, which no int32 holds; open the file with "
                    "xr.open_dataset(path, engine='hic', count_type='float32')"
                )
            else:
                msg = (
                    f"{what}, and counts are numbers from 0 on; the file is damaged, make it again"
                )
            raise Refused(msg)


def told(region: tuple[str, int, int]) -> str:
    """
    Write a region as genome browsers do.

    Parameters
    ----------
    region : tuple of str, int and int
        Chromosome, start and end, in bp.

    Returns
    -------
    str
        With commas.

    Examples
    --------
    >>> told(("chr2", 1_000_000, 2_000_000))
    'chr2:1,000,000-2,000,000'
    """
    return f"{region[0]}:{region[1]:,}-{region[2]:,}"


_maps: OrderedDict[tuple[str, int, int], Map] = OrderedDict()


def opened(path: str, resolution: int) -> Map:
    """
    Return a map, opened once for as long as its file stays the same.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Size of the bins, in bp.

    Returns
    -------
    Map
        One of the last few.
    """
    key = (path, resolution, Path(path).stat().st_mtime_ns)
    if key not in _maps:
        _maps[key] = Map(path, resolution)
        while len(_maps) > _OPEN:
            _maps.popitem(last=False)
    _maps.move_to_end(key)
    return _maps[key]


Answer = tuple[dict[str, Any], list[npt.NDArray[Any]]]


def describe(path: str) -> Answer:
    """
    Say what a file holds.

    Parameters
    ----------
    path : str
        Path of the file.

    Returns
    -------
    Answer
        `resolutions` (bp, increasing), `chroms`, `chrom_lengths` (bp) without the pseudo-chromosome
        of the whole genome, and `assembly`.
    """
    import hictkpy

    file = hictkpy.MultiResFile(path)
    lengths = file.chromosomes()
    answer = {
        "resolutions": sorted(file.resolutions().tolist()),
        "chroms": list(lengths),
        "chrom_lengths": list(lengths.values()),
        "assembly": str(file.attributes().get("assembly") or "unknown"),
    }
    return answer, []


def integers(path: str, resolution: int) -> Answer:
    """
    Say whether counts look like whole numbers.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Where to look, in bp; best the coarsest.

    Returns
    -------
    Answer
        `integers`: True, False, or None where no contact was found along the diagonal.
    """
    seen, map_ = 0, opened(path, resolution)
    for values in map_.squares():
        if (values != np.rint(values)).any():
            return {"integers": False}, []
        seen += int(np.count_nonzero(values))
        if seen > _PROBE_VALUES:
            break
    return {"integers": True if seen else None}, []


def vectors(path: str, resolution: int) -> Answer:
    """
    Read every balancing vector of a map.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Size of the bins, in bp.

    Returns
    -------
    Answer
        `names`, and for each an array of float64, one divisor per bin.
    """
    file = opened(path, resolution).file
    names = sorted(map(str, file.avail_normalizations()))
    return {"names": names}, [np.asarray(file.weights(name, divisive=True)) for name in names]


def rectangle(path: str, resolution: int, box: list[int], dtype: str) -> Answer:
    """
    Read counts of some rows and columns.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Size of the bins, in bp.
    box : list of int
        Half-open bounds of rows and of columns, in bins; rows begin before columns.
    dtype : str
        ``"int32"`` or ``"float32"``.

    Returns
    -------
    Answer
        One array, or none if everything in it is zero.
    """
    map_ = opened(path, resolution)
    values = map_.rectangle(*box)
    if values is None:
        return {}, []
    map_.check(values, box[0], box[2], integers=dtype == "int32")
    return {}, [values.astype(dtype)] if values.any() else []


ASKED = {f.__name__: f for f in (describe, integers, vectors, rectangle)}


def answer(line: bytes) -> Answer:
    """
    Do what a request asks.

    Parameters
    ----------
    line : bytes
        JSON: `ask`, and the parameters of that function.

    Returns
    -------
    Answer
        With `error` if it could not be done.
    """
    request = json.loads(line)
    try:
        return ASKED[request.pop("ask")](**request)
    except Refused as e:
        return {"error": str(e)}, []
    except (ImportError, MemoryError) as e:
        remedy = "reinstall hictkpy, or free memory or lower `memory_budget`, and read it again"
        return {"error": f"{type(e).__name__}: {e}; {remedy}"}, []
    except Exception as e:  # noqa: BLE001 # hictkpy raises what C++ throws; told where it was asked for
        return {"error": f"{e}; {_DAMAGED}"}, []


def serve(idle: float, requests: int, answers: int) -> None:
    """
    Answer requests until there is none for a while, or nobody is there to ask.

    Parameters
    ----------
    idle : float
        Seconds to wait for a request.
    requests, answers : int
        File descriptors.
    """
    pending = b""
    while True:
        while b"\n" not in pending:
            if not select.select([requests], [], [], idle)[0]:
                return
            received = os.read(requests, 2**16)
            if not received:
                return
            pending += received
        line, _, pending = pending.partition(b"\n")
        header, arrays = answer(line)
        header["arrays"] = [{"dtype": a.dtype.str, "shape": a.shape} for a in arrays]
        told_as = json.dumps(header).encode()
        parts = [len(told_as).to_bytes(8, "little"), told_as]
        parts += [np.ascontiguousarray(a).tobytes() for a in arrays]
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(answers, view) :]


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print must not get between answers
    serve(float(sys.argv[1]), 0, answers)

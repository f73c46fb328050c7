"""What a saved position says, and how it is told that it belongs to other data or another plan."""

import hashlib
import inspect
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CodeType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.axes import Windows
from xloader.contract import Transform
from xloader.csr import CSRArray
from xloader.cursor import Cursor
from xloader.errors import StateError
from xloader.plan import Plan
from xloader.read import RowReader
from xloader.source import Source

VERSION = 1
_N_SAMPLES = 8
_MOST = 64  # digests of datasets that fit into a state beside all else
_DIGITS = 4

State = dict[str, Any]


class Resumable(ABC):
    """What serves epochs of batches, and can tell and take a position in them."""

    _cursor: Cursor

    @abstractmethod
    def state_at(self, epoch: int, step: int) -> State:
        """
        Return a position as JSON.

        Parameters
        ----------
        epoch, step : int
            The next batch to serve.

        Returns
        -------
        dict
            Less than 1 kB, and the same on every rank.
        """

    @abstractmethod
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """
        Return the position that a state says.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Returns
        -------
        tuple of int
            Epoch and step of the next batch.

        Raises
        ------
        StateError
            If it belongs to something else; says to what.
        """

    @property
    def epoch(self) -> int:
        """
        Return the epoch that is served.

        Returns
        -------
        int
            From 0.
        """
        return self._cursor.epoch

    @property
    def position(self) -> tuple[int, int]:
        """
        Return what comes after the batches that were taken.

        Returns
        -------
        tuple of int
            Epoch, and step within it.
        """
        return self._cursor.position

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch that the next iteration serves.

        Without it, each complete iteration is followed by the next epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.

        Raises
        ------
        PlanError
            If it is negative.
        """
        self._cursor.move(epoch)

    def state_dict(self) -> State:
        """
        Return the position after the batches that were taken, whatever was made ahead.

        Returns
        -------
        dict
            JSON of less than 1 kB; the same on every rank and for every number of workers.
        """
        return self.state_at(*self.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Go on where another one was, on any number of ranks and with any number of workers.

        The next iteration serves what is left of the epoch.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        StateError
            If it belongs to other data, another plan or another transform; says to which.
        """
        self._cursor.move(*self.position_of(state))


def make_state(plan: Plan, fingerprints: Mapping[str, str], epoch: int, step: int) -> State:
    """
    Return a position as JSON.

    Parameters
    ----------
    plan : Plan
        What is served.
    fingerprints : mapping of str to str
        As `fingerprints_of` returns them.
    epoch, step : int
        The next batch to serve.

    Returns
    -------
    dict
        Numbers and short strings, less than 1 kB.
    """
    return {
        "xloader": VERSION,
        "epoch": epoch,
        "step": step,
        "seed": plan.seed,
        "global_batch": plan.global_batch,
        "n_samples": plan.n_samples,
        "order": str(plan.order)[:80],
        "remainder": plan.remainder,
        "pool_blocks": plan.pool_blocks,
        **fingerprints,
    }


def read_state(
    state: Any, plan: Plan, fingerprints: Mapping[str, str], datasets: Sequence[str] = ()
) -> tuple[int, int]:
    """
    Return the position that a state says, if it belongs to this plan.

    Parameters
    ----------
    state : dict
        What `make_state` returned, also after a round trip through JSON.
    plan : Plan
        What will be served.
    fingerprints : mapping of str to str
        As `fingerprints_of` returns them.
    datasets : sequence of str, optional
        Names of the datasets that were joined.

    Returns
    -------
    tuple of int
        Epoch and step of the next batch.

    Raises
    ------
    StateError
        If it is no state, or of another version, data, plan, seed, transform or global batch.
    """
    if not isinstance(state, Mapping) or "xloader" not in state:
        msg = f"{type(state).__name__} is no state of a Loader; pass what state_dict() returned"
        raise StateError(msg)
    if state["xloader"] != VERSION:
        msg = (
            f"the state is of version {state['xloader']!r} and this xloader reads {VERSION}; go on with "
            "the xloader that wrote it"
        )
        raise StateError(msg)
    here = make_state(plan, fingerprints, 0, 0)
    missing = [name for name in here if name not in state]
    if missing:
        msg = f"the state lacks {missing}; pass all of what state_dict() returned"
        raise StateError(msg)
    if state["data"] != here["data"]:
        msg = (
            f"the state is of other data: it had {state['n_samples']} samples an epoch, and what this "
            f"Loader reads differs in its samples, labels or variables ({here['n_samples']} an epoch)"
            f"{_changed(state['datasets'], here['datasets'], datasets)}; open the data that it was saved with"
        )
        raise StateError(msg)
    if state["global_batch"] != here["global_batch"]:
        asked, world = state["global_batch"], plan.world_size
        remedy = (
            f"batch_size={asked // world}"
            if asked % world == 0
            else f"a world size that divides {asked}, which {world} does not"
        )
        msg = (
            f"the state counts global batches of {asked} samples, and this Loader makes batches of "
            f"{plan.batch_size} x {world} ranks = {here['global_batch']}; resume with {remedy}"
        )
        raise StateError(msg)
    for name in ("seed", "n_samples", "order", "remainder", "pool_blocks"):
        if state[name] != here[name]:
            msg = (
                f"the state has {name}={state[name]!r} and this Loader has {here[name]!r}"
                f"{_WHY.get(name, '')}; make the Loader as it was made when the state was saved"
            )
            raise StateError(msg)
    for name, what in (("plan", "order or windows"), ("transform", "transform")):
        if state[name] != here[name]:
            msg = (
                f"the state was saved with another {what}; make the Loader as it was made then, or begin "
                "the epoch anew with set_epoch()"
            )
            raise StateError(msg)
    epoch, step = state["epoch"], state["step"]
    if not (
        isinstance(epoch, int) and isinstance(step, int) and epoch >= 0 and 0 <= step <= len(plan)
    ):
        msg = f"the state says epoch {epoch!r}, step {step!r}; an epoch has steps 0 to {len(plan)}"
        raise StateError(msg)
    return epoch, step


_WHY = {"pool_blocks": " (memory_budget decides it)"}


def _changed(then: str, now: str, names: Sequence[str]) -> str:
    """Say which of the joined datasets differ."""
    if then == now or not now:
        return ""
    if len(then) != len(now):
        return f": it was of other files than the {len(names)} of now"
    digests = [[x[k : k + _DIGITS] for k in range(0, len(x), _DIGITS)] for x in (then, now)]
    differ = np.array([a != b for a, b in zip(*digests, strict=True)])
    changed = [repr(str(n)) for n, k in zip(names, _groups(len(names)), strict=True) if differ[k]]
    more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
    each = "" if len(names) <= _MOST else ", or some of these,"
    return f": of its {len(names)} datasets, {', '.join(changed[:8])}{more}{each} changed since"


def _groups(n: int) -> npt.NDArray[np.int64]:
    """Return which digest each dataset goes into: a state has room for some."""
    return np.arange(n) * min(n, _MOST) // max(n, 1)


def _datasets(source: Source, windows: Windows) -> list[str]:
    """Return digests of datasets that were joined; empty if none were."""
    of, names = source.readers.get("dataset"), source.fixed.get("dataset_name")
    if not windows.by_row or names is None or of is None:
        return []
    everything = np.arange(len(windows))
    places = {str(name): k for k, name in enumerate(names.values)}
    starts = windows.starts_of(everything)
    values: Any = of.gather([(of.load(starts, starts), starts)])
    group = _groups(len(places))[[places.get(str(x), 0) for x in values]]
    digests = []
    for k in range(min(len(places), _MOST)):
        rows = everything[group == k]
        found: list[Any] = [len(rows)]
        for name, reader in sorted(source.readers.items()):
            if isinstance(reader, RowReader):  # known of every row, and read of none
                stored = reader.rows[rows]
                found.append((name, reader.array.nnz_of(stored, stored + 1)))
        if len(rows):
            n = max(1, _N_SAMPLES // len(places))
            ids = rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(np.int64))]
            values = source.gather([(source.load(ids, None), ids)], None)
            found.append([(name, values[name]) for name in sorted(values)])
        digests.append(digest(found))
    return digests


def fingerprints_of(source: Source, plan: Plan, transform: Transform | None) -> dict[str, str]:
    """
    Return what tells data, plans and transforms from others.

    Parameters
    ----------
    source : Source
        What is read: names, types, shapes, where windows lie, and the values of 8 samples.
    plan : Plan
        What is served.
    transform : callable or None
        Told by its source text, or its code where there is none, and what it holds.

    Returns
    -------
    dict of str to str
        Hexadecimal digits for `data`, `plan`, `transform` and, where files were joined, `datasets`.
    """
    windows = plan.windows
    shift = windows.shift and (windows.shift.room, windows.shift.step)
    places = windows.starts, shift, windows.beyond
    ids = np.unique(np.linspace(0, len(windows) - 1, _N_SAMPLES).astype(np.int64))
    values = source.gather([(source.load(ids, None), ids)], None)
    datasets = _datasets(source, windows)
    data = [
        datasets,
        (windows.dims, windows.size, len(windows), places),
        sorted(source.readers),
        [(name, values[name]) for name in sorted(values)],
        [(name, v.dims, np.asarray(v.data)) for name, v in sorted(source.fixed.items())],
    ]
    order = (type(plan.order).__name__, plan.order, plan.blocks.ptr, plan.blocks.members)
    return {
        "data": digest(data),
        "plan": digest(order),
        "transform": digest(transform),
        "datasets": "".join(d[:_DIGITS] for d in datasets),
    }


def digest(value: Any) -> str:
    """
    Return 16 hexadecimal digits that tell a value from others.

    Parameters
    ----------
    value : object
        Numbers, text, arrays, functions, and what is made of them.

    Returns
    -------
    str
        The same in every process.

    Examples
    --------
    >>> digest([1, "a"]) == digest([1, "a"]), digest([1, "a"]) == digest([1, "b"])
    (True, False)
    """
    hasher = hashlib.blake2b(digest_size=8)
    _feed(hasher, value, ())
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any, above: tuple[int, ...]) -> None:
    """Add a value to a hash; `above` holds what it is part of, which may refer to itself."""
    if id(value) in above:
        return
    above = (*above, id(value))
    hasher.update(f"{type(value).__module__}.{type(value).__qualname__}:".encode())
    for part in _parts(value):
        if isinstance(part, bytes):
            hasher.update(len(part).to_bytes(8, "little") + part)
        else:
            _feed(hasher, part, above)


def _parts(value: Any) -> list[Any]:
    """Return what a value consists of, down to bytes."""
    for kinds, parts in _PARTS:
        if isinstance(value, kinds):
            return parts(value)
    held = getattr(value, "__dict__", None)
    return [_plain(value)] if held is None else [held]


def _plain(value: Any) -> bytes:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()


def _array(value: Any) -> list[Any]:
    plain = value.tolist() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
    return [repr((value.dtype.str, value.shape)).encode(), plain]


def _function(value: FunctionType) -> list[Any]:
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    return [_text(value), value.__defaults__, value.__kwdefaults__, closure]


def _text(function: FunctionType) -> Any:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # typed in where nothing remembers it
        return function.__code__


_PARTS: list[tuple[Any, Callable[[Any], list[Any]]]] = [
    (bytes, lambda x: [x]),
    ((NoneType, bool, int, float, complex, str, np.generic, np.dtype, type), lambda x: [_plain(x)]),
    (np.ndarray, _array),
    (CSRArray, lambda x: [x.data, x.indices, x.indptr, x.shape]),
    (Mapping, lambda x: [part for item in x.items() for part in item]),
    ((list, tuple), list),
    ((set, frozenset), lambda x: sorted(map(repr, x))),
    (partial, lambda x: [x.func, x.args, x.keywords]),
    (MethodType, lambda x: [x.__func__, x.__self__]),
    (FunctionType, _function),
    (CodeType, lambda x: [x.co_code, x.co_consts, x.co_names]),
]

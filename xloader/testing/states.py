"""Laws of states: small, recognised, and training goes on from them as if it had not stopped."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.csr import CSRArray
from xloader.errors import StateError
from xloader.loader import Loader
from xloader.orders import Shuffled, Uniform
from xloader.plan import Plan
from xloader.state import State
from xloader.testing.plans import WORLDS, dividing, exist, valid
from xloader.testing.told import few, same, that

_STATE_NBYTES = 1000

Sample = tuple[int, dict[str, bytes]]
"""Its number, and a digest of each of its variables."""


def assert_state_is_small(loader: Loader, *, others: Iterable[Loader] = ()) -> None:
    """
    Assert that a state is JSON of less than 1 kB, the same on every rank, and refused where it does not belong.

    Parameters
    ----------
    loader : Loader
        What is tested. A few samples are read, to recognise the data.
    others : iterable of Loader, optional
        Loaders of other data, seeds, transforms or orders, whose states have to be refused. Some
        are tried in any case.

    Raises
    ------
    AssertionError
        If a state is too large, changes on its way through JSON, or is accepted wrongly.
    """
    plan, n = loader.plan, len(loader.plan)
    for epoch, step in ((0, 0), (0, n), (1, n // 2), (10**6, n - 1)):
        state = loader.state_at(epoch, step)
        where, text = f"epoch {epoch}, step {step}", _as_json(state)
        that(bool(text), f"{where}: the state is no JSON, {state}")
        that(
            len(text) < _STATE_NBYTES,
            f"{where}: the state has {len(text)} characters, and {_STATE_NBYTES} are allowed",
        )
        for world in dividing(plan, WORLDS):
            for rank in range(world):
                there = loader.on_rank(rank, world)
                there.load_state_dict(json.loads(text))
                that(
                    there.position == (epoch, step),
                    f"{where}: rank {rank} of {world} goes on with epoch, step {there.position}",
                )
                _compare_states([there.state_dict()], state, where, f"{world} that took the state")
    state = loader.state_at(0, 1)
    foreign = {what: other.state_at(0, 1) for what, other in _altered(loader).items()}
    foreign["data"] = {**state, "data": state["data"][::-1] + "0"}
    foreign |= {f"others[{k}]": other.state_at(0, 1) for k, other in enumerate(others)}
    for what, strange in foreign.items():
        accepted = True
        try:
            loader.on_rank(plan.rank, plan.world_size).load_state_dict(strange)
        except StateError:
            accepted = False
        that(
            not accepted,
            f"epoch 0, step 1: a state of another Loader ({what}) is accepted and not refused",
        )


def _as_json(state: State) -> str:
    """Return a state as text, empty if it cannot be."""
    try:
        return json.dumps(state)
    except (TypeError, ValueError):
        return ""


def _altered(loader: Loader) -> dict[str, Loader]:
    """Return loaders that differ from one in what their states tell."""
    plan = loader.plan
    order = Shuffled() if isinstance(plan.order, Uniform) else Uniform()
    made = {}
    for what, changes in (
        ("seed", {"seed": plan.seed + 1}),
        ("order", {"order": order}),
        ("global batch", {"batch_size": plan.batch_size + 1, "remainder": "pad"}),
        ("transform", {}),
    ):
        other = loader.on_rank(plan.rank, plan.world_size)
        other._plan = replace(plan, **changes)
        other._fingerprints = None
        made[what] = other
    made["transform"].transform = _unlike_any
    return made


def _unlike_any(batch: xr.Dataset) -> xr.Dataset:
    """Change nothing: a transform that no user has."""
    return batch


def assert_resumes_everywhere(
    loader: Loader,
    *,
    worlds: Iterable[int] = (1, 2, 3),
    epoch: int = 0,
    after: Iterable[int] | None = None,
    times: int = 3,
) -> None:
    """
    Assert that training can stop after any step and go on with any number of ranks as if it had not.

    Batches are read: all of them, once for each step that is tried, number of ranks and resume. Use
    a loader of few steps. What is compared is the number of each sample, and all its values.

    Parameters
    ----------
    loader : Loader
        What is tested, with its global batch; also without reading ahead, if it does.
    worlds : iterable of int, optional
        World sizes to stop and to go on with; those that do not divide the global batch are passed
        over.
    epoch : int, optional
        Epoch in which training stops. The rest of it and the next one are compared.
    after : iterable of int, optional
        Numbers of steps after which training stops first. Default: every one, from 0 to all.
    times : int, optional
        How often it stops in the epoch at most, one step after the other.

    Raises
    ------
    AssertionError
        If a state or a batch differs from those of the uninterrupted run; names epoch, step, samples
        and where training stopped.
    """
    n = len(loader)
    alone = _Ranks(loader, 1, 0)
    planned = {e: _planned(alone.loaders[0].plan, e) for e in (epoch, epoch + 1)}
    alone.set_epoch(epoch)
    run = {epoch: alone.take(), epoch + 1: alone.take()}
    for e, steps in run.items():
        _compare([_numbers(s) for s in steps], planned[e], e, 0, "one process")
    depths = range(1 + loader.prefetch)
    groups = list(itertools.product(dividing(loader.plan, worlds), depths))
    states = [loader.state_at(epoch, k) for k in range(n + 1)]
    for world, prefetch in groups:
        ranks = _Ranks(loader, world, prefetch)
        ranks.set_epoch(epoch)
        for k in range(n + 1):
            _compare_states(ranks.states(), states[k], f"epoch {epoch}, step {k}", ranks)
            _compare(ranks.take(1), run[epoch][k : k + 1], epoch, k, str(ranks))
    for first in range(n + 1) if after is None else after:
        for group in groups:
            _resume(loader, states, run, epoch, first, [group])
        for stops in range(2, times + 1):  # states do not tell who saved them: each goes to others
            chosen = [groups[(first + stop) % len(groups)] for stop in range(stops)]
            _resume(loader, states, run, epoch, first, chosen)


def _planned(plan: Plan, epoch: int) -> list[list[int]]:
    """Return the samples of each step, if there are such."""
    batches = [plan.batch(epoch, step) for step in range(len(plan))]
    for step, batch in enumerate(batches):
        exist(batch, len(plan.windows), f"epoch {epoch}, step {step}, one process")
    return [valid(batch) for batch in batches]


def _resume(
    loader: Loader,
    states: Sequence[State],
    run: Mapping[int, list[list[Sample]]],
    epoch: int,
    first: int,
    groups: Sequence[tuple[int, int]],
) -> None:
    """Go on from a state with some ranks, stop after a step, go on with others, and so on to the end."""
    told, n = "stopped", len(loader)
    state = states[first]
    for stop, (world, prefetch) in enumerate(groups):
        ranks = _Ranks(loader, world, prefetch)
        ranks.load_state(json.loads(json.dumps(state)))
        step = first + stop
        told += f"{', and' if stop else ''} after step {step}, gone on with {ranks}"
        last = stop == len(groups) - 1 or step == n
        served = ranks.take(None if last else 1)
        _compare(served, run[epoch][step : None if last else step + 1], epoch, step, told)
        if last:
            _compare(ranks.take(), run[epoch + 1], epoch + 1, 0, told)
            return
        _compare_states(ranks.states(), states[step + 1], f"epoch {epoch}, step {step + 1}", ranks)
        state = ranks.states()[-1]


class _Ranks:
    """All ranks of one world size, each with a loader of its own."""

    def __init__(self, loader: Loader, world: int, prefetch: int) -> None:
        self.loaders = [loader.on_rank(rank, world) for rank in range(world)]
        self.prefetch = prefetch
        self._running: list[Iterator[xr.Dataset]] = []
        for one in self.loaders:
            one.prefetch = prefetch

    @override
    def __str__(self) -> str:
        return f"{len(self.loaders)} ranks and prefetch={self.prefetch}"

    def set_epoch(self, epoch: int) -> None:
        for one in self.loaders:
            one.set_epoch(epoch)

    def states(self) -> list[State]:
        return [one.state_dict() for one in self.loaders]

    def load_state(self, state: State) -> None:
        for one in self.loaders:
            one.load_state_dict(state)

    def take(self, most: int | None = None) -> list[list[Sample]]:
        """Serve the next global batches: at most some, or what is left of the epoch."""
        self._running = self._running or [iter(one) for one in self.loaders]
        parts = [
            [_samples(batch, one.sample_dim) for batch in itertools.islice(batches, most)]
            for one, batches in zip(self.loaders, self._running, strict=True)
        ]
        if most is None:
            self._running = []
        counts = [len(p) for p in parts]
        that(len(set(counts)) == 1, f"epoch {self.loaders[0].epoch}: {self} serve {counts} steps")
        return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def _samples(batch: xr.Dataset, dim: str) -> list[Sample]:
    """Return the samples of a batch that do not pad."""
    columns = []
    for name, v in sorted(batch.variables.items(), key=lambda item: str(item[0])):
        if dim in v.dims and name != "valid":
            values = v.data.todense() if isinstance(v.data, CSRArray) else v.values
            rows = np.moveaxis(values, v.get_axis_num(dim), 0)
            columns.append((str(name), rows))
    ids = batch["sample_id"].values.tolist()
    valid = batch["valid"].values if "valid" in batch.variables else np.ones(len(ids), bool)
    return [
        (i, {name: _digest(rows[k]) for name, rows in columns})
        for k, i in enumerate(ids)
        if valid[k]
    ]


def _digest(values: npt.NDArray[Any]) -> bytes:
    array = np.asarray(values)
    head = f"{array.dtype} {array.shape}".encode()
    plain = repr(array.tolist()).encode() if array.dtype.kind in "OT" else array.tobytes()
    return blake2b(head + plain, digest_size=8).digest()


def _compare_states(found: Sequence[State], state: State, where: str, ranks: object) -> None:
    for rank, own in enumerate(found):
        changed = [k for k in own.keys() | state.keys() if own.get(k) != state.get(k)]
        that(
            not changed,
            f"{where}: rank {rank} of {ranks} says { {k: own.get(k) for k in changed} } in its state, "
            f"not { {k: state.get(k) for k in changed} }",
        )


def _compare(
    found: Sequence[Any], expected: Sequence[Any], epoch: int, first: int, told: str
) -> None:
    """Compare successive global batches, which begin at a step."""
    for k, (a, b) in enumerate(zip(found, expected, strict=False)):
        if a != b:
            where = f"epoch {epoch}, step {first + k}, {told}"
            same(_numbers(a), _numbers(b), where)
            pairs = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
            names = {
                k for (_, x), (_, y) in pairs for k in x.keys() | y.keys() if x.get(k) != y.get(k)
            }
            msg = (
                f"{where}: samples {few(_numbers(x for x, _ in pairs))} have other values of {sorted(names)} "
                "than in the run that was not interrupted"
            )
            raise AssertionError(msg)
    that(
        len(found) == len(expected),
        f"epoch {epoch}, from step {first}, {told}: {len(found)} steps, not {len(expected)}",
    )


def _numbers(samples: Iterable[Any]) -> list[int]:
    return [s[0] if isinstance(s, tuple) else s for s in samples]

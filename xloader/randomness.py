"""How random batches are: the labels of planned or delivered batches against independent draws; nothing is read."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.errors import PlanError
from xloader.pools import budget_of

if TYPE_CHECKING:
    from xloader.plan import Plan

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

TOLERATED = 0.1
"""Bits that the labels of a batch may have less than those of independent draws."""

_BATCHES = 1024
_SAMPLES = 2**20
_EXACT = 2**14
_VISITS = 4096
"""Blocks that are visited, over several epochs if one has fewer: chance decides which of them meet."""
_EPOCHS = 64


@dataclass(frozen=True)
class Randomness:
    """
    How random the labels of batches are, in bits and in samples.

    Block-wise reading makes samples of a batch alike. A batch of ``m`` samples, two of which agree
    in their labels by a correlation ``c`` more often than independent ones, varies as much as one
    of ``m / (1 + (m - 1) * c)`` independent samples; where only samples of one block agree, ``c``
    is ``same_block * correlation``.
    """

    batch_size: int
    """Samples of a batch, m."""
    n_batches: int
    """Batches that were looked at."""
    n_classes: int
    """Different labels, K; missing ones are a class of their own."""
    same_block: float
    """Share of the pairs of samples of a batch that are of one block; NaN if blocks are unknown."""
    correlation: float
    """How much labels agree within blocks: 1 if each has only one label, 0 for shuffled data."""
    effective: float
    """Independent samples that vary as much as a batch."""
    entropy: float
    """Entropy of the labels of a batch, in bits; the mean."""
    error: float
    """Standard error of `entropy`, in bits."""
    formula: float
    """Entropy that `effective` independent samples are expected to have, in bits."""
    iid: float
    """Entropy that m independent samples are expected to have, in bits."""
    ceiling: float
    """What `entropy` cannot exceed on average, in bits: that of all labels, or log2(m)."""
    total_variation: float
    """Half the absolute difference of the shares of labels in a batch and overall; the mean."""
    iid_total_variation: float
    """What it is expected to be for m independent samples."""
    advice: str = "shuffle, or mix larger pools of blocks"
    """What to do if this is bad."""

    @property
    def is_bad(self) -> bool:
        """
        Say whether batches are less random than tolerated, beyond what chance explains.

        Returns
        -------
        bool
            True if `entropy` is more than 0.1 bits below `iid`.
        """
        return self.iid - self.entropy - 2 * self.error > TOLERATED

    @property
    def verdict(self) -> str:
        """
        Judge, and say what to do.

        Returns
        -------
        str
            One sentence that begins with "good" or "bad".
        """
        lack = self.iid - self.entropy
        if not self.is_bad:
            return f"good: {max(0.0, lack):.2f} bits less than independent samples have"
        return (
            f"bad: {lack:.2f} bits less than independent samples have (up to {TOLERATED} are "
            f"tolerated); {self.advice}"
        )

    @override
    def __repr__(self) -> str:
        pairs = (
            "blocks unknown"
            if math.isnan(self.same_block)
            else f"{self.same_block:.2%} of pairs share a block, within which labels correlate by "
            f"{self.correlation:.2f}"
        )
        return (
            f"<xloader.Randomness> {self.n_batches:,} batches of {self.batch_size:,}, "
            f"{self.n_classes:,} labels\n"
            f"  effective : {self.effective:.1f} independent samples; {pairs}\n"
            f"  entropy   : {self.entropy:.2f} bits; independent {self.iid:.2f}, by formula "
            f"{self.formula:.2f}, at most {self.ceiling:.2f}\n"
            f"  variation : {self.total_variation:.3f}; independent {self.iid_total_variation:.3f}\n"
            f"  verdict   : {self.verdict.replace('; ', ';{}'.format(chr(10) + ' ' * 14))}"
        )


def expected(shares: npt.ArrayLike, m: float) -> tuple[float, float]:
    """
    Return what labels of independent samples are expected to show.

    Parameters
    ----------
    shares : array-like of float, shape (n_classes,)
        Share of each label.
    m : float
        Number of samples; what is not a whole number lies between its neighbours.

    Returns
    -------
    entropy : float
        In bits: exact for few samples, else the correction of Miller and Madow.
    total_variation : float
        Half the absolute difference of their shares and `shares`.

    Examples
    --------
    >>> expected([0.5, 0.5], 2)  # two of four outcomes have both labels
    (0.5, 0.25)
    """
    p, times = np.unique(np.asarray(shares, np.float64), return_counts=True)
    p, times = p[p > 0], times[p > 0]
    k = int(times.sum())
    if k == 1:
        return 0.0, 0.0
    if m >= max(_EXACT, 2 * k):
        spread = float(np.sqrt(p * (1 - p) / (2 * np.pi * m)) @ times)
        return _entropy(p, times) - (k - 1) / (2 * m * math.log(2)), spread
    low = math.floor(m)
    if low != m:
        pairs = zip(expected(shares, max(1, low)), expected(shares, low + 1), strict=True)
        h, v = (a + (m - low) * (b - a) for a, b in pairs)
        return h, v
    logs = np.log(np.arange(1, low + 1))
    factorials = np.append(0.0, np.cumsum(logs))
    entropy, variation = 0.0, 0.0
    for share, n in zip(p.tolist(), times.tolist(), strict=True):
        reach = 12 * math.sqrt(low * share) + 12  # beyond it, nothing that counts
        counts = np.arange(max(0, int(low * share - reach)), min(low, int(low * share + reach)) + 1)
        chances = np.exp(
            factorials[low]
            - factorials[counts]
            - factorials[low - counts]
            + counts * math.log(share)
            + (low - counts) * math.log1p(-share)
        )
        part = counts / low
        entropy -= n * (chances @ (part * np.log2(np.maximum(part, 1e-300))))
        variation += n * (chances @ np.abs(part - share)) / 2
    return float(entropy), float(variation)


def _entropy(p: Float64, times: npt.ArrayLike = 1) -> float:
    p, times = p[p > 0], np.broadcast_to(times, p.shape)[p > 0]
    return float(-(p * np.log2(p)) @ times)


def predict(plan: "Plan", labels: npt.ArrayLike, *, own: bool = False) -> Randomness:
    """
    Say how random the batches of a plan are on average, from the samples it gives them.

    Parameters
    ----------
    plan : Plan
        What there is; up to 1,024 batches are planned, of up to 64 epochs where one has few blocks.
    labels : array-like, shape (n_samples,)
        Label of each sample.
    own : bool, optional
        Whether the batches of the plan's rank are meant, not those of all ranks together.

    Returns
    -------
    Randomness
        If it is bad, its advice was tried.

    Raises
    ------
    PlanError
        If there is not one label per sample.
    """
    values = np.asarray(labels)
    if values.shape != (len(plan.windows),):
        msg = (
            f"one label for each of {len(plan.windows)} samples is needed, not shape {values.shape}"
        )
        raise PlanError(msg)
    codes = _codes(values)
    if not own:
        plan = replace(plan, batch_size=plan.global_batch, rank=0, world_size=1)
    found = _look(plan, codes)
    return replace(found, advice=_advice(plan, codes, found)) if found.is_bad else found


def measure(
    batches: Iterable[Any],
    label: str,
    *,
    plan: "Plan | None" = None,
    labels: npt.ArrayLike | None = None,
) -> Randomness:
    """
    Measure how random delivered batches are.

    Parameters
    ----------
    batches : iterable of xarray.Dataset or mapping of str to array
        Such as a Loader, or a DataLoader of torch; those shorter than the longest are left out.
    label : str
        What in a batch is the label; of windows, where they start counts.
    plan : Plan, optional
        Whose blocks are compared with what `sample_id` says.
    labels : array-like, shape (n_samples,), optional
        Label of each sample of the plan, as batches have them. Default: those of all batches, which
        must then be a whole epoch.

    Returns
    -------
    Randomness
        For comparison with what ``plan.randomness`` predicts.

    Raises
    ------
    PlanError
        If there is no batch, or `labels` are given without a plan.
    """
    if labels is not None and plan is None:
        msg = "`labels` are those of the samples of a plan; give plan= too"
        raise PlanError(msg)
    served = [_served(batch, label) for batch in batches]
    m = max((len(values) for values, _ in served), default=0)
    if m == 0:
        msg = "there is no batch to measure; give at least one, such as those of a Loader"
        raise PlanError(msg)
    kept = [(values, ids) for values, ids in served if len(values) == m]
    values, ids = (np.concatenate(part) for part in zip(*kept, strict=True))
    if plan is None or labels is None:
        every = np.concatenate([v for v, _ in served])
        codes = _codes(np.concatenate([every, values]))
        shares, rho = _shares(codes[: len(every)], None), math.nan
    else:
        every = np.asarray(labels)
        codes = _codes(np.concatenate([every.astype(object), values.astype(object)]))
        weights = plan.order.expected(plan)
        shares = _shares(codes[: len(every)], weights)
        rho = _correlation(plan, codes[: len(every)], weights, shares)
    shares = np.append(shares, np.zeros(codes.max() + 1 - len(shares)))
    blocks = None if plan is None else plan.blocks.whose(ids)
    return _assess(codes[len(every) :].reshape(-1, m), blocks, shares, rho)


def _served(batch: Mapping[str, Any], label: str) -> tuple[npt.NDArray[Any], Int64]:
    """Return labels and numbers of the samples of a batch, but for those that only pad."""
    ids = np.asarray(batch["sample_id"])
    values = np.asarray(batch[label]).reshape(len(ids), -1)[:, 0]
    valid = np.asarray(batch["valid"]) if "valid" in batch else np.ones(len(ids), bool)
    return values[valid], ids[valid]


def _codes(values: npt.NDArray[Any]) -> Int64:
    import pandas as pd

    return np.asarray(pd.factorize(values, use_na_sentinel=False)[0], np.int64)


def _shares(codes: Int64, weights: Float64 | None) -> Float64:
    counts = np.bincount(codes, weights)
    return np.asarray(counts / counts.sum(), np.float64)


def _look(plan: "Plan", codes: Int64) -> Randomness:
    """Look at some batches of a rank, spread evenly over some epochs."""
    n_full, m = plan.n_samples // plan.global_batch, plan.batch_size
    # in the order of storage, all epochs are one
    epochs = 1 if plan.order.in_order else max(1, min(_EPOCHS, _VISITS // len(plan.blocks)))
    if n_full:
        n = min(n_full, -(-max(16, min(_BATCHES, _SAMPLES // m)) // epochs))
        ids = np.concatenate([_some(plan, e, n, n_full, e / epochs) for e in range(epochs)])
    else:
        batch = plan.batch(0, 0)
        ids = batch.ids[batch.valid]
        m = len(ids)
    weights = plan.order.expected(plan)
    shares = _shares(codes, weights)
    rho = _correlation(plan, codes, weights, shares)
    return _assess(codes[ids].reshape(-1, m), plan.blocks.whose(ids), shares, rho)


def _some(plan: "Plan", epoch: int, n: int, n_full: int, shift: float) -> Int64:
    """Return the samples of `n` full batches, the first of them `shift` of a distance into the epoch."""
    steps = ((np.arange(n) + shift) * n_full / n).astype(np.int64)
    first = steps * plan.global_batch + plan.rank * plan.batch_size
    return plan.ids_at(epoch, (first[:, None] + np.arange(plan.batch_size)).reshape(-1))


def _correlation(plan: "Plan", codes: Int64, weights: Float64 | None, shares: Float64) -> float:
    """Return how much more the labels of two samples of a block agree than those of any two."""
    blocks = plan.blocks
    n = min(len(blocks), max(1, _SAMPLES * len(blocks) // len(codes)))
    some = np.arange(n) * len(blocks) // n
    sizes = np.diff(blocks.ptr)[some]
    of = np.repeat(np.arange(len(some)), sizes)
    ids = blocks.sample(some[of], np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes))
    w = np.ones(len(ids)) if weights is None else weights[ids]
    _, both = np.unique(of * len(shares) + codes[ids], return_inverse=True)
    alone, chance = float(w @ w), float(shares @ shares)
    pairs = float((np.bincount(of, w) ** 2).sum()) - alone
    if pairs <= 0 or chance >= 1:  # blocks of one sample, or one label: nothing can agree more
        return 0.0
    agree = (float((np.bincount(both, w) ** 2).sum()) - alone) / pairs
    return (agree - chance) / (1 - chance)


def _assess(codes: Int64, blocks: Int64 | None, shares: Float64, rho: float) -> Randomness:
    """Compare batches, shape (n_batches, m), with independent draws."""
    n, m = codes.shape
    batch = np.repeat(np.arange(n), m)
    found, counts = np.unique(batch * len(shares) + codes.reshape(-1), return_counts=True)
    of, which = np.divmod(found, len(shares))
    part, p = counts / m, shares[which]
    entropy = np.bincount(of, -part * np.log2(part), n)
    variation = (1 + np.bincount(of, np.abs(part - p) - p, n)) / 2
    square = float(shares @ shares)
    spread = float(np.bincount(of, part * part - 2 * part * p, n).mean()) + square
    most = float(n * m)  # nothing is worth more than all samples, nor less than one
    effective = max(1.0, min(most, (1 - square) / spread)) if spread > 0 else most
    same = math.nan
    if blocks is not None and m > 1:
        _, counts = np.unique(batch * (blocks.max() + 1) + blocks, return_counts=True)
        same = float((counts * (counts - 1)).sum()) / (n * m * (m - 1))
    iid, iid_variation = expected(shares, m)
    return Randomness(
        batch_size=m,
        n_batches=n,
        n_classes=int(np.count_nonzero(shares)),
        same_block=same,
        correlation=rho,
        effective=effective,
        entropy=float(entropy.mean()),
        error=float(entropy.std() / math.sqrt(n)),
        formula=expected(shares, effective)[0],
        iid=iid,
        ceiling=min(_entropy(shares), math.log2(m)),
        total_variation=float(variation.mean()),
        iid_total_variation=iid_variation,
    )


def _advice(plan: "Plan", codes: Int64, found: Randomness) -> str:
    """Say what makes batches good: a pool that was tried."""
    from dask.utils import format_bytes

    if plan.order.in_order:
        return "samples come as they are stored: pass shuffle=True"
    blocks = plan.pool_blocks
    least = _pool_for(found, plan, _shares(codes, plan.order.expected(plan)))
    while found.is_bad and blocks < len(plan.blocks):
        blocks = min(len(plan.blocks), max(least, 2 * blocks))
        found = _look(replace(plan, pool_blocks=blocks), codes)
    if found.is_bad:
        return f"its order ({plan.order}) brings samples of one label together: choose another one"
    samples = round(len(plan.windows) * blocks / len(plan.blocks))
    # where everything fits, there is room for it in two pools
    budget = budget_of(-(-min(2 * blocks, len(plan.blocks)) * plan.block_nbytes // 2))
    return (
        f"mix {blocks:,} blocks ({samples:,} samples) instead of {plan.pool_blocks:,} with a "
        f"memory_budget of {format_bytes(budget)}"
        + (", or store cells in random order with xl.convert(..., shuffle=True)")
        * plan.windows.by_row
    )


def _pool_for(found: Randomness, plan: "Plan", shares: Float64) -> int:
    """Return the blocks of a pool that the formula asks for."""
    m, wanted = found.batch_size, found.iid - TOLERATED
    sizes = range(1, m + 1)
    enough = 1 + bisect_left(sizes, wanted, key=lambda k: expected(shares, k)[0])
    if enough >= m:
        return len(plan.blocks)
    length = len(plan.windows) / len(plan.blocks)
    # two samples share one of R / length blocks with chance (length - 1) / (R - 1)
    tolerated = (m / enough - 1) / (m - 1)
    samples = 1 + (length - 1) * max(0.0, found.correlation) / tolerated
    return math.ceil(samples / length)

"""A few combinations of many choices, in which each two of them meet."""

import itertools

import numpy as np


def covering(factors, allowed=lambda _: True):
    """
    Return combinations, such that any two choices that may meet do so in one of them.

    Each is the one with the most pairs that are still missing; the same factors give the same ones.
    """
    names, levels = list(factors), list(factors.values())
    every = np.random.default_rng(0).permutation(list(np.ndindex(*map(len, levels))))
    told = [{n: f[k] for n, f, k in zip(names, levels, case, strict=True)} for case in every]
    may = [k for k, case in enumerate(told) if allowed(case)]
    indices, told = every[may], [told[k] for k in may]
    most = max(map(len, levels))
    pairs = np.stack(
        [
            (k * most + indices[:, i]) * most + indices[:, j]
            for k, (i, j) in enumerate(itertools.combinations(range(len(names)), 2))
        ],
        axis=1,
    )
    missing = np.zeros(pairs.max() + 1, bool)
    missing[pairs] = True
    chosen = []
    while missing.any():
        best = int(missing[pairs].sum(axis=1).argmax())
        missing[pairs[best]] = False
        chosen.append(told[best])
    return chosen

"""Random numbers that are functions of a key and a place: nothing is stored, any place can be asked for."""

import math

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_SMALL = 64
_ROUNDS, _ROUNDS_OF_SMALL = 8, 16
_CHUNK = 2**15
_HALF = np.uint64(32)


def key_of(*words: int) -> int:
    """
    Mix some numbers into one of 64 bits.

    Parameters
    ----------
    *words : int
        Such as a seed and an epoch, each at least 0.

    Returns
    -------
    int
        The same on every machine and for every version of numpy.

    Examples
    --------
    >>> key_of(7, 0) == key_of(7), key_of(7, 0) == key_of(0, 7)
    (False, False)
    """
    # numpy pads seeds with zeros, which makes [7] and [7, 0] the same
    state = np.random.SeedSequence([len(words), *words]).generate_state(1, np.uint64)
    return int(state[0])


def permuted(places: Int64, n: npt.ArrayLike, key: npt.ArrayLike) -> Int64:
    """
    Return where a random permutation takes some places, without writing down the others.

    A Feistel network over pairs of digits with as many values as the square root of `n` (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002); pairs beyond `n` are walked on.

    Parameters
    ----------
    places : ndarray of int64, shape (m,)
        Places, each at least 0 and less than `n`.
    n : int or array-like of int, shape (m,)
        How many places are permuted, at most 2^62; each element may belong to a permutation of its own.
    key : int or array-like of uint64, shape (m,)
        Which permutation.

    Returns
    -------
    ndarray of int64, shape (m,)
        For all places of one permutation: each number less than `n` once.

    Examples
    --------
    >>> permuted(np.arange(6), 6, key_of(1)).tolist()
    [4, 3, 0, 1, 5, 2]
    """
    places = np.asarray(places, np.int64)
    sizes = np.broadcast_to(np.asarray(n, np.uint64), places.shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), places.shape)
    out = np.empty_like(places)
    for a in range(0, len(places), _CHUNK):  # what the caches hold
        part = slice(a, a + _CHUNK)
        out[part] = _walk(places[part].astype(np.uint64), sizes[part], keys[part])
    return out


def _walk(places: UInt64, n: UInt64, keys: UInt64) -> Int64:
    out = np.empty(len(places), np.int64)
    for few, times in ((n < _SMALL, _ROUNDS_OF_SMALL), (n >= _SMALL, _ROUNDS)):
        if few.all():
            return _walked(places, n, keys, times)
        if few.any():
            out[few] = _walked(places[few], n[few], keys[few], times)
    return out


def _walked(places: UInt64, n: UInt64, keys: UInt64, times: int) -> Int64:
    low = _roots(n)
    high = (n + low - np.uint64(1)) // low
    out = _rounds(places, low, high, keys, times)
    beyond = np.flatnonzero(out >= n)
    while len(beyond):
        out[beyond] = _rounds(out[beyond], low[beyond], high[beyond], keys[beyond], times)
        beyond = beyond[out[beyond] >= n[beyond]]
    return out.astype(np.int64)


def _roots(n: UInt64) -> UInt64:
    """Return the square roots, rounded up."""
    if len(n) and (n == n[0]).all():
        return np.full_like(n, math.isqrt(int(n[0]) - 1) + 1)
    sizes, which = np.unique(n, return_inverse=True)
    return np.array([math.isqrt(k - 1) + 1 for k in sizes.tolist()], np.uint64)[which]


def _rounds(x: UInt64, low: UInt64, high: UInt64, keys: UInt64, times: int) -> UInt64:
    """Permute pairs of digits, of which there are ``low * high``."""
    b, a = np.divmod(x, low)
    for k in range(times):
        keys = keys + np.uint64(0x9E3779B97F4A7C15)
        if k % 2:
            b = _shift(b, a, high, keys)
        else:
            a = _shift(a, b, low, keys)
    return b * low + a


def _shift(digit: UInt64, other: UInt64, base: UInt64, keys: UInt64) -> UInt64:
    """Add to a digit what follows from the other one, modulo its base, which is less than 2^32."""
    digit = digit + ((_mixed(other + keys) >> _HALF) * base >> _HALF)
    return digit - base * (digit >= base)


def _mixed(x: UInt64) -> UInt64:
    """Mix bits (the finaliser of SplitMix64 by Vigna; variant 13 of Stafford)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mixed(places: Int64, key: int) -> UInt64:
    """
    Return 64 random bits for each place.

    Parameters
    ----------
    places : ndarray of int64, shape (m,)
        Any numbers.
    key : int
        Which of all such functions.

    Returns
    -------
    ndarray of uint64, shape (m,)
        Independent of each other and of those of another key.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    return _mixed(_mixed(places.astype(np.uint64) * step + np.uint64(key)))


def below(places: Int64, n: Int64, key: int) -> Int64:
    """
    Return a random whole number for each place.

    Parameters
    ----------
    places : ndarray of int64, shape (m,)
        Any numbers.
    n : ndarray of int64, shape (m,)
        What each number is less than, at least 1 and less than 2^32.
    key : int
        Which of all such functions.

    Returns
    -------
    ndarray of int64, shape (m,)
        At least 0, less than `n`; each of them equally likely but for one part in 2^32.

    Examples
    --------
    >>> below(np.arange(4), np.array([1, 5, 5, 5]), key_of(1)).tolist()
    [0, 2, 0, 2]
    """
    return ((mixed(places, key) >> _HALF) * n.astype(np.uint64) >> _HALF).astype(np.int64)


def uniform(places: Int64, key: int) -> npt.NDArray[np.float64]:
    """
    Return a random number for each place.

    Parameters
    ----------
    places : ndarray of int64, shape (m,)
        Any numbers.
    key : int
        Which of all such functions.

    Returns
    -------
    ndarray of float64, shape (m,)
        At least 0, less than 1.

    Examples
    --------
    >>> uniform(np.arange(3), key_of(1)).round(3).tolist()
    [0.763, 0.416, 0.01]
    """
    return np.asarray((mixed(places, key) >> np.uint64(11)) * 2.0**-53)

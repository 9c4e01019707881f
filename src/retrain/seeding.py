"""Keyed random streams: every draw is a pure function of what it is for.

There is no global generator. A draw is named by `(seed, purpose, indices...)`; the same name
gives the same number whatever was drawn before, in whichever process, in whatever order. That
is what makes conditions under one seed comparable (common random numbers) and a resumed run
equal to an undisturbed one.

Sampled tokens need one uniform number a position for thousands of rows at once, so they come
from SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"),
whose n-th output is a hash of `key + n * gamma` and therefore vectorises over rows and needs
no state. Everything else uses numpy's PCG64 seeded by a hash of the name.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from retrain.types import FloatArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, purpose: str, *indices: int | str) -> int:
    """A 64-bit key for a stream. Different names give independent keys."""
    parts = (f"s:{i}" if isinstance(i, str) else f"i:{int(i)}" for i in indices)
    name = "\x1f".join([str(int(seed)), purpose, *parts])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A numpy generator of its own for this name."""
    return np.random.Generator(np.random.PCG64(key(seed, purpose, *indices)))


def uniforms(keys: NDArray[np.uint64], position: int | NDArray[np.int64]) -> FloatArray:
    """The `position`-th uniform number in [0, 1) of each key's stream.

    keys and position broadcast: (rows,) and a number give (rows,); (rows, 1) and (positions,) give
    (rows, positions).
    """
    with np.errstate(over="ignore"):
        z = keys + (np.asarray(position).astype(np.uint64) + np.uint64(1)) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)

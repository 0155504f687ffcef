"""Random permutations that are evaluated at single positions, so that none is ever held in memory."""

from __future__ import annotations

import numpy as np

from lightning_robust.datamodules.plan import Ids
from lightning_robust.seeds import derive

# for sizes of 5 or 6, fewer leave some permutations more frequent than others
_ROUNDS = 12


def permuted(positions: Ids, sizes: Ids, keys: Ids) -> Ids:
    """Where a random permutation of ``range(size)`` takes a position; every key has a permutation of its own.

    A Feistel network over the next power of two, whose values are put in again until they are below the size (Black
    and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, cycle walking); its round function is a hash, not
    a cipher.

    Args:
        positions: int64 in [0, size), shape (N,).
        sizes: int64, at least 1, shape (N,).
        keys: int64, well mixed (from :func:`lightning_robust.seeds.derive`), shape (N,).

    Returns:
        int64 in [0, size), shape (N,).

    Example:
        >>> permuted(np.arange(5), np.full(5, 5), np.full(5, 7)).tolist()
        [2, 4, 1, 3, 0]
    """
    values = np.array(positions, dtype=np.int64)
    bits = np.frexp(sizes - 1)[1].astype(np.int64)  # exact, unlike a logarithm
    round_keys = [derive(keys, number) for number in range(2 * _ROUNDS)]
    walking = np.flatnonzero(sizes > 1)
    while walking.size:
        values[walking] = _network(values[walking], bits[walking], [part[walking] for part in round_keys])
        walking = walking[values[walking] >= sizes[walking]]
    return values


def _network(values: Ids, bits: Ids, round_keys: list[Ids]) -> Ids:
    low_bits = (bits + 1) // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    high, low = values >> low_bits, values & low_mask
    for number in range(0, len(round_keys), 2):
        low = low ^ (derive(round_keys[number] ^ high) & low_mask)
        high = high ^ (derive(round_keys[number + 1] ^ low) & high_mask)
    return (high << low_bits) | low

"""Permutation of any number of items that is never written down: element by element, in constant memory."""

import numpy as np


ROUNDS = 8


class Permutation:
    """
    A random permutation of `range(size)`: a Feistel network over the next power of two, walked on until it lands
    inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        size: number of items, at least 1.
        words: non-negative integers that decide the order.
    """

    def __init__(self, size: int, *words: int):
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = np.random.SeedSequence(words).generate_state(ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """What stands at each of `positions`, integers below `size`: int64 of the same shape."""
        values = self._scramble(np.asarray(positions).astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            values[outside] = self._scramble(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _scramble(self, values: np.ndarray) -> np.ndarray:
        high, low = values >> self._low_bits, values & self._low_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                low = low ^ (_mix(high + key) & self._low_mask)
            else:
                high = high ^ (_mix(low + key) & self._high_mask)
        return high << self._low_bits | low


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele et al. 2014): every bit of the input moves about half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

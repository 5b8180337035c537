"""Integers and texts out of binary records, many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]


class Bytes:
    """Integers anywhere in a buffer, many at once.

    :param data: the buffer; nothing is copied.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = np.frombuffer(data, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.data)

    def ints(self, at: Int, size: int, signed: bool = False) -> Int:
        """The little-endian integer of `size` bytes at each offset, as int64 (unsigned 64-bit values keep their bits).

        The caller has checked that all of them are inside.
        """
        if not len(at):
            return np.zeros(0, dtype=np.int64)
        if size not in (1, 2, 4, 8):
            return self._odd(at, size, signed)
        kind, bits = np.dtype(f"<{'i' if signed else 'u'}{size}"), size.bit_length() - 1
        rest = at & size - 1
        shift = int(rest[0])
        if size > 1 and bool((rest != shift).any()):
            out = np.empty(len(at), dtype=np.int64)
            for shift in range(size):
                chosen = rest == shift
                if chosen.any():
                    out[chosen] = self.ints(at[chosen], size, signed)
            return out
        usable = (len(self.data) - shift) >> bits << bits
        found: Int = self.data[shift : shift + usable].view(kind)[at >> bits].astype(np.int64)
        return found

    def _odd(self, at: Int, size: int, signed: bool) -> Int:
        value = np.zeros(len(at), dtype=np.int64)
        for byte in range(min(size, 8)):
            value |= self.data[at + byte].astype(np.int64) << 8 * byte
        return value - ((value >> (8 * size - 1) & 1) << 8 * size) if signed and size < 8 else value

    def texts(self, at: Int, length: Int, known: Texts) -> Int:
        """Zero-terminated texts at the offsets, as their numbers in `known`. Few differ, so each is decoded once: equal words, equal text."""
        words = -(-int(length.max(initial=0)) // 4)
        key = length.copy()
        last = max(len(self.data) - 4, 0)
        for word in range(words):
            left = np.clip(length - 4 * word, 0, 4)
            place = np.where(left > 0, at + 4 * word, 0)
            safe = np.minimum(place, last)
            value = self.ints(safe, 4) >> 8 * (place - safe)
            key = np.where(left > 0, key * np.int64(6364136223846793005) + (value & MASKS[left]), key)
        numbers, missing = known.find(key)
        while len(missing):
            row = int(missing[0])
            known.add(int(key[row]), self.data[at[row] : at[row] + length[row]].tobytes().split(b"\0")[0].decode(errors="replace"))
            missing = missing[key[missing] != key[row]]
            numbers, _ = known.find(key) if not len(missing) else (numbers, missing)
        return numbers


MASKS = np.array([0, 0xFF, 0xFFFF, 0xFF_FFFF, 0xFFFF_FFFF], dtype=np.int64)
"""For the last word of a text, by how many of its bytes belong to it."""


class Numbers:
    """A few 64-bit keys, each with a number, and a quick way from many keys to their numbers."""

    def __init__(self) -> None:
        self._keys, self._values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def find(self, keys: Int) -> tuple[Int, Int]:
        """The number of each key, and which keys have none."""
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.int64), np.arange(len(keys))
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._values[place], np.flatnonzero(self._keys[place] != keys)

    def set(self, key: int, value: int) -> None:
        """Adds a key that is not there yet."""
        place = int(np.searchsorted(self._keys, key))
        self._keys, self._values = np.insert(self._keys, place, key), np.insert(self._values, place, value)


class Texts(Numbers):
    """Texts by the keys of their words."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def add(self, key: int, text: str) -> None:
        self.set(key, len(self.texts))
        self.texts.append(text)

"""Integers and texts out of binary records, many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

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
        kind = np.dtype(f"<{'i' if signed else 'u'}{size}")
        shift = int(at[0]) % size
        if size > 1 and bool((at % size != shift).any()):
            out = np.empty(len(at), dtype=np.int64)
            for rest in range(size):
                chosen = at % size == rest
                if chosen.any():
                    out[chosen] = self.ints(at[chosen], size, signed)
            return out
        usable = (len(self.data) - shift) // size * size
        return self.data[shift : shift + usable].view(kind)[(at - shift) // size].astype(np.int64)

    def _odd(self, at: Int, size: int, signed: bool) -> Int:
        value = np.zeros(len(at), dtype=np.int64)
        for byte in range(min(size, 8)):
            value |= self.data[at + byte].astype(np.int64) << 8 * byte
        return value - ((value >> (8 * size - 1) & 1) << 8 * size) if signed and size < 8 else value

    def texts(self, at: Int, length: Int) -> pl.Series:
        """Zero-terminated texts at the offsets. Few differ, so each is decoded once: equal words, equal text."""
        words = -(-int(length.max(initial=0)) // 4)
        key = length.copy()
        for word in range(words):
            inside = length > 4 * word
            left = np.where(inside, length - 4 * word, 0)
            place = np.where(inside, at + 4 * word, 0)
            safe = np.minimum(place, max(len(self.data) - 4, 0))
            value = self.ints(safe, 4) >> 8 * (place - safe)
            value &= np.where(left >= 4, 0xFFFF_FFFF, (1 << 8 * np.minimum(left, 4)) - 1)
            key = key * np.int64(6364136223846793005) + value
        first = pl.DataFrame({"key": key, "row": np.arange(len(key))}).group_by("key", maintain_order=True).agg(pl.col("row").first())
        names = [self.data[at[row] : at[row] + length[row]].tobytes().split(b"\0")[0].decode(errors="replace") or None for row in first["row"]]
        known = pl.DataFrame({"key": first["key"], "name": pl.Series(names, dtype=pl.String)})
        return pl.DataFrame({"key": key}).join(known, on="key", how="left", maintain_order="left")["name"]

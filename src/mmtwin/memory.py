"""What stands in memory: the bytes of page frames, kept only for frames that were written."""

from __future__ import annotations

from mmtwin.errors import RequestError
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE


class Memory:
    """Contents of `nr_frames` page frames by physical address; a frame that was never written reads as zeros and takes no space.

    :ivar frames: the frames that were written, by page frame number.
    """

    def __init__(self, nr_frames: int) -> None:
        self.nr_frames = nr_frames
        self.frames: dict[int, bytearray] = {}

    def copy(self) -> Memory:
        """An independent copy."""
        other = Memory(self.nr_frames)
        other.frames = {pfn: bytearray(frame) for pfn, frame in self.frames.items()}
        return other

    def _check(self, physical: int, n: int) -> None:
        if n < 0:
            raise RequestError(f"{n} bytes: expected 0 or more")
        if physical < 0 or physical + n > self.nr_frames << PAGE_SHIFT:
            raise RequestError(
                f"physical address 0x{physical & (1 << 64) - 1:x}, {n} bytes: outside of memory, which ends at 0x{self.nr_frames << PAGE_SHIFT:x}"
            )

    def read(self, physical: int, n: int) -> bytes:
        """`n` bytes from a physical address on. :raises RequestError: outside of memory."""
        self._check(physical, n)
        pfn, at = physical >> PAGE_SHIFT, physical & PAGE_SIZE - 1
        if at + n <= PAGE_SIZE:
            frame = self.frames.get(pfn)
            return bytes(n) if frame is None else bytes(frame[at : at + n])
        parts = []
        while n:
            step = min(n, PAGE_SIZE - at)
            frame = self.frames.get(pfn)
            parts.append(bytes(step) if frame is None else bytes(frame[at : at + step]))
            pfn, at, n = pfn + 1, 0, n - step
        return b"".join(parts)

    def write(self, physical: int, data: bytes | bytearray | memoryview) -> None:
        """Puts `data` at a physical address. :raises RequestError: outside of memory; nothing was written."""
        data = bytes(data)
        self._check(physical, len(data))
        pfn, at, done = physical >> PAGE_SHIFT, physical & PAGE_SIZE - 1, 0
        while done < len(data):
            step = min(len(data) - done, PAGE_SIZE - at)
            frame = self.frames.get(pfn)
            if frame is None:
                frame = self.frames[pfn] = bytearray(PAGE_SIZE)
            frame[at : at + step] = data[done : done + step]
            pfn, at, done = pfn + 1, 0, done + step

    def fill(self, physical: int, n: int, byte: int = 0) -> None:
        """``memset``. Zeros do not make a frame take space. :raises RequestError: outside of memory, or no byte."""
        self._check(physical, n)
        if not 0 <= byte <= 255:
            raise RequestError(f"byte {byte}: expected 0 to 255")
        pfn, at = physical >> PAGE_SHIFT, physical & PAGE_SIZE - 1
        while n:
            step = min(n, PAGE_SIZE - at)
            if byte or pfn in self.frames:
                if not byte and step == PAGE_SIZE:
                    del self.frames[pfn]
                else:
                    self.write(pfn << PAGE_SHIFT | at, bytes((byte,)) * step)
            pfn, at, n = pfn + 1, 0, n - step

"""The C library and the process agree where its memory is, for small and for large requests."""

from __future__ import annotations

import mmtwin
from mmtwin.claims.c_library import CLibrary, areas, present


def test_the_process_has_what_the_c_library_hands_out() -> None:
    m = mmtwin.boot("linux-6.1", ram="256MiB", cpus=1)
    task = m.spawn("app")
    library = CLibrary(task)
    for size in (1, 100, 5000, 100_000, 131_072, 200_000, 1 << 20, 300, 64 << 20, 40_000, 129_000):
        address = library.malloc(size)
        mapped = areas(task.maps())
        assert any(start <= address and address + size <= end for start, end in mapped)
        task.write(address, b"x" * min(size, 9000))
        assert present(task, [address & -4096])
    task.exit()
    m.validate()

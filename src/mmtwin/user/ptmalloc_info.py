"""What malloc tells about itself: mallinfo2, malloc_info, malloc_stats (malloc/malloc.c), and the lists, for people."""

from __future__ import annotations

from collections.abc import Iterator

from mmtwin.user.ptmalloc_memory import at, bin_at, protect_ptr
from mmtwin.user.ptmalloc_tables import (
    AR_FASTBINS,
    AR_MAX_SYSTEM_MEM,
    AR_NEXT,
    AR_SYSTEM_MEM,
    AR_TOP,
    CHUNK_FD,
    CHUNK_SIZE,
    HEAP_MAX_SIZE,
    HEAP_MPROTECT_SIZE,
    HEAP_PREV,
    HEAP_SIZE,
    NBINS,
    NFASTBINS,
    SIZE_BITS,
    TCACHE_MAX_BINS,
    Ptmalloc,
)


def word(m: Ptmalloc, address: int, number: int = 0) -> int:
    """The word at an address, or so many words behind it."""
    return int(m.word[at(m, address) + number])


def size_of(m: Ptmalloc, p: int) -> int:
    """``chunksize``."""
    return word(m, p, CHUNK_SIZE) & ~SIZE_BITS


def arenas(m: Ptmalloc) -> list[int]:
    """All arenas, main_arena first, in the order of their list."""
    main = int(m.mp[0]["main_arena"])
    found = [main]
    while (following := word(m, found[-1], AR_NEXT)) != main:
        found.append(following)
    return found


def heaps(m: Ptmalloc, arena: int) -> list[int]:
    """An arena's heaps, the last one first; main_arena has none."""
    if arena == int(m.mp[0]["main_arena"]):
        return []
    found = [word(m, arena, AR_TOP) & -HEAP_MAX_SIZE]
    while previous := word(m, found[-1], HEAP_PREV):
        found.append(previous)
    return found


def _protected(m: Ptmalloc, position: int) -> Iterator[int]:
    """A list through pointers that safe-linking protects; yields positions of pointers."""
    while position:
        yield position
        position = protect_ptr(position, word(m, position))


def tcache(m: Ptmalloc, thread: int) -> dict[int, list[int]]:
    """A thread's cached blocks by chunk size, newest first."""
    found = {}
    for idx in range(TCACHE_MAX_BINS):
        if entries := int(m.bin[thread * TCACHE_MAX_BINS + idx]["entries"]):
            found[32 + 16 * idx] = list(_protected(m, entries))
    return found


def fastbins(m: Ptmalloc, arena: int) -> dict[int, list[int]]:
    """Chunks in fastbins by size, newest first."""
    found = {}
    for idx in range(NFASTBINS):
        if first := word(m, arena, AR_FASTBINS + idx):
            chunks, p = [], first
            while p:
                chunks.append(p)
                p = protect_ptr(p + 16, word(m, p, CHUNK_FD))
            found[32 + 16 * idx] = chunks
    return found


def bins(m: Ptmalloc, arena: int) -> dict[int, list[int]]:
    """Chunks in bins by the bin's number, front first; 1 is the unsorted bin."""
    found = {}
    for number in range(1, NBINS):
        header = bin_at(arena, number)
        chunks, p = [], word(m, header, CHUNK_FD)
        while p != header:
            chunks.append(p)
            p = word(m, p, CHUNK_FD)
        if chunks:
            found[number] = chunks
    return found


def _arena_info(m: Ptmalloc, arena: int) -> dict[str, int]:
    fast = [size for size, chunks in fastbins(m, arena).items() for _ in chunks]
    free = [size_of(m, p) for chunks in bins(m, arena).values() for p in chunks]
    top = size_of(m, word(m, arena, AR_TOP))
    system = word(m, arena, AR_SYSTEM_MEM)
    available = top + sum(fast) + sum(free)
    return {
        "arena": system,
        "ordblks": 1 + len(free),
        "smblks": len(fast),
        "fsmblks": sum(fast),
        "uordblks": system - available,
        "fordblks": available,
        "keepcost": top,
    }


def mallinfo2(m: Ptmalloc) -> dict[str, int]:
    """``mallinfo2``, in the order of its fields."""
    each = [_arena_info(m, arena) for arena in arenas(m)]
    total = {name: sum(one[name] for one in each) for name in each[0]}
    mapped = {"hblks": int(m.mp[0]["n_mmaps"]), "hblkhd": int(m.mp[0]["mmapped_mem"]), "usmblks": 0}
    values = {**total, **mapped, "keepcost": each[0]["keepcost"]}
    order = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    return {name: values[name] for name in order}


def malloc_stats(m: Ptmalloc) -> str:
    """What ``malloc_stats`` prints; it keeps 32 bits of most numbers."""
    lines = []
    system = used = int(m.mp[0]["mmapped_mem"])
    for number, arena in enumerate(arenas(m)):
        one = _arena_info(m, arena)
        lines += [f"Arena {number}:", f"system bytes     = {one['arena'] & 0xFFFFFFFF:10}", f"in use bytes     = {one['uordblks'] & 0xFFFFFFFF:10}"]
        system += one["arena"]
        used += one["uordblks"]
    lines += ["Total (incl. mmap):", f"system bytes     = {system & 0xFFFFFFFF:10}", f"in use bytes     = {used & 0xFFFFFFFF:10}"]
    lines += [f"max mmap regions = {int(m.mp[0]['max_n_mmaps']):10}", f"max mmap bytes   = {int(m.mp[0]['max_mmapped_mem']):10}"]
    return "\n".join(lines) + "\n"


def _sizes(m: Ptmalloc, arena: int) -> list[str]:
    """The lines for each size of chunks in fastbins and bins that there is, then that for the unsorted bin."""
    lines, last = [], []
    for size, chunks in fastbins(m, arena).items():
        lines.append(f'  <size from="{size - 15}" to="{size}" total="{size * len(chunks)}" count="{len(chunks)}"/>')
    for number, chunks in bins(m, arena).items():
        sizes = [word(m, p, CHUNK_SIZE) for p in chunks]  # with the flags, as the C library has it
        text = f'from="{min(sizes)}" to="{max(sizes)}" total="{sum(sizes)}" count="{len(sizes)}"/>'
        if number == 1:
            last = [f"  <unsorted {text}"]
        else:
            lines.append(f"  <size {text}")
    return lines + last


def malloc_info(m: Ptmalloc) -> str:
    """What ``malloc_info(0, file)`` writes."""
    lines = ['<malloc version="1">']
    totals = dict.fromkeys(("fast", "fast_size", "rest", "rest_size", "system", "max", "space", "mprotect"), 0)
    for number, arena in enumerate(arenas(m)):
        one = _arena_info(m, arena)
        inside = bins(m, arena)
        flagged = sum(word(m, p, CHUNK_SIZE) for chunks in inside.values() for p in chunks) + one["keepcost"]
        system, most = one["arena"], word(m, arena, AR_MAX_SYSTEM_MEM)
        areas = heaps(m, arena)
        space = sum(word(m, heap, HEAP_SIZE) for heap in areas) if areas else system
        protected = sum(word(m, heap, HEAP_MPROTECT_SIZE) for heap in areas) if areas else system
        lines += [f'<heap nr="{number}">', "<sizes>", *_sizes(m, arena), "</sizes>"]
        lines += [f'<total type="fast" count="{one["smblks"]}" size="{one["fsmblks"]}"/>', f'<total type="rest" count="{one["ordblks"]}" size="{flagged}"/>']
        lines += [f'<system type="current" size="{system}"/>', f'<system type="max" size="{most}"/>']
        lines += [f'<aspace type="total" size="{space}"/>', f'<aspace type="mprotect" size="{protected}"/>']
        lines += [f'<aspace type="subheaps" size="{len(areas)}"/>'] if areas else []
        lines.append("</heap>")
        for name, value in zip(totals, (one["smblks"], one["fsmblks"], one["ordblks"], flagged, system, most, space, protected), strict=True):
            totals[name] += value
    lines += [
        f'<total type="fast" count="{totals["fast"]}" size="{totals["fast_size"]}"/>',
        f'<total type="rest" count="{totals["rest"]}" size="{totals["rest_size"]}"/>',
    ]
    lines.append(f'<total type="mmap" count="{int(m.mp[0]["n_mmaps"])}" size="{int(m.mp[0]["mmapped_mem"])}"/>')
    lines += [f'<system type="current" size="{totals["system"]}"/>', f'<system type="max" size="{totals["max"]}"/>']
    lines += [f'<aspace type="total" size="{totals["space"]}"/>', f'<aspace type="mprotect" size="{totals["mprotect"]}"/>', "</malloc>"]
    return "\n".join(lines) + "\n"

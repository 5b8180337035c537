"""Warnings of the allocators themselves: an order above the largest, sizes that cannot be, flags that do not go together (mm/page_alloc.c, util.c, slab_common.c)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mmtwin.diagnose.explain.common import request_of
from mmtwin.diagnose.explain.log_gfp import decode
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Segment, Verdict, size

AT = re.compile(r"(WARNING|kernel\s+BUG)(?:[^\n]*?\bat\s+(?:[\w./-]*/)?|:\s+(?:[\w./-]*/)?)(mm/[\w]+\.[ch]):(\d+)!?(?:[ \t]+(?:at\s+)?([A-Za-z_][\w.]*))?")
"""From about 6.18 on a warning's file stands before its function."""
REGISTER = re.compile(r"\b(R[A-D]X|R[SD]I|R[BS]P|R\d\d|E[A-D]X|E[SD]I|EBP|[xr]\d{1,2}|a[0-7]|s\d{1,2})\s*:\s*([0-9a-f]{8,16})\b")
POWERPC = re.compile(r"\bGPR(\d\d):\s+([0-9a-f]{8,16}(?:\s+[0-9a-f]{8,16}){0,7})")
"""PowerPC's registers, four or eight to a line."""
ENTRY = ("__alloc_pages", "__alloc_pages_nodemask", "__alloc_pages_slowpath", "__alloc_pages_noprof", "__alloc_frozen_pages_noprof", "__alloc_pages_internal")
WRONG_CACHE = re.compile(r"Wrong\s+slab\s+cache\.\s+(\S+)\s+but\s+object\s+is\s+from\s+(\S+)")
NO_AREA = re.compile(r"Trying\s+to\s+(vfree|vunmap|vm_unmap_ram)\(\)\s+(?:nonexistent\s+vm\s+area|bad\s+address)\s+\((?:0x)?([0-9a-f]+)\)")
ORDERING = r"^(?:kmalloc_order|kmalloc_large|_*kmalloc_large|__get_free_pages|kmalloc_order_trace|_*do_kmalloc|__kmalloc|_*dma_|_*kmalloc|kvmalloc|alloc_pages|_*kvmalloc)"
ILLEGAL = re.compile(r"illegal\s+size\s+\((\d+)\)\s+or\s+align\s+\((\d+)\)\s+for\s+percpu")
NOT_SIZES = ("vunmap", "vfree", "__vunmap", "free", "vm_area", "vmap_", "vmalloc_to_", "remap_", "alloc_vmap_area")
"""Functions of those files whose warnings are not about a size."""
KMALLOCS = ("kmalloc", "__kmalloc", "krealloc", "__krealloc", "kvmalloc")
"""Functions of mm/slab_common.c that check a size; others warn of other things (kmem_cache_destroy: of objects that are left)."""
INT_MAX = (1 << 31) - 1
WITH_INT_MAX = re.compile(r"\b(4[89]) 81 f([89a-f]) ff ff ff 7f ")
SIZE_REGISTERS = ("RDI", "RSI", "RBX", "R12", "R13", "R14", "RBP", "x0", "x1", "x19", "x20")
SIZES = {"mm/util.c": "kvmalloc", "mm/slab_common.c": "kmalloc", "mm/vmalloc.c": "vmalloc"}
LARGEST_64K = 8
"""PowerPC's with pages of 64 KiB: 16 MiB."""
S390 = re.compile(r"Krnl GPRS:((?:\s+[0-9a-f]{16}){4,16})")
S390_KEPT = tuple(f"%r{n}" for n in range(6, 14))
"""s390x: the registers that functions keep. Its largest order is 8, too, with pages of 4 kB (CONFIG_FORCE_MAX_ZONEORDER=9)."""
HUGE = 22
NEGATIVE = "A size like that is usually a negative number, such as an error code that was taken for a length, or an overflow; no allocator can serve it."
"""From 16 GiB on."""
KEPT = (*(f"x{n}" for n in range(19, 29)), "RBX", "RBP", "R12", "R13", "R14", "R15")
"""Registers that functions keep for their callers."""
OF_NOTHING = {64: 52, 32: 20}
"""get_order(0) (include/asm-generic/getorder.h): BITS_PER_LONG - PAGE_SHIFT."""
LARGEST = 10
"""Largest order where the log does not say: MAX_ORDER - 1 up to 6.3, MAX_ORDER of 6.4 to 6.7, MAX_PAGE_ORDER since."""


def registers(text: str) -> dict[str, int]:
    """The registers that the report prints; the first of each name (later ones are of user space)."""
    found: dict[str, int] = {}
    for name, value in REGISTER.findall(text):
        found.setdefault(name, int(value, 16))
    for match in S390.finditer(text):
        for n, value in enumerate(match[1].split()):
            found.setdefault(f"%r{n}", int(value, 16))
    for first, row in POWERPC.findall(text):
        for n, value in enumerate(row.split(), int(first)):
            found.setdefault(f"GPR{n:02}", int(value, 16))
    return found


def read(segment: Segment) -> Report:
    """The report, judged."""
    text, stack = segment.text, segment.stack
    at = AT.search(text)
    file, line = (at[2], int(at[3])) if at else ("", 0)
    function = _function(text, at)
    values = registers(text)
    request = request_of(segment, 4, None, None)
    details: dict[str, Any] = {"file": file, "line": line, "function": function}
    bare = function.split(".")[0]
    where = f"{file}:{line}" + (f" in {function}" if function else "")
    if at and at[1].startswith("kernel"):
        verdict = _bug(segment, file, where, details)
    elif file == "mm/page_alloc.c" and bare in ENTRY:
        order, source, largest = _compared(text, values) or (*_order(values, bare), LARGEST)
        page = 65536 if largest == LARGEST_64K else 4096
        largest = LARGEST_64K if "%r2" in values else largest
        sure = DECIDED if order is not None else PROBABLE
        if order is None:
            order, source = _in_several(values, largest)
        if order == OF_NOTHING.get(segment.kernel.bits or 64):
            request = replace(request, order=None, asked_bytes=0)
            verdict = Verdict(
                "order_too_large", DECIDED,
                f"{request.comm or 'A process'} asked for nothing: order {order} (register {source}) is get_order(0), what a size of 0 bytes is rounded to.",
                (f"The page allocator's largest order is {largest}, so it can never succeed: no zone was looked at.",),
                missing=("pages of 4 kB are assumed",), details=details | {"order_register": source, "largest_order": largest},
                remedies=(Remedy("caller", f"no allocation of size 0 in {request.caller or 'the caller'}: where does the size come from?", "a size above 0 is served"),),
            )  # fmt: skip
        elif order is not None:
            asked, register = _asked(values, order)
            flags = _flags(values, segment)
            request = replace(request, order=order, bytes=page << order, asked_bytes=asked, flags=flags)
            details |= {"order_register": source, "size_register": register, "largest_order": largest}
            wanted = f"{size(asked)} ({asked} bytes, register {register}), rounded up to " if asked and asked != page << order else ""
            negative = (NEGATIVE,) if order >= HUGE else ()
            verdict = Verdict(
                "order_too_large", sure,
                f"{request.comm or 'A process'} asked for {wanted}{size(page << order)} in one piece: order {order} (register {source}), and the page allocator's largest is {largest} ({size(page << largest)}).",
                ("It can never succeed: no zone was looked at, so free memory, fragmentation and watermarks do not matter.", f"The warning at {where} is printed once; later refusals are silent.", *negative),
                missing=(f"pages of {page >> 10} kB and the usual largest order are assumed",), remedies=_fixes(request.caller, f"up to {size(page << largest)} (order {largest}) can be served")[: 1 if negative else None], details=details,
            )  # fmt: skip
        elif (bare != "__alloc_pages_slowpath" or _early(text, segment)) and (
            segment.kernel.version >= (5, 0, 0) or (not values and stack.matches(ORDERING)) or bare == "__alloc_pages_slowpath"
        ):
            verdict = Verdict(
                "order_too_large", PROBABLE, f"{request.comm or 'A process'} probably asked{f', in {request.caller},' if request.caller else ''} for more than the page allocator's largest block ({size(4096 << LARGEST)}): that is the usual warning of {bare}.",
                ("No zone was looked at.",), missing=("the order: no register shows one (they are cut, or were overwritten)",), remedies=_fixes(request.caller), details=details,
            )  # fmt: skip
        else:
            verdict = _other(where, details)
    elif file == "mm/percpu.c" and (illegal := ILLEGAL.search(segment.before[-400:] + text[:400])):
        verdict = Verdict(
            "order_too_large", DECIDED, f"{request.comm or 'A process'} asked the per-CPU allocator for {illegal[1]} bytes aligned to {illegal[2]}: it gives at most 32 KiB a piece, aligned to at most a page.",
            ("It can never succeed: no memory was looked at.",), remedies=(Remedy("caller", f"a smaller per-CPU object in {request.caller or 'the caller'}, or an array of pointers to kmalloc'ed ones", "fits a chunk's unit"),), details=details | {"bytes": int(illegal[1]), "align": int(illegal[2])},
        )  # fmt: skip
    elif bare == "kmem_cache_destroy":
        verdict = Verdict(
            "objects_remaining", DECIDED, f"A cache was destroyed{f' by {request.caller}' if request.caller else ''} while objects of it were in use: that is the warning at {where}.",
            remedies=(Remedy("caller", "free every object before kmem_cache_destroy", "the cache can go"), Remedy("look", "the same with slub_debug=U", "names who allocated the objects")), details=details,
        )  # fmt: skip
    elif no_area := NO_AREA.search(segment.before[-400:] + text[:400]):
        verdict = Verdict(
            "invalid_free", DECIDED, f"{no_area[1]} was called with 0x{no_area[2]}, where no vmalloc area is: it was freed before, or vmalloc never gave it.", ("Nothing was freed; the call did nothing more.",),
            missing=("which of the two: who freed it first is not in the log",), details=details | {"address": int(no_area[2], 16)},
            remedies=(Remedy("caller", f"one owner for each vfree in {request.caller or 'the caller'}; set the pointer to NULL after it", "a second vfree is harmless then"),),
        )  # fmt: skip
    elif file == "mm/vmalloc.c" and bare.startswith("__vmalloc_node_range"):  # its only warning without words (since 5.13; before, warn_alloc told it)
        request = replace(request, asked_bytes=0)
        verdict = Verdict(
            "vmalloc_too_large", DECIDED, f"{request.comm or 'A process'} asked vmalloc for nothing (0 bytes): that is the warning at {where}.", ("No memory was looked at.",), details=details | {"bytes": 0},
            remedies=(Remedy("caller", f"no vmalloc of size 0 in {request.caller or 'the caller'}: where does the size come from?", "a size above 0 is served"),),
        )  # fmt: skip
    elif call := _sized(file, bare):
        compared = _above_int_max(text, values)
        number = compared[0] if compared else _size_in(values, (1 << 31) if call == "kvmalloc" else (4 << 20) + 1)
        limit = "INT_MAX (2 GiB)" if call == "kvmalloc" else "the largest kmalloc" if call == "kmalloc" else "what exists"
        told = f"{size(number)} ({number} bytes, register {compared[1]}), more than {limit}" if compared and number else f"more than {limit}"
        shown = f" may be {number} bytes (a register)" if number else " is in no register"
        verdict = Verdict(
            "order_too_large", DECIDED if compared else PROBABLE, f"{request.comm or 'A process'} asked {call} for {told}: that is the warning at {where}.",
            ("No memory was looked at; it can never succeed.",), missing=() if compared else (f"the size{shown}; the line number alone does not name the check",),
            remedies=(Remedy("caller", f"check the size in {request.caller or 'the caller'}: does it come from user space, or overflow?", "a bounded size is served"),), details=details | ({"bytes": number} if compared else {}),
        )  # fmt: skip
        request = replace(request, asked_bytes=number if compared else None)
    elif wrong := WRONG_CACHE.search(segment.before[-400:] + text[:400]):
        verdict = Verdict(
            "invalid_free", DECIDED, f"An object was given back to the cache {wrong[1]}, but it is of the cache {wrong[2]}: that is the warning at {where}.",
            ("Nothing was refused; the kernel frees it to the right cache and goes on.",), remedies=(Remedy("caller", f"which pointer {request.caller or 'the caller'} frees, and to which cache", "each object goes back to the cache it came from"),
                Remedy("look", "the same with slub_debug=FZPU or CONFIG_KASAN", "names who allocated the object")), details=details | {"cache": wrong[1], "object_of": wrong[2]},
        )  # fmt: skip
    else:
        verdict = _other(where, details)
    return Report("oversize", "allocator warning", segment.line, segment.seconds, segment.kernel, request, verdict, stack=stack)


def _function(text: str, at: re.Match[str] | None) -> str:
    if at and at[4]:
        return at[4]
    match = re.search(r"\bRIP:\s+(?:[0-9a-f]+:)?(?:\[<[0-9a-f]+>\]\s*)?([A-Za-z_][\w.]*)\+0x", text) or re.search(
        r"\bpc\s*:\s*(?:\[<[0-9a-f]+>\]\s*)?([A-Za-z_][\w.]*)\+0x", text
    )
    if match:
        return match[1]
    names = re.findall(r"([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x", text)
    return next((name for name in names if name.split(".")[0] in ENTRY or name.startswith(("kvmalloc", "kmalloc_slab", "__kvmalloc"))), "")


def _early(text: str, segment: Segment) -> bool:
    """Whether it is the first check of the slow path, which up to 4.19 was that of the order."""
    match = re.search(r"__alloc_pages_slowpath\S*?\+0x([0-9a-f]+)/", text)
    return match is not None and int(match[1], 16) < 0x100 and segment.kernel.version < (4, 20, 0)


COMPARE = re.compile(r"\b(41 )?83 f([89a-f]) (0[89a-f]) (?:0f 8[67]|7[67]) ")
LOW = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")


def _compared(text: str, values: dict[str, int]) -> tuple[int, str, int] | None:
    """The order, its register and the largest order, where the code before the trap compares them (x86: cmp $10,%ebp; jbe)."""
    for word in re.findall(r"\b28[0-9a-f]{6}\b", text[text.find("Instruction dump") :] if "Instruction dump" in text else ""):
        name, largest = f"GPR{int(word[2:4], 16):02}", int(word[4:], 16)  # cmplwi rN,largest
        if largest in (LARGEST_64K, LARGEST, LARGEST + 1) and largest < values.get(name, 0) <= 52:
            return values[name], name, largest
    code = re.search(r"\bCode:([0-9a-f ]{20,400})<0f>", text)
    for match in COMPARE.finditer(code[1]) if code else ():
        number = int(match[2], 16) - 8
        name = f"R{number + 8:02}" if match[1] else LOW[number]
        largest = int(match[3], 16)
        if largest < values.get(name, 0) <= 52:
            return values[name], name, largest
    return None


def _in_several(values: dict[str, int], largest: int) -> tuple[int | None, str]:
    """What two or more of the kept registers hold and could be an order; of one alone nothing is known."""
    held: dict[int, list[str]] = {}
    for name in (*KEPT, *S390_KEPT):
        if largest < values.get(name, 0) <= 40:
            held.setdefault(values[name], []).append(name)
    several = [(value, names) for value, names in held.items() if len(names) > 1]
    return (several[0][0], " and ".join(several[0][1])) if len(several) == 1 else (None, "")


def _sized(file: str, function: str) -> str:
    """Which allocator's check of the size warns; "" if none of them does."""
    if "kvmalloc" in function and file == "mm/slub.c":  # where kvmalloc is since 6.13; before, it was in mm/util.c
        return "kvmalloc"
    if file == "mm/slab_common.c" and not function.startswith(KMALLOCS):
        return ""
    return SIZES.get(file, "") if function and not function.startswith(NOT_SIZES) else ""


def _above_int_max(text: str, values: dict[str, int]) -> tuple[int, str] | None:
    """The size and its register, where the code before the trap compares it with INT_MAX (x86: cmp $0x7fffffff,%rbx)."""
    code = re.search(r"\bCode:([0-9a-f ]{20,400})<0f>", text)
    for match in WITH_INT_MAX.finditer(code[1]) if code else ():
        number = int(match[2], 16) - 8
        name = f"R{number + 8:02}" if match[1] == "49" else LOW[number]
        if values.get(name, 0) > INT_MAX:
            return values[name], name
    return None


def _size_in(values: dict[str, int], least: int) -> int | None:
    """What may be the size, in a register that is kept across calls or passes it."""
    return next((value for name, value in values.items() if least <= value < 1 << 47 and name in SIZE_REGISTERS), None)


def _order(values: dict[str, int], function: str) -> tuple[int | None, str]:
    """The order in a register: the second argument, or a copy of it."""
    for name in (
        "RSI",
        "x1",
        "a1",
        "RBP",
        "RBX",
        "R12",
        "R13",
        "R14",
        "R15",
        "ESI",
        "EDX",
        "EBX",
        "EDI",
        "x20",
        "x21",
        "x22",
        "x19",
        "x23",
        "x24",
        "r1",
        "r5",
        "r6",
        "r7",
        "r8",
    ):
        value = values.get(name)
        if value is not None and (LARGEST < value <= 52 - 12 or (value in OF_NOTHING.values() and name in ("RSI", "x1", "a1"))):
            if name in ("RSI", "x1", "r1", "a1") or any(_fits(other, value) for key, other in values.items() if key != name):
                return value, name
    return None, ""


def _fits(value: int, order: int) -> bool:
    """Whether a request of so many bytes needs this order."""
    return 1 << (order + 11) < value <= 1 << (order + 12)


def _asked(values: dict[str, int], order: int) -> tuple[int | None, str]:
    """The bytes the caller wanted, in a register that is kept across calls."""
    for name in ("R12", "R13", "R14", "R15", "RBX", "RBP", "RDI", "RDX", "R8", "R9", "EBX", "EDI", "EBP", "x19", "x20", "x21", "x22", "x23", "x24"):
        if name in values and _fits(values[name], order):
            return values[name], name
    return None, ""


def _flags(values: dict[str, int], segment: Segment) -> Any:
    for name in ("RDI", "R13", "R14", "R12", "RBX", "R15", "RBP", "a0", "x0", "x19", "x20", "x21"):
        value = values.get(name, 0)
        flags = decode(value, "", segment.kernel.version)
        if value and value < 1 << 27 and {"IO", "DIRECT_RECLAIM"} <= flags.flags and "0x" not in flags.names:
            return flags
    return None


FREEING = r"^(?:kfree|_*slab_free|_*kmem_cache_free|_*cache_free|___cache_free|kvfree|set_freepointer|skb_free|vfree)"


def _fixes(caller: str, limit: str = "up to 4 MiB (order 10) can be served") -> tuple[Remedy, ...]:
    return (
        Remedy(
            "caller",
            f"a smaller request in {caller or 'the caller'}: is the size right, or does it come from a device or user space unchecked?",
            limit,
        ),
        Remedy("caller", "kvmalloc (or vmalloc) if the memory need not be contiguous", "no limit by order"),
        Remedy("caller", "CMA or memory reserved at boot if a device needs it in one piece", "larger pieces than the page allocator's are possible"),
    )


def _bug(segment: Segment, file: str, where: str, details: dict[str, Any]) -> Verdict:
    stack = segment.stack
    if file == "mm/usercopy.c" or "usercopy" in segment.before[-300:]:
        return Verdict(
            "out_of_bounds", DECIDED, f"A copy from or to user space crossed the bounds of an object; the kernel stopped at {where}.", details=details
        )
    if file in ("mm/slub.c", "mm/slab.c") and (stack.matches(FREEING) or re.match(FREEING, details["function"])):
        return Verdict(
            "double_free", PROBABLE, f"The slab allocator stopped at {where} while freeing: usually something was freed twice, or is no slab object.", missing=("the line number alone does not name the check; the kernel's source at that line does",),
            remedies=(Remedy("look", "the same with slub_debug=FZPU or CONFIG_KASAN", "names the object and both frees"),), details=details,
        )  # fmt: skip
    return Verdict(
        "corruption", PROBABLE, f"An allocator's own check failed at {where}: its data are damaged, or it was called wrongly.", missing=("which check: the kernel's source at that line says",),
        remedies=(Remedy("look", "the same with slub_debug=FZPU or CONFIG_KASAN", "finds what damages it"),), details=details,
    )  # fmt: skip


def _other(where: str, details: dict[str, Any]) -> Verdict:
    return Verdict(
        "allocator_warning", UNDECIDED, f"The allocator warned at {where}; which of its checks that is, the log does not say (in an allocation: the order, or flags that do not go together).",
        missing=("the kernel's source at that line names the check",), remedies=(Remedy("look", f"{where} in the source of this very kernel", "says what it does not like"),), details=details,
    )  # fmt: skip

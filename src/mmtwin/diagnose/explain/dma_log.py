"""What the DMA interface, the bounce buffers and CMA complain about (kernel/dma/debug.c, lib/dma-debug.c, swiotlb.c, mm/cma.c)."""

from __future__ import annotations

import re
from typing import Any

from mmtwin.diagnose.explain.common import request_of
from mmtwin.diagnose.explain.kernel_version import Kernel
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Request, Segment, Verdict, size

API = re.compile(
    r"(?:([\w-]+(?:\s+[\w:.-]+)?):\s+)?DMA-API:\s+(?:([\w-]+(?:\s+[\w:.-]+)?):\s+)?([^\n]+(?:(?<!\])\n(?!.*(?:Modules linked|CPU:|Call Trace|Hardware name))[^\n]{1,160}\]?(?=\n|$))?)"
)
"""A message without its ``[device address=...]`` goes on in the next line, where the log is wrapped."""
ADDRESS = re.compile(r"\[addr=\s*(?:0x)?([0-9a-f]{6,16})\]")
SWIOTLB = re.compile(
    r"(?:([\w-]+(?:\s+[\w:.-]+)?):\s+)?swiotlb\s+buffer\s+is\s+full\s*\(sz:\s*(\d+)\s+bytes\)(?:,\s+total\s+(\d+)\s+\(slots\),\s+used\s+(\d+)\s+\(slots\))?"
)
OLD_SWIOTLB = re.compile(r"Out\s+of\s+SW-IOMMU\s+space\s+for\s+(\d+)\s+bytes(?:\s+at\s+device\s+(\S+))?")
MASK = re.compile(r"overflow\s+0x([0-9a-f]+)\+(\d+)\s+of\s+DMA\s+mask\s+([0-9a-f]+)(?:\s+bus\s+(?:mask|limit)\s+([0-9a-f]+))?")
ABOVE = re.compile(
    r"(?:([\w-]+(?:\s+[\w:.-]+)?):\s+)?swiotlb\s+addr\s+(?:0x)?([0-9a-f]+)\+(\d+)\s+overflow\s+\(mask\s+([0-9a-f]+),\s+bus\s+limit\s+([0-9a-f]+)\)"
)
CMA = re.compile(r"\b(?:__)?cma_alloc:\s+(?:(\S+):\s+)?alloc\s+failed,\s+req-size:\s+(\d+)\s+pages,\s+ret:\s+(-\d+)")
HOLES = re.compile(r"number\s+of\s+available\s+pages:\s*([\d@+\s]*)=>\s*(\d+)\s+(?:free\s+of\s+|pages,\s+total:\s+)(\d+)(?:\s+total|\s+pages)?")
BUSY = re.compile(r"alloc_contig_range:\s+\[([0-9a-f]+),\s*([0-9a-f]+)\)\s+PFNs\s+busy")
USB = re.compile(r"(transfer buffer|setup packet) (?:is )?(?:not dma capable|on stack)")
USB_CORE = re.compile(r"_*usb_(?:hcd_\w+|submit_urb|start_wait_urb|control_msg\w*|bulk_msg|interrupt_msg|sg_wait|internal_control_msg)$")
VMAP_STACK = (4, 9)
"""Stacks are in vmalloc's area, where the architecture and the configuration have it."""
SLOT_BYTES, SEGMENT_SLOTS = 2048, 128
"""A bounce buffer's slot, and how many a single mapping can have: 256 KiB."""
STACKS = (8192, 16384, 32768, 65536)


def read(segment: Segment) -> Report:
    """The report, judged."""
    text = segment.text[:20_000]
    request = request_of(segment, 4, None, None)
    if match := SWIOTLB.search(text):
        verdict = _swiotlb(match[1] or "a device", int(match[2]), int(match[3]) if match[3] else None, int(match[4]) if match[4] else None)
    elif match := OLD_SWIOTLB.search(text):
        verdict = _swiotlb(match[2] or "a device", int(match[1]), None, None)
    elif match := MASK.search(text):
        address, mask = int(match[1], 16), int(match[3], 16)
        verdict = Verdict(
            "dma_mask", DECIDED, f"The device reaches addresses up to 0x{mask:x} only, and the buffer is at 0x{address:x}: the mapping was refused.",
            missing=("why no bounce buffer was used: swiotlb is off, or the device has an IOMMU of its own",), details={"address": address, "bytes": int(match[2]), "mask": mask},
            remedies=(Remedy("caller", "dma_set_mask_and_coherent with what the device can really do", "64-bit devices need no bounce buffer"), Remedy("admin", "swiotlb=force or an IOMMU (iommu=...)", "the buffer is copied or remapped below the mask")),
        )  # fmt: skip
    elif match := ABOVE.search(text):
        address, mask = int(match[2], 16), int(match[4], 16)
        verdict = Verdict(
            "dma_mask", DECIDED, f"{match[1] or 'The device'} reaches addresses up to 0x{mask:x} only, and even the bounce buffer is above it, at 0x{address:x}: the mapping was refused.",
            missing=("whether the mask is the device's or a mistake of its driver",), details={"address": address, "bytes": int(match[3]), "mask": mask},
            remedies=(Remedy("caller", f"dma_set_mask_and_coherent with what the device can really do{f', in the driver of {request.caller}' if request.caller else ''}", "bounce buffers are below 4 GiB, not lower"),),
        )  # fmt: skip
    elif match := CMA.search(text):
        verdict = _cma(match, HOLES.search(text))
    elif match := BUSY.search(text):
        verdict = Verdict(
            "cma_failed", PROBABLE, f"Page frames 0x{match[1]} to 0x{match[2]} could not be freed for one large piece: some in them are in use and could not be moved.",
            ("CMA, gigantic pages and memory hotplug all go this way; the next range is tried before anything is refused.",), details={"first_pfn": int(match[1], 16), "end_pfn": int(match[2], 16)},
            missing=("who asked, and whether another range served it: a 'cma_alloc: alloc failed' or the driver's own message says so",), remedies=(Remedy("admin", "a larger cma= area", "more ranges to try"), Remedy("caller", "allocate once at start and keep it", "fewer pages are in use then")),
        )  # fmt: skip
    elif match := USB.search(segment.head):
        verdict = _usb(match[1] == "setup packet", "stack" in match[0], segment.kernel, request)
    elif "rejecting" in segment.head:
        verdict = Verdict("dma_vmalloc", DECIDED, f"{request.caller or 'A driver'} gave a vmalloc address to dma_map_single: its pages are not contiguous, so the mapping was refused.",
                          remedies=(Remedy("caller", "kmalloc the buffer, or map page by page (vmalloc_to_page, a scatterlist)", "each piece is contiguous for the device"),))  # fmt: skip
    else:
        verdict = _api(segment, text, request.path)
    return Report("dma", "DMA", segment.line, segment.seconds, segment.kernel, request, verdict, stack=segment.stack)


def _usb(setup: bool, stack: bool, kernel: Kernel, request: Request) -> Verdict:
    """The check of usb_hcd_map_urb_for_dma (drivers/usb/core/hcd.c), which refuses."""
    what = "setup packet" if setup else "transfer buffer"
    behind = max((n + 1 for n, name in enumerate(request.path) if USB_CORE.match(name)), default=0)
    who = next(iter(request.path[behind:]), "the driver")
    fix = Remedy("caller", f"kmalloc the {what} (in {who})", "memory that a controller may reach; the transfer is refused until then (-EAGAIN)")
    why = (f"On the way: {' <- '.join(request.path[:5])}.",) if request.path else ()
    if stack:
        return Verdict(
            "dma_from_stack", DECIDED, f"{who} gave the USB controller a {what} on the kernel stack; the transfer was refused.", why, remedies=(fix,)
        )
    maybe = (
        ()
        if kernel.at_most < VMAP_STACK
        else ("whether it is a vmalloc buffer or a local variable: with CONFIG_VMAP_STACK (4.9 and newer) the stack is in vmalloc's area",)
    )
    return Verdict(
        "dma_vmalloc",
        DECIDED,
        f"{who} gave the USB controller a {what} in vmalloc's area, whose pages are not contiguous; the transfer was refused.",
        why,
        missing=maybe,
        remedies=(fix,),
    )


def _api(segment: Segment, text: str, path: tuple[str, ...]) -> Verdict:
    match = API.search(text)
    device, message = ((match[1] or match[2] or "").strip(), re.sub(r"\s+", " ", match[3]).strip()) if match else ("", "")
    details: dict[str, Any] = {"device": device, "message": message[:300]}
    on_way = f" On the way: {' <- '.join(path[:5])}." if path else ""
    if re.search(r"maps\s+memory\s+from\s*stack", message):
        why = []
        address = ADDRESS.search(text)
        if address:
            value = int(address[1], 16)
            details["address"] = value
            words = [int(w, 16) for w in re.findall(r"(?<![\w:])([0-9a-f]{16}|[0-9a-f]{8})(?!\w)", text)]
            same = [bytes_ for bytes_ in STACKS if any(w != value and w // bytes_ == value // bytes_ and w > 1 << 30 for w in words)]
            if same:
                details["stack_bytes"] = same[0]
                start = value // 16384 * 16384 if 16384 in same else value // same[0] * same[0]
                why.append(
                    f"The address 0x{value:x} lies in the same {max(16, same[0] >> 10)} KiB as the report's own stack (from 0x{start:x}): it is a local variable."
                )
        why.append("The device named is the controller; the mistake is the driver's that passed a local buffer." + on_way)
        why.append(
            "Nothing was refused: CONFIG_DMA_API_DEBUG warns. With stacks in vmalloc space (CONFIG_VMAP_STACK, 4.9 and newer) the same code maps wrong memory."
        )
        return Verdict("dma_from_stack", DECIDED, f"A driver gave a buffer on the kernel stack to {device or 'a device'} for DMA.", tuple(why), details=details,
                       remedies=(Remedy("caller", f"kmalloc the transfer buffer (in {next((p for p in path if not p.startswith(('usb_', 'dma_', 'hcd_', 'spi_', 'i2c_'))), 'the driver')})", "memory that a device may reach, with its own cache lines"),))  # fmt: skip
    if "vmalloc" in message or "invalid area" in message:
        return Verdict("dma_vmalloc", DECIDED, f"A driver gave a vmalloc address to {device or 'a device'} for DMA: {message}.", (on_way.strip(),) if on_way else (), details=details,
                       remedies=(Remedy("caller", "kmalloc the buffer, or map its pages one by one", "each piece is contiguous for the device"),))  # fmt: skip
    if "debugging out of memory" in message:
        return Verdict("dma_misuse", PROBABLE, "The DMA debugging itself ran out of entries and is off from here: probably a driver maps and never unmaps.", details=details,
                       remedies=(Remedy("look", "dma_debug_entries= larger, and /sys/kernel/debug/dma-api/dump", "shows who holds mappings"),))  # fmt: skip
    return Verdict(
        "dma_misuse", DECIDED if match else UNDECIDED, f"The DMA interface was used wrongly by the driver of {device or 'a device'}: {message or 'the message is damaged'}.",
        ("Nothing was refused: CONFIG_DMA_API_DEBUG warns." + on_way,), details=details,
        remedies=(Remedy("caller", _fix(message), "the warning goes away, and the device sees the right memory"),),
    )  # fmt: skip


def _fix(message: str) -> str:
    if "map error" in message or "mapping error" in message:
        return "check dma_mapping_error after each map"
    if "pending DMA" in message:
        return "unmap and free every mapping before the driver lets go of the device"
    if "sg segment longer" in message:
        return "dma_set_max_seg_size with what the device can do, and shorter pieces in the scatter list"
    if "across boundary" in message:
        return "dma_set_seg_boundary with what the device can do, and a scatter list that keeps to it"
    if "sync" in message:
        return "sync what was mapped: an address and size inside one mapping, before it is unmapped"
    if "invalid DMA memory address" in message:
        return "check that the mapping or allocation succeeded before it is freed: that address is the error value"
    if "free DMA memory" in message:
        return "free once, with the address and size that the allocation returned"
    if "overlapping mappings" in message or "EEXIST" in message:
        return "map a buffer once, or unmap it before it is mapped again (two mappings share a cache line)"
    if "not allocated" in message:
        return "unmap once, with the address that the map returned"
    return "unmap with what was mapped: same size, direction and function"


def _swiotlb(device: str, wanted: int, total: int | None, used: int | None) -> Verdict:
    details = {"device": device, "bytes": wanted, "slots": total, "slots_used": used}
    limit = SLOT_BYTES * SEGMENT_SLOTS
    if wanted > limit:
        return Verdict("swiotlb_full", DECIDED, f"{device} wanted a bounce buffer of {size(wanted)}; one can have {size(limit)} at most, however many are free: it can never succeed.", details=details,
                       remedies=(Remedy("caller", "respect dma_max_mapping_size() in the driver", "requests are split below the limit"), Remedy("admin", "a 64-bit DMA mask, or an IOMMU", "no bounce buffer is needed"),))  # fmt: skip
    if total == 0:
        return Verdict("swiotlb_full", DECIDED, f"{device} needs a bounce buffer of {size(wanted)}, and the machine has none at all: swiotlb is off or not set up.", details=details,
                       remedies=(Remedy("admin", "swiotlb=force or a working IOMMU (not iommu=off)", "buffers that the device cannot reach are copied or remapped"), Remedy("caller", "a 64-bit DMA mask if the device can", "no bounce buffer is needed")))  # fmt: skip
    if total is not None and used is not None:
        need = -(-wanted // SLOT_BYTES)
        free = total - used
        if free >= need:
            text = f"{device} wanted {size(wanted)} ({need} slots) of bounce buffer; {free} of {total} slots are free, but not {need} in a row."
            certainty = DECIDED
        else:
            text, certainty = f"{device} wanted {size(wanted)} ({need} slots) of bounce buffer; only {free} of {total} slots are free.", DECIDED
    else:
        text, certainty = f"{device} wanted {size(wanted)} of bounce buffer, and there is none left (or not enough in a row).", PROBABLE
    return Verdict("swiotlb_full", certainty, text, ("Ordinary memory does not matter: bounce buffers are set aside at boot.",), details=details,
                   remedies=(Remedy("admin", "swiotlb=<slots of 2 KiB> larger on the command line (65536 is 128 MiB)", "more bounce buffers"), Remedy("caller", "a 64-bit DMA mask if the device can, or unmapping earlier", "fewer bounce buffers are needed")))  # fmt: skip


def _cma(match: re.Match[str], holes: re.Match[str] | None) -> Verdict:
    pages, error = int(match[2]), int(match[3])
    details: dict[str, Any] = {"area": match[1] or "", "pages": pages, "errno": error}
    why = []
    text = f"CMA{f' area {match[1]}' if match[1] else ''} could not give {pages} pages in a row (error {error})."
    if holes:
        runs = [int(run.split("@")[0]) for run in re.findall(r"\d+(?:@\d+)?", holes[1])]
        details |= {"free": int(holes[2]), "total": int(holes[3]), "largest_run": max(runs, default=0)}
        why.append(f"{holes[2]} of {holes[3]} pages are free; the longest run is {max(runs, default=0)} pages.")
    if error == -16:
        why.append("-16 (EBUSY): the pages were there, but some in them are in use and could not be moved (pinned).")
    elif error == -12:
        why.append("-12 (ENOMEM): no run of that length is free in the area.")
    return Verdict("cma_failed", DECIDED, text, tuple(why), details=details, missing=() if holes else ("the map of the area (number of available pages) is not in the log",),
                   remedies=(*((Remedy("look", "who pins pages in the area (page_owner=on; long-term users of pages), and whether a retry helps", "the area is large enough, but some of it cannot be moved"),) if error == -16 else ()), Remedy("admin", "a larger cma= area", "more and longer runs"), Remedy("caller", "allocate once at start and keep it", "the area is least broken up then")))  # fmt: skip

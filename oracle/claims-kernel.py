#!/usr/bin/env python3
"""Puts together what real kernels measured in the experiments of `mmtwin claims`.

    claims-kernel.py LINES TESTS_DATA OUT.json

LINES is what claims.sh collected: lines "claims: NAME key=value ..." after a line "@kernel RELEASE". TESTS_DATA has the other recorded experiments
(contexts, misuse, costs, events, layouts, the classic SLAB, the 28 bytes), each with the kernel it was made with. OUT has for each claim the figures that the
twin measures too, under the same names, and what else the kernel measured.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

GFP = {0xCC0: "GFP_KERNEL", 0xDC0: "GFP_KERNEL|__GFP_ZERO"}
Lines = dict[str, list[dict[str, Any]]]


def number(text: str) -> Any:
    return int(text, 0) if re.fullmatch(r"-?\d+|0x[0-9a-f]+", text) else text


def read(path: Path) -> dict[str, Lines]:
    """The lines of each kernel by name."""
    kernels: dict[str, Lines] = {}
    for line in path.read_text().splitlines():
        if line.startswith("@kernel "):
            lines = kernels.setdefault(line[8:], {})
            continue
        name, *words = line.removeprefix("claims: ").split()
        lines.setdefault(name, []).append({key: number(value) for key, _, value in (word.partition("=") for word in words)})
    return kernels


def tests_of(text: str) -> dict[str, list[str]]:
    """contexts-6.1.txt by test."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("test "):
            of = found.setdefault(line[5:], [])
        else:
            of.append(line)
    return found


def context(lines: list[str]) -> str:
    """What came of an act: the kernel's BUG, or the module's own word."""
    for line in lines:
        if line.startswith(("kernel BUG", "BUG")):
            return line
    words = [line.removeprefix("contexts: ") for line in lines if line.startswith(("contexts: kmalloc", "contexts: vmalloc", "contexts: freed"))]
    return words[0].removeprefix("kmalloc ").removeprefix("vmalloc ")


def case(text: str, name: str, pattern: str) -> str:
    """The kernel's words in a case of vmalloc-misuse-6.1.txt."""
    part = text.split(f"vmisuse: case {name}\n")[1].split("vmisuse: case ")[0]
    found = re.search(pattern, part)
    assert found, (name, part)
    return found[0]


def word(yes: Any) -> str:
    return "yes" if yes else "no"


def main(lines: Path, data: Path, out: Path) -> None:
    kernels = read(lines)
    x86 = next(release for release in kernels if release.startswith("6.1.") and "amd64" in release)
    i386 = next(release for release in kernels if release.endswith("-686"))
    newer = next(release for release in kernels if release.startswith("6.12."))
    rows: dict[str, dict[str, Any]] = {}

    def get(name: str, release: str = x86) -> dict[str, Any]:
        return kernels[release][name][-1]

    def add(row: str, figures: dict[str, Any], release: str = x86, source: str = "oracle/module/claims.c") -> None:
        rows[row] = {"kernel_version": release, "source": source, "figures": figures}

    place = {"direct_map": "direct map", "vmalloc": "vmalloc", "modules": "modules"}
    for kind in ("kmalloc", "vmalloc"):
        add(f"{kind}-kernel-memory", {"region": place[get(kind)["region"]], "user": word(get(kind)["user"])})
    add("kmalloc-contiguous", {"bytes": get("kmalloc-runs")["largest"], "runs": get("kmalloc-runs")["runs"]})
    add("vmalloc-scattered", {"pages": get("vmalloc-runs")["pages"], "runs": get("vmalloc-runs")["runs"]})
    large = get("vmalloc-large")
    add("kmalloc-limited", {"largest": get("kmalloc-limit")["largest"], "bytes": large["bytes"], "large": "served" if large["served"] else "NULL"})
    ksize = {int(size): int(usable) for size, usable in (pair.split(":") for pair in next(iter(get("ksize"))).split(","))}
    add("kmalloc-128-kib", {"more": "served" if ksize[131073] else "NULL", "usable": ksize[131073]})
    add("kmalloc-32-bytes", {"one": ksize[1], "twenty_eight": ksize[28]})
    add("kmalloc-powers-of-two", {"a": ksize[100], "b": ksize[129], "c": ksize[193], "d": ksize[4097]})
    add("vmalloc-without-limit", {"all": "served" if get("vmalloc-all-memory")["served"] else "NULL"})

    with gzip.open(data / "layouts.json.gz") as file:
        runs = json.load(file)["runs"]
    layout = next(run for run in runs if run["release"] == i386 and run["ram"] == "2G" and run["cmdline"] == "nokaslr")["probe"]
    wide = next(run for run in runs if run["release"] == x86 and run["ram"] == "2G" and run["cmdline"] == "nokaslr")["probe"]
    probe = "oracle/layout.sh"
    add("vmalloc-room-32-bits", {"room": layout["VMALLOC_END"] - layout["VMALLOC_START"], "memory": 2 << 30}, i386, probe)
    add(
        "layout-32-bits",
        {
            "page_offset": layout["PAGE_OFFSET"],
            "last": layout["FIXADDR_TOP"] + 4095,  # the fixmap's topmost page
            "user_end": layout["TASK_SIZE"],
            "inside": word(get("kmalloc", i386)["region"] == "direct_map" and get("offset", i386)["page_offset"] == layout["PAGE_OFFSET"]),
        },
        i386,
        probe,
    )
    add(
        "vmalloc-start",
        {
            "high_memory": layout["high_memory"],
            "hole": layout["VMALLOC_START"] - layout["high_memory"],
            "vmalloc_start": layout["VMALLOC_START"],
            "vmalloc_end": layout["VMALLOC_END"],
        },
        i386,
        probe,
    )
    add(
        "layout-64-bits",
        {"page_offset": wide["PAGE_OFFSET"], "vmalloc_start": wide["VMALLOC_START"], "room": wide["VMALLOC_END"] + 1 - wide["VMALLOC_START"] >> 40},
        x86,
        probe,
    )

    add("kmalloc-constant-offset", {"different": 1 if get("offset")["same"] else 2, "offset": get("offset")["offset"]})
    add(
        "kmalloc-no-page-tables", {"sizes": get("kmalloc-tables")["sizes"], "entries": get("kmalloc-tables")["changes"] + abs(get("kmalloc-tables")["entries"])}
    )
    add("vmalloc-page-tables", {"pages": get("vmalloc-tables")["pages"], "set": get("vmalloc-tables")["entries"], "cleared": -get("vfree-tables")["entries"]})

    events = json.loads((data / "vmalloc-events-6.1.json").read_text())
    one = next(call for call in events["calls"] if call["call"] == "vmalloc" and call["pages"] == 1)["events"]
    two = next(call for call in events["calls"] if call["call"] == "vmalloc" and call["pages"] == 2)["events"]
    costs = next(run for run in json.loads((data / "alloc-cost-6.1.json").read_text())["runs"] if run["release"] == x86 and "=0" in run["cmdline"])["costs"]
    bulk = next(i for i, event in enumerate(one) if event["kind"] == "bulk")
    add(
        "vmalloc-slower",
        {
            "objects": sum(event["kind"] in ("kmalloc", "kmem_cache_alloc") for event in one),
            "pages": sum(event["kind"] == "mm_page_alloc" for event in one[bulk:]),
            "entries": get("vmalloc-tables")["entries"] // get("vmalloc-tables")["pages"],
            "kmalloc_entries": get("kmalloc-tables")["changes"] + abs(get("kmalloc-tables")["entries"]),
            **{
                f"{kind}_instructions": costs[kind]["4096"]["median"] + costs[free]["4096"]["median"]
                for kind, free in (("kmalloc", "kfree"), ("vmalloc", "vfree"))
            },
        },
        events["release"],
        "oracle/vmalloc-events.py, oracle/module/claims.c, oracle/alloc-cost.sh",
    )
    kmallocs = [event for event in two if event["kind"] == "kmalloc"]
    add(
        "vmalloc-calls-kmalloc",
        {"kmallocs": len(kmallocs), "flags": " and ".join(sorted({GFP[event["gfp"]] for event in kmallocs}))},
        events["release"],
        "oracle/vmalloc-events.py",
    )

    fragmented = get("fragmented")
    assert fragmented["free_enough"]
    answer = {0: "NULL", 1: "served"}
    add(
        "vmalloc-large-buffers",
        {
            "bytes": fragmented["bytes"],
            "kmalloc": answer[fragmented["kmalloc"]],
            "vmalloc": answer[fragmented["vmalloc"]],
            "kvmalloc": place[fragmented["kvmalloc"]],
        },
    )
    add("vmalloc-modules", {"region": place[get("module")["region"]], "region_32_bits": place[get("module", i386)["region"]]}, f"{x86}, {i386}")
    dma = get("dma")
    add("dma-kmalloc", {"bytes": dma["bytes"], "kmalloc": "mapped" if not dma["kmalloc"] else "refused"})
    with gzip.open(data / "dma-6.1.txt.gz", "rt") as file:
        answers = re.findall(r"^run .*cmdline=(.*)$|^sg nents=(\d+) .*adjacent_frames=(\d)$", file.read(), re.M)
    pieces, cmdline = {}, ""
    for words, nents, adjacent in answers:
        cmdline = cmdline if nents else words
        if nents:
            assert adjacent == "0"
            pieces["intel_iommu=on" in cmdline] = int(nents)
    add("dma-contiguous", {"direct": pieces[False], "iommu": pieces[True]}, x86, "oracle/module/dma_probe.c")
    add("dma-vmalloc", {"bytes": dma["bytes"], "whole": "mapped" if not dma["vmalloc"] else "refused", "pages": dma["segments"]})

    text = (data / "contexts-6.1.txt").read_text()
    contexts, release = tests_of(text), re.search(r"Not tainted|Tainted: \S+ +\S+ +(6\.1\.\S+)", text)
    assert release
    version, source = release[1], "oracle/module/contexts.c"
    acts = {"softirq": "vmalloc-softirq", "hardirq": "vmalloc-hardirq", "gfp_atomic": "vmalloc_atomic-hardirq", "preemption": "vmalloc-preempt"}
    add("vmalloc-atomic-context", {name: context(contexts[act]) for name, act in acts.items()}, version, source)
    add("kmalloc-atomic-context", {name: context(contexts[f"kmalloc-{name}"]) for name in ("softirq", "hardirq")}, version, source)
    add("vfree-interrupt", {"hardirq": context(contexts["vfree-hardirq"]), "nmi": context(contexts["vfree-nmi"])}, version, source)
    misuse = (data / "vmalloc-misuse-6.1.txt").read_text()
    add(
        "pairs",
        {
            "vfree": case(misuse, "vfree_kmalloc", r"Trying to vfree\(\) nonexistent vm area"),
            "kfree": case(misuse, "kfree_vmalloc", r"BUG: unable to handle page fault for address"),
            "kvfree": word(get("kvfree")["left"] == 0),
        },
        x86,
        "oracle/module/vmalloc_misuse.c, oracle/module/claims.c",
    )

    def areas(disk: str) -> list[int]:
        return sorted((line["bytes"] for line in kernels[x86]["swapon"] if line["disk"] == disk), reverse=True)

    device = {line["disk"]: (line["kilobytes"] + 4) << 10 for line in kernels[x86]["swap-size"]}  # /proc/swaps leaves the header out
    (small, small_cgroups), (large_map, large_cgroups) = areas("vda"), areas("vdb")
    add(
        "swap-map",
        {
            "small_device": device["vda"],
            "small": small,
            "small_cgroups": small_cgroups,
            "large_device": device["vdb"],
            "large": large_map,
            "large_cgroups": large_cgroups,
        },
        x86,
        "oracle/claims.sh",
    )
    held, pressure = get("held"), get("pressure")
    add(
        "vmalloc-not-swapped",
        {
            "bytes": held["bytes"],
            "frames": "the same" if held["frames_same"] else "others",
            "contents": "intact" if not held["wrong"] else "lost",
            "lru": held["lru"],
            "swapped": pressure["swapped"] * 4096,
        },
        x86,
        "oracle/claims.sh",
    )
    add(
        "malloc-swapped",
        {
            "out": word(pressure["swapped"] > 0),
            "contents": "intact" if not pressure["wrong"] else "lost",
            "pages": pressure["pages"],
            "swapped": pressure["swapped"],
        },
        x86,
        "oracle/claims-user.c",
    )
    user = get("malloc")
    add("malloc-user-memory", {"region": user["region"].strip("[]"), "kernel": word(user["kernel_half"])}, x86, "oracle/claims-user.c")
    lazy, scattered, block = get("malloc-lazy"), get("malloc-runs"), get("malloc-large")
    add("malloc-lazy", {"bytes": block["bytes"], "before": lazy["before"], "touched": lazy["touched"], "after": lazy["after"]}, x86, "oracle/claims-user.c")
    add("malloc-scattered", {"pages": scattered["pages"], "runs": scattered["runs"]}, x86, "oracle/claims-user.c")

    in_slab = {int(size): int(yes) for size, yes in (pair.split(":") for pair in next(iter(get("in-slab"))).split(","))}
    add("kmalloc-slabs", {"small": word(in_slab[100]), "largest": word(in_slab[8192]), "large": word(in_slab[8193])})
    add("kmalloc-aligned", {"largest": get("aligned")["largest"], "aligned": word(get("aligned")["aligned"])})
    with gzip.open(data / "slab-classic-caches.json.gz") as file:
        classic = json.load(file)["kernels"][0]
    caches = [dict(zip(classic["columns"], values, strict=True)) for values in classic["caches"]]
    cache = next(found for found in caches if found["object_size"] == get("colours")["object_size"] and found["ctor"])
    offsets = [n * cache["colour_off"] for n in range(max(cache["colour"], 1))]
    assert set(cache["offsets"]) <= set(offsets)
    add(
        "slab-colours",
        {"slub": get("colours")["colours"], "slab": len(offsets), "offsets": ", ".join(map(str, offsets))},
        f"{x86}, {classic['release']}",
        "oracle/module/claims.c, oracle/slab-kernel.sh",
    )
    add("kmalloc-28-bytes", {"each": get("small-kmalloc")["bytes_each"], "per_page": get("small-kmalloc")["most"]})
    add(
        "vmalloc-28-bytes", {"objects": get("small-vmalloc")["objects"], "pages": get("small-vmalloc")["pages"], "each": get("small-vmalloc")["addresses_each"]}
    )
    end = json.loads((data / "exhaust28-686.json").read_text())
    add(
        "vmalloc-28-bytes-to-the-end",
        {
            "count": end["vmalloc"]["count"],
            "bytes": end["vmalloc"]["count"] * 28,
            "free_mib": int(re.search(r"^ free:(\d+)", "\n".join(end["log"]), re.M)[1]) * 4096 >> 20,  # type: ignore[index]
            "words": end["log"][0],
            "kmalloc_count": end["kmalloc"]["count"],
        },
        end["release"],
        "oracle/module/exhaust28.c",
    )

    # Where the newer kernel was asked the same, does it answer the same?
    same = sorted(name for name in kernels[newer] if kernels[newer][name] == kernels[x86].get(name))
    document = {"kernels": list(kernels), "same_in_newer": same, "asked_newer": len(kernels[newer]), "claims": rows}
    temporary = out.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, out)
    print(f"wrote {out}: {len(rows)} claims")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))

"""Writes the tables of docs/vmalloc-cost.md, and the plot beside it, from what oracle/alloc-cost.sh counted.

    python docs/vmalloc_cost.py             the tables and docs/vmalloc-cost.svg (needs matplotlib, which mmtwin itself does not)
    python docs/vmalloc_cost.py --tables    the tables only

A table lies between two comments, `<!-- table NAME -->` and `<!-- end -->`; what is between them is replaced. If there is a docs/vmalloc-cost-twin.json,
its columns stand beside the kernel's in the table "pairs" of the machine they belong to:
{"x86_64": {"columns": ["list operations", ...], "rows": {"8": [12, ...], "16": [...], ...}}, "i686": {...}}.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNTED = HERE.parent / "tests" / "data" / "alloc-cost-6.1.json"
TWIN = HERE / "vmalloc-cost-twin.json"
TEXT, PLOT = HERE / "vmalloc-cost.md", HERE / "vmalloc-cost.svg"
MACHINES = {"x86_64": "x86-64", "i686": "i386"}
ALLOC_STEPS = ("step_area", "step_array", "step_pages", "step_map")
Run = dict[str, Any]


def runs() -> dict[tuple[str, bool], Run]:
    """By machine, and whether pages are zeroed when allocated."""
    return {(run["machine"], run["cmdline"] == "init_on_alloc=1"): run for run in json.loads(COUNTED.read_text())["runs"]}


def sizes(run: Run) -> list[int]:
    """All that were measured, ascending."""
    return sorted(int(size) for size in run["costs"]["vmalloc"])


def cost(run: Run, what: str, size: int, which: str = "median") -> int:
    """One number: of several samples the median, unless `which` says otherwise; a mean where only that was taken."""
    found = run["costs"][what][str(size)]
    return int(found["mean"] if "mean" in found else found[which])


def named(size: int) -> str:
    """A size as the tables have it."""
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB" if size >> 10 else f"{size} B"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def pairs(plain: Run, zeroing: Run, twin: dict[str, Any] | None) -> str:
    """One call of each: kmalloc, kfree, vmalloc, vfree; what vmalloc costs more."""
    head = ["size", "kmalloc", "kfree", "vmalloc", "vfree", "vmalloc pair / kmalloc pair", "the same, pages zeroed", *(twin["columns"] if twin else ())]
    rows = []
    for size in sizes(plain):
        calls = [cost(plain, what, size) for what in ("kmalloc", "kfree", "vmalloc", "vfree")]
        zeroed = [cost(zeroing, what, size) for what in ("kmalloc", "kfree", "vmalloc", "vfree")]
        ratios = [f"{sum(found[2:]) / sum(found[:2]):.1f}" for found in (calls, zeroed)]
        more = [str(value) for value in twin["rows"].get(str(size), [""] * len(twin["columns"]))] if twin else []
        rows.append([named(size), *(f"{value:,}" for value in calls), *ratios, *more])
    return table(head, rows)


def spread(plain: Run) -> str:
    """Least, median and first calls, and what is put off."""
    head = [
        "size",
        "kmalloc: least",
        "first",
        "held, pair",
        "vmalloc: least",
        "median",
        "without page tables",
        "vfree: least",
        "purge, per area",
        "all of it, pair",
    ]
    rows = []
    for size in sizes(plain):
        row = [cost(plain, "kmalloc", size, "least"), cost(plain, "kmalloc", size, "first"), cost(plain, "kmalloc_kfree_held", size)]
        row += [cost(plain, "vmalloc", size, which) for which in ("least", "median")]
        row += [cost(plain, "vmalloc_without_tables", size, "least"), cost(plain, "vfree", size, "least")]
        row += [round(cost(plain, "purge", size) / cost(plain, "areas_a_purge", size)), cost(plain, "vmalloc_vfree_all", size)]
        rows.append([named(size), *(f"{value:,}" for value in row)])
    return table(head, rows)


def allocation(plain: Run) -> str:
    """What a vmalloc does, in shares."""
    head = ["size", "vmalloc", "area and descriptor", "page array", "pages", "page tables", "rest", "zeroing, if on"]
    rows = []
    for size in whole_pages(plain):
        total = cost(plain, "vmalloc", size, "least")
        parts = [cost(plain, what, size, "least") for what in ALLOC_STEPS]
        shown = [f"{part:,} ({part / total:.0%})" for part in (*parts, total - sum(parts))]
        rows.append([named(size), f"{total:,}", *shown, f"{cost(plain, 'step_zero', size, 'least'):,}"])
    return table(head, rows)


def freeing(plain: Run) -> str:
    """What a vfree does, in shares."""
    head = ["size", "vfree", "unmapping", "area and descriptor", "pages", "page array", "rest"]
    rows = []
    for size in whole_pages(plain):
        total = cost(plain, "vfree", size, "least")
        unmap = cost(plain, "step_unmap", size, "least")
        parts = [
            unmap,
            cost(plain, "step_unmap_area_free", size, "least") - unmap,
            *(cost(plain, f"step_{what}_free", size, "least") for what in ("pages", "array")),
        ]
        rows.append([named(size), f"{total:,}", *(f"{part:,} ({part / total:.0%})" for part in (*parts, total - sum(parts)))])
    return table(head, rows)


def whole_pages(run: Run) -> list[int]:
    """The smaller sizes cost what a page costs."""
    return [size for size in sizes(run) if size >= 4096]


def tables() -> dict[str, str]:
    """All of them, by name."""
    found, twin = runs(), json.loads(TWIN.read_text()) if TWIN.exists() else {}
    made = {}
    for machine, short in MACHINES.items():
        plain, zeroing = found[machine, False], found[machine, True]
        made[f"pairs {short}"] = pairs(plain, zeroing, twin.get(machine))
        made[f"spread {short}"] = spread(plain)
        made[f"vmalloc {short}"] = allocation(plain)
        made[f"vfree {short}"] = freeing(plain)
    return made


def filled(text: str) -> str:
    """The document with its tables as they are now.

    :raises KeyError: it has a table that nothing makes.
    """
    made = tables()
    return re.sub(r"(<!-- table (.+?) -->\n).*?(?=<!-- end -->)", lambda found: found[1] + made[found[2]], text, flags=re.S)


def plot() -> None:
    """Instructions per pair over the size, one picture per machine; and what a vmalloc of each size is made of."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "mmtwin", "svg.fonttype": "none"}  # equal numbers make equal files, text stays text
    import matplotlib.pyplot as plt

    found = runs()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    for row, (machine, short) in enumerate(MACHINES.items()):
        plain, zeroing = found[machine, False], found[machine, True]
        every, whole = sizes(plain), whole_pages(plain)
        left, right = axes[row]
        for run, style, note in ((plain, "-", ""), (zeroing, ":", ", pages zeroed")):
            for names, colour, label in ((("kmalloc", "kfree"), "#59a14f", "kmalloc + kfree"), (("vmalloc", "vfree"), "#e15759", "vmalloc + vfree")):
                left.plot(every, [sum(cost(run, name, size) for name in names) for size in every], style, color=colour, label=label + note)
        left.plot(
            every,
            [cost(plain, "vmalloc_without_tables", size, "least") for size in every],
            "--",
            color="#f28e2b",
            label="vmalloc where there are no page tables yet",
        )
        left.set(xscale="log", yscale="log", title=f"{short}: instructions per pair", xlabel="bytes asked for", ylabel="instructions")
        left.set_xticks([2**power for power in (3, 6, 9, 12, 15, 18, 22)], [named(2**power) for power in (3, 6, 9, 12, 15, 18, 22)])
        left.minorticks_off()
        left.grid(alpha=0.3)
        left.legend(fontsize=8)
        totals = [cost(plain, "vmalloc", size, "least") for size in whole]
        parts = {
            "area and descriptor": ([cost(plain, "step_area", size, "least") for size in whole], "#4c78a8"),
            "page array": ([cost(plain, "step_array", size, "least") for size in whole], "#76b7b2"),
            "pages": ([cost(plain, "step_pages", size, "least") for size in whole], "#edc948"),
            "page tables": ([cost(plain, "step_map", size, "least") for size in whole], "#b07aa1"),
        }
        parts["rest"] = ([total - sum(values[position] for values, _ in parts.values()) for position, total in enumerate(totals)], "#bab0ac")
        bottom = [0.0] * len(whole)
        for label, (values, colour) in parts.items():
            shares = [100 * value / total for value, total in zip(values, totals, strict=True)]
            right.bar(range(len(whole)), shares, 0.8, bottom, color=colour, label=label)
            bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
        right.set(title=f"{short}: what a vmalloc is made of (pages not zeroed)", ylabel="% of its instructions", ylim=(0, 112))
        right.set_xticks(range(len(whole)), [named(size) for size in whole], rotation=45, ha="right", fontsize=8)
        right.legend(fontsize=7.5, loc="upper center", ncols=5)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Writes what is asked for."""
    TEXT.write_text(filled(TEXT.read_text()))
    if "--tables" not in sys.argv[1:]:
        plot()


if __name__ == "__main__":
    main()

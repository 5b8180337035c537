"""Makes docs/claims.md from the table of claims: runs every experiment on the twin.

python docs/claims_page.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mmtwin import claims
from mmtwin.claims import Measured

PAGE = Path(__file__).parent / "claims.md"
HEAD = """\
# What is said about kmalloc, vmalloc and malloc, measured

Texts about Linux's memory repeat a set of sentences; some were true of older kernels only, some never were. Here each is an experiment of a few lines of Python. The twin
runs it whenever you ask, and the same experiment was made in a real kernel, whose measurement decides:

```
mmtwin claims                        # all of them, measured now
mmtwin claims --only pairs --show    # one, with its Python
mmtwin claims --json                 # {"schema": 1, "claims": [{"id", "claim", "verdict", "truth", "twin", "kernel", "kernel_version", ...}]}
```

The exit code is 3 if the twin measures anything else than the kernel did. The kernel's figures are in `src/mmtwin/data/claims-kernel.json`, made by `oracle/claims.sh` (part of `make oracle`):
a module (`oracle/module/claims.c`) and a program (`oracle/claims-user.c`) in QEMU guests of Debian's kernels, and the recordings of other experiments where these are named.
This page is made by `docs/claims_page.py`, and a test demands that it is up to date.
"""
TOOLS = """\
`frames`, `runs`, `region`, `user_may`, `served`, `outcome`, `page_table_entries` and `present` in the experiments are a few lines each: `src/mmtwin/claims/tools.py`. Counts that depend on what
else is in memory (how many areas a booted kernel has) are compared to within 1 %, everything else exactly.
"""


def page(measured: list[Measured]) -> str:
    """The whole text."""
    kinds = Counter(m.verdict for m in measured)
    lines = [HEAD, f"{len(measured)} claims: {kinds['true']} true, {kinds['true then, not now']} true then but not now, {kinds['wrong']} wrong.", ""]
    lines += ["| claim | verdict | in truth |", "|---|---|---|"]
    lines += [f"| [{m.claim.claim}](#{m.claim.id}) | {verdict(m)} | {m.claim.truth} |" for m in measured]
    kernels = json.loads((Path(claims.__file__).parents[1] / "data/claims-kernel.json").read_text())
    newer = next(name for name in kernels["kernels"] if name.startswith("6.12."))
    lines += ["", "## The experiments", "", TOOLS]
    lines += [
        f"The module and the program asked Linux {newer} the same: {len(kernels['same_in_newer'])} of {kernels['asked_newer']} answers are equal to 6.1's, word by word.",
        "",
    ]
    for m in measured:
        lines += [f"### {m.claim.id}", "", f"**{m.claim.claim}** {verdict(m)[0].upper()}{verdict(m)[1:]}. {m.claim.truth}", ""]
        lines += ["```python", m.claim.code(), "```", ""]
        if m.twin_says == m.kernel_says:
            lines += [f"- the twin, and Linux {m.kernel_version}: {m.kernel_says}"]
        else:
            lines += [f"- the twin: {m.twin_says}", f"- Linux {m.kernel_version}: {m.kernel_says}"]
        lines += [f"- recorded with `{'`, `'.join(m.source.split(', '))}`", ""]
    return "\n".join(lines)


def verdict(m: Measured) -> str:
    """With the time when it was true."""
    return f"{m.verdict} ({m.claim.then})" if m.verdict == "true then, not now" else m.verdict


if __name__ == "__main__":
    PAGE.write_text(page(list(claims.run())))

"""Imports go downwards only; numba is imported in one place; heavy libraries are not imported where an answer must be quick."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mmtwin

ROOT = Path(mmtwin.__file__).parent
LAYERS = [
    {"_link", "_jit", "errors", "units", "notebook"}, {"gfp"}, {"profiles"}, {"mm"}, {"user"}, {"procfs", "memory"}, {"machine", "slab_api", "slub_debug", "contexts", "dma", "address_space", "page_fault", "vmalloc_api", "vmalloc_steps", "tracing", "swap_area", "processes", "process", "process_heap", "process_malloc", "process_text", "program", "oom", "show_mem", "reclaim"}, {"recording"}, {"replay"}, {"diagnose", "claims"}, {"report"}, {"cli"},
]  # fmt: skip
"""From the bottom up; the modules of one set may import each other and everything below."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, and the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno
            if node.module == "mmtwin":
                yield from ((f"mmtwin.{alias.name}", node.lineno) for alias in node.names)


def test_imports_go_downwards() -> None:
    wrong, seen = [], 0
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        if layer == "__init__":
            continue
        assert layer in LEVEL, f"{path.name}: which layer is {layer}?"
        for module, line in imports(path):
            parts = module.split(".")
            if parts[0] == "mmtwin" and len(parts) > 1 and parts[1] in LEVEL:
                seen += 1
                if LEVEL[parts[1]] > LEVEL[layer]:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {layer} imports {module}, which is above it")
    assert not wrong, "\n".join(wrong)
    assert seen > 50


def test_only_jit_and_its_linker_import_numba() -> None:
    users = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") for module, _ in imports(path) if module.split(".")[0] in ("numba", "llvmlite")}
    assert users == {"_jit.py", "_link.py"}


def test_drgn_and_elftools_stay_in_the_recorder() -> None:
    users = {path.relative_to(ROOT).parts[:2] for path in ROOT.rglob("*.py") for module, _ in imports(path) if module.split(".")[0] in ("drgn", "elftools")}
    assert users == {("recording", "capture")}


def test_compiled_entry_points_are_where_the_cache_looks() -> None:
    """The digest of compiled code covers these directories (`_jit._digest`): an entry point elsewhere would be read from the cache after its source had changed."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in ("mm", "user", "replay", "_jit.py") and re.search(r"^@kernel|= kernel\(", path.read_text(), re.M)
    ]
    assert not elsewhere

"""Compiling entry points: linked once, or numba's own way where its inner workings are not known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from mmtwin import _jit

@_jit.slow
def cold(table, by):
    table[1] += by
    return table[1]

@_jit.inner
def add(table, by):
    table[0] += by
    return cold(table, 2 * by)

add_cold = _jit.slow(add)

@_jit.kernel
def entry(table, by):
    return add(table, by) + add_cold(table, by)
"""
PROGRAM = """
import sys
import numba, numpy
{before}
import user
from mmtwin import _jit
table = numpy.zeros(2, dtype=numpy.int64)
print(_jit.LINKED, user.entry(table, 3), *table, len(user.entry.overloads), user.entry.stats.cache_hits[user.entry.signatures[0]] if user.entry.stats.cache_hits else 0)
"""
RENAMED = """
from numba.core import codegen
library = codegen.CPUCodeLibrary
finalize, library.finish = library.finalize, library._optimize_final_module
source = __import__("inspect").getsource(finalize).replace("_optimize_final_module", "finish")
exec(__import__("textwrap").dedent(source), finalize.__globals__, found := {})
library.finalize = found["finalize"]
del library._optimize_final_module
"""
MODES = {
    "linked once": ("", True),
    "another numba": ("numba.__version__ = '9.1.0'", False),
    "another inside": (RENAMED, False),
}  # fmt: skip


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_with_any_numba(mode: str, tmp_path: Path) -> None:
    before, linked = MODES[mode]
    (tmp_path / "user.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    env = {**os.environ, "PYTHONPATH": path, "MMTWIN_CACHE": str(tmp_path / "cache"), "PYTHONWARNINGS": "default"}
    for hits in (0, 1):  # compiled, then read from the cache
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(before=before)], env=env, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [str(linked), "18", "6", "12", "1", str(hits)], done.stderr
        assert done.stderr.count("is not as mmtwin expects it (0.68.x)") == (not linked), done.stderr

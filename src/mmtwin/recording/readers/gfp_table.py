"""A kernel's own table of GFP flags, out of an event's ``print fmt``: bits have moved between versions, so a number alone says little.

The kernel prints `flags` with ``__print_flags`` (kernel/trace/trace_output.c, trace_print_flags_seq): each entry of the table that is wholly contained
names its bits and takes them away, the rest is printed in hex. Doing the same here gives the names, and these give the bits that mmtwin uses.
"""

from __future__ import annotations

import ast
import re

ENTRY = re.compile(r'\{\s*([^{}"]{1,4000}),\s*"(\w+)"\s*\}')
CAST = re.compile(r"\(\s*(?:__force\s+)?(?:unsigned\s+(?:long|int)|gfp_t)\s*\)")
SUFFIX = re.compile(r"\b(0x[0-9a-fA-F]+|[0-9]+)[uUlL]+\b")
LARGEST_SHIFT = 63

Table = list[tuple[str, int]]


def parse_table(format_text: str) -> Table:
    """Names and masks in the order in which this kernel tries them; empty if the text has none that can be understood."""
    _, found, rest = format_text.partition("__print_flags(REC->gfp_flags")
    entries = []
    for expression, name in ENTRY.findall(rest.partition("__print_")[0]) if found else ():
        value = _value(expression)
        if value is None:
            return []
        if value:
            entries.append((name, value))
    return entries


def flag_names(flags: int, table: Table) -> str:
    """What the kernel would have printed."""
    words = []
    for name, mask in table:
        if flags & mask == mask:
            words.append(name)
            flags &= ~mask
    return "|".join(words + ([f"{flags:#x}"] if flags else [])) or "none"


def _value(expression: str) -> int | None:
    """A constant C expression of ``| & ~ <<`` and numbers."""
    text = SUFFIX.sub(r"\1", CAST.sub("", expression)).strip()
    try:
        return _fold(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _fold(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return int(value)
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            return ~_fold(inner)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fold(left) | _fold(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _fold(left) & _fold(right)
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            by = _fold(right)
            if 0 <= by <= LARGEST_SHIFT:
                return _fold(left) << by & (1 << 64) - 1
    raise ValueError("no constant")

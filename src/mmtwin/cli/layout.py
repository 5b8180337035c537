"""``mmtwin layout``: where a kernel has what in its address space."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmtwin.cli.terminal import ForTerminal, OutputError, UsageError, printable
from mmtwin.units import format_size, parse_size

LEAST_RAM = 16 << 20
CODE = """\
from mmtwin.profiles import physical
from mmtwin.profiles.layout import address_space
from mmtwin.profiles.layout_text import layout_text

ram = physical.ram_frames(physical.qemu_pc_memory_map({ram}))
print(layout_text(address_space({profile!r}, ram, {cmdline!r}, la57={la57})))
"""


def layout(
    profile: Annotated[str, Parameter(show_default=True)] = "linux-6.1",
    /,
    *,
    ram: Annotated[str, Parameter(metavar="SIZE", show_default=True)] = "2GiB",
    cmdline: Annotated[str, Parameter(metavar="WORDS", allow_leading_hyphen=True)] = "",
    la57: bool = False,
    picture: bool = False,
    svg: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    force: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Show a kernel's address space: direct map, vmalloc, modules, fixmap and the rest.

    Printed as the kernel's boot log had it (i386) or as its documentation has it (x86-64, without address randomisation).

    :param profile: The kernel: linux-6.1, linux-6.12, linux-6.1-i386, linux-6.1-i386-pae, linux-3.6-i386 or linux-2.6.24-i386 (and -pae).
    :param ram: Memory of the machine, a QEMU pc.
    :param cmdline: The kernel's command line; vmalloc=, highmem=, reservetop= and no5lvl matter, such as 'vmalloc=256M'.
    :param la57: The processor has five levels of page tables.
    :param picture: Boxes to a log scale instead of the table.
    :param svg: Write the picture to this file, as SVG.
    :param force: Overwrite an existing file.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    try:
        ram_bytes = parse_size(ram)
    except ValueError as error:
        raise UsageError(f"--ram: {error}") from None
    if ram_bytes < LEAST_RAM:
        raise UsageError(f"--ram: {ram} is too little for any of these kernels; give at least {format_size(LEAST_RAM)}")
    if code:
        return terminal.write(CODE.format(ram=ram_bytes, profile=profile, cmdline=cmdline, la57=la57))
    from mmtwin.profiles import layout_text, physical
    from mmtwin.profiles.layout import address_space

    space = address_space(profile, physical.ram_frames(physical.qemu_pc_memory_map(ram_bytes)), cmdline, la57)
    if svg is not None:
        _write(svg, layout_text.layout_svg(space), force)
    if json:
        return terminal.json({"schema": 1, "ram_bytes": ram_bytes, "cmdline": cmdline, **layout_text.layout_dict(space)})
    terminal.write(layout_text.layout_picture(space) if picture else layout_text.layout_text(space))
    if svg is not None:
        terminal.note(f"Wrote {printable(svg)}")
    return None


def _write(path: Path, text: str, force: bool) -> None:
    """A whole file or none.

    :raises OutputError: it exists and `force` is false, or it cannot be written.
    """
    if os.path.lexists(path) and not (force and path.is_file()):
        raise OutputError(f"{path}: exists; choose another name or overwrite it with --force")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error

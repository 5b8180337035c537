"""``mmtwin record``: makes a recording of a real kernel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmtwin.cli.output_file import output_path
from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.units import format_size, parse_size

MEMORY = (64 << 20, 16 << 30)
SWAP = (1 << 20, 16 << 30)
CPUS = (1, 16)
"""What `recording.capture.vm` accepts; here too, because that module needs the extra ``record``."""
NOT_BUILT = "live recording is not built yet; record a kernel in QEMU with: mmtwin record --vm KERNEL_DIR --workload FILE, or read a dump with --dump CORE --symbols VMLINUX"


def record(
    *,
    vm: Annotated[Path | None, Parameter(metavar="KERNEL_DIR")] = None,
    workload: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    mem: Annotated[str, Parameter(metavar="SIZE", show_default=True)] = "256M",
    smp: Annotated[int, Parameter(metavar="CPUS", show_default=True)] = 1,
    slab: bool = False,
    vmap: bool = False,
    sites: bool = False,
    swap: Annotated[str, Parameter(metavar="SIZE")] = "",
    module: Annotated[list[Path] | None, Parameter(metavar="FILE.ko", negative="")] = None,
    cmdline: Annotated[str, Parameter(metavar="WORDS", allow_leading_hyphen=True)] = "",
    timeout: Annotated[float, Parameter(metavar="SECONDS", show_default=True)] = 600,
    dump: Annotated[Path | None, Parameter(metavar="CORE")] = None,
    symbols: Annotated[Path | None, Parameter(metavar="VMLINUX")] = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), metavar="FILE")] = None,
    force: bool = False,
    terminal: ForTerminal,
) -> None:
    """Boot a kernel in QEMU and record its memory, before and after a workload, and every event in between; or keep the state that a memory dump holds.

    Needs the extra packages of: pip install -e '.[record]' (in mmtwin's directory), and QEMU, busybox and cpio on this machine.

    :param vm: Directory with vmlinuz, vmlinux, config, release and modules/; oracle/get-kernel.sh makes one.
    :param workload: A shell script that the guest runs.
    :param mem: RAM of the guest, 64M to 16G.
    :param smp: CPUs of the guest, 1 to 16.
    :param slab: Record kmalloc and kmem_cache events too.
    :param vmap: Record virtual areas too (vmalloc, vmap, ioremap, modules); of Linux 6.12 only these.
    :param sites: Record who asks for pages too: mmtwin stat --page --by callsite. The answers and the final state stay what can be checked.
    :param swap: Give the guest a swap disk of this size, in use from before the first snapshot.
    :param module: A further kernel module for the guest, as /lib/modules/NAME.ko; may be given several times.
    :param cmdline: Further words for the kernel's command line, such as 'preempt=none'.
    :param timeout: Time the workload may take.
    :param dump: Instead of --vm: a memory dump (ELF core with VMCOREINFO); the recording then holds its state and no events.
    :param symbols: The vmlinux with debug symbols of the kernel in the dump.
    :param output: The recording to write (default: the workload's or dump's name with .mmrec, in this directory).
    :param force: Overwrite an existing file.
    """
    if dump is not None:
        _from_dump(dump, symbols, vm or workload, output, force, terminal)
        return
    if vm is None:
        raise UsageError(NOT_BUILT)
    if workload is None:
        raise UsageError("record --vm needs a shell script for the guest to run: --workload FILE")
    memory, swap_bytes = _memory(mem), _swap(swap)
    if not CPUS[0] <= smp <= CPUS[1]:
        raise UsageError(f"--smp {smp}: expected {CPUS[0]} to {CPUS[1]} CPUs")
    if not 0 < timeout < 1e6:
        raise UsageError(f"--timeout {timeout:g}: expected seconds above 0")
    path = output_path(output, workload, force)
    from mmtwin.recording import store
    from mmtwin.recording.capture.vm import Guest
    from mmtwin.recording.capture.vm import record as record_vm

    begin = time.monotonic()

    def phase(text: str) -> None:
        terminal.note(f"{time.monotonic() - begin:6.1f} s  {text}")

    guest = Guest(
        kernel=vm,
        workload=workload,
        memory=memory,
        cpus=smp,
        slab=slab,
        vmap=vmap,
        sites=sites,
        swap=swap_bytes,
        modules=tuple(module or ()),
        cmdline=cmdline,
        timeout=timeout,
    )
    recording = record_vm(guest, phase)
    phase("writing")
    store.save(recording, path, force=force)
    provenance = recording.provenance
    phase("done")
    summary = f"{len(recording.events):,} events, {provenance.lost_events:,} lost, {provenance.missed_probes:,} probes missed"
    terminal.write(f"{summary}\nWrote {printable(path)}\n")


def _from_dump(dump: Path, symbols: Path | None, other: Path | None, output: Path | None, force: bool, terminal: ForTerminal) -> None:
    """The state in a memory dump, as a recording without events."""
    if symbols is None or other is not None:
        raise UsageError("record --dump CORE needs --symbols VMLINUX, and neither --vm nor --workload")
    path = output_path(output, dump, force)
    from mmtwin.recording import store
    from mmtwin.recording.capture import vmcore

    terminal.note("reading the dump")
    recording = vmcore.read(dump, symbols)
    store.save(recording, path, force=force)
    cpus = "1 CPU" if recording.provenance.cpus == 1 else f"{recording.provenance.cpus} CPUs"
    terminal.write(f"the state of Linux {recording.provenance.kernel_release} with {cpus}, no events\nWrote {printable(path)}\n")


def _swap(text: str) -> int:
    """Bytes of the swap disk, 0 for none.

    :raises UsageError: no size, or one that no disk can have.
    """
    if not text:
        return 0
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--swap: {error}") from None
    if not SWAP[0] <= size <= SWAP[1] or size % (1 << 20):
        raise UsageError(f"--swap {text}: expected {format_size(SWAP[0])} to {format_size(SWAP[1])} in whole MiB")
    return size


def _memory(text: str) -> int:
    """Bytes; QEMU wants whole MiB.

    :raises UsageError: no size, or one that no guest can have.
    """
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--mem: {error}") from None
    if not MEMORY[0] <= size <= MEMORY[1] or size % (1 << 20):
        raise UsageError(f"--mem {text}: expected {format_size(MEMORY[0])} to {format_size(MEMORY[1])} in whole MiB")
    return size

#!/usr/bin/env python3
"""Runs exhaust28.ko in a 32-bit guest of 2 GiB and stores what the kernel answered and the states it began from.

    exhaust28.py KERNEL_DIR exhaust28.ko OUT.mmrec OUT.json

KERNEL_DIR has vmlinuz, vmlinux, busybox and release (oracle/get-kernel.sh), the module is from build.sh. OUT.mmrec is a recording without events: its first
snapshot is the state before the first vmalloc(28), its second the one before the first kmalloc(28). OUT.json has the counts and addresses, and the lines of
the kernel's log. Needs qemu-system-x86, cpio, and mmtwin with its extra "record". About 3 minutes.
"""

from __future__ import annotations

import json
import mmap
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from mmtwin.recording import store
from mmtwin.recording.capture.snapshot import Dump
from mmtwin.recording.capture.vm import Monitor, kernel_config
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording, Snapshot

MEMORY = 2 << 30
CMDLINE = "console=ttyS0 panic=-1 nokaslr no_hash_pointers preempt=none loglevel=1"
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b insmod /qemu_fw_cfg.ko
$b sleep 1
$b insmod /exhaust28.ko
echo; echo @@LOG; $b dmesg; echo @@BYE
$b poweroff -f
"""


def pack(kernel: Path, module: Path, scratch: Path) -> Path:
    """The guest's initial RAM disk."""
    root = scratch / "root"
    for directory in ("bin", "proc", "sys"):
        (root / directory).mkdir(parents=True)
    shutil.copy(kernel / "busybox", root / "bin/busybox")
    shutil.copy(module, root / "exhaust28.ko")
    shutil.copy(next(kernel.glob("modules/**/qemu_fw_cfg.ko")), root / "qemu_fw_cfg.ko")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    image = scratch / "initrd"
    with open(image, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), stdout=out, cwd=root, check=True)
    return image


def main(kernel: Path, module: Path, recording: Path, answers: Path) -> None:
    snapshots: list[Snapshot] = []
    found: dict[str, object] = {"release": (kernel / "release").read_text().strip(), "ram_bytes": MEMORY, "cmdline": CMDLINE, "gfp_kmalloc": 0x2000}
    with tempfile.TemporaryDirectory(prefix="mmtwin-") as directory:
        scratch = Path(directory)
        image = pack(kernel, module, scratch)
        ram, qmp = scratch / "ram", scratch / "qmp"
        machine = (
            "qemu-system-x86_64 -M pc,memory-backend=ram -accel tcg -cpu max -m 2048M -smp 1 -nographic -nodefaults -no-reboot -serial stdio -device vmcoreinfo"
        )
        files = ["-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={ram},share=on", "-qmp", f"unix:{qmp},server=on,wait=off"]
        command = [*machine.split(), *files, "-kernel", str(kernel / "vmlinuz"), "-initrd", str(image), "-append", CMDLINE]
        vm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert vm.stdout is not None
        try:
            monitor, log, in_log = Monitor(qmp, lambda: vm.poll() is None), list[str](), False
            for line in (raw.decode(errors="replace").rstrip("\r\n") for raw in vm.stdout):
                if wait := re.search(r"exhaust28: wait half=(\d) physical=0x(\w+)", line):
                    if not in_log:
                        half, at = int(wait[1]), int(wait[2], 16)
                        with monitor.stopped():
                            monitor("dump-guest-memory", paging=False, protocol=f"file:{scratch / 'core'}")
                            with open(ram, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                                memory[at : at + 4] = half.to_bytes(4, "little")
                        with Dump(scratch / "core", kernel / "vmlinux") as core:
                            snapshots.append(core.snapshot())
                        (scratch / "core").unlink()
                        print(f"half {half}: state dumped", flush=True)
                if line == "@@LOG":
                    in_log = True
                elif line == "@@BYE":
                    break
                elif in_log:
                    log.append(line)
        finally:
            vm.kill()
            vm.wait()
        for name, count, first, last in re.findall(r"exhaust28: (\w+) count=(\d+) first=(\w+) last=(\w+)", "\n".join(log)):
            found[name] = {"count": int(count), "first": int(first, 16), "last": int(last, 16)}
        begin = next(i for i, line in enumerate(log) if "exhaust28: wait half=1" in line)
        end = next(i for i, line in enumerate(log) if "exhaust28: vmalloc count" in line)
        found["log"] = [re.sub(r"^\[ *[0-9.]+\] ", "", line) for line in log[begin + 1 : end]]
        provenance = Provenance(
            kernel_release=str(found["release"]),
            kernel_config=dict(sorted(kernel_config(kernel).items())),
            cmdline=CMDLINE,
            ram_bytes=MEMORY,
            initrd_bytes=image.stat().st_size,
            how="vm",
            workload_name="exhaust28",
            notes=["no events: the state before the first vmalloc(28), and that before the first kmalloc(28)"],
        )
        store.save(Recording(provenance, snapshots[0], snapshots[1], pl.DataFrame(schema=EVENTS_SCHEMA)), recording, force=True)
    answers.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {recording} and {answers}: {found['vmalloc']}, {found['kmalloc']}")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))

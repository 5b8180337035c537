"""Records a real kernel: boots it in QEMU, dumps its memory, follows its trace while a workload runs, dumps it again.

The guest is an unmodified Debian kernel and an initramfs of busybox. Its RAM is a file the host has mapped, so the trace is read
from outside (`ring_buffer`) and recording takes no page from the guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import polars as pl

from mmtwin import profiles
from mmtwin.errors import CaptureError
from mmtwin.profiles import Profile
from mmtwin.recording.capture import snapshot as dump
from mmtwin.recording.capture.probes import GROUP, SLAB_TRACEPOINTS, TRACEPOINTS, Probe, Symbols, probes
from mmtwin.recording.capture.ring_buffer import RingBuffer
from mmtwin.recording.capture.slab_snapshot import slab_layout
from mmtwin.recording.convert import EventFormat, events_table, parse_format
from mmtwin.recording.model import Provenance, Recording, Snapshot

NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio"}
"""Programs of the host, and the Debian packages they come from."""
PROCFS = ("buddyinfo", "pagetypeinfo", "zoneinfo", "slabinfo", "vmallocinfo", "meminfo")
POLL_SECONDS = 0.05
BOOTS = 3
"""Starts of the guest before a stray breakpoint counts as an error."""
LOW_MEMORY = 0xC000_0000
"""QEMU's pc machine places RAM above this at 4 GiB when there are 3.5 GiB or more."""

INIT = r"""#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tracefs t /sys/kernel/tracing; mount -t tmpfs t /tmp
export PATH=/bin HOME=/tmp
T=/sys/kernel/tracing
show() { echo; echo "@@FILE $1"; cat $2; echo; echo "@@END"; }
echo 0 > $T/tracing_on
echo @BUFFER_KB@ > $T/buffer_size_kb
echo counter > $T/trace_clock
echo 0 > /proc/sys/debug/kprobes-optimization
while read -r line; do echo "$line" >> $T/kprobe_events || echo "@@REFUSED $line"; done < /probes
while read -r event filter; do echo "$filter" > $T/events/$event/filter || echo "@@REFUSED filter of $event"; done < /filters
for e in @EVENTS@; do echo 1 > $T/events/$e/enable || echo "@@REFUSED $e"; show $e $T/events/$e/format; done
insmod /lib/modules/qemu_fw_cfg.ko
@SWAP@
show version /proc/sys/kernel/version
echo 1 > $T/tracing_on
echo "@@READY"; read x
. /workload.sh
@WAIT@
echo "@@DONE"; read x
@READ@
echo 0 > $T/tracing_on
show kprobe_profile $T/kprobe_profile
for f in @PROCFS@; do show $f /proc/$f; done
@SYSFS@
echo "@@BYE"
poweroff -f
"""

SWAP_MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
"""Drivers of the swap disk, in the order in which they need each other; those that a kernel has built in have no file."""
SWAP_ON = (
    f"for m in {' '.join(SWAP_MODULES)}; do [ -f /lib/modules/$m.ko ] && insmod /lib/modules/$m.ko; done\n"
    "mkswap /dev/vda > /dev/null && swapon /dev/vda || echo '@@REFUSED swap disk'"
)

SLABINFO_WAIT = r"""mkfifo /tmp/.go
cat /proc/slabinfo > /tmp/.slabinfo
cat /tmp/.go - < /proc/slabinfo 1<> /tmp/.slabinfo &
reader=$!
exec 9> /tmp/.go"""
SLABINFO_READ = """exec 9>&-
wait $reader"""
"""/proc/slabinfo is read by a program that has been started, has its files open and waits in a read when the dump is taken, into pages that are there
already: between the dump and the reading the guest runs nothing else, and allocates a page of buffer."""
SLAB_FILES = (
    "slab_size object_size objs_per_slab order align min_partial cpu_partial aliases objects objects_partial total_objects slabs cpu_slabs slabs_cpu_partial partial "
    "ctor hwcache_align reclaim_account cache_dma destroy_by_rcu usersize"
)
SLAB_SYSFS = rf"""if cd /sys/kernel/slab 2> /dev/null; then
echo; echo "@@FILE sys_kernel_slab"
for c in *; do [ -L $c ] || for f in {SLAB_FILES}; do v=; [ -r $c/$f ] && read -r v < $c/$f; [ "$v" ] && echo "$c $f $v"; done; done
echo; echo "@@END"; echo; echo "@@FILE slab_links"
ls -l
echo; echo "@@END"
cd /
fi"""


@dataclass
class Guest:
    """What is to be recorded.

    :param kernel: directory with ``vmlinuz``, ``vmlinux``, ``config``, ``modules/``, ``release`` (``oracle/get-kernel.sh`` makes one).
    :param workload: a shell script that the guest's busybox runs, with all of its applets. Kernel modules whose names are words of the script
        are put into the guest as /lib/modules/NAME.ko, for insmod (with underscores, whatever the file's name).
    :param memory: RAM in bytes.
    :param slab: also record kmalloc and kmem_cache events.
    :param vmap: also record virtual areas; of a kernel whose page allocator mmtwin does not have, only these.
    :param sites: also record who asks for pages, as call_site of mm_page_alloc.
    :param swap: bytes of a swap disk (virtio-blk) that is in use from before the first snapshot; 0 for none.
    :param modules: further kernel modules (.ko files) that are put into the guest as /lib/modules/NAME.ko.
    :param cmdline: further words for the kernel's command line.
    :param timeout: seconds the workload may take.
    """

    kernel: Path
    workload: Path
    memory: int = 256 << 20
    cpus: int = 1
    slab: bool = False
    vmap: bool = False
    sites: bool = False
    swap: int = 0
    modules: tuple[Path, ...] = ()
    cmdline: str = ""
    timeout: float = 600.0


class BreakpointCrash(CaptureError):
    """The guest died of a breakpoint that another CPU had already taken away: QEMU with several CPUs sometimes runs code from before a change (version 7.2 does)."""


def check_host(guest: Guest) -> None:
    """Names everything that is missing before anything is started.

    :raises CaptureError: a program of the host, a file of the kernel directory or the workload is missing.
    :raises ProfileError: the kernel is none that mmtwin knows.
    """
    missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if missing:
        raise CaptureError(f"recording needs programs that are not installed; on Debian: apt-get install {' '.join(missing)}")
    for name in ("vmlinuz", "vmlinux", "config", "release", "modules"):
        if not (guest.kernel / name).exists():
            raise CaptureError(f"{guest.kernel}: has no {name}; oracle/get-kernel.sh {guest.kernel} fetches a kernel")
    profile = _profile(guest)
    if not profile.page_allocator and (guest.slab or guest.sites or not guest.vmap):
        raise CaptureError(f"of {profile.name} only virtual areas can be recorded: --vmap, without --slab and --sites")
    if not guest.workload.is_file():
        raise CaptureError(f"{guest.workload}: no such workload file")
    for module in guest.modules:
        if not module.is_file() or module.suffix != ".ko":
            raise CaptureError(f"{module}: no such kernel module file (.ko); oracle/module/build.sh builds some")
    if not 64 << 20 <= guest.memory <= 16 << 30:
        raise CaptureError(f"--mem: {guest.memory >> 20} MiB is outside 64 MiB to 16 GiB")
    if guest.swap and not 1 << 20 <= guest.swap <= 16 << 30:
        raise CaptureError(f"--swap: {guest.swap >> 20} MiB is outside 1 MiB to 16 GiB")
    if not 1 <= guest.cpus <= 16:
        raise CaptureError(f"--smp: {guest.cpus} is outside 1 to 16")


def _initramfs(guest: Guest, wanted: list[Probe], root: Path) -> Path:
    """Packs the guest's root: busybox, the probes, the modules (qemu_fw_cfg publishes VMCOREINFO to QEMU), the workload."""
    for directory in ("bin", "proc", "sys", "dev", "tmp", "lib/modules"):
        (root / directory).mkdir(parents=True)
    busybox = shutil.which("busybox") or "/bin/busybox"
    own = guest.kernel / "busybox"  # a 32-bit kernel needs a 32-bit one; get-kernel.sh puts it there
    shutil.copy(own if own.exists() else busybox, root / "bin/busybox")
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    wanted_modules = {"qemu_fw_cfg", *(SWAP_MODULES if guest.swap else ()), *re.findall(r"\w+", guest.workload.read_text(errors="replace").replace("-", "_"))}
    for path in sorted(guest.kernel.glob("modules/**/*.ko*")):
        name = path.name.split(".ko")[0].replace("-", "_")
        if name in wanted_modules:
            target = root / "lib/modules" / f"{name}.ko"
            target.write_bytes(subprocess.check_output(["xz", "-dc", path]) if path.suffix == ".xz" else path.read_bytes())
    for path in guest.modules:
        shutil.copy(path, root / "lib/modules" / f"{module_name(path)}.ko")
    (root / "probes").write_text("".join(f"{p.definition}\n" for p in wanted))
    (root / "filters").write_text("".join(f"{GROUP}/{p.name} {p.filter}\n" for p in wanted if p.filter))
    points = tracepoints(guest)
    events = [f"{GROUP}/{p.name}" for p in wanted] + [f"{system}/{e}" for system, es in points.items() for e in es]
    per_cpu = max(1 << 20, min(24 << 20, guest.memory // 12 // guest.cpus))
    slab = {"@WAIT@": SLABINFO_WAIT, "@READ@": SLABINFO_READ, "@SYSFS@": SLAB_SYSFS}
    init = INIT.replace("@SWAP@", SWAP_ON if guest.swap else "")
    for place, text in slab.items():
        init = init.replace(place, text if guest.slab else "")
    procfs = " ".join(PROCFS)
    if guest.slab:
        init = init.replace("show $f /proc/$f", "if [ $f = slabinfo ]; then show $f /tmp/.slabinfo; else show $f /proc/$f; fi")
    init = init.replace("@BUFFER_KB@", str(per_cpu >> 10)).replace("@EVENTS@", " ".join(events)).replace("@PROCFS@", procfs)
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    shutil.copy(guest.workload, root / "workload.sh")
    image = root.with_suffix(".cpio")
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    with open(image, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), stdout=out, cwd=root, check=True)
    return image


def module_name(path: Path) -> str:
    """The name that a module's file has in the guest, without its suffix."""
    return path.name.removesuffix(".ko").replace("-", "_")


def tracepoints(guest: Guest) -> dict[str, tuple[str, ...]]:
    """The kernel's own events to be recorded, by system."""
    points: dict[str, tuple[str, ...]] = {}
    if _profile(guest).page_allocator:
        points = {**TRACEPOINTS, "kmem": TRACEPOINTS["kmem"] + (SLAB_TRACEPOINTS["kmem"] if guest.slab else ())}
    elif guest.vmap:
        from mmtwin.recording.capture.vmap_probes import TRACEPOINTS as VMAP_TRACEPOINTS

        points = dict(VMAP_TRACEPOINTS)
    return points


def _profile(guest: Guest) -> Profile:
    return profiles.for_release((guest.kernel / "release").read_text().strip())


class Monitor:
    """QEMU's machine protocol: commands and their answers."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not alive():
                    raise CaptureError("QEMU ended at once; is the kernel's vmlinuz damaged, or the memory too large for this machine?") from None
                time.sleep(0.05)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise CaptureError(f"QEMU refused {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
        raise CaptureError("QEMU ended early")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The guest stands still inside the block."""
        self("stop")
        try:
            yield
        finally:
            self("cont")


class Console:
    """The guest's serial console: lines in, lines out, and the files it shows between ``@@FILE`` and ``@@END``."""

    def __init__(self, vm: subprocess.Popen[bytes]) -> None:
        self._vm, self._lines = vm, Queue[str | None]()
        self.files: dict[str, str] = {}
        self.refused: list[str] = []
        self.log: list[str] = []
        self._open: list[str] | None = None
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        assert self._vm.stdout is not None
        for line in self._vm.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\r\n"))
        self._lines.put(None)

    def until(self, token: str, seconds: float, idle: Callable[[], None] = lambda: None) -> None:
        """Reads until a line is `token`, calling `idle` in between.

        :raises CaptureError: the guest ended, or `seconds` passed.
        """
        end, name = time.monotonic() + seconds, ""
        while True:
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
            except Empty:
                if time.monotonic() > end:
                    raise CaptureError(f"the guest did not say {token} within {seconds:.0f} s; its last words: {self.log[-1:] or 'none'}") from None
                idle()
                continue
            if line is None:
                words = next((x for x in self.log if "Kernel panic" in x), self.log[-1] if self.log else "none")
                raise CaptureError(f"the guest ended before {token}; its last words: {words}")
            if line.startswith("@@FILE "):
                name, self._open = line[7:], []
            elif line == "@@END" and self._open is not None:
                self.files[name], self._open = "\n".join(self._open[:-1]) + "\n", None
            elif line.startswith("@@REFUSED "):
                self.refused.append(line[10:])
            elif line == token:
                return
            elif self._open is not None:
                self._open.append(line)
            else:
                self.log.append(line)

    def answer(self) -> None:
        assert self._vm.stdin is not None
        self._vm.stdin.write(b"\n")
        self._vm.stdin.flush()


class GuestMemory:
    """The file behind the guest's RAM, read by direct-map address."""

    def __init__(self, path: Path, size: int, page_offset: int) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._low = size if size < 0xE000_0000 else LOW_MEMORY
        self._page_offset = page_offset

    def read(self, address: int, size: int) -> bytes:
        at = address - self._page_offset
        if at >= self._low:
            at += self._low - (4 << 30)
        if not 0 <= at <= len(self._map) - size:
            raise CaptureError(f"the trace ring buffer points to {address:#x}, outside the guest's RAM; are these the symbols of this kernel?")
        return self._map[at : at + size]


def kernel_config(kernel: Path) -> dict[str, str]:
    """The options that are set in a kernel directory's ``config``."""
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", (kernel / "config").read_text(), re.M))


def slab_sysfs(files: Mapping[str, str]) -> dict[str, str]:
    """The text for provenance: a line for each cache and file of /sys/kernel/slab, and "alias link cache" for each symbolic link."""
    if "sys_kernel_slab" not in files:
        return {}
    links = re.findall(r" (\S+) -> (\S+)$", files.get("slab_links", ""), re.M)
    lines = [line for line in files["sys_kernel_slab"].splitlines() if line]
    return {"sys_kernel_slab": "\n".join([*lines, *(f"{name} link {cache}" for name, cache in links)]) + "\n"}


def record(guest: Guest, progress: Callable[[str], None] = lambda text: None) -> Recording:
    """Makes a recording; takes about 15 s plus the workload.

    :raises CaptureError: see `check_host`; the guest ended early or printed no answer; a probe was refused.
    """
    check_host(guest)
    progress("reading symbols")
    symbols = Symbols(guest.kernel / "vmlinux")
    wanted = probes(symbols, dump.zone_layout(guest.kernel / "vmlinux")) if _profile(guest).page_allocator else []
    config = kernel_config(guest.kernel)
    if guest.slab and config.get("SLUB") == "y":
        from mmtwin.recording.capture.slab_probes import slab_probes

        wanted += slab_probes(symbols, slab_layout(guest.kernel / "vmlinux", int(config.get("NR_CPUS", "1"))))
    if guest.slab and config.get("SLAB") == "y":
        from mmtwin.recording.capture.slab_probes_classic import classic_probes
        from mmtwin.recording.capture.slab_snapshot_classic import classic_layout

        wanted += classic_probes(symbols, classic_layout(guest.kernel / "vmlinux"))
    if guest.vmap:
        from mmtwin.recording.capture.vmap_probes import vmap_probes
        from mmtwin.recording.capture.vmap_snapshot import vmap_layout

        wanted += vmap_probes(symbols, vmap_layout(guest.kernel / "vmlinux"))
    if guest.sites:
        from mmtwin.recording.capture.page_sites import site_probes

        wanted += site_probes(symbols)
    for attempt in range(BOOTS):
        try:
            with tempfile.TemporaryDirectory(prefix="mmtwin-") as scratch:
                return _record(guest, wanted, Path(scratch), progress)
        except BreakpointCrash:
            if attempt == BOOTS - 1:
                raise
            progress("the guest met one of QEMU's stray breakpoints; again")
    raise AssertionError("unreachable")


def _site_names(guest: Guest, events: pl.DataFrame) -> dict[str, str]:
    """Names of the call sites, for provenance; those in modules have none, as a vmlinux does not know where they are."""
    if not guest.sites:
        return {}
    from mmtwin.recording.symbols import read_symbols

    kinds = events.filter(pl.col("kind").is_in(["mm_page_alloc", *SLAB_TRACEPOINTS["kmem"]]))
    return {"symbols": read_symbols(guest.kernel / "vmlinux").lines(kinds["call_site"].unique().sort().to_list())}


def _snapshot(guest: Guest, core: dump.Dump) -> Snapshot:
    return core.snapshot(vmaps=guest.vmap) if _profile(guest).page_allocator else core.vmap_snapshot()


def _record(guest: Guest, wanted: list[Probe], scratch: Path, progress: Callable[[str], None]) -> Recording:
    image = _initramfs(guest, wanted, scratch / "root")
    initrd_bytes = image.stat().st_size
    ram, qmp = scratch / "ram", scratch / "qmp"
    cmdline = f"console=ttyS0 panic=-1 nokaslr no_hash_pointers quiet {guest.cmdline}".strip()
    progress("booting")
    machine = f"qemu-system-x86_64 -M pc,memory-backend=ram -accel tcg -cpu max -m {guest.memory >> 20}M -smp {guest.cpus}"
    devices = "-nographic -nodefaults -no-reboot -serial stdio -device vmcoreinfo"
    files = ["-object", f"memory-backend-file,id=ram,size={guest.memory},mem-path={ram},share=on", "-qmp", f"unix:{qmp},server=on,wait=off"]
    kernel = ["-kernel", str(guest.kernel / "vmlinuz"), "-initrd", str(image), "-append", cmdline]
    disk: list[str] = []
    if guest.swap:
        with open(scratch / "swap", "wb") as file:
            file.truncate(guest.swap)
        disk = ["-drive", f"file={scratch / 'swap'},format=raw,if=none,id=swap,cache=unsafe", "-device", "virtio-blk-pci,drive=swap"]
    command = [*machine.split(), *devices.split(), *files, *disk, *kernel]
    vm = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        monitor, console = Monitor(qmp, lambda: vm.poll() is None), Console(vm)
        try:
            console.until("@@READY", 180)
        except CaptureError as error:
            if any("int3:" in line for line in console.log):
                raise BreakpointCrash(str(error)) from None
            raise
        if console.refused:
            raise CaptureError(f"the guest's kernel refused a probe, so the order of events could not be known: {console.refused[0]}")
        if missing := [p.name for p in wanted if f"{GROUP}/{p.name}" not in console.files]:
            raise CaptureError(f"the guest did not show the format of {', '.join(missing)}; its console output was garbled, try again")
        time.sleep(0.5)  # the shell goes to sleep in read; the dump shall not catch it in the middle of an allocation
        progress("first dump")
        with monitor.stopped():
            monitor("dump-guest-memory", paging=False, protocol=f"file:{scratch / 'before'}")
        with dump.Dump(scratch / "before", guest.kernel / "vmlinux") as core:
            before, layout = _snapshot(guest, core), core.ring_buffer()
            memory = GuestMemory(ram, guest.memory, core.page_offset)
        os.unlink(scratch / "before")
        ring = RingBuffer(memory.read, layout.cpus, layout.offsets)

        def poll() -> None:
            with monitor.stopped():
                ring.poll()

        progress("workload")
        poll()
        started = time.monotonic()
        console.answer()
        console.until("@@DONE", guest.timeout, poll)
        seconds = time.monotonic() - started
        time.sleep(0.5)
        progress("second dump")
        monitor("stop")
        ring.poll()
        monitor("dump-guest-memory", paging=False, protocol=f"file:{scratch / 'after'}")
        monitor("cont")
        console.answer()
        console.until("@@BYE", 60)
        with dump.Dump(scratch / "after", guest.kernel / "vmlinux") as core:
            after = _snapshot(guest, core)
    finally:
        vm.kill()
        vm.wait()
    progress("converting")
    formats = [parse_format(console.files[name]) for name in console.files if "/" in name]
    by_id: dict[int, EventFormat] = {f.id: f for f in formats}
    missed = sum(int(line.split()[2]) for line in console.files.get("kprobe_profile", "").splitlines() if len(line.split()) == 3)
    events, lost = events_table([b.pages for b in ring.cpus], by_id, before, after, ring.data_offset)
    provenance = Provenance(
        kernel_release=(guest.kernel / "release").read_text().strip(),
        kernel_version=console.files.get("version", "").strip(),
        kernel_config={k: v for k, v in kernel_config(guest.kernel).items() if k in dump.CONFIG},
        cmdline=cmdline,
        ram_bytes=guest.memory,
        initrd_bytes=initrd_bytes,
        swap_bytes=guest.swap,
        cpus=guest.cpus,
        how="vm",
        workload=guest.workload.read_text(),
        workload_name=guest.workload.name,
        workload_seconds=round(seconds, 2),
        lost_events=lost,
        missed_probes=missed,
        probes=[p.name for p in wanted],
        modules={module_name(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in guest.modules},
        procfs={name: console.files[name] for name in PROCFS if name in console.files} | slab_sysfs(console.files) | _site_names(guest, events),
    )
    return Recording(provenance, before, after, events)

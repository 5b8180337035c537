"""What ``slub_debug`` and KASAN find: red zones, poison, owners, and the kernel's reports (mm/slub.c and mm/kasan/report.c of Linux 6.1).

A `Watch` stands between a machine and its allocator as soon as contents are kept, a cache is debugged or KASAN is on; a machine without one does
not pay for it. The tables decide which object is handed out, as always; the watch keeps the bytes and checks them where the kernel does.

Not kept: the owners' records do not lie in the simulated memory, so writing over them goes unnoticed. KASAN keeps the geometry of a kernel without
it and has no quarantine; what a real one puts between objects is therefore computed from the sizes that were asked for.
"""

from mmtwin.slub_debug.objects import Layout, Owner, SlabInfo, Track
from mmtwin.slub_debug.report import hex_dump, normalise_report
from mmtwin.slub_debug.watch import Watch

__all__ = ("Layout", "Owner", "SlabInfo", "Track", "Watch", "hex_dump", "normalise_report")

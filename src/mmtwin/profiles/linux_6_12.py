"""Linux 6.12.y on x86-64 as Debian builds its cloud kernel: of this one mmtwin has the virtual areas only.

Its page and slab allocators are not modelled, so such a kernel can be recorded and replayed (`mmtwin record --vmap`) but not booted. Where it differs in
virtual areas is in `mmtwin.mm.vmap_node`; what a profile says of page frames is here as in 6.1 and is not used.
"""

from __future__ import annotations

import dataclasses

from mmtwin.profiles.linux_6_1 import LINUX_6_1

LINUX_6_12 = dataclasses.replace(
    LINUX_6_1,
    name="linux-6.12",
    release="6.12",
    aliases=("6.12", "v6.12", "6.12.y", "linux-6.12.y", "linux-6.12-x86_64", "linux-6.12-cloud-amd64"),
    page_allocator=False,
)
"""The profile."""

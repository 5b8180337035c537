"""Kernel profiles: what differs between kernels, as data. `get` finds one by name, `for_release` by a running kernel's release."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mmtwin.errors import ProfileError
from mmtwin.profiles.linux_6_1 import LINUX_6_1
from mmtwin.profiles.linux_6_1_686 import LINUX_6_1_686, LINUX_6_1_686_PAE
from mmtwin.profiles.linux_6_12 import LINUX_6_12
from mmtwin.profiles.profile import SLAB_32_BIT, SLAB_64_BIT, KernelImage, Profile, SlabArch

__all__ = ("PROFILES", "SLAB_32_BIT", "SLAB_64_BIT", "KernelImage", "Profile", "SlabArch", "for_release", "for_zones", "get")

PROFILES: tuple[Profile, ...] = (LINUX_6_1, LINUX_6_12, LINUX_6_1_686, LINUX_6_1_686_PAE)
"""All profiles."""


def get(name: str) -> Profile:
    """The profile of that name, upper and lower case alike, of a machine that can be booted.

    :param name: such as ``linux-6.1`` or ``6.1``.
    :raises ProfileError: there is none; the message lists what is known.
    """
    wanted = str(name).strip().lower()
    for profile in PROFILES:
        if wanted == profile.name or wanted in profile.aliases:
            if not profile.page_allocator:
                raise ProfileError(f"{profile.name}: only its virtual areas are modelled, in recordings; machines that can be booted: {_bootable()}")
            return profile
    raise ProfileError(f"no profile for {name!r}; known: {_bootable()}")


def _bootable() -> str:
    return ", ".join(profile.name for profile in PROFILES if profile.page_allocator)


def for_release(release: str) -> Profile:
    """The profile for a kernel release as ``uname -r`` prints it, such as ``6.1.0-56-cloud-amd64`` or ``6.1.0-50-686``.

    :raises ProfileError: no profile covers it; the message lists what is known.
    """
    found = re.match(r"\s*(?:Linux version )?(\d+\.\d+)(\S*)", release)
    for profile in sorted(PROFILES, key=lambda p: not p.flavour):
        if found and found[1] == profile.release and found[2].endswith(profile.flavour):
            return profile
    raise ProfileError(f"no profile for kernel release {release!r}; known: {', '.join(f'{profile.name} ({profile.release}.*)' for profile in PROFILES)}")


def for_zones(names: Iterable[str]) -> Profile:
    """A profile of a machine with these zones, by index: what kind of machine it is (which requests go where, has it high memory), not which kernel.

    :raises ProfileError: there is none.
    """
    wanted = tuple(names)
    for profile in PROFILES:
        if profile.zone_names == wanted:
            return profile
    raise ProfileError(
        f"no profile has the zones {', '.join(wanted)}; known: {'; '.join(dict.fromkeys(', '.join(profile.zone_names) for profile in PROFILES))}"
    )

"""Kernel profiles: what differs between kernels, as data. `get` finds one by name, `for_release` by a running kernel's release."""

from __future__ import annotations

import re

from mmtwin.errors import ProfileError
from mmtwin.profiles.linux_6_1 import LINUX_6_1
from mmtwin.profiles.linux_6_12 import LINUX_6_12
from mmtwin.profiles.profile import KernelImage, Profile

__all__ = ("PROFILES", "KernelImage", "Profile", "for_release", "get")

PROFILES: tuple[Profile, ...] = (LINUX_6_1, LINUX_6_12)
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
    """The profile for a kernel release as ``uname -r`` prints it, such as ``6.1.0-56-cloud-amd64``.

    :raises ProfileError: no profile covers it; the message lists what is known.
    """
    found = re.match(r"\s*(?:Linux version )?(\d+\.\d+)", release)
    for profile in PROFILES:
        if found and found[1] == profile.release:
            return profile
    raise ProfileError(f"no profile for kernel release {release!r}; known: {', '.join(f'{profile.name} ({profile.release}.*)' for profile in PROFILES)}")

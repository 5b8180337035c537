"""Finding a profile."""

from __future__ import annotations

import dataclasses

import pytest

from mmtwin.errors import ProfileError
from mmtwin.profiles import PROFILES, for_release, get


@pytest.mark.parametrize("name", ["linux-6.1", "6.1", "LINUX-6.1", " 6.1.y ", "linux-6.1-cloud-amd64"])
def test_get(name: str) -> None:
    assert get(name).name == "linux-6.1"


@pytest.mark.parametrize("release", ["6.1.0-56-cloud-amd64", "6.1.192", "Linux version 6.1.0-56-cloud-amd64 (debian)", "6.1"])
def test_for_release(release: str) -> None:
    assert for_release(release).name == "linux-6.1"


@pytest.mark.parametrize("release", ["6.13.1", "6.10.0", "5.10.0-20-amd64", "", "unknown"])
def test_unknown(release: str) -> None:
    with pytest.raises(ProfileError, match=r"known: linux-6\.1"):
        for_release(release)
    with pytest.raises(ProfileError, match=r"known: linux-6\.1"):
        get(release)


def test_only_the_virtual_areas_of_6_12_are_known() -> None:
    assert not for_release("6.12.117+deb12-cloud-amd64").page_allocator
    with pytest.raises(ProfileError, match=r"linux-6\.12: only its virtual areas are modelled.*: linux-6\.1,"):
        get("6.12")


def test_names_are_unique_and_profiles_frozen() -> None:
    names = [name for profile in PROFILES for name in (profile.name, *profile.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES[0].name = "x"  # type: ignore[misc]

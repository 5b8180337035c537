from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.gfp import GFP, GFP_NAMES, gfp_names
from mmtwin.recording.readers.gfp_text import COMPOSITE, SINGLE, gfp_from_names


def test_the_values_are_those_of_the_gfp_module() -> None:
    for name, value in GFP_NAMES:
        assert gfp_from_names(name) == value
    assert all(SINGLE[flag.name] == flag for flag in GFP if flag.name)
    assert all(dict(GFP_NAMES).get(name, value) == value for name, value in COMPOSITE.items())


@given(st.integers(0, (1 << 32) - 1))
def test_it_reads_what_the_kernel_prints(gfp: int) -> None:
    assert gfp_from_names(gfp_names(gfp)) == gfp


@pytest.mark.parametrize(
    ("text", "gfp"),
    [
        ("GFP_KERNEL|GFP_ZERO", 0xDC0),  # 3.x
        ("GFP_WAIT|GFP_HIGH|GFP_REPEAT|GFP_COLD", 0x4C20),
        ("GFP_NOWARN", 0x2000),
        ("GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO", 0x140DCA),
        ("GFP_ATOMIC|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", 0x52A20),
        ("__GFP_ATOMIC", 0x200),
        ("GFP_NOFS|0x1000000", 0x1000C40),
        ("0xcc0", 0xCC0),
        ("208", 208),
        ("none", 0),
        ("0", 0),
    ],
)
def test_texts_of_old_and_new_kernels(text: str, gfp: int) -> None:
    assert gfp_from_names(text) == gfp


@pytest.mark.parametrize("text", ["", "GFP_", "KERNEL", "GFP_KERNEL|", "GFP_KERNEL|WAT", "0x1ffffffff", "-1", "0xzz", "²"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"GFP flag|32 bits|invalid literal"):
        gfp_from_names(text)

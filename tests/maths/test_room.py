from __future__ import annotations

import pytest

import humanward.maths
from humanward import maths


def test_every_public_name_is_served_and_the_two_lists_agree():
    assert sorted(maths.__all__) == sorted(maths._MODULE_OF)
    for name in maths.__all__:
        assert getattr(humanward.maths, name).__module__ == f"humanward.maths.{maths._MODULE_OF[name]}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'dpo'"):
        maths.dpo  # noqa: B018

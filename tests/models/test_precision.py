"""Number types: chosen by what the machine does, refused where it cannot."""

from __future__ import annotations

import pytest
import torch

from humanward.errors import UserError
from humanward.models import precision
from humanward.models.precision import copy_rate, matmul_rate, settled_dtype

CPU = torch.device("cpu")


def test_rates_are_those_of_a_computer() -> None:
    """Between a pocket calculator and the fastest card; a wrong unit is off by 1e3 or more."""
    assert 1e8 < matmul_rate(torch.float32, CPU, size=256, seconds=0.05) < 1e16
    assert 1e8 < copy_rate(CPU, size=1 << 22, seconds=0.05) < 1e13


@pytest.mark.parametrize(("gain", "chosen"), [(0.0, "float32"), (0.6, "float32"), (1.2, "float32"), (2.7, "bfloat16")])
def test_auto_takes_bfloat16_where_it_is_worth_it(monkeypatch: pytest.MonkeyPatch, gain: float, chosen: str) -> None:
    monkeypatch.setattr(precision, "bfloat16_gain", lambda device: gain)
    assert settled_dtype("auto", CPU) == chosen
    assert settled_dtype("float32", CPU) == "float32"


def test_bfloat16_is_refused_where_the_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    precision.bfloat16_gain.cache_clear()
    assert settled_dtype("auto", CPU) == "float32"
    with pytest.raises(UserError, match=r"^dtype: bfloat16: this cpu has no instructions for it .* set dtype to float32 or auto$"):
        settled_dtype("bfloat16", CPU)
    precision.bfloat16_gain.cache_clear()

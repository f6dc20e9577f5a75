"""The table of settings, presets, and YAML that reads back equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import Field, PositiveFloat

from humanward.config import Config, Setting, dump_yaml, preset_names, settings
from humanward.config.yaml_text import PlainLoader
from humanward.errors import UserError


class Inner(Config):
    """A section."""

    rate: PositiveFloat = 1e-5
    """Step size,
    per update."""
    kind: Literal["a", "b"] = "a"


class Outer(Config):
    """A run."""

    name: str = "run"
    """What it is called."""
    count: int = Field(default=3, ge=1)
    number: float = 1.0
    target: float | None = None
    flag: bool = False
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = {}
    data: Path = Path("a.txt")
    needed: str
    inner: Inner = Inner(rate=0.5)
    extra: Inner | None = None
    """Off unless given."""


def test_settings_list_every_name_with_type_default_and_text() -> None:
    assert settings(Outer) == [
        Setting("name", "text", "run", "What it is called."),
        Setting("count", "whole number >= 1", "3", ""),
        Setting("number", "number", "1.0", ""),
        Setting("target", "number or null", "null", ""),
        Setting("flag", "true or false", "false", ""),
        Setting("sizes", "list of whole number", "[]", ""),
        Setting("weights", "mapping", "{}", ""),
        Setting("data", "path", "a.txt", ""),
        Setting("needed", "text", "required", ""),
        Setting("inner", "section", "", "A section."),
        Setting("inner.rate", "number > 0", "0.5", "Step size, per update."),
        Setting("inner.kind", '"a" or "b"', "a", ""),
        Setting("extra", "section or null", "null", "Off unless given."),
        Setting("extra.rate", "number > 0", "1e-05", "Step size, per update."),
        Setting("extra.kind", '"a" or "b"', "a", ""),
    ]


def test_dump_explains_each_setting() -> None:
    assert dump_yaml(Inner(), comments=True) == "# Step size, per update.\nrate: 1e-05\nkind: a\n"
    assert dump_yaml(Inner()) == "rate: 1e-05\nkind: a\n"


_numbers = st.floats(allow_nan=False, allow_infinity=False)
_inner = st.builds(Inner, rate=st.floats(min_value=1e-300, max_value=1e300), kind=st.sampled_from(["a", "b"]))
# a lone surrogate is not text: no file can hold it
_text = st.text(st.characters(exclude_categories=["Cs"]))
_words = st.sampled_from(
    ["1e-3", "no", "null", "~", "", " ", "1_0", "0x1", ".", "- a", "a: b", "#", "2019-09-18", "\n", "\x85", "\ufeff", "true"]
)
_outer = st.builds(
    Outer,
    name=_text | _words,
    count=st.integers(min_value=1),
    number=_numbers,
    target=st.none() | _numbers,
    flag=st.booleans(),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    weights=st.dictionaries(_text | _words, _numbers, max_size=3),
    data=st.from_regex(r"[a-z/.]{1,8}", fullmatch=True).map(Path),
    needed=_text | _words,
    inner=_inner,
    extra=st.none() | _inner,
)


@given(config=_outer, comments=st.booleans())
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dumped_settings_load_back_equal(config: Outer, comments: bool, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(dump_yaml(config, comments=comments).encode())
    assert Outer.load(file) == config


@given(content=st.binary(max_size=60) | st.text("ab:-[]{}#'\"&*!|>%@ \t\n1.,?", max_size=40).map(str.encode))
@hypothesis_settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_lines_and_never_a_traceback(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:  # `needed` is required, and no generated file spells it
        Outer.load(file)
    assert all(line.startswith(f"{file}:") for line in str(caught.value).split("\n"))


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_plain_yaml_without_duplicates(name: str) -> None:
    with pytest.raises(UserError) as caught:
        Inner.load(preset=name)
    assert "given twice" not in str(caught.value)
    assert str(caught.value).startswith(f"preset {name}:")


def test_unknown_preset_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^preset zieglr: unknown preset; .*presets: [^\n]*$"):
        Inner.load(preset="zieglr")


def test_numbers_and_words_mean_the_same_when_read_and_written() -> None:
    written = "[no, 1e-3, 1_000, 2019-09-18, 0x10, '', '1e3', ~, .5]"
    expected = [("str", "no"), ("float", "1e-3"), ("int", "1_000"), ("str", "2019-09-18"), ("int", "0x10"), ("str", ""), ("str", "1e3")]
    nodes = PlainLoader(written).get_single_node().value
    assert [(node.tag.rpartition(":")[2], node.value) for node in nodes] == [*expected, ("null", "~"), ("float", ".5")]


def test_config_imports_neither_torch_nor_numpy() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'safetensors'}"
    code = f"import sys, humanward.config, humanward.storage; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""Reading settings: layers, sections that may be null, and the exact line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from humanward.config import Config
from humanward.errors import UserError


class Ppo(Config):
    """Policy optimisation."""

    lr: PositiveFloat
    """Step size."""
    kl_coef: PositiveFloat = 0.15
    """Weight of the KL penalty, score units per nat."""
    kl_target: PositiveFloat | None = None
    batch_size: PositiveInt = 64
    minibatches: int = Field(default=1, ge=1, le=512)
    estimator: Literal["k1", "k2", "k3"] = "k1"
    whiten: bool = True

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Self:
        if self.batch_size % self.minibatches:
            raise ValueError(f"minibatches={self.minibatches} must divide batch_size={self.batch_size}")
        return self


class Sft(Config):
    """Fine-tuning."""

    lr: float = 1e-4
    epochs: int = 1


class Loop(Config):
    """A whole run."""

    seed: int = 0
    name: str = "run"
    start: str | None = "."
    top_p: float | Literal["auto"] = 1.0
    sizes: tuple[int, ...] = (1, 2)
    weights: dict[str, float] = {}
    data: Path = Path("texts.jsonl")
    ppo: Ppo = Ppo(lr=1e-5, kl_coef=0.3)
    sft: Sft | None = None
    probe: Sft | None = Sft(epochs=7)


class Strict(Config):
    """With a setting that has no default."""

    ppo: Ppo


class Whole(Config):
    """A contradiction between two settings at the top."""

    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def _fails(cls: type[Config], text: str | bytes | None, overrides: list[str], folder: Path) -> list[str]:
    path = None
    if text is not None:
        path = folder / "f.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        cls.load(path, overrides)
    return str(caught.value).replace(str(folder) + "/", "").split("\n")


# name: (class, file, overrides, exact lines)
FAULTS: dict[str, tuple[type[Config], str | bytes | None, list[str], list[str]]] = {
    "misspelt": (Loop, "ppo:\n  kl_cof: 0.1\n", [], ["f.yaml:2: ppo.kl_cof: unknown setting; did you mean ppo.kl_coef?"]),
    "wrong section": (Loop, "seed: 1\nkl_coef: 0.1\n", [], ["f.yaml:2: kl_coef: unknown setting; did you mean ppo.kl_coef?"]),
    "misspelt section": (Loop, "pppo:\n  lr: 1\n", [], ["f.yaml:1: pppo: unknown setting; did you mean ppo?"]),
    "nothing alike": (Loop, "sft:\n  zzzz: 1\n", [], ["f.yaml:2: sft.zzzz: unknown setting; sft has lr, epochs"]),
    "dotted": (Loop, "ppo.lr: 1\n", [], ["f.yaml:1: ppo.lr: unknown setting; nest it: `ppo.lr` becomes `ppo: {lr: …}`"]),
    "number": (Loop, "ppo:\n\n  lr: fast\n", [], ['f.yaml:3: ppo.lr: expected a number, got "fast"']),
    "bool for number": (Loop, "ppo: {lr: true}\n", [], ["f.yaml:1: ppo.lr: expected a number, got true"]),
    "whole": (Loop, "seed: 1.5\n", [], ["f.yaml:1: seed: expected a whole number, got 1.5"]),
    "whole as float": (Loop, "seed: 1e3\n", [], ["f.yaml:1: seed: expected a whole number, got 1000.0; write 1000"]),
    "quoted number": (Loop, 'seed: "3"\n', [], ['f.yaml:1: seed: expected a whole number, got "3"']),
    "bool for whole": (Loop, "seed: true\n", [], ["f.yaml:1: seed: expected a whole number, got true"]),
    "yes": (Loop, "ppo: {whiten: yes}\n", [], ['f.yaml:1: ppo.whiten: expected true or false, got "yes"']),
    "text": (Loop, "name: 7\n", [], ["f.yaml:1: name: expected text, got 7; put it in quotes"]),
    "null": (Loop, "seed:\n", [], ["f.yaml:1: seed: expected a whole number, got null"]),
    "range": (Loop, "ppo: {kl_coef: -1}\n", [], ["f.yaml:1: ppo.kl_coef: must be greater than 0, got -1"]),
    "at least": (Loop, "ppo: {minibatches: 0}\n", [], ["f.yaml:1: ppo.minibatches: must be at least 1, got 0"]),
    "at most": (Loop, "ppo: {minibatches: 513}\n", [], ["f.yaml:1: ppo.minibatches: must be at most 512, got 513"]),
    "nan": (Loop, "ppo: {lr: .nan}\n", [], ["f.yaml:1: ppo.lr: expected a finite number, got NaN"]),
    "huge": (Loop, "sft: {lr: 1e400}\n", [], ["f.yaml:1: sft.lr: expected a finite number, got Infinity"]),
    "choice": (Loop, "ppo: {estimator: k4}\n", [], ["f.yaml:1: ppo.estimator: expected 'k1', 'k2' or 'k3', got \"k4\""]),
    "union": (Loop, "top_p: [1]\n", [], ["f.yaml:1: top_p: expected a number or 'auto', got a list"]),
    "union member": (Loop, "top_p: car\n", [], ["f.yaml:1: top_p: expected a number or 'auto', got \"car\""]),
    "list": (Loop, "sizes: 3\n", [], ["f.yaml:1: sizes: expected a list, got 3"]),
    "list item": (Loop, "sizes:\n- 1\n- x\n", [], ['f.yaml:3: sizes.1: expected a whole number, got "x"']),
    "mapping item": (Loop, "weights:\n  a: 1\n  b: no\n", [], ['f.yaml:3: weights.b: expected a number, got "no"']),
    "section is a value": (Loop, "ppo: 3\n", [], ["f.yaml:1: ppo: expected a section of `name: value` lines, got 3"]),
    "section is null": (
        Loop,
        "ppo:\n",
        [],
        ["f.yaml:1: ppo: expected a section of `name: value` lines, got null; remove the name or put settings under it"],
    ),
    "value is a section": (Loop, "seed:\n  a: 1\n", [], ["f.yaml:1: seed: expected a whole number, got a mapping"]),
    "missing": (Strict, "ppo:\n  kl_coef: 1\n", [], ["f.yaml:1: ppo.lr: required setting is missing; give it a value"]),
    "missing section": (Strict, None, [], ["settings: ppo: required setting is missing; give it a value"]),
    "missing because misspelt": (Strict, "ppo: {ler: 1}\n", [], ["f.yaml:1: ppo.ler: unknown setting; did you mean ppo.lr?"]),
    "contradiction": (Loop, "seed: 1\nppo:\n  minibatches: 3\n", [], ["f.yaml:2: ppo: minibatches=3 must divide batch_size=64"]),
    "contradiction at the top": (Whole, "# a\nlow: 3\n", [], ["f.yaml:2: low must not be above high"]),
    "contradiction by override": (
        Loop,
        "ppo:\n  batch_size: 8\n",
        ["ppo.minibatches=3"],
        ["override ppo.minibatches=3: ppo: minibatches=3 must divide batch_size=8"],
    ),
    "twice": (Loop, "seed: 1\nppo:\n  lr: 1\n  lr: 2\n", [], ["f.yaml:4: ppo.lr: given twice, first in line 3; keep one"]),
    "empty": (Loop, "", [], ["f.yaml:1: no settings in this file; write `name: value` lines or leave the file out"]),
    "comments": (Loop, "# a\n#b\n", [], ["f.yaml:1: no settings in this file; write `name: value` lines or leave the file out"]),
    "a list": (Loop, "# a\n- 1\n", [], ["f.yaml:2: expected settings as `name: value` lines, got a list"]),
    "a word": (Loop, "hello\n", [], ["f.yaml:1: expected settings as `name: value` lines, got a single value"]),
    "no space": (Loop, "seed: 1\nname:x\n", [], ["f.yaml:2: expected `name: value` with a space behind the colon"]),
    "tab": (Loop, "ppo:\n\tlr: 1\n", [], ["f.yaml:2: a tab; indent with spaces"]),
    "tab behind spaces": (Loop, "ppo:\n  lr: 1\n  \tkl_coef: 1\n", [], ["f.yaml:3: a tab; indent with spaces"]),
    "binary": (Loop, b"seed: 1\n\x93NUMPY\x01", [], ["f.yaml:2: not UTF-8 text (byte 0x93); save the file as UTF-8"]),
    "utf-16": (Loop, "seed: 1\n".encode("utf-16"), [], ["f.yaml:1: not UTF-8 text (byte 0xff); save the file as UTF-8"]),
    "nul": (Loop, b"seed: 1\nname: a\x00b\n", [], ["f.yaml:2: character U+0000 is not allowed in YAML; remove it"]),
    "unclosed": (Loop, "sizes: [1,\n", [], ["f.yaml:2: not YAML: expected the node content, but found '<stream end>'"]),
    "two documents": (Loop, "seed: 1\n---\nseed: 2\n", [], ["f.yaml:2: a second document begins here; keep one document per file"]),
    "alias": (Loop, "seed: &a 1\nname: *a\n", [], ["f.yaml:2: an alias (*name) is not supported; write the value out"]),
    "tag": (
        Loop,
        "name: !!python/name:os.system x\n",
        [],
        ["f.yaml:1: name: the tag tag:yaml.org,2002:python/name:os.system is not supported; write the plain value"],
    ),
    "tagged mapping": (Loop, "ppo: !x {lr: 1}\n", [], ["f.yaml:1: ppo: the tag !x is not supported; write the plain value"]),
    "wrong tag": (Loop, "seed: !!int x\n", [], ["f.yaml:1: seed: 'x' is not a number"]),
    "digits": (Loop, "seed: " + "9" * 5000, [], ["f.yaml:1: seed: the number has too many digits"]),
    "surrogate": (Loop, 'name: "\\ud800"\n', [], ["f.yaml:1: name: half of a surrogate pair is not text; write the whole character"]),
    "too deep": (Loop, "sizes: " + "[" * 1500, [], ["f.yaml: nested too deep to be settings"]),
    "name is a list": (Loop, "? [a]\n: 1\n", [], ["f.yaml:1: expected a name before the colon, got a list"]),
    "override misspelt": (Loop, None, ["ppo.ls=1"], ["override ppo.ls=1: ppo.ls: unknown setting; did you mean ppo.lr?"]),
    "override without =": (Loop, None, ["ppo.lr"], ["override ppo.lr: expected name=value, for example ppo.kl_coef=0.1"]),
    "override half name": (Loop, None, ["ppo.=1"], ["override ppo.=1: expected name=value, for example ppo.kl_coef=0.1"]),
    "override not YAML": (
        Loop,
        None,
        ["sizes=[1"],
        ["override sizes=[1: not YAML: expected ',' or ']', but got '<stream end>'"],
    ),
    "override wrong type": (Loop, None, ["seed=x"], ['override seed=x: seed: expected a whole number, got "x"']),
    "override below a value": (Loop, None, ["seed.a=1"], ["override seed.a=1: seed: expected a whole number, got a mapping"]),
    "everything at once": (
        Loop,
        "sed: 1\nppo:\n  lr: -1\n  kl_cof: 2\nsft: {epochs: x}\n",
        ["name=1"],
        [
            "f.yaml:1: sed: unknown setting; did you mean seed?",
            "f.yaml:4: ppo.kl_cof: unknown setting; did you mean ppo.kl_coef?",
            "override name=1: name: expected text, got 1; put it in quotes",
            "f.yaml:3: ppo.lr: must be greater than 0, got -1",
            'f.yaml:5: sft.epochs: expected a whole number, got "x"',
        ],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_mistake_is_one_exact_line(name: str, tmp_path: Path) -> None:
    cls, text, overrides, expected = FAULTS[name]
    assert _fails(cls, text, overrides, tmp_path) == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*/none\.yaml: no such file$"):
        Loop.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r": is a folder; name the YAML file in it$"):
        Loop.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r": cannot be read: Not a directory$"):
        Loop.load(tmp_path / "file" / "a.yaml")


def test_the_later_layer_wins_section_by_section(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("seed: 3\nppo:\n  lr: 1e-3\n  batch_size: 1_000\nweights: {a: 1}\n")
    config = Loop.load(file, ["ppo.lr=2e-3", "ppo.lr=4e-3", "weights.b=2", "sizes=[3, 4]", "data=a/b"])
    assert (config.seed, config.ppo.lr, config.ppo.batch_size) == (3, 4e-3, 1000)
    assert config.ppo.kl_coef == 0.3  # of the default section Ppo(lr=1e-5, kl_coef=0.3), not of the class
    assert (config.weights, config.sizes, config.data) == ({"a": 1, "b": 2}, (3, 4), Path("a/b"))


def test_null_turns_a_section_off_and_a_name_turns_it_on(tmp_path: Path) -> None:
    assert Loop.load().sft is None
    assert Loop.load(overrides=["sft.epochs=3"]).sft == Sft(epochs=3)
    assert Loop.load(overrides=["sft={}"]).sft == Sft()
    assert Loop.load(overrides=["probe=null"]).probe is None
    assert Loop.load(overrides=["probe.lr=3"]).probe == Sft(lr=3, epochs=7)
    assert Loop.load(overrides=["probe=null", "probe.lr=3"]).probe == Sft(lr=3, epochs=1)
    file = tmp_path / "f.yaml"
    file.write_text("probe: null\nstart: null\n")
    assert Loop.load(file).probe is None
    assert Loop.load(file).start is None
    assert Loop.load(file, ["probe.epochs=2", "start=a b"]) == Loop(probe=Sft(epochs=2), start="a b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2019-09-18", "2019-09-18"),
        ("1:30", "1:30"),
        ("'1e3'", "1e3"),
        ("é", "é"),
        (".", "."),
        ('"a\\tb"', "a\tb"),
    ],
)
def test_words_are_text(text: str, value: str) -> None:
    assert Loop.load(overrides=[f"name={text}"]).name == value


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("1_000.5", 1000.5), ("-2", -2.0), ("+3.", 3.0)])
def test_numbers_are_numbers(text: str, value: float) -> None:
    assert Loop.load(overrides=[f"sft.lr={text}"]).sft == Sft(lr=value)


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 3\r\nname: a\r\n")
    assert Loop.load(file) == Loop(seed=3, name="a")


def test_settings_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Loop().seed = 3


def test_every_misspelt_key_is_refused_with_the_right_name() -> None:
    """Every setting, one letter left out, doubled or swapped; the suggestion is the name that was meant."""
    for prefix, cls in (("ppo.", Ppo), ("sft.", Sft), ("", Loop)):
        for name in cls.model_fields:
            for wrong in (name[:-1], name + name[-1], name[0] + name[2] + name[1] + name[3:] if len(name) > 3 else name + "_"):
                if len(wrong) < 2 or wrong in cls.model_fields:
                    continue
                with pytest.raises(UserError) as caught:
                    Loop.load(overrides=[f"{prefix}{wrong}=1"])
                assert str(caught.value) == f"override {prefix}{wrong}=1: {prefix}{wrong}: unknown setting; did you mean {prefix}{name}?"

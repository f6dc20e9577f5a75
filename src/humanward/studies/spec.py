"""A study file: what is varied, what is measured, what is claimed; and the cells that follow from it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field

from humanward.config import Config
from humanward.config.base import override_layer
from humanward.config.presets import preset_layer
from humanward.config.schema import nearest
from humanward.config.yaml_text import Key, Layer, parse_layer, read_layer
from humanward.errors import UserError
from humanward.studies.claims import Claim, parse_claim
from humanward.studies.measures import CurveSource, Measure

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

UNSAID: dict[str, Any] = {"threads": 1, "self_test": False, "baseline_sft": None}
"""What a cell does unless the study says otherwise: one core, no test of its own, no baseline."""


class ClaimConfig(Config):
    """A shape that the study is there to see."""

    says: str
    """In words."""
    check: str
    """As an expression: ``max(ratio_max): clip > rollback``; docs/studies.md has the grammar."""
    source: str = ""
    """Who found it."""


class StudyConfig(Config):
    """A grid of settings and seeds over one task."""

    title: str
    """What is asked, in a line."""
    about: str = ""
    """A paragraph: where the question comes from and how it is answered here."""
    remark: str = ""
    """What its author makes of the results, such as why a shape does not appear."""
    preset: str | None = None
    """Settings that all cells begin with."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Over the preset, for all cells: dotted names or sections."""
    arms: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """What is compared, by name: the settings of each over those of all."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted names and lists of values: every arm with every combination."""
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1)
    """One cell of every arm for each."""
    reward_seed: int | None = None
    """Seed of the prompts, the labels and the reward model of a one-round study, which all cells then share; null: those of each seed,
    shared by the arms."""
    baseline: str | None = None
    """The arm that the others are compared with, seed by seed. null: the first."""
    table: list[str] = Field(default=["true_score", "kl"], min_length=1)
    """Final numbers."""
    curves: list[str] = Field(default_factory=list)
    """Drawn over the steps, or one over the other: ``true_score over kl``."""
    claims: list[ClaimConfig] = Field(default_factory=list)
    """Shapes that are looked for."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    seed: int
    common: tuple[Layer, ...] = field(compare=False)
    """Settings that all cells begin with."""
    own: tuple[Layer, ...] = field(compare=False)
    """Those of its arm and seed, over them."""

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def place(self) -> str:
        """Its folder, relative to the study's."""
        return f"cells/{_slug(self.arm)}/seed-{self.seed}"

    def config(self) -> LoopConfig:
        """All settings, checked. What is common to all cells but belongs to methods that this one does not use is left out."""
        from humanward.rounds import LoopConfig

        return LoopConfig.of_layers([*(replace(layer, ready_made=True) for layer in self.common), *self.own])


@dataclass(frozen=True)
class Study:
    """A study file that has been read and checked, but for its cells' settings."""

    name: str
    config: StudyConfig
    layer: Layer
    overrides: tuple[str, ...] = ()

    @classmethod
    def load(cls, file: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a study.

        Args:
            file: a YAML file, or the name of a study that ships with the package.
            overrides: ``ppo.episodes=512``: settings of all cells, over the file's own for all and under those of the arms.

        Raises:
            UserError: one line for every fault found, with file and line.
        """
        layer = _layer_of(file)
        config = StudyConfig.of_layers([layer])
        study = cls(Path(file).stem, config, layer, tuple(overrides))
        study._check()
        return study

    @property
    def arms(self) -> list[str]:
        """In the order of the file."""
        return list(self.arm_layers())

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.config.baseline or self.arms[0]

    @property
    def measures(self) -> list[Measure]:
        """The columns of the table."""
        return [Measure.parse(text) for text in self.config.table]

    @property
    def curves(self) -> list[CurveSource]:
        """What is drawn."""
        return [CurveSource.parse(text) for text in self.config.curves]

    @property
    def claims(self) -> list[Claim]:
        """What is looked for."""
        return [parse_claim(claim.check, self.arms) for claim in self.config.claims]

    def cells(self) -> list[Cell]:
        """One seed of all arms after the other, so that a study that is stopped early has whole comparisons."""
        common = self._common_layers()
        arms = self.arm_layers()
        return [Cell(arm, seed, common, (*layers, Layer({"seed": seed}, {}))) for seed in self.config.seeds for arm, layers in arms.items()]

    def configs(self) -> dict[Cell, LoopConfig]:
        """Every cell with its settings.

        Raises:
            UserError: one line for every fault in any of them.
        """
        from humanward.rounds.context import check_settings

        found: dict[Cell, LoopConfig] = {}
        faults: dict[str, None] = {}
        for cell in self.cells():
            try:
                config = cell.config()
                check_settings(config)
                self._check_cell(config)
                found[cell] = config
            except UserError as error:
                faults |= dict.fromkeys(str(error).splitlines())
        if faults:
            raise UserError("\n".join(faults))
        return found

    def arm_layers(self) -> dict[str, tuple[Layer, ...]]:
        """An arm's name and what it sets: each named arm with each point of the grid."""
        named = {name: (part_of(self.layer, "arms", name),) for name in self.config.arms} or {"": ()}
        points = [
            {name: (index, value) for (name, _), (index, value) in zip(self.config.grid.items(), chosen, strict=True)}
            for chosen in itertools.product(*(enumerate(values) for values in self.config.grid.values()))
        ]
        found: dict[str, tuple[Layer, ...]] = {}
        for (arm, layers), point in itertools.product(named.items(), points):
            words = [arm] if arm else []
            words += [f"{name.rpartition('.')[2]}={_shown(value)}" for name, (_, value) in point.items()]
            origins = {name: self.layer.origins.get(("grid", name, index), "settings") for name, (index, _) in point.items()}
            inside = tuple(nested({name: value}, {(name,): origins[name]}) for name, (_, value) in point.items())
            found[" ".join(words) or "all"] = (*layers, *inside)
        return found

    def _common_layers(self) -> tuple[Layer, ...]:
        layers = [Layer(dict(UNSAID), {})]
        if self.config.preset is not None:
            layers.append(preset_layer(self.config.preset))
        return (*layers, part_of(self.layer, "settings"), *map(override_layer, self.overrides))

    def _check(self) -> None:
        """What no single name can know."""
        c, faults = self.config, []
        arms = self.arms
        places = {_slug(arm): arm for arm in arms}
        for arm in arms:
            if places[_slug(arm)] != arm:
                faults.append(f"{self._at('arms', arm)}: arms {arm} and {places[_slug(arm)]} would share a folder; rename one")
            if re.search(r"[<>,:()\n]", arm):
                faults.append(f"{self._at('arms', arm)}: an arm's name has no < > , : ( ) in it; {arm!r} has")
        if self.baseline not in arms:
            near = nearest(self.baseline, arms)
            faults.append(f"{self._at('baseline')}: baseline: no arm is called {self.baseline}; " + _instead(near, arms))
        if len(set(c.seeds)) != len(c.seeds):
            faults.append(f"{self._at('seeds')}: seeds: one is there twice; give each once")
        for part, texts in (("table", c.table), ("curves", c.curves)):
            for index, text in enumerate(texts):
                faults += _faults(f"{self._at(part, index)}: {part}", text, Measure.parse if part == "table" else CurveSource.parse)
        for index, claim in enumerate(c.claims):
            faults += _faults(f"{self._at('claims', index, 'check')}: check", claim.check, lambda text: parse_claim(text, arms))
        if faults:
            raise UserError("\n".join(faults))

    def _check_cell(self, config: LoopConfig) -> None:
        """What a run may do and a cell may not. Raises UserError."""
        if config.labeler == "people" or config.labeler.startswith("own:"):
            raise UserError(f"{self.name}: labeler: {config.labeler}: cells run by themselves; give score:SPEC or labels:FILE")
        if config.label_store is not None:
            raise UserError(f"{self.name}: label_store: a database belongs to one run; leave it out, and every cell has its own file")
        if self.config.reward_seed is not None and config.labels.rounds > 1:
            raise UserError(f"{self._at('reward_seed')}: reward_seed: rounds have reward models of their own; set labels.rounds to 1")

    def _at(self, *key: str | int) -> str:
        """Where something was written."""
        return next((self.layer.origins[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.layer.origins), self.name)


def part_of(layer: Layer, *key: str) -> Layer:
    """What stands under ``key`` as settings of its own, each still knowing its line; dotted names are taken apart."""
    values: Any = layer.values
    for name in key:
        values = values.get(name) or {}
    here = {place[len(key) :]: line for place, line in layer.origins.items() if place[: len(key)] == key}
    return nested(values, here)


def nested(values: Mapping[str, Any], origins: Mapping[Key, str]) -> Layer:
    """``{"ppo.lr": 1}`` as ``{"ppo": {"lr": 1}}``; a name that was taken apart keeps its line."""
    result: dict[str, Any] = {}
    places: dict[Key, str] = {(): origins.get((), "settings")}
    for name, value in values.items():
        *sections, last = name.split(".")
        inside = result
        for section in sections:
            if not isinstance(inside.get(section), dict):
                inside[section] = {}
            inside = inside[section]
        before = inside.get(last)
        inside[last] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else copy.deepcopy(value)
        whole = (*sections, last)
        for place, line in origins.items():
            if place[:1] == (name,):
                places |= {whole[:n]: line for n in range(1, len(whole))} | {(*whole, *place[1:]): line}
    return Layer(result, places)


def shipped_studies() -> dict[str, str]:
    """The studies that ship with the package: name -> the first line of the file."""
    found = {}
    for entry in sorted(_folder().iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ")
    return found


def study_text(file: str | Path) -> bytes:
    """The contents of a study file, or of a shipped one.

    Raises:
        UserError: neither is there.
    """
    path = Path(file)
    if path.is_file():
        return path.read_bytes()
    known = shipped_studies()
    if str(file) in known:
        return _folder().joinpath(f"{file}.yaml").read_bytes()
    near = nearest(str(file), list(known))
    raise UserError(f"{file}: no such file, and no study of that name ships with the package; " + _instead(near, list(known)))


def _layer_of(file: str | Path) -> Layer:
    if Path(file).is_file():
        return read_layer(Path(file))
    return parse_layer(study_text(file), f"study {file}")


def _folder() -> Any:
    return files("humanward").joinpath("presets", "studies")


def _instead(near: str | None, known: Sequence[str]) -> str:
    return (f"did you mean {near}? " if near else "") + f"there are {', '.join(known)}"


def _faults(where: str, text: str, parse: Any) -> Iterator[str]:
    try:
        parse(text)
    except ValueError as error:
        yield f"{where}: {error}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", arm).strip("-.") or "arm"

"""Arguments that several commands share, and the settings that they make together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Settings, such as ppo.kl_coef=0.1.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int | None, typer.Option(help="Everything random is derived from it.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Hugging Face folder or name of a causal language model.", show_default=False)]
Prompts = Annotated[str | None, typer.Option(help="A .txt, .jsonl or .parquet file, a folder or a data set's name.", show_default=False)]
Labeler = Annotated[
    str | None, typer.Option(help="people, score:SPEC (score:positive, score:length:40, …) or labels:FILE.", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML.", show_default=False)]
Preset = Annotated[str | None, typer.Option(help="Settings that ship with the package: `humanward presets`.", show_default=False)]


@dataclass(frozen=True)
class Asked:
    """Settings as they were typed. The later wins: preset, file, options, NAME=VALUE."""

    preset: str | None = None
    file: Path | None = None
    model: str | None = None
    prompts: str | None = None
    labeler: str | None = None
    seed: int | None = None
    overrides: Sequence[str] = ()

    @property
    def anything(self) -> bool:
        """Whether a setting was given at all."""
        return any(value not in (None, ()) for value in vars(self).values())

    def config(self) -> LoopConfig:
        """All settings, checked."""
        from humanward.rounds import LoopConfig

        options = {"model": self.model, "prompts": self.prompts, "labeler": self.labeler, "seed": self.seed}
        typed = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in options.items() if value is not None]
        return LoopConfig.load(self.file, [*typed, *self.overrides], self.preset)


def example(line: str) -> str:
    """The end of a command's help."""
    return f"\b\nExample:\n  {line}"

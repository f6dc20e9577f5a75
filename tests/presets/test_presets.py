"""Every preset is YAML, says where each value is from, and fits the settings that it is for."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import yaml

from humanward.config import preset_names
from humanward.data import TaskConfig
from humanward.data.sources import _parse
from humanward.rounds import LoopConfig

ZIEGLER = [f"ziegler2019_{task}_{size}" for task in ("sentiment", "descriptiveness", "cnndm", "tldr") for size in ("124m", "774m")]
SOURCE = re.compile(r"\s# (P|C|Ours)\b")


def text_of(name: str) -> str:
    return files("humanward").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")


def test_the_eight_presets_of_2019_are_shipped() -> None:
    assert set(ZIEGLER) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_yaml_and_its_task_is_valid(name: str) -> None:
    settings = yaml.safe_load(text_of(name))
    TaskConfig(**settings.get("task", {}))
    assert _parse(settings["prompts"]).location == settings["prompts"].split("?")[0]


@pytest.mark.parametrize("name", ZIEGLER)
def test_every_value_names_its_source(name: str) -> None:
    """P, C or Ours on the line itself or on the comment lines above it."""
    lines = text_of(name).splitlines()
    for number, line in enumerate(lines):
        is_value = re.match(r"\s*\w+: \S", line)
        if not is_value or SOURCE.search(line):
            continue
        above = ""
        while number and lines[number - 1].lstrip().startswith("#"):
            number -= 1
            above = f" {lines[number].lstrip()} {above}"
        assert SOURCE.search(above), f"{name}: no source for {line!r}"


@pytest.mark.parametrize("name", ZIEGLER)
def test_batches_divide_evenly(name: str) -> None:
    settings = yaml.safe_load(text_of(name))
    assert settings["ppo"]["batch_size"] % settings["ppo"]["minibatches"] == 0
    assert settings["labels"]["total"] % settings["reward"]["batch_size"] == 0, "the last batch of the reward model would be short"


# launch.py of the released code: episodes, batch, lr, kl_coef, kl_target, whitening | labels, batch, lr of the reward model, rollouts
RELEASED = {
    "sentiment": (1_000_000, 512, 1e-5, 0.15, 6.0, True, 4_992, 32, 5e-5, 512),
    "descriptiveness": (1_000_000, 512, 1e-5, 0.15, 6.0, True, 4_992, 32, 5e-5, 512),
    "cnndm": (1_000_000, 32, 2e-6, 0.01, None, False, 46_000, 16, 2.5e-5, 128),
    "tldr": (1_000_000, 32, 2e-6, 0.03, None, False, 46_000, 16, 2.5e-5, 128),
}


@pytest.mark.parametrize("task", RELEASED)
def test_the_small_presets_have_the_values_of_the_released_code(task: str) -> None:
    settings = yaml.safe_load(text_of(f"ziegler2019_{task}_124m"))
    ppo, reward = settings["ppo"], settings["reward"]
    found = [ppo[key] for key in ("episodes", "batch_size", "lr", "kl_coef", "kl_target", "whiten_rewards")]
    found += [settings["labels"]["total"], *(reward[key] for key in ("batch_size", "lr", "rollout_batch_size"))]
    assert tuple(found) == RELEASED[task]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads(name: str) -> None:
    LoopConfig.load(preset=name)

"""Every preset is YAML, says where each value is from, and fits the settings that it is for."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import yaml

from humanward.config import preset_names
from humanward.data import TaskConfig
from humanward.data.locations import HUB_SETTINGS, Location
from humanward.maths.schedules import warmup_share
from humanward.rounds import LoopConfig

ZIEGLER = [f"ziegler2019_{task}_{size}" for task in ("sentiment", "descriptiveness", "cnndm", "tldr") for size in ("124m", "774m")]
LATER = ["stiennon2020_tldr", "ouyang2022_instructgpt", "bai2022_hh", "huang2024_nplus_tldr", "xu2024_hh", "xu2024_saferlhf"]
DIRECT = ["rafailov2023_sentiment", "rafailov2023_tldr", "tunstall2023_zephyr", "lambert2024_tulu3_8b", "dpo_offline"]
SOURCE = re.compile(r"\s# (P|C|N|TRL|Ours)\b")


def text_of(name: str) -> str:
    return files("humanward").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")


def test_the_published_recipes_are_shipped() -> None:
    assert {*ZIEGLER, *LATER} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_yaml_and_its_task_is_valid(name: str) -> None:
    settings = yaml.safe_load(text_of(name))
    TaskConfig(**settings.get("task", {}))
    assert Location.parse(settings["prompts"], (*HUB_SETTINGS, "text", "rows")).place == settings["prompts"].split("?")[0]


@pytest.mark.parametrize("name", [*ZIEGLER, *LATER, *DIRECT, "own"])
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


PRINTED: dict[str, dict[str, dict[str, object]]] = {
    "stiennon2020_tldr": {  # B.1, section 3.4
        "ppo": {
            "episodes": 1_000_000, "batch_size": 512, "ppo_epochs": 4, "lr": 1.5e-5, "lr_schedule": "linear", "kl_coef": 0.05,
            "kl_target": None, "gamma": 1.0, "gae_lambda": 0.95, "value_network": "reward_model",
        },
        "reward": {"lr": 1.5e-5, "batch_size": 64, "epochs": 1, "lr_schedule": "cosine", "normalize_on": "demonstrations"},
        "sft": {"lr": 6.35e-5, "batch_size": 128, "epochs": 1, "lr_schedule": "cosine"},
        "task": {"stop_at_eos": True, "truncate_token": None, "prompt_cut_at": "\n"},
        "labels": {"responses_per_question": 2, "kind": "pair"},
    },
    "ouyang2022_instructgpt": {  # C.2 to C.4, section 3.5
        "ppo": {
            "episodes": 256_000, "batch_size": 512, "minibatches": 8, "ppo_epochs": 1, "value_lr": 9e-6, "lr_schedule": "constant",
            "warmup_steps": 9, "kl_coef": 0.02, "kl_target": None, "gamma": 1.0, "clip_range": 0.2, "value_network": "reward_model",
            "ptx.coef": 27.8, "ptx.texts_per_episode": 8,
        },
        "reward": {"lr": 9e-6, "batch_size": 64, "epochs": 1, "loss": "all_pairs", "normalize_on": "demonstrations", "target_mean": 0.0},
        "sft": {"lr": 5e-6, "batch_size": 32, "epochs": 2, "dropout": 0.2},
        "task": {"temperature": 1.0},
        "labels": {"kind": "ranking"},
    },
    "bai2022_hh": {  # B.1, A, section 4.1
        "ppo": {"ppo_epochs": 1, "kl_coef": 0.001, "kl_target": None, "gamma": 1.0, "clip_range": 0.2, "entropy_coef": 0.0},
        "reward": {"epochs": 1},
        "task": {"response_length": 128},
        "labels": {"kind": "pair"},
    },
    "huang2024_nplus_tldr": {  # details 4, 7, 9, 10, 15, 20 to 25
        "ppo": {
            "episodes": 1_000_000, "batch_size": 512, "minibatches": 1, "ppo_epochs": 4, "lr": 3e-6, "lr_schedule": "linear",
            "adam_eps": 1e-5, "kl_coef": 0.05, "kl_target": None, "gamma": 1.0, "gae_lambda": 0.95, "clip_range": 0.2,
            "value_clip_range": 0.2, "value_coef": 0.1, "value_network": "reward_model", "whiten_rewards": False, "whiten_advantages": True,
            "dropout": 0.0,
        },
        "reward": {"lr": 3e-6, "batch_size": 64, "epochs": 1, "lr_schedule": "cosine", "adam_eps": 1e-5, "normalize_on": "demonstrations"},
        "sft": {"lr": 3e-6, "batch_size": 128, "epochs": 1, "lr_schedule": "cosine", "adam_eps": 1e-5, "dropout": 0.0},
        "task": {
            "prompt_length": 512, "prompt_cut_at": "\n", "response_length": 53, "temperature": 0.7, "stop_at_eos": True,
            "truncate_token": None, "missing_truncation_score": -1.0,
        },
        "labels": {"total": 92_858, "kind": "pair"},
    },
    **{
        name: {  # A.2, section 5
            "ppo": {
                "batch_size": 512, "minibatches": 4, "lr": 1e-5, "value_lr": 5e-6, "kl_coef": 0.1, "gamma": 1.0, "gae_lambda": 1.0,
                "score_clip": 20.0, "whiten_advantages": True, "reference_ema": 0.999, "value_network": "reward_model",
            },
            "task": {"response_length": 256, "temperature": 1.0, "top_k": 200},
        }
        for name in ("xu2024_hh", "xu2024_saferlhf")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_a_preset_has_the_values_that_its_paper_prints(name: str) -> None:
    config = LoopConfig.load(preset=name)
    for section, values in PRINTED[name].items():
        for key, value in values.items():
            found = getattr(config, section)
            for part in key.split("."):
                found = getattr(found, part)
            assert found == value, f"{section}.{key}"


@pytest.mark.parametrize("name", LATER)
def test_a_preset_leaves_nothing_that_changes_the_objective_to_a_default(name: str) -> None:
    settings = yaml.safe_load(text_of(name))
    wanted = """episodes batch_size minibatches ppo_epochs lr lr_schedule kl_coef kl_target kl_in kl_estimator gamma gae_lambda surrogate
        clip_range value_clip_range value_coef value_network whiten_rewards whiten_advantages dropout"""
    assert {*wanted.split()} <= settings["ppo"].keys()


# loss, beta, batch, learning rate, its course, share of warm-up, passes: appendix B of the paper, or the released configuration
DIRECT_VALUES = {
    "rafailov2023_tldr": ("sigmoid", 0.5, 64, 1e-6, "constant", 0.1, 1),
    "tunstall2023_zephyr": ("sigmoid", 0.01, 128, 5e-7, "cosine", 0.1, 1),
    "lambert2024_tulu3_8b": ("sigmoid_norm", 5.0, 128, 5e-7, "linear", 0.1, 1),
}


@pytest.mark.parametrize("name", DIRECT_VALUES)
def test_the_presets_of_direct_methods_have_the_published_values(name: str) -> None:
    config = LoopConfig.load(preset=name)
    dpo = config.dpo
    assert (dpo.loss, dpo.beta, dpo.batch_size, dpo.lr, dpo.lr_schedule, dpo.warmup_share, dpo.epochs) == DIRECT_VALUES[name]
    assert (config.method, config.labels.rounds, config.prompts) == ("dpo", 1, "labels")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads(name: str) -> None:
    LoopConfig.load(preset=name)


GROUPS = ("ahmadian2024_tldr", "shao2024_grpo")


@pytest.mark.parametrize("name", GROUPS)
def test_every_value_of_a_group_method_names_its_source(name: str) -> None:
    lines = [line for line in text_of(name).splitlines() if re.match(r"\s*\w+: \S", line)]
    assert [line for line in lines if not SOURCE.search(line)] == []


@pytest.mark.parametrize("name", GROUPS)
def test_a_published_recipe_is_the_methods_own(name: str) -> None:
    """What a preset says of baseline, ratio, lengths and KL is what null would have been."""
    config = LoopConfig.load(preset=name)
    own = dict.fromkeys(("baseline", "scale_advantages", "ratio", "average", "kl_in", "kl_estimator", "kl_coef"))
    assert config.group.model_copy(update=own).recipe(config.method) == config.group.recipe(config.method)


def test_the_rate_of_instructgpt_rises_from_a_tenth() -> None:
    """Ouyang et al. 2022, C.4: over ten steps, of which the tenth has all of it."""
    warmup = yaml.safe_load(text_of("ouyang2022_instructgpt"))["ppo"]["warmup_steps"]
    assert [warmup_share(step, warmup) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]

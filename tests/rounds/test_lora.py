"""A run with adapters: what it keeps, on what it is made, and that it goes on as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from humanward.errors import UserError
from humanward.models import LoraConfig, Policy
from humanward.rounds import Loop, LoopConfig
from humanward.storage import read_json
from humanward.trainers import load_reward

TOKENS = torch.tensor([[4, 5, 2], [3, 7, 7]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)


def lora_loop(loop: Loop, folder: Path, **settings: Any) -> Loop:
    """A run of the same settings and labelers, with adapters."""
    given = loop.config.model_dump(mode="json", exclude_unset=True) | {"lora": {"rank": 2, "alpha": 8, "save": "adapter"}} | settings
    given = {name: value for name, value in given.items() if value is not ...}
    return Loop(folder, LoopConfig.model_validate(given | {"labeler": "score:length:3"}), labelers=loop.context.labelers)


@pytest.fixture(scope="module")
def with_ppo(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    run = lora_loop(loop, tmp_path_factory.mktemp("lora") / "run", ppo={**PPO, "value_network": "reward_model"})
    run.run()
    return run


PPO = {"episodes": 64, "batch_size": 16, "ppo_epochs": 1, "lr": 1e-2}


@torch.no_grad()
def said(policy: Any) -> torch.Tensor:
    return policy(TOKENS, REAL, TOKENS, REAL, temperature=1.0).logprobs


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # of peft about its use of transformers
@torch.no_grad()
def test_a_round_keeps_adapters_and_the_policy_is_one_of_pefts(with_ppo: Loop) -> None:
    path = with_ppo.folder.path
    assert not [*path.rglob("model.safetensors")]
    for number in (1, 2):
        for kind in ("policy", "reward"):
            names = load_file(path / f"rounds/{number}/{kind}/adapter_model.safetensors").keys()
            assert names
            assert all("lora_" in name for name in names)
    theirs = AutoPeftModelForCausalLM.from_pretrained(path / "policy")
    ours = with_ppo.context.policy(path / "policy")
    assert torch.allclose(theirs(TOKENS).logits, plain_logits(ours), atol=1e-5)
    base = with_ppo.context.policy(with_ppo.config.model)
    assert torch.equal(said(ours.reference()), said(base))
    assert (said(ours) - said(base)).abs().max() > 1e-3
    assert len(load_reward(path / "rounds/2/reward")(["w2 "], ["good w3"])) == 1


@torch.no_grad()
def plain_logits(policy: Policy) -> torch.Tensor:
    with policy.at_work():
        return policy.model(TOKENS).logits


def test_the_training_starts_at_the_reference(with_ppo: Loop) -> None:
    rows = [row for row in with_ppo.context.log.read() if row["stage"] == "ppo"]
    assert abs(rows[0]["kl"]) < 1e-5
    assert rows[0]["first_ratio_error"] < 1e-5
    assert abs(rows[-1]["kl"]) > 1e-4
    results = read_json(with_ppo.folder.path / "evaluation/results.json")
    assert results["kl"]["ppo"]["mean"] != 0


def test_lost_rounds_are_made_again_against_their_own_reward_models(with_ppo: Loop, tmp_path: Path) -> None:
    """Without any checkpoint, the second round does the first one's steps again."""
    shutil.copytree(with_ppo.folder.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.rmtree(tmp_path / "run/rounds/2/policy")
    shutil.rmtree(tmp_path / "run/policy")
    again = Loop(tmp_path / "run", labelers=with_ppo.context.labelers)
    again.run("ppo")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "run/rounds/2/policy" / name).read_bytes() == (with_ppo.folder.path / "rounds/2/policy" / name).read_bytes()


@pytest.mark.parametrize("held", ["first", "before"])
def test_rounds_of_dpo_go_on_with_their_adapter(loop: Loop, tmp_path: Path, held: str) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "w2 bad ", "response": "good good"}\n' * 8)
    settings = {
        "method": "dpo", "reward": ..., "ppo": ..., "dpo": {"lr": 1e-2, "batch_size": 8, "round_reference": held},
        "sft": {"texts": str(texts), "lr": 1e-2, "batch_size": 8}, "baseline_sft": {"batch_size": 8, "lr": 1e-2},
        "lora": {"rank": 2, "alpha": 8, "save": "merged"},
    }  # fmt: skip
    run = lora_loop(loop, tmp_path / "run", **settings)
    run.run()
    context = run.context
    folders = [context.reference_folder, *(run.folder.path / name for name in ("rounds/1/policy", "rounds/2/policy", "baseline_sft"))]
    found = [said(context.policy(folder)) for folder in (context.config.model, *folders)]
    assert all((one - other).abs().max() > 1e-4 for n, one in enumerate(found) for other in found[:n])
    exported = AutoModelForCausalLM.from_pretrained(run.folder.path / "policy")
    assert torch.allclose(exported(TOKENS).logits.detach(), plain_logits(context.policy(run.folder.path / "rounds/2/policy")), atol=1e-5)
    second = [row for row in context.log.read() if row["stage"] == "dpo" and row["round"] == 2]
    # Held to where the round begins, nothing has moved at its first step.
    assert (abs(second[0]["chosen_moved"]) < 1e-5) == (held == "before")


def test_what_cannot_be_kept_is_one_line(loop: Loop, tmp_path: Path) -> None:
    Policy.load(loop.config.model).adapt(LoraConfig(rank=2)).save(tmp_path / "adapter", merged=False)
    with pytest.raises(UserError, match=r"^lora\.save: adapter: \S+ is an adapter itself, .* set lora\.save=merged$"):
        lora_loop(loop, tmp_path / "run", model=str(tmp_path / "adapter")).run()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="with lora those are frozen; set lora to null"):
        lora_loop(loop, tmp_path / "run", method="dpo", reward=..., ppo=..., dpo={"reference": "synchronised"})
    with pytest.raises(ValueError, match=r"ppo\.reference_ema moves .* with lora those are frozen; set one of the two to null"):
        lora_loop(loop, tmp_path / "run", ppo={"reference_ema": 0.99})
    with pytest.raises(ValueError, match=r"ensemble\.kind full trains all weights of each member, and lora none; choose kind lora"):
        lora_loop(loop, tmp_path / "run", reward={"ensemble": {"members": 2}})
    with pytest.raises(ValueError, match="leave reference at given"):
        lora_loop(loop, tmp_path / "run", method="dpo", reward=..., ppo=..., dpo={"reference": "adapter_off"})

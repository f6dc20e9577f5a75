"""Losses of real pairs under a real small model: our packed forward and step against TRL's collators, LM head and trainers."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from humanward.models import Policy, RewardModel
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL asks a model for it
BETA = 0.1
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {}, "robust": {"label_smoothing": 0.2}, "hinge": {}, "ipo": {}, "exo_pair": {"label_smoothing": 1e-3}, "nca_pair": {},
    "bco_pair": {}, "sppo_hard": {}, "aot": {"label_smoothing": 0.1}, "aot_unpaired": {}, "apo_zero": {}, "apo_down": {},
    "discopop": {"discopop_tau": 0.4}, "sigmoid_norm": {}, "sft": {},
}  # fmt: skip
"""All that TRL's DPO trainer has."""
WITH_THEM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "list": ({"loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},) * 2,
    "ld": ({"ld_alpha": 0.4},) * 2,
    "wpo": ({"wpo": True}, {"use_weighting": True}),
    "forward_kl": ({"divergence": "forward_kl"}, {"divergence": "forward_kl"}),
    "js": ({"divergence": "js"}, {"divergence": "js_divergence"}),
}
"""What goes with them: our settings and TRL's."""
ENLARGING = ("sppo_hard", "forward_kl", "js")
"""They enlarge that TRL sums log-probabilities in float32."""


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("trl_oracle", Path(__file__).parents[1] / "maths/trl_oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    for name in ("preferences/hh-harmless-base-test.jsonl.gz", "preferences/summeval-pairs.jsonl.gz", "models/stories260K"):
        if not (shared_data / name).exists():
            pytest.skip(f"no {name} in {shared_data}")
    return shared_data


def dialogues(path: Path) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected: a dialogue up to the last turn, which differs."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 0, 400, 150)]
    turn = "\n\nAssistant:"
    parts = [(*row["chosen"].rpartition(turn), row["rejected"].rpartition(turn)[2]) for row in rows]
    return [(prompt + turn, chosen, rejected) for prompt, _, chosen, rejected in parts]


def summaries(path: Path) -> list[tuple[str, str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 0, 400, 150)]
    sides = [("summary_a", "summary_b") if row["preferred"] == "a" else ("summary_b", "summary_a") for row in rows]
    return [(row["article"] + "\n\nSummary:", *(" " + row[side] for side in both)) for row, both in zip(rows, sides, strict=True)]


@pytest.fixture(scope="module")
def comparisons(folder: Path) -> list[Comparison]:
    """Three of each kind, the end of each prompt and the beginning of each response, which fit into the model's context."""
    tokenizer = reading(folder).tokenizer
    found: list[Comparison] = []
    for texts in (
        dialogues(folder / "preferences/hh-harmless-base-test.jsonl.gz"),
        summaries(folder / "preferences/summeval-pairs.jsonl.gz"),
    ):
        for prompt, *responses in texts:
            cut = [prompt[-200:], *(response[:200] for response in responses)]
            tokens = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in cut]
            number = str(len(found))
            target = len(found) % 2
            shown = tuple(Response("", ids) for ids in (tokens[1:] if target == 0 else tokens[:0:-1]))
            found.append(Comparison(Prompt(number, "", tokens[0]), shown, "pair", target, question_id=number))
    assert len({len(c.prompt.tokens) for c in found}) > 3
    return found


def reading(folder: Path) -> Policy:
    policy = Policy.load(folder / "models/stories260K", pad_token="<unk>", dtype=torch.float64)
    return policy.requires_grad_(True)


def moved(model: nn.Module) -> None:
    """Away from the reference, by a hundredth of each weight's size: what a loss says there is not what it says at the beginning."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * float(p.std()) * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def plain(folder: Path) -> Any:
    """The library's own model, as TRL takes it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "models/stories260K", dtype=torch.float64)


def token_ids(comparisons: list[Comparison]) -> list[dict[str, list[int]]]:
    rows = [(c, int(c.target)) for c in comparisons]  # pyright: ignore[reportArgumentType]
    return [
        {
            "prompt_ids": list(c.prompt.tokens), "chosen_ids": list(c.responses[best].tokens),
            "rejected_ids": list(c.responses[1 - best].tokens),
        }
        for c, best in rows
    ]  # fmt: skip


def direct(folder: Path, comparisons: list[Comparison], *, policy_moves: bool = True, **settings: Any) -> DPOTrainer:
    policy, reference = reading(folder), reading(folder)
    moved((policy if policy_moves else reference).model)
    config = DPOConfig(**{"batch_size": len(comparisons), "max_grad_norm": None, "micro_batch_tokens": 500, **settings})
    return DPOTrainer(policy, reference.requires_grad_(False).eval(), comparisons, config)


def agree(trainer: Any, model: nn.Module, theirs: Tensor, *, prefix: str = "model.", tolerance: float = 1e-5) -> None:
    """A step's loss and the gradient of every parameter."""
    theirs.backward()
    found = trainer.step(0)["loss"]
    assert found == pytest.approx(float(theirs.detach()), rel=tolerance)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = {name.removeprefix(prefix): p.grad for name, p in trainer.updater.named.items() if p.grad is not None}
    assert ours.keys() >= gradients.keys()
    size = max(float(g.abs().max()) for g in gradients.values())
    assert size > 1e-8
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).norm() <= tolerance * max(float(gradient.norm()), size), name


def policy_and_reference(folder: Path) -> tuple[Any, Any]:
    policy, reference = plain(folder), plain(folder)
    moved(policy)
    return policy, reference.requires_grad_(False).eval()


@pytest.mark.parametrize("name", [*LOSSES, *WITH_THEM])
def test_losses_of_real_pairs_are_trls(trl: ModuleType, folder: Path, comparisons: list[Comparison], name: str) -> None:
    """In TRL chosen and rejected responses are rows of their own; here both share their prompt."""
    ours, its = WITH_THEM.get(name, ({"loss": name, **LOSSES.get(name, {})},) * 2)
    beta = {} if name == "sft" else {"beta": BETA}
    policy, reference = policy_and_reference(folder)
    theirs = trl.dpo_of_models(**{"loss": "sigmoid", **its}, policy=policy, reference=reference, pairs=token_ids(comparisons), beta=BETA)
    agree(direct(folder, comparisons, **beta, **ours), policy, theirs, tolerance=5e-5 if name in ENLARGING else 1e-5)


@pytest.mark.parametrize("policy_moves", [True, False])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_losses_of_real_responses_are_trls(
    trl: ModuleType, folder: Path, comparisons: list[Comparison], name: str, policy_moves: bool
) -> None:
    """With the mismatched responses that our trainer crosses: TRL would take neighbours of a device's batch."""
    rows = [
        replace(c, kind="binary", target=int(k == c.target), responses=c.responses[k : k + 1], question_id=f"{c.question_id}-{k}")
        for c in comparisons for k in (0, 1)
    ]  # fmt: skip
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7} if name == "kto" else {}
    trainer = direct(folder, rows, loss=name, beta=BETA, policy_moves=policy_moves, **weights)
    singles = [{"prompt_ids": list(c.prompt.tokens), "completion_ids": list(c.responses[0].tokens), "label": bool(c.target)} for c in rows]
    for single, crossed in zip(singles, trainer.crossed, strict=False):
        single["KL_completion_ids"] = list(crossed.responses[0].tokens)
    policy, reference = plain(folder), plain(folder)
    moved(policy if policy_moves else reference)
    theirs = trl.kto_of_models(name, policy, reference.requires_grad_(False).eval(), singles, beta=BETA, **weights)
    agree(trainer, policy, theirs)


REFERENCE_FREE: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "cpo": ({"beta": BETA}, lambda trl, model, pairs: trl.cpo("sigmoid", model, pairs, beta=BETA)),
    "simpo": (
        {"beta": 2.0, "simpo_gamma": 0.7},
        lambda trl, model, pairs: trl.cpo("simpo", model, pairs, beta=2.0, simpo_gamma=0.7, nll_weight=0.0),
    ),
}


@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_losses_of_real_pairs_without_a_reference_are_trls(trl: ModuleType, folder: Path, comparisons: list[Comparison], name: str) -> None:
    settings, of_trl = REFERENCE_FREE[name]
    policy, _ = policy_and_reference(folder)
    theirs = of_trl(trl, policy, token_ids(comparisons))
    agree(direct(folder, comparisons, loss=name, **settings), policy, theirs)


def test_a_reward_models_loss_of_real_pairs_is_trls(trl: ModuleType, folder: Path, comparisons: list[Comparison]) -> None:
    from transformers import AutoModelForSequenceClassification

    policy = reading(folder)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    model.score_head.double()
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        folder / "models/stories260K", num_labels=1, pad_token_id=policy.pad_id, dtype=torch.float64
    )
    classifier.score.weight.data.copy_(model.score_head.weight)
    texts = [{side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")} for pair in token_ids(comparisons)]
    config = RewardConfig(batch_size=len(comparisons), normalize_before=False, normalize_after=False, micro_batch_tokens=500)
    theirs = trl.reward_of_model(classifier, texts)
    trainer = RewardTrainer(model, comparisons, config)
    trainer.updater.named["model.score.weight"] = trainer.updater.named["score_head.weight"]
    agree(trainer, classifier, theirs)

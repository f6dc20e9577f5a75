"""TRL's own trainers, asked for the loss of given log-probabilities: their code runs on tensors in place of a model's outputs."""

from __future__ import annotations

import inspect
import os
from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

# Some losses are in its experimental part, which warns of that when it is imported; here a warning is an error.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _metrics() -> Any:
    """Takes what a trainer wants to log."""
    return defaultdict(lambda: defaultdict(list))


class _Model(nn.Module):
    """A model that says what it was given."""

    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor, log_collision: Tensor | None = None) -> None:
        super().__init__()
        zero = torch.zeros_like(logprobs)
        self.outputs = SimpleNamespace(
            log_probs=logprobs, log_sum_sq_probs=log_collision, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )  # fmt: skip

    def forward(self, **_: Any) -> SimpleNamespace:
        return self.outputs


def dpo(
    loss: str | dict[str, float], logprobs: Tensor, reference: Tensor, mask: Tensor, *, beta: float, label_smoothing: float = 0.0,
    discopop_tau: float = 0.05, ld_alpha: float | None = None, divergence: str = "reverse_kl", coefficient: float = 0.5,
    log_collision: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TRL's DPO loss of a batch: chosen rows first, then the rejected ones, [2N, R], and behind one prompt token."""
    from trl.trainer.dpo_trainer import DPOTrainer

    model = _Model(logprobs * mask, log_collision)
    trainer = _dpo_trainer(
        model, _Model(reference * mask), loss, beta=beta, label_smoothing=label_smoothing, ld_alpha=ld_alpha, discopop_tau=discopop_tau,
        divergence=divergence, coefficient=coefficient, use_weighting=log_collision is not None,
    )  # fmt: skip
    return _call(DPOTrainer._compute_loss, trainer, model, {"completion_mask": _behind_a_prompt(mask)})


def dpo_of_models(
    loss: str | dict[str, float], policy: Any, reference: Any, pairs: list[dict[str, list[int]]], *, beta: float, **options: Any
) -> Tensor:
    """TRL's DPO loss of pairs of token ids as its own collator pads them, under models with its own LM head."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    trainer = _dpo_trainer(_with_head(policy), _with_head(reference), loss, beta=beta, **options)
    return DPOTrainer._compute_loss(trainer, policy, DataCollatorForPreference(pad_token_id=0)(pairs), False)


def _dpo_trainer(
    model: Any, ref_model: Any, loss: str | dict[str, float], *, beta: float, label_smoothing: float = 0.0, discopop_tau: float = 0.05,
    ld_alpha: float | None = None, divergence: str = "reverse_kl", coefficient: float = 0.5, use_weighting: bool = False,
) -> Any:  # fmt: skip
    losses = {loss: 1.0} if isinstance(loss, str) else loss
    return SimpleNamespace(
        model=model, ref_model=ref_model, accelerator=Accelerator(cpu=True), aux_loss_enabled=False, ld_alpha=ld_alpha,
        precompute_ref_logps=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=discopop_tau,
        gradient_checkpointing=False), f_divergence_type=divergence, f_alpha_divergence_coef=coefficient, beta=beta,
        loss_types=list(losses), loss_weights=list(losses.values()), label_smoothing=label_smoothing, use_weighting=use_weighting,
        _metrics=_metrics(), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def _with_head(model: Any) -> Any:
    """The language model with the LM head that TRL's trainers put on it."""
    from trl.trainer.dpo_trainer import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"))
    return model


def kto(
    loss: str, logprobs: Tensor, reference: Tensor, mask: Tensor, desirable: Tensor, *, beta: float, desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0, mismatched: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """TRL's KTO loss of a batch of single responses, [N, R]; ``mismatched``: [N] under policy and reference."""
    from trl.trainer.kto_trainer import KTOTrainer

    model, ref_model = _Model(logprobs * mask), _Model(reference * mask)
    trainer = _kto_trainer(
        model, ref_model, loss, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
        calculate_kl=mismatched is not None,
    )  # fmt: skip
    trainer._compute_kl_logps = lambda which, _: None if mismatched is None else mismatched[0 if which is model else 1]
    return _call(KTOTrainer._compute_loss, trainer, model, {"completion_mask": _behind_a_prompt(mask), "label": desirable})


def kto_of_models(loss: str, policy: Any, reference: Any, singles: list[dict[str, Any]], *, beta: float, **weights: float) -> Tensor:
    """TRL's KTO loss of responses as token ids, with mismatched ones beside them, as its own collator pads them."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    trainer = _kto_trainer(_with_head(policy), _with_head(reference), loss, beta=beta, calculate_kl=loss == "kto", **weights)
    trainer._compute_kl_logps = lambda which, batch: KTOTrainer._compute_kl_logps(trainer, which, batch)
    return KTOTrainer._compute_loss(trainer, policy, DataCollatorForUnpairedPreference(pad_token_id=0)(singles), False)


def _kto_trainer(
    model: Any, ref_model: Any, loss: str, *, beta: float, calculate_kl: bool, desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Any:  # fmt: skip
    return SimpleNamespace(
        model=model, ref_model=ref_model, accelerator=Accelerator(cpu=True), aux_loss_enabled=False, precompute_ref_logps=False,
        calculate_KL=calculate_kl, loss_type=loss, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
        _metrics=_metrics(), _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
    )  # fmt: skip


def cpo(
    loss: str, model: Any, pairs: list[dict[str, list[int]]], *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.5,
    nll_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """TRL's whole CPO loss of pairs of token ids: ``model`` gives logits to ids and attention mask. ``loss``: sigmoid or simpo."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    settings = {"alpha": 0.0, "cpo_alpha": nll_weight, "loss_type": loss, "simpo_gamma": simpo_gamma, "label_smoothing": label_smoothing}
    return _without_reference(CPOTrainer, model, pairs, pad_token_id=0, beta=beta, **settings)


def orpo(model: Any, pairs: list[dict[str, list[int]]], *, odds_weight: float) -> Tensor:
    """TRL's whole ORPO loss of pairs of token ids; its odds are in float32."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    return _without_reference(ORPOTrainer, model, pairs, padding_value=0, beta=odds_weight)


def _without_reference(kind: Any, model: Any, pairs: list[dict[str, list[int]]], **settings: Any) -> Tensor:
    trainer = SimpleNamespace(accelerator=Accelerator(cpu=True), aux_loss_enabled=False, is_encoder_decoder=False, **settings)
    for name in ("concatenated_inputs", "concatenated_forward", "get_batch_logps", "cpo_loss", "odds_ratio_loss"):
        if hasattr(kind, name):
            function = inspect.getattr_static(kind, name)
            setattr(trainer, name, getattr(kind, name) if isinstance(function, staticmethod) else MethodType(function, trainer))
    return kind.get_batch_loss_metrics(trainer, model, _labelled(pairs))[0]


def _labelled(pairs: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Prompt and response behind it, padded on the right; the labels are those of the response alone."""
    batch: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        rows = [pair["prompt_ids"] + pair[f"{side}_ids"] for pair in pairs]
        labels = [[-100] * len(pair["prompt_ids"]) + pair[f"{side}_ids"] for pair in pairs]
        for name, values, fill in (("input_ids", rows, 0), ("labels", labels, -100), ("attention_mask", [[1] * len(r) for r in rows], 0)):
            batch[f"{side}_{name}"] = nn.utils.rnn.pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=fill)
    return batch


def _behind_a_prompt(mask: Tensor) -> Tensor:
    """TRL shifts: the token in column t is predicted in column t - 1."""
    return torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], dim=1)


def _call(compute: Any, trainer: Any, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    ids = torch.zeros_like(inputs["completion_mask"])
    return compute(trainer, model, inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, False)


def reward(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """TRL's reward-model loss of a batch of pairs, the mean over it."""
    from trl.trainer.reward_trainer import RewardTrainer

    logits = torch.cat([chosen, rejected])[:, None]
    inputs = {"attention_mask": torch.ones(2, 1)} | ({} if margin is None else {"margin": margin})
    return RewardTrainer.compute_loss(_reward_trainer(), lambda **_: SimpleNamespace(logits=logits), inputs)  # pyright: ignore[reportArgumentType, reportReturnType]


def reward_of_model(classifier: Any, pairs: list[dict[str, list[int]]]) -> Tensor:
    """TRL's reward-model loss of texts as token ids as its own collator pads them, under a library's classifier."""
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    return RewardTrainer.compute_loss(_reward_trainer(), classifier, DataCollatorForPreference(pad_token_id=0)(pairs))  # pyright: ignore[reportReturnType]


def _reward_trainer() -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=None), accelerator=Accelerator(cpu=True),
        _metrics=_metrics(), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def grpo(
    loss: str, logprobs: Tensor, old: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, *, kl_coef: float, clip_range: float,
    response_length: int, level: str = "token",
) -> Tensor:  # fmt: skip
    """TRL's GRPO loss of N responses, [N, R]: ``loss`` is grpo, bnpo, dapo or dr_grpo."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = _group_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None), beta=kl_coef, loss_type=loss,
        epsilon_low=clip_range, epsilon_high=clip_range, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level=level, args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        max_completion_length=response_length, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
    )  # fmt: skip
    inputs = _completions(mask) | {
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum().float(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)  # pyright: ignore[reportArgumentType]


def rloo(logprobs: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """TRL's RLOO loss of N responses, [N, R]."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer = _group_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None), epsilon_low=clip_range,
        epsilon_high=clip_range,
    )  # fmt: skip
    inputs = _completions(mask) | {"advantages": advantages, "old_logps": (old * mask).sum(1)}
    return RLOOTrainer._compute_loss(trainer, trainer.model, inputs)  # pyright: ignore[reportArgumentType]


def rloo_advantages(scores: Tensor, old: Tensor, reference: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """TRL's RLOO advantages of [B, K] scores, with the KL of [B * K, R] log-probabilities in the reward."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer = _scored_trainer(scores, mask)
    trainer.beta, trainer.normalize_advantages, trainer.reward_clip_range, trainer.ref_model = kl_coef, False, None, _Model(reference)
    trainer._generate = lambda prompts: (*_token_lists(mask), [""] * len(prompts))
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (old if model is trainer.model else reference, None, None)
    return RLOOTrainer._generate_and_score_completions(trainer, [{"prompt": ""}] * len(mask))["advantages"].view(scores.shape)


def grpo_advantages(scores: Tensor, mask: Tensor, *, scale: bool) -> Tensor:
    """TRL's GRPO advantages of [B, K] scores."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = _scored_trainer(scores, mask)
    trainer.beta, trainer.scale_rewards, trainer.multi_objective_aggregation = 0.0, "group" if scale else "none", "sum_then_normalize"
    trainer.environment_factories = trainer.environments = trainer.tools = None
    trainer.use_vllm, trainer.num_iterations = False, 1
    trainer._generate = lambda prompts: (*_token_lists(mask), None, [""] * len(prompts), None, {}, None, None)
    return GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": ""}] * len(mask))["advantages"].view(scores.shape)


def _group_trainer(**settings: Any) -> Any:
    model = _Model(torch.zeros(1))
    return SimpleNamespace(model=model, accelerator=Accelerator(cpu=True), aux_loss_enabled=False, _metrics=_metrics(), **settings)


def _scored_trainer(scores: Tensor, mask: Tensor) -> Any:
    """A trainer that has sampled responses of these lengths and been told these scores."""
    logs = defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)}
    return _group_trainer(
        _tokenizer=SimpleNamespace(pad_token_id=0), pad_to_multiple_of=None, mask_truncated_completions=False,
        num_generations=scores.shape[1],
        args=SimpleNamespace(
            per_device_train_batch_size=len(mask), gradient_checkpointing_kwargs=None, steps_per_generation=1, gradient_accumulation_steps=1
        ),
        _calculate_rewards=lambda *_: scores.flatten()[:, None], reward_weights=torch.ones(1), reward_func_names=["one"], _logs=logs,
        _pending_extra_logs={}, _pending_metrics={}, log_multimodal=False,
    )  # fmt: skip


def _token_lists(mask: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    return [[1]] * len(mask), [[1] * int(n) for n in mask.sum(1)]


def _completions(mask: Tensor) -> dict[str, Tensor]:
    ids = torch.ones(mask.shape, dtype=torch.long)
    return {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask.long()}

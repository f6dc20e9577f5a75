"""Direct methods: a policy fitted to labels without a reward model (DPO: Rafailov et al. 2023, arXiv:2305.18290, and its relatives)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from humanward.config import Config
from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.maths import divergence, kto_reference_point, pair_weights
from humanward.models import Policy, context_length
from humanward.models.policy import check_apart, disable_dropout
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.displacement import Meter
from humanward.trainers.objective import LOSSES, Objective, Said, check_data
from humanward.trainers.questions import DIRECT_KINDS, Questions, check_questions, collate, tokens_of
from humanward.trainers.reference import ModelReference, Reference, StoredReference, ask, precompute
from humanward.trainers.run import Trainer
from humanward.trainers.updates import (
    Updater,
    gather_rows,
    load_weights,
    micro_batches,
    my_rows,
    sum_over_processes,
    weights,
    with_prefix,
    without_prefix,
)

Share = Annotated[float, Field(ge=0, le=1)]
OPTIONS = ("label_smoothing", "discopop_tau", "simpo_gamma", "odds_weight", "desirable_weight", "undesirable_weight")
"""Settings that only some losses read."""
READ_BY_REFERENCE = {
    "reference_cache": "precomputed", "reference_sync_every": "synchronised", "reference_sync_rate": "synchronised",
}  # fmt: skip
"""Settings that only one kind of reference reads."""


class DPOConfig(Config):
    """A policy fitted to labels."""

    loss: str | dict[str, PositiveFloat] = "sigmoid"
    """What is minimised, by name, or several with their weights: ``{sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}``. docs/losses.md lists them."""
    beta: PositiveFloat = 0.1
    """Score units per nat that the policy moves away from the reference: large holds it near."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Share of labels thought to be wrong. null: the loss's own, 0; robust 0.1, exo_pair 0.001."""
    discopop_tau: PositiveFloat | None = None
    """Width of discopop's gate, score units. null: 0.05."""
    simpo_gamma: NonNegativeFloat | None = None
    """Lead that simpo asks for, score units. null: 0.5."""
    odds_weight: NonNegativeFloat | None = None
    """orpo's lambda, weight of the odds ratio. null: 0.1."""
    desirable_weight: PositiveFloat | None = None
    """kto's weight of liked responses. null: 1."""
    undesirable_weight: PositiveFloat | None = None
    """kto's weight of the others. null: 1."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, Wang et al. 2023)."""
    divergence_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the alpha divergence: near 0 it is the reverse KL, near 1 the forward KL. null: 0.5."""
    ld_alpha: Share | None = None
    """Weight of the tokens of a response beyond the length of the other one of its pair (LD-DPO). null: all count."""
    wpo: bool = False
    """Weight each pair by how likely the policy itself is to write it (WPO), as if it were its own sample."""
    reference: Literal["given", "initial", "adapter_off", "precomputed", "synchronised", "none"] = "given"
    """given: the model that is passed; in a run, where ``round_reference`` says. precomputed: asked once before the training, then let go.
    synchronised: it follows the policy (TR-DPO). none: for losses without a reference; nothing is known of displacement then. For
    ``DPOTrainer`` alone, not a run: initial, the policy as it was; adapter_off, the policy without its adapter, which takes no memory."""
    reference_cache: Path | None = None
    """Folder that keeps precomputed log-probabilities, by a fingerprint of weights and labels. null: not kept."""
    reference_sync_every: PositiveInt = 512
    """Updates between two moves of a synchronised reference."""
    reference_sync_rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """How far it moves: 1 is a hard update, to the policy itself."""
    lr: PositiveFloat = 1e-6
    """Highest learning rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the updates over which the rate rises from 0 first."""
    batch_size: PositiveInt = 32
    """Questions per update, over all processes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole questions, like lengths together. Changes memory and speed, never the result.
    null: 384 to 1536 on a CPU, fewer for wider models; 16384 on a GPU."""
    epochs: PositiveInt = 1
    """Passes over the labels."""
    adam_eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm; null: do not."""

    @property
    def losses(self) -> dict[str, float]:
        """Names and weights."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

    @property
    def objective(self) -> Objective:
        """The weighted sum of losses."""
        options = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        return Objective(
            self.losses, {"beta": self.beta, **options}, divergence(self.divergence, self.divergence_alpha), self.ld_alpha, self.wpo
        )

    def unread(self) -> frozenset[str]:
        losses = {option for option in ("beta", *OPTIONS) if not self.objective.reads(option)}
        return frozenset(losses | {option for option, reader in READ_BY_REFERENCE.items() if self.reference != reader})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """An option that nothing reads is a mistake, and is named with what would read it."""
        unknown = [name for name in self.losses if name not in LOSSES]
        if unknown or not self.losses:
            raise ValueError(f"unknown loss {', '.join(unknown) or '(none)'}; it must be one of {', '.join(LOSSES)}")
        chosen, names = [LOSSES[name] for name in self.losses], ", ".join(self.losses)
        for option in sorted(self.unread() & self.model_fields_set):
            if getattr(self, option) is None:
                continue
            if option in READ_BY_REFERENCE:
                other = READ_BY_REFERENCE[option]
                raise ValueError(f"reference {self.reference} does not read {option}; leave it out, or use reference {other}")
            readers = [name for name, loss in LOSSES.items() if option in loss.options]
            raise ValueError(f"loss {names} does not read {option}; leave it out, or use {', '.join(readers)}")
        if self.label_smoothing == 0 and "exo_pair" in self.losses:
            raise ValueError("exo_pair needs a label_smoothing above 0, for example 0.001")
        reading = [loss for loss in chosen if loss.reference]
        if self.divergence != "reverse_kl" and not (reading and all(loss.divergence for loss in reading)):
            able = [name for name, loss in LOSSES.items() if loss.divergence]
            raise ValueError(f"divergence {self.divergence} is not defined for loss {names}; use reverse_kl, or {', '.join(able)}")
        if self.divergence_alpha is not None and self.divergence != "alpha":
            raise ValueError(f"divergence {self.divergence} does not read divergence_alpha; use divergence alpha")
        if self.reference == "none" and any(loss.reference for loss in chosen):
            able = [name for name, loss in LOSSES.items() if not loss.reference]
            raise ValueError(f"loss {names} needs a reference; only {', '.join(able)} do without")
        for name, on in (("ld_alpha", self.ld_alpha is not None), ("wpo", self.wpo)):
            if on and any(loss.whole_batch or (name == "ld_alpha" and loss.reads == "singles") for loss in chosen):
                raise ValueError(f"{name} weights compared responses one pair at a time, which loss {names} does not; leave it out")
        return self


class DPOTrainer(Trainer):
    """A reward model whose score is beta * log(pi(y|x) / rho(y|x)), eq. 5 and 7, or one of its relatives in ``objective.LOSSES``.

    Two responses are a pair. A choice among K is the mean over the pairs of the chosen one with each other, for sigmoid and plackett_luce
    the softmax over all K (appendix A.3, the first place of the ranking). An order of K is the mean over its pairs, for plackett_luce its
    likelihood. The K responses share one forward of their prompt.

    Args:
        policy: what is tuned.
        reference: rho, where it begins and must stay near; frozen. None: the policy as it is now, or none at all.
        comparisons: labels of one kind and one K, with token ids.
        config: settings.
        seed: of the order of the labels.
    """

    def __init__(
        self, policy: Policy, reference: Policy | None, comparisons: Sequence[Comparison], config: DPOConfig, *, seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to tune on; ask for labels first")
        check_questions(comparisons, policy.model, DIRECT_KINDS)
        self.objective = config.objective
        check_data(self.objective, comparisons)
        self.accelerator = accelerator or Accelerator()
        self.policy = policy.to(self.accelerator.device)
        self.comparisons, self.config, self.seed = list(comparisons), config, seed
        self.steps_per_epoch = -(-len(self.comparisons) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.crossed = _crossed(self.comparisons, policy) if self.objective.reads("reference_point") else []
        if "aot_unpaired" in config.losses:
            self._check_both_kinds()
        disable_dropout(policy)
        self.reference, self.known, self.known_crossed = self._references(reference)
        self.reward_mean, self.reward_steps = 0.0, 0
        self.updater = Updater(
            policy, self.accelerator, lr=config.lr, total_updates=self.total_steps, lr_schedule=config.lr_schedule,
            adam_eps=config.adam_eps, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
            warmup_updates=int(config.warmup_share * self.total_steps),
        )  # fmt: skip

    def _references(self, given: Policy | None) -> tuple[Policy | None, Reference | None, Reference | None]:
        """The reference's model where one is kept, who knows its log-probabilities, and who those of mismatched responses."""
        c = self.config
        if c.reference == "none":
            return None, None, None
        if c.reference == "given" and given is None:
            raise UserError("dpo.reference is given, but no reference was; give one, or set it to initial or precomputed")
        if c.reference == "initial" and given is not None:
            raise UserError("dpo.reference is initial, but another reference was given; leave that out, or set dpo.reference to given")
        if c.reference == "adapter_off":
            if given is not None:
                raise UserError("dpo.reference is adapter_off, but another reference was given; leave that out, or set it to given")
            if self.policy.adapter is None:
                raise UserError("dpo.reference is adapter_off, but the policy has no adapter; adapt it (lora), or set it to initial")
            given = self.policy.reference()
        if c.reference == "precomputed":
            model = (given or self.policy).to(self.accelerator.device)
            once = partial(
                precompute, model, accelerator=self.accelerator, micro_batch_tokens=c.micro_batch_tokens, cache=c.reference_cache
            )
            return None, once(self.comparisons), once(self.crossed) if self.crossed else None
        if c.reference == "synchronised" and self.policy.adapter is not None and given is not None:
            raise UserError("dpo.reference synchronised begins as a policy with an adapter is and follows it; give no other reference")
        if given is None or c.reference == "synchronised":
            given = (given or self.policy).frozen_copy()
        check_apart(self.policy, given)
        asked = partial(ModelReference, given.to(self.accelerator.device), micro_batch_tokens=c.micro_batch_tokens)
        return given, asked(self.comparisons), asked(self.crossed) if self.crossed else None

    def step(self, index: int) -> dict[str, float]:
        """One update on ``batch_size`` questions."""
        batch = self.rows(index)
        # The last batch may be uneven: it is filled up with questions of weight 0 so that every process has the same share.
        padded = [*batch, *(batch[0] for _ in range(-len(batch) % self.accelerator.num_processes))]
        mine = my_rows(self.accelerator, len(padded))
        own = padded[mine]
        kept = [self.comparisons[row] for row in own]
        counted = [self.comparisons[row].weight * (number < len(batch)) for number, row in enumerate(padded)]
        total_weight, weight = sum(counted), counted[mine]
        micro = self.micro_batches(self.comparisons, own)
        self.updater.module.eval()
        measured = self.measure(batch, own, weight)
        known = None if self.known is None else self.known.ahead(own)
        self.updater.module.train()
        self.seed_dropout(index)
        value, gradient = self.of_the_batch(own, weight, micro, known) if self.objective.whole_batch else (0.0, None)
        self.seed_dropout(index)
        meter = Meter(self.config.beta, self.policy.eos_id, self.accelerator.device)

        def loss(module: nn.Module, places: list[int]) -> Tensor:
            questions, said = self.ask(module, self.comparisons, [own[place] for place in places], known)
            counts = torch.tensor([weight[place] for place in places], device=self.accelerator.device)
            meter.add(said, questions, self.objective.scores(said, questions).detach(), counts)
            total = (counts * self.objective.per_question(said, questions, measured)).sum() / total_weight
            if gradient is None:
                return total
            # The gradient of a statement about the whole batch, and this part's share of its value.
            moved = (gradient[places] * said.logprobs.sum(-1)).sum()
            return total + moved - moved.detach() + value * counts.sum() / total_weight

        metrics = self.updater.update(
            micro, loss, what="DPO", batch=lambda: collate(kept, self.policy.pad_id, self.accelerator.device).tensors()
        )
        metrics |= meter.metrics(self.accelerator, pairs=len(self.comparisons[0].responses) > 1, reference=self.known is not None)
        self.after(index, meter)
        return metrics | {name: measured[name] for name in ("reference_point", "reward_shift") if name in measured}

    def seed_dropout(self, index: int) -> None:
        """Forwards of the same micro-batches behind this drop the same of what adapters are given."""
        torch.manual_seed(derive_seed(self.seed, "dpo", index, self.accelerator.process_index))

    def ask(
        self, module: nn.Module, comparisons: Sequence[Comparison], rows: Sequence[int], known: StoredReference | None
    ) -> tuple[Questions, Said]:
        """Log-probabilities of policy and reference of all responses of some questions, in one forward of the policy."""
        questions = collate([comparisons[row] for row in rows], self.policy.pad_id, self.accelerator.device)
        said = ask(module, questions, want_collision=self.config.wpo)
        return questions, Said(said.logprobs, None if known is None else known.logprobs(questions, rows), said.log_collision)

    @torch.no_grad()
    def measure(self, batch: Sequence[int], own: Sequence[int], weight: Sequence[float]) -> dict[str, float]:
        """What the losses need to know of the global batch before its first forward with gradient.

        KTO's reference point is a KL of the policy as it answers, and takes no gradient: it is measured without dropout.
        """
        measured = {}
        total_weight = sum(self.comparisons[row].weight for row in batch)
        if self.objective.reads("mean_chosen_length"):
            measured["mean_chosen_length"] = sum(self.comparisons[row].weight * self.chosen_length(row) for row in batch) / total_weight
        if self.objective.reads("reward_shift"):
            measured["reward_shift"] = self.reward_mean
        if self.objective.reads("reference_point"):
            moved = torch.zeros((), device=self.accelerator.device)
            known = None if self.known_crossed is None else self.known_crossed.ahead(own)
            for places in self.micro_batches(self.crossed, own):
                _, said = self.ask(self.updater.module, self.crossed, [own[place] for place in places], known)
                counts = torch.tensor([weight[place] for place in places], device=self.accelerator.device)
                moved += (counts * said.logratio.sum(-1).mean(1)).sum()
            mean = sum_over_processes(self.accelerator, moved) / total_weight
            measured["reference_point"] = float(kto_reference_point(mean[None]))
        return measured

    def of_the_batch(
        self, own: Sequence[int], weight: Sequence[float], micro: Sequence[list[int]], known: StoredReference | None
    ) -> tuple[float, Float[Tensor, "B K"]]:
        """Losses that sort the global batch: a first forward without gradient gives their value and their gradient to each response.

        careful: the forward that takes this gradient to the weights must drop what the first one dropped (``seed_dropout``). The gradient
        at other log-probabilities, that of the whole adapter among them, would belong to no loss.
        """
        device = self.accelerator.device
        K = len(self.comparisons[0].responses)
        logprob = torch.zeros(len(own), K, device=device, dtype=torch.promote_types(self.policy.head.weight.dtype, torch.float32))
        reference, target, ranked = torch.zeros_like(logprob), torch.zeros(len(own), K, device=device), False
        with torch.no_grad():
            for places in micro:
                questions, said = self.ask(self.updater.module, self.comparisons, [own[place] for place in places], known)
                logprob[places], target[places], ranked = said.logprobs.sum(-1), questions.target, questions.ranked
                if said.reference is not None:
                    reference[places] = said.reference.sum(-1)
        everything = [gather_rows(self.accelerator, x) for x in (logprob, reference, target, torch.tensor(weight, device=device))]
        # A weight of 2 is the question twice, one of 0 only fills the batch.
        times = everything[3].long()
        every = everything[0].clone().requires_grad_()
        leaf, reference, target = (x.repeat_interleave(times, 0) for x in (every, *everything[1:3]))
        empty = torch.zeros(len(leaf), 0, dtype=torch.long, device=device)
        # One "token" per response: its whole log-probability.
        mask = torch.ones(*leaf.shape, 1, dtype=torch.bool, device=device)
        questions = Questions(empty, empty.bool(), mask.long(), mask, ranked, target)
        value = self.objective.of_the_batch(Said(leaf[..., None], reference[..., None]), questions)
        gradient = torch.autograd.grad(value, every)[0]
        return float(value.detach()), gradient[my_rows(self.accelerator, len(gradient))]

    def after(self, index: int, meter: Meter) -> None:
        """What moves with the policy, from the next step on: the cumulative mean of the reward, and a reference that follows."""
        if self.objective.reads("reward_shift") and math.isfinite(meter.mean_reward):
            self.reward_steps += 1
            self.reward_mean += (meter.mean_reward - self.reward_mean) / self.reward_steps
        c = self.config
        if c.reference == "synchronised" and (index + 1) % c.reference_sync_every == 0:
            assert isinstance(self.known, ModelReference)
            self.known.move(self.updater.weights(), c.reference_sync_rate)

    def rows(self, index: int) -> list[int]:
        """Which questions a step works on: a pure function of the seed and the step."""
        epoch, number = divmod(index, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.comparisons))
        return order[number * self.config.batch_size : (number + 1) * self.config.batch_size]

    def batch(self, index: int) -> list[Comparison]:
        """The questions of a step."""
        return [self.comparisons[row] for row in self.rows(index)]

    def micro_batches(self, comparisons: Sequence[Comparison], own: Sequence[int]) -> list[list[int]]:
        """Places in ``own`` that share a forward."""
        lengths, networks = [tokens_of(comparisons[row]) for row in own], 1 if self.reference is None else 2
        return micro_batches(lengths, self.config.micro_batch_tokens, self.policy, networks=networks)

    def chosen_length(self, row: int) -> float:
        """Tokens of what was preferred, on average where that is uncertain."""
        questions = collate([self.comparisons[row]], 0, torch.device("cpu"))
        preferred = pair_weights(questions.target, ranked=questions.ranked).sum(2)
        return float((preferred * questions.response_mask.sum(-1)).sum())

    def tensors(self) -> dict[str, Tensor]:
        kept = with_prefix("policy", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())
        if self.config.reference == "synchronised" and self.reference is not None:
            kept |= with_prefix("reference", weights(self.reference, only=self.updater.kept))
        return kept

    def state(self) -> dict[str, Any]:
        running = {"reward_mean": self.reward_mean, "reward_steps": self.reward_steps}
        return self.updater.state() | (running if self.objective.reads("reward_shift") else {})

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("policy", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)
        if self.config.reference == "synchronised" and self.reference is not None:
            load_weights(self.reference, without_prefix("reference", tensors), only=self.updater.kept)
        if self.objective.reads("reward_shift"):
            self.reward_mean, self.reward_steps = float(state["reward_mean"]), int(state["reward_steps"])

    def _check_both_kinds(self) -> None:
        """Raises UserError where a batch has no liked or no disliked response to compare with."""
        for index in range(self.total_steps if self.comparisons[0].kind == "binary" else 0):
            if len({bool(c.target) for c in self.batch(index)}) < 2:
                raise UserError(f"loss aot_unpaired: batch {index + 1} has only responses of one kind; raise dpo.batch_size or use kto")


def _crossed(comparisons: Sequence[Comparison], policy: Policy) -> list[Comparison]:
    """Each prompt with the responses of the next question that has another prompt, cut to the model's context.

    KTO measures its reference point on them (section 4.1); here the partner is fixed by the data and not by the batch, so that the point
    depends on neither the order nor the processes.
    """
    n = len(comparisons)
    partner = [(i + 1) % n for i in range(n)]
    for i in reversed(range(2 * n)):
        here, after = i % n, (i + 1) % n
        if comparisons[here].prompt.tokens == comparisons[after].prompt.tokens:
            partner[here] = partner[after]
        else:
            partner[here] = after
    crossed = []
    for c, other in zip(comparisons, partner, strict=True):
        room = context_length(policy.model) - len(c.prompt.tokens)
        crossed.append(replace(c, responses=tuple(replace(r, tokens=r.tokens[:room]) for r in comparisons[other].responses)))
    return crossed

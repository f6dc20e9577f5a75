"""New episodes of a step: what policy methods sample, score and put into forwards, the same for PPO and for methods on groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from humanward.data import Task
from humanward.data.batches import index_order, left_pad
from humanward.errors import UserError
from humanward.models import NextTokens, Policy, check_context, sample_responses
from humanward.models.adapters import is_quantized
from humanward.models.policy import ResponseOutputs, check_apart, check_same_tokens, evaluating, padded_states
from humanward.storage import derive_seed
from humanward.trainers.guards import FIRST_RATIO_ERROR
from humanward.trainers.responses import prompt_ids, sampling_settings
from humanward.trainers.rewards import Reward, Score, models_of, moved
from humanward.trainers.scoring import Episodes, Scores, score_episodes
from humanward.trainers.updates import gather_rows, micro_batches, my_rows


@dataclass(frozen=True)
class Rollout:
    """The global batch of one step, on every process: who said what with which probability. One response to each prompt, or K."""

    prompts: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    responses: Int[Tensor, "B *K R"]
    response_mask: Bool[Tensor, "B *K R"]
    logprobs: Float[Tensor, "B *K R"]
    values: Float[Tensor, "B *K R"]
    """Of the state before each token, score units; 0 where nothing gives values."""
    reference_logprobs: Float[Tensor, "B *K R"]
    distributions: NextTokens | None = None
    """What the tokens were drawn from, where a KL over the vocabulary needs it."""
    reference_distributions: NextTokens | None = None
    """The reference's at the same tokens."""

    def rows(self, index: Tensor | slice) -> Self:
        """The prompts of ``index`` with all their responses."""
        parts = (getattr(self, f.name) for f in fields(self))
        return type(self)(*(None if part is None else part[index] for part in parts))  # pyright: ignore[reportArgumentType]

    def tensors(self) -> dict[str, Tensor]:
        """By name; without distributions."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


class RolloutSampler:
    """Episodes of a policy on a task: each process samples and scores its share of the global batch, and all get the whole.

    An episode depends on (seed, stream, step, its number in the batch) and the weights alone, so that neither the number of processes nor
    a restart changes it.

    Args:
        policy: what is sampled from.
        reference: where it must stay near.
        prompts: texts, used whole; or token ids, as ``Task.prompts`` gives them.
        task: how responses are sampled, and where they are truncated for their score.
        prompts_per_step: B, over all processes.
        num_responses: K responses to each prompt, which is computed once for them: tensors are [B, K, R]. None: one, and [B, R].
        stream: names the random numbers, so that two methods of one seed draw different ones.
        micro_batch_tokens: tokens per forward, in whole prompts with their responses; None: as many as are fast on the device.
        networks: like the policy, that are held together: with the reference, and a value network where there is one.
        check: called while sampling; may raise to stop.
    """

    def __init__(
        self, policy: Policy, reference: Policy, prompts: Sequence[str | Sequence[int]], task: Task, accelerator: Accelerator, *,
        prompts_per_step: int, num_responses: int | None = None, seed: int = 0, stream: str, micro_batch_tokens: int | None = None,
        networks: int = 2, check: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        if not prompts:
            raise UserError("no prompts to tune on; the task's rule may have skipped them all")
        check_apart(policy, reference)
        self.policy, self.reference, self.task, self.accelerator = policy, reference, task, accelerator
        self.prompts = prompt_ids(task, prompts)
        self.prompts_per_step, self.num_responses = prompts_per_step, num_responses
        self.seed, self.stream, self.check = seed, stream, check
        self.micro_batch_tokens, self.networks = micro_batch_tokens, networks
        for model in (policy.model, reference.model):
            self.check_context(model)
        self.sampling = sampling_settings(task, whole=not task.config.train_on_truncated)
        keep_eos = self.sampling.stop_at_eos
        self.suppressed = policy.suppressed_tokens(keep_eos=keep_eos) if self.sampling.suppress_special_tokens else None

    def check_context(self, model: PreTrainedModel) -> None:
        """Raises UserError where a model has no room for the longest prompt with its response."""
        check_context(model, max(map(len, self.prompts)), self.task.config.response_length, what=self.stream.upper())

    @property
    def ratio_limit(self) -> float:
        """How far from 1 the first ratios of a step may be for the number type of the policy."""
        coarse = self.policy.head.weight.element_size() <= 2 or is_quantized(self.policy.model)
        return FIRST_RATIO_ERROR[16 if coarse else 32]

    @torch.no_grad()
    def sample(self, step: int, *, reference_distributions: bool = False) -> Rollout:
        """The episodes of a step, each with a seed of its own; with the reference's whole distributions where they are wanted."""
        B, K = self.prompts_per_step, self.num_responses or 1
        batch = [self.prompts[i] for i in index_order(self.seed, step * B, B, len(self.prompts))]
        prompts, prompt_mask = (x.to(self.accelerator.device) for x in left_pad(batch, self.policy.pad_id))
        mine = my_rows(self.accelerator, B)
        seeds = [derive_seed(self.seed, f"{self.stream} episode", step, episode) for episode in range(B * K)]
        samples = sample_responses(
            self.policy, prompts[mine], prompt_mask[mine], self.sampling, seeds=seeds[mine.start * K : mine.stop * K], num_responses=K,
            check=self.check,
        )  # fmt: skip
        values = torch.zeros_like(samples.logprobs) if samples.values is None else samples.values
        drawn = (samples.responses, samples.response_mask, samples.logprobs, values)
        responses, mask, logprobs, values = drawn if self.num_responses is not None else (x[:, 0] for x in drawn)
        said = self.ask(
            self.reference, prompts[mine], prompt_mask[mine], responses, mask, want_states=reference_distributions, check=self.check
        )  # fmt: skip
        parts = (gather_rows(self.accelerator, part) for part in (responses, mask, logprobs, values, said.logprobs))
        states = None if said.states is None else gather_rows(self.accelerator, said.states)
        return Rollout(
            prompts, prompt_mask, *parts,  # pyright: ignore[reportArgumentType]
            reference_distributions=None if states is None else self.reference.next_tokens(states, frozen=True),
        )  # fmt: skip

    @torch.no_grad()
    def ask(
        self, policy: Policy, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor, *, want_states: bool = False,
        check: Callable[[], None] | None = None,
    ) -> ResponseOutputs:  # fmt: skip
        """Log-probabilities of given responses, and the states that predict them where they are wanted.

        careful: ``check`` may raise to stop before each forward; not to be given once a step has changed anything.
        """
        logprobs = torch.zeros(responses.shape, device=responses.device)
        states = self.no_states(policy, responses) if want_states else None
        with evaluating(policy):
            for rows in self.micro_batches(prompt_mask, mask):
                if check is not None:
                    check()
                outputs = policy(
                    prompts[rows], prompt_mask[rows], responses[rows], mask[rows], temperature=self.sampling.temperature,
                    suppressed=self.suppressed, want_states=want_states,
                )  # fmt: skip
                logprobs[rows] = outputs.logprobs
                if states is not None:
                    states[rows] = outputs.states
        return ResponseOutputs(logprobs, None, None, states=states)

    @torch.no_grad()
    def distributions(self, policy: Policy, rollout: Rollout) -> NextTokens:
        """A policy's distributions at the tokens of a rollout, as they are now."""
        own = rollout.rows(my_rows(self.accelerator, len(rollout.prompts)))
        states = self.no_states(policy, own.responses)
        with evaluating(policy):
            for rows in self.micro_batches(own.prompt_mask, own.response_mask):
                part = own.rows(rows)
                hidden = policy.states(part.prompts, part.prompt_mask, part.responses, part.response_mask)
                states[rows] = padded_states(hidden, part.response_mask)
        return policy.next_tokens(gather_rows(self.accelerator, states))

    @torch.no_grad()
    def full_kl(self, policy: Policy, rollout: Rollout) -> Float[Tensor, "B *K R"]:
        """KL(policy || reference) over the vocabulary at each token, nats; 0 on pads. Needs the reference's distributions."""
        own = rollout.rows(my_rows(self.accelerator, len(rollout.prompts)))
        kl = torch.zeros(own.responses.shape, device=own.responses.device)
        with evaluating(policy):
            for rows in self.micro_batches(own.prompt_mask, own.response_mask):
                part, mask = own.rows(rows), own.response_mask[rows]
                assert part.reference_distributions is not None
                found = policy.kl_of(
                    policy.states(part.prompts, part.prompt_mask, part.responses, mask), part.reference_distributions[mask], of_this=True,
                    temperature=self.sampling.temperature, suppressed=self.suppressed,
                )  # fmt: skip
                kl[rows] = found.new_zeros(mask.shape).masked_scatter(mask, found)
        return gather_rows(self.accelerator, kl)

    def no_states(self, policy: Policy, responses: Int[Tensor, "B *K R"]) -> Float[Tensor, "B *K R D"]:
        """Zeros, to be filled with a policy's states at the tokens of responses."""
        weight = policy.head.weight
        return torch.zeros(*responses.shape, weight.shape[1], device=responses.device, dtype=weight.dtype)

    def micro_batches(self, prompt_mask: Bool[Tensor, "B P"], response_mask: Bool[Tensor, "B *K R"]) -> list[Int[Tensor, " rows"]]:
        """Prompts that share a forward, with all their responses."""
        lengths = (prompt_mask.sum(1) + response_mask.flatten(1).sum(1)).tolist()
        batches = micro_batches(lengths, self.micro_batch_tokens, self.policy, networks=self.networks)
        return [torch.tensor(rows, device=prompt_mask.device) for rows in batches]

    def prepared(self, reward: Reward) -> Reward:
        """The same reward, its models on this process's device.

        Raises:
            UserError: a reward model has no room for prompt and response, or other tokens than the policy.
        """
        for model in models_of(moved(reward, self.accelerator.device)):
            self.check_context(model.eval().model)
            check_same_tokens(self.policy.tokenizer, model.tokenizer, "the reward model")
        return reward

    def score(self, rollout: Rollout, reward: Reward, *, fixed_score: bool = True) -> Scores:
        """Scores of the truncated responses, the fixed one where the end is missing; the update still sees every sampled token."""
        mine = my_rows(self.accelerator, len(rollout.prompts))
        own = Episodes(rollout.prompts[mine], rollout.prompt_mask[mine], rollout.responses[mine], rollout.response_mask[mine])
        scores = score_episodes(self.task, reward, own, fixed_score=fixed_score, check=self.check)
        terms = {name: gather_rows(self.accelerator, term) for name, term in scores.terms.items()}
        return Scores(*(gather_rows(self.accelerator, part) for part in (scores.scores, scores.found, scores.scored_mask)), terms=terms)

    def truth(self, rollout: Rollout, score: Score | None) -> dict[str, float]:
        """The mean of a score that is only logged, as ``true_score``; nothing without one.

        careful: scoring may raise to stop, so it must come before a step changes anything.
        """
        if score is None:
            return {}
        return {"true_score": float(self.score(rollout, score, fixed_score=False).scores.mean())}

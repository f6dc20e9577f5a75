"""What the stages of one run share: places, models, the task, prompts, labels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from humanward.data import Task, iter_texts
from humanward.data.batches import left_pad
from humanward.data.given_labels import read_given, with_held_out
from humanward.errors import UserError
from humanward.feedback import Labeler, Score, ScoreLabeler, Store, load_score
from humanward.models import (
    TYPES,
    Policy,
    RewardEnsemble,
    RewardModel,
    ValueNetwork,
    context_length,
    fingerprint,
    load_causal_lm,
    load_reward_model,
    members_of,
    sample_responses,
    with_options,
)
from humanward.models.loading import ADAPTER_CONFIG, Quantize, resolve
from humanward.models.sampling import Samples
from humanward.records import Label, Prompt, Question, Response, read_jsonl
from humanward.rounds.config import LoopConfig
from humanward.rounds.cord import CordWatch
from humanward.storage import Checkpoints, MetricsLog, RunFolder, StopFlag, derive_seed, write_json
from humanward.trainers import Episodes, GuardedScore, Progress, Reward, Surroundings
from humanward.trainers.responses import sampling_settings
from humanward.trainers.rewards import moved

PROMPTS_AT_MOST = 100_000
"""Prompts that a run takes from its source; more would only be read to be thrown away."""


warn = logging.getLogger("humanward").warning


M = TypeVar("M", bound=Policy | RewardModel | RewardEnsemble | ValueNetwork)


class Context:
    """The surroundings of a stage."""

    def __init__(
        self, folder: RunFolder, config: LoopConfig, accelerator: Accelerator, progress: Progress, stop: StopFlag,
        labelers: Sequence[Labeler] | None, tell: Callable[[str], None] = warn,
    ) -> None:  # fmt: skip
        self.folder, self.config, self.accelerator, self.progress, self.stop = folder, config, accelerator, progress, stop
        self.tell = tell
        self.log = folder.metrics_log()
        self.timings = MetricsLog(folder.timings)
        self.alarms = MetricsLog(folder.path / "alarms.jsonl")
        self.stage, self.round = "", 0
        """At work now; ``note`` sets them."""
        self.cord = CordWatch(self)
        self._labelers = labelers

    def note(self, stage: str, round: int, waiting: dict[str, Any] | None = None) -> None:
        """Write into state.json where the run is, and what it waits for, if anything; the pages and ``status`` read it."""
        self.stage, self.round = stage, round
        if self.accelerator.is_main_process:
            write_json(self.folder.state, {"stage": stage, "round": round} | ({"waiting": waiting} if waiting else {}))

    @contextmanager
    def waiting(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """For as long as the run waits: gives the function that tells state.json for what."""
        place = self.stage, self.round
        try:
            yield lambda waiting: self.note(*place, waiting)
        finally:
            self.note(*place)

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def reference_folder(self) -> str:
        """Where the reference is: the fine-tuned model, or the given one."""
        return str(self.path / "sft") if self.config.sft is not None else self.config.model

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.config.dtype]

    def policy(self, folder: str | Path, *, value_head: bool = False) -> Policy:
        """What is in a folder, to be asked or to be trained as a whole; what this run keeps as an adapter is on its own trunk."""
        if self.is_adapter(folder):
            return self.policy(self.reference_folder).take_adapter(Path(folder), trained=False)
        policy = Policy.load(
            folder, value_head=value_head, pad_token=self.config.pad_token, dtype=self.dtype, quantize=self.quantize(folder)
        )
        return policy.to(self.accelerator.device)

    def policy_to_train(self, folder: str | Path, stream: str, *, value_head: bool = False) -> Policy:
        """The policy of a folder, to train all its weights, or with ``lora`` an adapter: its own, where it is kept as one, or a new one.

        Args:
            folder: where the policy is.
            stream: names the random numbers of a new adapter.
            value_head: add one.
        """
        lora = self.config.lora
        if lora is None:
            return self.optimized(self.policy(folder, value_head=value_head))
        if self.is_adapter(folder):
            policy = self.policy(self.reference_folder, value_head=value_head).take_adapter(Path(folder))
        else:
            policy = self.policy(folder, value_head=value_head).adapt(lora, seed=self.seed(f"adapter of {stream}"))
        return self.optimized(policy)

    def policy_beside(self, policy: Policy, folder: str | Path) -> Policy:
        """The policy of a folder, to be asked while ``policy`` is trained: on the same trunk, where that has an adapter."""
        if policy.adapter is None:
            return self.optimized(self.policy(folder).requires_grad_(False).eval(), trained=False)
        if self.is_adapter(folder):
            return policy.beside().take_adapter(Path(folder), name="beside", trained=False)
        return policy.reference()

    def reward_model(self, round: int, *, on: Policy | None = None) -> RewardModel | RewardEnsemble:
        """Of a round. ``on``: a policy whose trunk it shares, where it is kept as an adapter; several rounds' can be there at a time."""
        folder = self.path / f"rounds/{round}/reward"
        if self.is_adapter(folder):
            trunk = self.base_model() if on is None else on.model
            return RewardModel.load(folder, on=trunk, name=f"reward-{round}").to(self.accelerator.device)
        return load_reward_model(folder, dtype=self.dtype).to(self.accelerator.device)

    def base_model(self) -> PreTrainedModel:
        """The reference's weights, to make something else of them."""
        folder = self.reference_folder
        return load_causal_lm(resolve(folder), dtype=self.dtype, quantize=self.quantize(folder))

    def quantize(self, folder: str | Path) -> Quantize | None:
        """How the weights of a folder are held: frozen ones, on which adapters are, as the settings say."""
        frozen = str(folder) in (self.reference_folder, self.config.model)
        return self.config.lora.quantize if self.config.lora is not None and frozen else None

    def is_adapter(self, folder: str | Path) -> bool:
        """Whether this run wrote a folder as an adapter on its reference."""
        return Path(folder).is_relative_to(self.path) and (Path(folder) / ADAPTER_CONFIG).exists()

    def optimized(self, model: M, *, trained: bool = True) -> M:
        """A model for a training, compiled where the settings say so; ``trained``: its activations, too, are saved as they say."""
        model.to(self.accelerator.device)
        # Members of an ensemble may share one trunk.
        parts = {id(part.trunk): part for part in members_of(model)}.values() if isinstance(model, RewardEnsemble) else [model]
        for part in parts:
            with_options(
                part, gradient_checkpointing=trained and self.config.gradient_checkpointing, compiled=self.config.compile,
            )  # fmt: skip
        return model

    def policy_before(self, round: int) -> str | Path:
        """The policy that round ``round`` starts from."""
        return self.reference_folder if round == 1 else self.path / f"rounds/{round - 1}/policy"

    def tuned_from(self, round: int) -> str | Path:
        """Where the tuning of a round begins: as a rule at the policy that wrote its responses."""
        first = round == 1 and self.config.method == "dpo" and self.config.dpo.sft_first is not None
        return self.path / "chosen_sft" if first else self.policy_before(round)

    def held_to(self, round: int, policy: Policy) -> Policy | None:
        """Where ``policy`` is held in a round of DPO, frozen; None where its losses have no reference."""
        settings = self.config.dpo
        if settings.reference == "none":
            return None
        return self.policy_beside(policy, self.tuned_from(1 if settings.round_reference == "first" else round))

    @cached_property
    def task(self) -> Task:
        given = self.policy(self.config.model)  # its tokenizer is the reference's too, which may not be there yet
        return Task(self.config.task, given.tokenizer, context_length=context_length(given.model), model_name=self.config.model)

    @cached_property
    def given_labels(self) -> tuple[list[Question], list[Label]]:
        """Labels that somebody gave before, from a file; some of their prompts, by lot, are held out."""
        settings = self.config.labels
        path = self.config.labeler.removeprefix("labels:")
        given = read_given(path, self.task, response_length=settings.response_length, leave_out_long=settings.leave_out_long)
        if given.too_long:
            self.tell(f"{given.too_long} labels are left out: their prompt or a response is longer than allowed")
        if given.skipped:
            self.tell(f"{given.skipped} rows of the labels have a fault and are skipped")
        return with_held_out(given.questions, settings.validation_share, self.seed("held-out labels")), given.labels

    @cached_property
    def source_prompts(self) -> list[Prompt]:
        """Different prompts that the task's rule cuts from the source, in its order."""
        source = self.config.prompts
        if source == "labels":
            return list({q.prompt.tokens: q.prompt for q in self.given_labels[0]}.values())
        found = islice(self.task.iter_prompts(iter_texts(source), passages=self.config.passages), PROMPTS_AT_MOST)
        unique = list({p.tokens: p for p in found}.values())
        wanted = self.config.evaluation.prompts
        if len(unique) < 2 * wanted:
            lower = f", or lower evaluation.prompts to {len(unique) // 2}" if len(unique) > 1 else ", or another task.prompt_start"
            raise UserError(
                f"prompts: {self.config.prompts} gives {len(unique)} different prompts under the task's rule, but the evaluation sets "
                f"aside {wanted} fresh ones and training needs as many; give more texts, set passages=true{lower}"
            )
        return unique

    def prompts(self, split: str) -> list[Prompt]:
        """``training`` or ``evaluation`` prompts, as the first stage wrote them."""
        path = self.path / "prompts" / f"{split}.jsonl"
        return [Prompt.from_json(row, f"{path}:{line}") for line, row in read_jsonl(path)]

    @cached_property
    def store(self) -> Store:
        # Who waits for people asks again by itself, and listens for a stop meanwhile.
        return Store(self.config.label_store or self.folder.labels, patience=0.0 if self.config.labeler == "people" else None)

    @cached_property
    def score(self) -> Score | None:
        """The labeler's score, where it is known; a model in float32, whatever the run's type: it is the truth here."""
        kind, _, spec = self.config.labeler.partition(":")
        return moved(load_score(spec), self.accelerator.device) if kind == "score" and self._labelers is None else None

    @cached_property
    def score_terms(self) -> dict[str, GuardedScore]:
        """What the policy is tuned toward besides the reward model."""
        return self.config.scoring.others(dtype=self.dtype)

    def reward(self, round: int, *, on: Policy) -> Reward:
        """What a policy is tuned toward in a round; ``on`` is the policy, whose trunk a reward model may share."""
        model = self.optimized(self.reward_model(round, on=on), trained=False) if self.config.fits_reward else None
        return self.config.scoring.reward(model, self.score_terms)

    @cached_property
    def labelers(self) -> Sequence[Labeler]:
        if self._labelers is not None:
            return self._labelers
        if self.config.labeler.startswith("own:"):
            raise UserError(
                f"labeler: {self.config.labeler}: this run is labelled by objects of a Python program; continue it with that program, "
                "as Loop(folder, labelers=[…]).run()"
            )
        if self.score is None:
            return []
        names = [
            f"mock-{number}" for number in range(1, (self.config.labels.overlap_labels if self.config.labels.overlap_share else 1) + 1)
        ]
        return [ScoreLabeler(name, self.score, self.config.labels.noise, self.config.seed) for name in names]

    def surroundings(self, stage: str) -> Surroundings:
        return Surroundings(
            Checkpoints(self.folder.checkpoints / stage), self.log, self.stop, self.progress, self.config.checkpoint_seconds,
            self.accelerator.is_main_process, faults=self.path / "faults", alarms=self.alarms, tell=self.tell,
            hold=lambda step, save: self.cord.hold(step, save, together=True),
        )  # fmt: skip

    def seed(self, stream: str, *indices: int) -> int:
        return derive_seed(self.config.seed, stream, *indices)

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        stream: str,
        *indices: int,
        num_responses: int = 1,
        whole: bool = False,
        temperature: float | None = None,
    ) -> tuple[Tensor, Tensor, Samples]:
        """(prompt ids, prompt mask, samples); one seed per response, derived from the stream, the prompt's place and the response's.

        Responses end where the task truncates them, unless ``whole``. ``temperature``: None for the task's.
        """
        settings = sampling_settings(self.task, whole=whole)
        ids, mask = (x.to(self.accelerator.device) for x in left_pad([p.tokens for p in prompts], policy.pad_id))
        seeds = [self.seed(stream, *indices, row, k) for row in range(len(prompts)) for k in range(num_responses)]

        samples = sample_responses(
            policy,
            ids,
            mask,
            replace(settings, temperature=temperature or settings.temperature),
            seeds=seeds,
            num_responses=num_responses,
            check=self.stop.check,
        )
        return ids, mask, samples

    def episodes(self, policy: Policy, prompts: Sequence[Prompt], stream: str, *indices: int) -> Episodes:
        ids, mask, samples = self.sample(policy, prompts, stream, *indices, whole=not self.config.task.train_on_truncated)
        return Episodes(ids, mask, samples.responses[:, 0], samples.response_mask[:, 0])

    def responses(
        self, tokens: Tensor, mask: Tensor, policy: Policy, source: str, name: str, temperature: float | None = None
    ) -> list[Response]:
        """Sampled rows as records."""
        task, tokenizer = self.config.task, fingerprint(policy.tokenizer)
        sampling: dict[str, Any] = {"temperature": temperature or task.temperature, "top_k": task.top_k, "top_p": task.top_p}
        rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
        return [Response(self.task.decode(row), tuple(row), source, name, tokenizer, sampling) for row in rows]


def weights_hash(policy: Policy) -> str:
    """Which policy wrote a response: a hash of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.weights().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_settings(config: LoopConfig) -> None:
    """What no single section can know. Raises UserError before anything is computed."""
    name, colon, _ = config.labeler.partition(":")
    if config.labeler != "people" and not (name in ("score", "labels", "own") and colon):
        raise UserError(f"labeler: {config.labeler!r}: expected people, score:SPEC (for example score:positive) or labels:FILE")
    if config.prompts == "labels" and name != "labels":
        raise UserError("prompts: labels: these are the prompts of labels that were given before; set labeler=labels:FILE")
    if config.sft is not None and config.sft.texts is None:
        raise UserError("sft.texts: not set; give texts to fine-tune on, or turn the stage off with sft=null")

"""All settings of a run, one section per stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from humanward.config import Config
from humanward.data import TaskConfig
from humanward.models import DType, LoraConfig
from humanward.trainers import (
    DPOConfig,
    ExpertIterationConfig,
    GroupConfig,
    OnlineDPOConfig,
    PPOConfig,
    RewardConfig,
    ScoringConfig,
    SFTConfig,
)
from humanward.trainers.questions import DIRECT_KINDS
from humanward.trainers.rewards import MODEL

Share = Annotated[float, Field(ge=0, le=1)]
GROUP_METHODS = ("rloo", "grpo", "dr_grpo", "reinforce")
SECTIONS: dict[str, tuple[str, ...]] = {
    "ppo": ("reward", "scoring", "ppo"),
    "dpo": ("dpo",),
    **dict.fromkeys(GROUP_METHODS, ("reward", "scoring", "group")),
    **{method: ("reward", "scoring", method) for method in ("online_dpo", "expert_iteration")},
}
"""Sections that each method reads besides those of every run, its own last. A round fits a reward model where ``reward`` is among them."""
SHOWN = {"pair": 2, "rating": 1, "difference": 2}
"""Responses that a question shows, for the kinds that leave no choice."""


class LabelsConfig(Config):
    """How many questions are asked, and when (Ziegler et al. 2019, section 2.3)."""

    initial: PositiveInt = 512
    """Questions answered before the tuning begins."""
    total: PositiveInt = 1024
    """Questions that the schedule would have had answered by the end of the tuning."""
    rounds: PositiveInt = 2
    """How often questions are asked, evenly spread over the tuning: each time a new reward model is fitted to all labels so far, or a
    method without one goes on with them. 1: offline."""
    responses_per_question: Annotated[int, Field(ge=1, le=9)] = 4
    """K: the labeler picks the best of so many."""
    kind: Literal["best_of_k", "pair", "ranking", "soft", "rating", "difference"] = "best_of_k"
    """What is asked: the best of K; the better of two, or a tie (``pair``); an order of K, ties allowed (``ranking``); how probable it is
    that each is the best (``soft``); how good a response is, 1 to 9, shown alone (``rating``, K = 1); how much better the first of two is,
    -4 to 4 (``difference``)."""
    instructions: str | None = None
    """What people are asked to do: a text, or a .txt or .md file of it. Every label keeps the version that was shown; a file may be changed
    while a run waits, and people then see the new version first. null: one sentence that belongs to ``kind``."""
    initial_temperature: PositiveFloat | None = None
    """Sampling temperature of the responses to the questions of the first round; null: the task's. A higher one gives responses that differ
    more, and that are further from what a policy writes."""
    choice: Literal["random", "disagreement", "bald"] = "random"
    """Which questions a round asks, from the second on; validation questions are always random. ``disagreement``: rather those about which
    the last round's reward models differ (Christiano et al. 2017); ``bald``: rather those whose answer is expected to tell most about which
    of them is right (Houlsby et al. 2011). Both need ``reward.ensemble``."""
    choice_candidates: Annotated[int, Field(ge=2)] = 4
    """Candidates that get responses for each question that is chosen."""
    choice_uniform_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the chosen questions that are drawn whatever the reward models say: no candidate has probability 0. Every question keeps its
    probability (``propensity``)."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a round's questions that its reward model, or a method without one, does not see but is measured on. Half their responses
    come from the reference, half from the policy; later rounds train on them."""
    overlap_share: Share = 0.05
    """Share of the questions that several labelers answer, to measure agreement."""
    overlap_labels: PositiveInt = 5
    """Labelers who answer such a question."""
    outstanding: PositiveInt = 1000
    """Unanswered questions that wait in the store at a time."""
    repeat_share: Share = 0.05
    """Share of their questions that people get a second time, in another order, to measure whether they agree with themselves. Repeats
    train nothing. A mock labeler gets none."""
    gold: str | None = None
    """File of questions with known answers, which everybody gets once among the others; they train nothing. JSONL rows of ``prompt``,
    ``responses`` and ``best``, as ``labels:FILE``. null: none. A mock labeler gets none."""
    noise: Share = 0.0
    """Probability that a mock labeler answers at random."""
    response_length: PositiveInt | None = None
    """Tokens of a response, at most, among labels that were given before: what people compared may be longer than what the policy writes.
    With the longest prompt it must fit into the model's context. null: ``task.response_length``."""
    leave_out_long: bool = False
    """Leave labels out, counted, of those that were given before, that are longer than ``task.prompt_length`` and ``response_length``;
    false: they are a fault."""

    @model_validator(mode="after")
    def _consistent(self) -> LabelsConfig:
        if self.total < self.initial:
            raise ValueError(f"total {self.total} is less than initial {self.initial}; raise it")
        if int(self.initial * self.validation_share) >= self.initial:
            raise ValueError("validation_share leaves no questions to train on; lower it")
        shown, K = SHOWN.get(self.kind), self.responses_per_question
        if shown is not None and shown != K:
            raise ValueError(f"kind {self.kind} shows {shown} response{'s'[: shown - 1]}, not {K}; set responses_per_question to {shown}")
        if shown is None and K < 2:
            raise ValueError(f"kind {self.kind} compares responses, and there is one; set responses_per_question to 2 or more")
        if self.choice != "random" and K == 1:
            raise ValueError(f"choice {self.choice} asks what is chosen among several responses; kind {self.kind} shows one, choose random")
        if self.gold is not None and self.kind not in ("best_of_k", "pair"):
            raise ValueError(f"gold questions have one best response; that is no known answer to kind {self.kind}; set gold to null")
        return self


class EvaluationConfig(Config):
    """What the report is based on. All prompts are fresh: no stage has used them."""

    prompts: PositiveInt = 400
    """Fresh prompts on which policies are compared, one response each."""
    frontier_prompts: NonNegativeInt = 32
    """Of these, prompts on which the reference is sampled many times for the analytic optimum and best-of-n; 0 leaves them out."""
    frontier_samples: PositiveInt = 64
    """Samples of the reference for each of them."""
    questions: NonNegativeInt = 200
    """Held-out best-of-K questions for the accuracy of the reward models; 0 leaves it out."""
    shown: NonNegativeInt = 12
    """Prompts whose responses the report shows, chosen at random."""


class DPORoundsConfig(DPOConfig):
    """DPO as a round of the loop: sample, label, DPO from the policy that sampled, again. One round is the offline method of the paper."""

    round_reference: Literal["first", "before"] = "first"
    """Where a round's policy is held: ``first``, the reference of the run, as in PPO; ``before``, the policy that the round begins with, so
    that each round may move as far as the first."""
    round_labels: Literal["all", "new"] = "all"
    """What a round trains on: all labels so far, or its own alone."""
    sft_first: SFTConfig | None = None
    """Supervised fine-tuning on the chosen responses of the first round before its DPO; what comes out is where DPO begins and is held, as
    Rafailov et al. 2023, section 4, advise where the reference did not write the responses. null: none."""
    drop: tuple[Literal["dual_safe", "dual_unsafe"], ...] = ()
    """Labels to leave out by the safety of their responses (Xu et al. 2024, arXiv:2404.10719): ``dual_unsafe``, where none is safe, so that
    no unsafe one is chosen; ``dual_safe``, where all are. The rows of the labels must say ``safe``, true or false for each response."""

    @model_validator(mode="after")
    def _held(self) -> DPORoundsConfig:
        if self.reference in ("initial", "adapter_off"):
            raise ValueError(f"reference {self.reference}: round_reference says where a round of a run is held; leave reference at given")
        return self


class LoopConfig(Config):
    """The loop of Ziegler et al. 2019: prompts, labels, reward model, PPO, again; then evaluation and a report."""

    seed: int = 1
    """Everything random is derived from it."""
    model: str = "asset:storyteller"
    """Hugging Face folder or hub name of a causal language model, or ``asset:NAME`` for an embedded one."""
    pad_token: str | None = None
    """A token to pad with, where the tokenizer has none or the wrong one."""
    dtype: DType = "float32"
    """Number type in which all models compute; 16-bit weights are trained through float32 copies. ``auto``: bfloat16 where that multiplies
    faster on this machine, else float32; a run keeps what it began with."""
    gradient_checkpointing: bool = False
    """Whatever is trained keeps only the input of each layer and computes the layer again in the backward pass: the memory of one layer's
    activations instead of all, for one more forward. Never changes a result."""
    compile: bool = False
    """Compile the layers of models that are trained, or asked at every update, with ``torch.compile``: somewhat faster, after up to half a
    minute per stage; slower in float32 where ``humanward doctor`` says that OpenBLAS multiplies, which compiled layers do without.
    Sampling and the attention stay as they are. Numbers are equal up to rounding. Needs a C++ compiler."""
    lora: LoraConfig | None = None
    """Train low-rank adapters on frozen weights instead of all weights: policy, values and reward models share one trunk, and the
    reference is that trunk with the adapters off. null: train all weights."""
    prompts: str = "asset:prompts"
    """A .txt, .jsonl or .parquet file, a folder or a data set name; ``asset:prompts``: passages that the embedded model wrote;
    ``labels``: those of the labels that were given before, the held-out ones for the evaluation."""
    passages: bool = False
    """Cut every passage that the task's rule finds in a text, not only its first: for books and other long texts."""
    labeler: str = "score:positive"
    """Who answers: ``people`` (on the page of ``humanward label RUN``), ``score:SPEC`` (a known score as a mock labeler) or ``labels:FILE``
    (labels that somebody gave before); ``own:NAMES`` where a Python program gave ``Loop`` its own."""
    label_store: str | None = None
    """Where questions and labels are kept: null for labels.db in the run's folder, or the address of a database that this run has to
    itself, such as ``postgresql://host/name``."""
    task: TaskConfig = TaskConfig()
    """Where prompts and responses begin and end."""
    sft: SFTConfig | None = None
    """Supervised fine-tuning of the model before everything else; null: none."""
    labels: LabelsConfig = LabelsConfig()
    """Questions and rounds."""
    method: Literal["ppo", "dpo", "rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration"] = "ppo"
    """How a round tunes the policy: ``dpo`` or a relative of it (``dpo.loss``) on the labels themselves; every other one against a reward
    model that is fitted to them. The sections of other methods must be left out. docs/methods.md says which one when."""
    reward: RewardConfig = RewardConfig()
    """The reward model, for methods that need one."""
    scoring: ScoringConfig = ScoringConfig()
    """What a response scores while the policy is tuned: the reward model's score, or a sum of several terms."""
    ppo: PPOConfig = PPOConfig()
    """Tuning the policy with PPO."""
    dpo: DPORoundsConfig = DPORoundsConfig()
    """Tuning the policy on labels directly."""
    group: GroupConfig = GroupConfig()
    """Tuning the policy with rloo, grpo, dr_grpo or reinforce."""
    online_dpo: OnlineDPOConfig = OnlineDPOConfig()
    """Tuning the policy with DPO on its own responses, step by step."""
    expert_iteration: ExpertIterationConfig = ExpertIterationConfig()
    """Tuning the policy by rejection sampling and fine-tuning, step by step."""
    baseline_sft: SFTConfig | None = SFTConfig()
    """Supervised fine-tuning on the chosen responses, to compare with; null: none."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Comparisons at the end."""
    threads: NonNegativeInt = 0
    """CPU threads; 0: as many as cores. Part of a run, since it can change the last bits of a number."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time between two checkpoints of a training; where one takes over a second to write, 20 times what the last one took if that
    is longer. Never changes a result."""
    self_test: bool = True
    """Before the first stage, check on a tiny problem that reward, KL, advantage and labels have the right sign, and on some of the run's
    prompts that its model and tokenizer go together: temperature, padding, tokens."""

    @property
    def fits_reward(self) -> bool:
        """Whether a round fits a reward model."""
        return "reward" in SECTIONS[self.method] and self.scoring.needs_model

    @property
    def learns_labels(self) -> bool:
        """Whether a round fits anything to the labels; else only the supervised baseline does."""
        return self.fits_reward or self.method == "dpo"

    @property
    def asks(self) -> bool:
        """Whether anything is fitted to labels; else nobody is asked for any."""
        return self.learns_labels or self.baseline_sft is not None

    @property
    def tuning(self) -> Any:
        """The section of the method."""
        return getattr(self, SECTIONS[self.method][-1])

    @property
    def steps(self) -> int | None:
        """Of the one training that goes through all rounds; None where every round is a training of its own, as long as its labels."""
        return self.tuning.steps if "episodes" in type(self.tuning).model_fields else None

    @classmethod
    def left_aside(cls, values: Mapping[str, Any]) -> frozenset[str]:
        method = values.get("method", cls.model_fields["method"].default)
        scoring = values.get("scoring")
        terms = scoring.get("terms") if isinstance(scoring, Mapping) else None
        without_model = isinstance(terms, Mapping) and not terms.get(MODEL)
        read = {*SECTIONS.get(method, ())} - ({"reward"} if without_model else set())
        return frozenset(name for sections in SECTIONS.values() for name in sections) - read

    def unread(self) -> frozenset[str]:
        read = {*SECTIONS[self.method]} - ({"reward"} if not self.fits_reward else set())
        return frozenset(name for sections in SECTIONS.values() for name in sections) - read

    @model_validator(mode="after")
    def _consistent(self) -> LoopConfig:
        unread = [f"{name}.{key}" for name in sorted(self.unread()) for key in sorted(getattr(self, name).model_fields_set)]
        if unread:
            raise ValueError(f"method {self.method} does not read {', '.join(unread)}; leave that out, or choose another method")
        if self.steps is not None and self.labels.rounds > self.steps:
            raise ValueError(
                f"labels.rounds {self.labels.rounds} is more than the {self.steps} steps of {self.method}; raise "
                f"{SECTIONS[self.method][-1]}.episodes or lower it"
            )
        if self.method == "dpo" and self.labels.kind not in DIRECT_KINDS:
            known = ", ".join(kind for kind in DIRECT_KINDS if kind != "binary")
            raise ValueError(f"method {self.method} learns nothing from labels.kind {self.labels.kind}; choose {known}, or method ppo")
        if self.method == "ppo" and self.ppo.value_network == "reward_model" and not self.fits_reward:
            raise ValueError("ppo.value_network reward_model: there is no reward model, since scoring.terms gives it no weight; use policy")
        if self.method in GROUP_METHODS:
            self.group.recipe(self.method)
        if self.lora is not None and self.method == "dpo" and self.dpo.reference == "synchronised":
            raise ValueError("dpo.reference synchronised moves a reference's weights, and with lora those are frozen; set lora to null")
        if self.lora is not None and self.method == "ppo" and self.ppo.reference_ema is not None:
            raise ValueError("ppo.reference_ema moves a reference's weights, and with lora those are frozen; set one of the two to null")
        self._check_reward_models()
        for name, stage in (("baseline_sft", self.baseline_sft), ("dpo.sft_first", self.dpo.sft_first)):
            if stage is not None and (stage.texts, stage.max_length) != (None, SFTConfig().max_length):
                raise ValueError(
                    f"{name} trains on the chosen responses of the labels, and reads neither texts nor max_length; leave {name}.texts and "
                    f"{name}.max_length out"
                )
        if self.evaluation.frontier_prompts > self.evaluation.prompts:
            raise ValueError("evaluation.frontier_prompts is more than evaluation.prompts; lower it")
        return self

    def _check_reward_models(self) -> None:
        choice, ensemble = self.labels.choice, self.reward.ensemble
        if choice != "random" and self.labels.rounds == 1:
            raise ValueError(f"labels.choice {choice} begins with the second round; raise labels.rounds, or choose random")
        if choice != "random" and not self.fits_reward:
            raise ValueError(f"labels.choice {choice} asks reward models, and method {self.method} has none; choose random")
        if choice != "random" and ensemble is None:
            raise ValueError(f"labels.choice {choice} needs reward models that can differ; set reward.ensemble.members=3, or choose random")
        if self.lora is not None and ensemble is not None and ensemble.kind == "full":
            raise ValueError("reward.ensemble.kind full trains all weights of each member, and lora none; choose kind lora, or lora=null")
        if ensemble is not None and ensemble.kind == "lora" and self.ppo.value_network == "reward_model":
            raise ValueError("ppo.value_network reward_model needs a reward model with a trunk of its own; set reward.ensemble.kind=full")

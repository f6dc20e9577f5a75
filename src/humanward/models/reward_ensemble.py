"""Several reward models as one: how far they differ says where none of them should be trusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanward.config import Config
from humanward.errors import UserError
from humanward.models.adapters import LoraConfig, save_model
from humanward.models.loading import load_causal_lm
from humanward.models.reward_model import RewardModel

Combine = Literal["mean", "min", "penalized"]
FACTS = "reward_ensemble.json"
FORMAT = 2


class EnsembleConfig(Config):
    """Several reward models in place of one, each fitted to a draw of the labels of its own (Christiano et al. 2017, section 2.2.3)."""

    members: Annotated[int, Field(ge=2, le=32)] = 3
    """How many; 3 in Christiano et al. 2017."""
    kind: Literal["full", "lora"] = "full"
    """``full``: a copy of the model for each. ``lora``: an adapter and a head for each on one frozen trunk, for little more memory than one
    reward model; needs peft."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters, where the kind is ``lora``."""
    resample: Literal["bootstrap", "hold_out", "none"] = "bootstrap"
    """What a member is fitted to. ``bootstrap``: as many questions as there are, drawn with replacement, which leaves out about 1/e of
    them (2017). ``hold_out``: all but 1/e of them, by lot, each once. Members are measured on what they never saw. ``none``: all, so that
    members differ by their heads and the order of the labels."""
    combine: Combine = "mean"
    """One score from those of the members: their ``mean``; the lowest (``min``), the worst case; or ``penalized``, the mean less
    ``penalty`` times their deviation. The last two give a policy nothing for what the members disagree about (Coste et al. 2024)."""
    penalty: NonNegativeFloat = 1.0
    """Score units taken off per unit of the members' deviation, where they are ``penalized``."""

    @model_validator(mode="after")
    def _consistent(self) -> EnsembleConfig:
        fields = type(self).model_fields
        for name, other, reader in (("lora_rank", "kind", "lora"), ("penalty", "combine", "penalized")):
            if getattr(self, name) != fields[name].default and getattr(self, other) != reader:
                raise ValueError(f"{name} is read where {other} is {reader}, not {getattr(self, other)}; leave it out or change {other}")
        return self


class RewardEnsemble(nn.Module):
    """One score from the scores of M members, [B, K].

        mean:       mean over members
        min:        the lowest: the worst case
        penalized:  mean - penalty * deviation over members (population)

    Coste et al. 2024 (arXiv:2310.02743): the last two make what the members disagree about unattractive to a policy. They penalise the
    variance; we the deviation, which has the unit of a score.

    Args:
        members: reward models; they may share one trunk, each with an adapter of its own (``lora_members``).
        combine: how their scores become one.
        penalty: of the deviation, where it is ``penalized``.
    """

    def __init__(self, members: Sequence[RewardModel], *, combine: Combine = "mean", penalty: float = 1.0) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs members")
        self.members = nn.ModuleList(members)
        self.combine: Combine = combine
        self.penalty = penalty

    @property
    def first(self) -> RewardModel:
        return self.members[0]  # pyright: ignore[reportReturnType]

    @property
    def model(self) -> PreTrainedModel:
        return self.first.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.first.tokenizer

    @property
    def pad_id(self) -> int:
        return self.first.pad_id

    @property
    def stops_at_eos(self) -> bool:
        return self.first.stops_at_eos

    @property
    def device(self) -> torch.device:
        return self.first.device

    def packs(self) -> bool:
        return self.first.packs()

    def member_scores(
        self, prompts: Int[Tensor, "B P"], prompt_mask: Bool[Tensor, "B P"], responses: Int[Tensor, "B K R"],
        response_mask: Bool[Tensor, "B K R"],
    ) -> Float[Tensor, "M B K"]:  # fmt: skip
        """What each member says."""
        return torch.stack([member(prompts, prompt_mask, responses, response_mask) for member in self.members])

    def forward(
        self, prompts: Int[Tensor, "B P"], prompt_mask: Bool[Tensor, "B P"], responses: Int[Tensor, "B K R"],
        response_mask: Bool[Tensor, "B K R"],
    ) -> Float[Tensor, "B K"]:  # fmt: skip
        scores = self.member_scores(prompts, prompt_mask, responses, response_mask)
        if self.combine == "min":
            return scores.amin(0)
        mean = scores.mean(0)
        return mean - self.penalty * scores.std(0, correction=0) if self.combine == "penalized" else mean

    def save(self, folder: Path) -> None:
        """Members in a folder each; those that share a trunk as adapters and heads, with the trunk once beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = self.first.adapter is not None
        facts = {"format": FORMAT, "members": len(self.members), "combine": self.combine, "penalty": self.penalty, "shared_trunk": shared}
        if shared:
            save_model(self.model, None, folder)
            self.tokenizer.save_pretrained(folder)
        for number, member in enumerate(members_of(self)):
            member.save(folder / f"member-{number}", merged=not shared)
        (folder / FACTS).write_text(json.dumps(facts) + "\n")

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Self:
        """A folder written by ``save``.

        Raises:
            UserError: no ensemble there, or a member of it is missing.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / FACTS).read_text())
            count, known = int(facts["members"]), facts["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder}: not an ensemble of reward models (no readable {FACTS}); give a folder that a run wrote") from None
        if not known:
            raise UserError(f"{folder / FACTS}: format {facts['format']}, and this version reads {FORMAT}; use the version that wrote it")
        settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        trunk = load_causal_lm(folder, **settings) if facts["shared_trunk"] else None
        members = [RewardModel.load(folder / f"member-{n}", on=trunk, name=f"member{n}", **settings) for n in range(count)]
        return cls(members, combine=facts["combine"], penalty=float(facts["penalty"])).eval()


def members_of(model: RewardModel | RewardEnsemble) -> list[RewardModel]:
    """The members of an ensemble; a reward model is its own only one."""
    return [*model.members] if isinstance(model, RewardEnsemble) else [model]  # pyright: ignore[reportReturnType]


def load_reward_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> RewardModel | RewardEnsemble:
    """Whichever of both a folder holds.

    Raises:
        UserError: neither is there.
    """
    kind = RewardEnsemble if (Path(folder) / FACTS).exists() else RewardModel
    return kind.load(folder, dtype=dtype, trust_remote_code=trust_remote_code)


def full_members(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, **settings: Any) -> list[RewardModel]:
    """Copies of a model, each with a random head of its own, drawn one after the other from ``generator``."""
    return [RewardModel(copy.deepcopy(model), tokenizer, **settings) for _ in range(count)]


def lora_members(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, *, rank: int = 8, generator: torch.Generator | None = None,
    **settings: Any,
) -> list[RewardModel]:  # fmt: skip
    """Members on one frozen trunk, each with an adapter and a random head of its own.

    Raises:
        UserError: peft is not installed.
    """
    members: list[RewardModel] = []
    for number in range(count):
        member = RewardModel(model, tokenizer, generator=generator, **settings)
        seed = int(torch.randint(1 << 30, (), generator=generator))
        members.append(member.adapt(LoraConfig(rank=rank, alpha=2 * rank), name=f"member{number}", seed=seed))
    return members


def new_ensemble(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EnsembleConfig, **settings: Any) -> RewardEnsemble:
    """Members as the settings say, with random heads; ``settings`` are those of ``RewardModel``."""
    if config.kind == "lora":
        members: Sequence[RewardModel] = lora_members(model, tokenizer, config.members, rank=config.lora_rank, **settings)
    else:
        members = full_members(model, tokenizer, config.members, **settings)
    return RewardEnsemble(members, combine=config.combine, penalty=config.penalty)

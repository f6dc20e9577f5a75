"""Several reward models as one: how far they differ says where none of them should be trusted."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from humanward.config import Config
from humanward.errors import UserError
from humanward.models.loading import load_causal_lm, load_tokenizer
from humanward.models.reward_model import RewardModel

Combine = Literal["mean", "min", "penalized"]
FACTS = "reward_ensemble.json"
FORMAT = 1


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
    def device(self) -> torch.device:
        return self.first.device

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
        """Members with trunks of their own in a folder each; those on one trunk as adapters and heads beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = isinstance(self.first, LoraMember)
        facts = {"format": FORMAT, "members": len(self.members), "combine": self.combine, "penalty": self.penalty, "shared_trunk": shared}
        if shared:
            _save_shared(self, folder)
        else:
            for number, member in enumerate(self.members):
                member.save(folder / f"member-{number}")  # pyright: ignore[reportCallIssue]
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
        members: list[RewardModel] = []
        if facts["shared_trunk"]:
            members += _load_shared(folder, count, dtype, trust_remote_code)
        else:
            members += [RewardModel.load(folder / f"member-{n}", dtype=dtype, trust_remote_code=trust_remote_code) for n in range(count)]
        return cls(members, combine=facts["combine"], penalty=float(facts["penalty"])).eval()


def members_of(model: RewardModel | RewardEnsemble) -> list[RewardModel]:
    """The members of an ensemble; a reward model is its own only one."""
    return [*model.members] if isinstance(model, RewardEnsemble) else [model]  # pyright: ignore[reportReturnType]


def load_reward_model(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> RewardModel | RewardEnsemble:
    """Whichever of both a folder holds.

    Raises:
        UserError: neither is there.
    """
    kind = RewardEnsemble if (Path(folder) / FACTS).exists() else RewardModel
    return kind.load(folder, dtype=dtype)


class LoraMember(RewardModel):
    """A reward model on a trunk that it shares: its own are an adapter and a head. It is the trunk's guest for each forward."""

    @classmethod
    def on(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: str, *, rank: int, head_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Self:  # fmt: skip
        """Add an adapter to ``model`` and a head for it. The trunk's own weights are frozen."""
        member = cls(model, tokenizer, head_scale=head_scale, generator=generator)
        member.adapter = adapter
        peft = _peft()
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear_names(member.trunk))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are what is wanted
            torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
            # careful: into the trunk, so that the LM head, which is not used, has no part in it.
            peft.inject_adapter_in_model(config, member.trunk, adapter_name=adapter)
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(False)
        return member

    def activate(self) -> None:
        """Let the trunk compute with this member's adapter, which is then the only one with gradients."""
        for module in self.trunk.modules():
            if hasattr(module, "active_adapters") and hasattr(module, "set_adapter") and self.adapter in getattr(module, "lora_A", {}):
                module.set_adapter(self.adapter)  # pyright: ignore[reportCallIssue]

    def adapter_tensors(self) -> dict[str, Tensor]:
        mark = f".{self.adapter}."
        return {name: p for name, p in self.model.named_parameters() if "lora_" in name and mark in f"{name}."}

    def trunk_state(self) -> dict[str, Tensor]:
        """The weights of the trunk with this member's adapter worked in."""
        state = {name.replace(".base_layer.", "."): t for name, t in self.trunk.state_dict().items() if "lora_" not in name}
        for name, module in self.trunk.named_modules():
            if self.adapter in getattr(module, "lora_A", {}):
                changed: Tensor = module.get_delta_weight(self.adapter)  # pyright: ignore[reportCallIssue]
                state[f"{name}.weight"] = state[f"{name}.weight"] + changed.to(state[f"{name}.weight"].dtype)
        return state

    def forward(self, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, response_mask: Tensor) -> Tensor:
        self.activate()
        return super().forward(prompts, prompt_mask, responses, response_mask)


def linear_names(trunk: nn.Module) -> list[str]:
    """What the trunk calls its linear maps, whether they have adapters already or not."""
    names: set[str] = set()
    for name, module in trunk.named_modules():
        inside = {"base_layer", "lora_A", "lora_B"} & set(name.split("."))
        if not inside and (isinstance(module, nn.Linear | Conv1D) or hasattr(module, "lora_A")):
            names.add(name.rpartition(".")[2])
    return sorted(names)


def full_members(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, **settings: Any) -> list[RewardModel]:
    """Copies of a model, each with a random head of its own, drawn one after the other from ``generator``."""
    return [RewardModel(copy.deepcopy(model), tokenizer, **settings) for _ in range(count)]


def lora_members(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, *, rank: int = 8, **settings: Any
) -> list[RewardModel]:
    """Members on one frozen trunk, each with an adapter and a random head of its own.

    Raises:
        UserError: peft is not installed.
    """
    return [LoraMember.on(model, tokenizer, f"member{n}", rank=rank, **settings) for n in range(count)]


def new_ensemble(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EnsembleConfig, **settings: Any) -> RewardEnsemble:
    """Members as the settings say, with random heads; ``settings`` are those of ``RewardModel``."""
    if config.kind == "lora":
        members: Sequence[RewardModel] = lora_members(model, tokenizer, config.members, rank=config.lora_rank, **settings)
    else:
        members = full_members(model, tokenizer, config.members, **settings)
    return RewardEnsemble(members, combine=config.combine, penalty=config.penalty)


def _save_shared(ensemble: RewardEnsemble, folder: Path) -> None:
    from safetensors.torch import save_file

    state = {name.replace(".base_layer.", "."): t for name, t in ensemble.model.state_dict().items() if "lora_" not in name}
    ensemble.model.save_pretrained(folder, state_dict=state)
    ensemble.tokenizer.save_pretrained(folder)
    for number, member in enumerate(ensemble.members):
        assert isinstance(member, LoraMember)
        adapter = {f"adapter.{name}": t.detach().clone().contiguous() for name, t in member.adapter_tensors().items()}
        save_file({f"head.{name}": t for name, t in member.head_tensors().items()} | adapter, folder / f"member-{number}.safetensors")


def _load_shared(folder: Path, count: int, dtype: torch.dtype, trust_remote_code: bool) -> list[RewardModel]:
    from safetensors.torch import load_file

    files = [folder / f"member-{number}.safetensors" for number in range(count)]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: missing: the ensemble has {count} members; fit it again")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    model = load_causal_lm(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    members: list[RewardModel] = []
    for number, file in enumerate(files):
        found = load_file(file)
        rank = next(t.shape[0] for name, t in found.items() if ".lora_A." in name)
        member = LoraMember.on(model, tokenizer, f"member{number}", rank=rank)
        member.load_head(file, {name.removeprefix("head."): t for name, t in found.items() if name.startswith("head.")})
        with torch.no_grad():
            for name, parameter in member.adapter_tensors().items():
                parameter.copy_(found[f"adapter.{name}"])
        members.append(member)
    return members


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("reward.ensemble.kind: lora: peft is not installed; pip install 'humanward[peft]', or choose full") from None
    return peft

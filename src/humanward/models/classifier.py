"""Reward models as Hugging Face sequence classifiers, and any such classifier as a score of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from humanward.errors import UserError
from humanward.models.loading import context_length, resolve, trunk_of
from humanward.models.reward_model import RewardModel

SHIFT = "score_shift"
"""In config.json, where it was asked for: what the folder's logits lack of its scores."""
ROWS = 32


@torch.no_grad()
def save_classifier(reward_model: RewardModel, folder: str | Path, *, note_shift: bool = False) -> float:
    """Write a folder that plain ``AutoModelForSequenceClassification`` loads, with the same score as ``logits[:, 0]``.

    The gain is folded into the head's weight. Most causal classifiers have no bias in their head; where the last norm has one (GPT-2,
    GPT-NeoX, OPT, Phi, ...), it is folded into that: norm bias + shift * w / (w . w) adds exactly ``shift`` to w . h. Where neither has
    one (RMSNorm: Llama, Qwen, Mistral, Gemma), no weight of the architecture adds a constant: it is left out, and the folder's scores are
    lower by the number that is returned, the same for every response, whoever reads them. With ``note_shift`` config.json has it as
    ``score_shift``, which ``TextClassifier.load`` adds again and plain transformers does not.

    careful: a model with learnt positions (GPT-2) needs ``position_ids`` from whoever pads on the left.

    Returns:
        What must be added to ``logits[:, 0]`` to have the reward model's score; 0 where it is folded in.

    Raises:
        UserError: the library has no such classifier for this kind of model, or one with a head that is not one linear map.
    """
    name = type(reward_model.model).__name__
    config = type(reward_model.model.config).from_dict({**reward_model.model.config.to_dict(), "architectures": None})
    config.num_labels, config.id2label, config.label2id = 1, {0: "score"}, {"score": 0}
    config.pad_token_id = reward_model.tokenizer.pad_token_id
    try:
        classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=next(reward_model.model.parameters()).dtype)
        trunk_of(classifier).load_state_dict(reward_model.trunk_state())
        head = head_of(classifier)
    except (ValueError, RuntimeError, UserError) as error:
        raise UserError(f"{name}: cannot be saved as a sequence classifier ({str(error).splitlines()[0][:120]})") from None
    weight = (reward_model.gain * reward_model.score_head.weight).to("cpu")
    shift = float(reward_model.gain * reward_model.score_head.bias + reward_model.bias)
    head.weight.copy_(weight)
    norm = last_norm(trunk_of(classifier))
    bias: Tensor | None = getattr(head, "bias", None)
    if bias is not None:
        bias.fill_(shift)
        shift = 0.0
    elif shift and norm is not None and float(weight.square().sum()) > 0:
        norm.bias.add_((shift * weight[0].double() / weight[0].double().square().sum()).to(norm.bias.dtype))
        shift = 0.0
    if note_shift and shift:
        setattr(classifier.config, SHIFT, shift)
    classifier.save_pretrained(folder)
    reward_model.tokenizer.save_pretrained(folder)
    return shift


def head_of(classifier: PreTrainedModel) -> nn.Linear:
    """The one linear map from the trunk's last state to the labels."""
    inside = {id(module) for module in trunk_of(classifier).modules()}
    heads = [m for m in classifier.modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    if len(heads) != 1:
        raise UserError(f"{type(classifier).__name__}: its head is not one linear map")
    return heads[0]


def last_norm(trunk: nn.Module) -> Any:
    """The norm behind the last layer, where it has a bias; None otherwise."""
    # OPT keeps its layers one floor deeper.
    children = [*trunk.children()]
    if len(children) == 1:
        children = [*children[0].children()]
    norms = [m for m in children if isinstance(m, nn.LayerNorm)]
    return norms[-1] if norms and getattr(norms[-1], "bias", None) is not None else None


class TextClassifier:
    """A score of (prompts, responses) from any sequence-classification folder or hub name.

    One label: its logit. Several: the log-probability of the chosen one.

    Args:
        model: the classifier.
        tokenizer: its tokenizer.
        label: index of the label whose probability is the score; 0 where there is one label only.
        response_only: read the response alone, as a classifier of texts expects; else the prompt and the response behind it.
        shift: added to every score.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, label: int = 0, response_only: bool = False, shift: float = 0.0
    ) -> None:
        self.model, self.tokenizer, self.label, self.response_only, self.shift = model.eval(), tokenizer, label, response_only, shift

    @classmethod
    def load(
        cls, name: str | Path, *, label: str | None = None, response_only: bool = False, dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> Self:  # fmt: skip
        """From a folder or hub name.

        Raises:
            UserError: no classifier there, its head was never trained, or several labels and none of them named.
        """
        from transformers import AutoTokenizer

        source = resolve(name)
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except Exception as error:  # transformers raises a dozen kinds; the user needs the one line
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{name}: cannot load this as a sequence classifier ({first})") from error
        model, found = loaded
        if missing := sorted(found["missing_keys"]):
            raise UserError(f"{name}: the weights of {missing[0]} are not in this folder; give one that was trained to classify")
        return cls(
            model, tokenizer, label=label_index(str(name), model.config.id2label, label), response_only=response_only,
            shift=float(getattr(model.config, SHIFT, 0.0)),
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """One score for each response. A text longer than the model's context loses its beginning."""
        texts = list(responses) if self.response_only else [p + r for p, r in zip(prompts, responses, strict=True)]
        rows = ROWS if self.tokenizer.pad_token_id is not None and self.model.config.pad_token_id is not None else 1
        scores: list[float] = []
        for start in range(0, len(texts), rows):
            logits = self.logits(texts[start : start + rows])
            scores += (self.scores_of(logits) + self.shift).tolist()
        return scores

    def logits(self, texts: list[str]) -> Tensor:
        """[B, labels], float64."""
        self.tokenizer.truncation_side = "left"
        room = min(context_length(self.model), int(self.tokenizer.model_max_length))
        batch = self.tokenizer(
            texts, return_tensors="pt", padding=len(texts) > 1, padding_side="right", truncation=True, max_length=room
        )  # fmt: skip
        device = next(self.model.parameters()).device
        return self.model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.double()

    def scores_of(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        independent = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        return (nn.functional.logsigmoid(logits) if independent else logits.log_softmax(-1))[:, self.label]


def label_index(name: str, labels: dict[int, str], wanted: str | None) -> int:
    """Of the label called ``wanted``; of the only one, where nothing is wanted."""
    if wanted is None:
        if len(labels) == 1:
            return 0
        raise UserError(
            f"{name}: has several labels; say whose probability is the score: hf:FOLDER:LABEL with {' or '.join(labels.values())}"
        )
    for index, label in labels.items():
        if label == wanted:
            return int(index)
    raise UserError(f"{name}: has no label {wanted}; there {'is' if len(labels) == 1 else 'are'} {', '.join(labels.values())}")

"""A reward model is a sequence classifier of the library, and any classifier is a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

from humanward.errors import UserError
from humanward.feedback.scores import load_score
from humanward.models import RewardModel, TextClassifier, save_classifier
from humanward.trainers import TextReward, load_reward
from humanward.trainers.selftest import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZE: dict[str, Any] = {"vocab_size": len(TOKENIZER), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
WIDE: dict[str, Any] = SIZE | {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(**SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "neox": GPTNeoXConfig(**WIDE),
    "opt": OPTConfig(**SIZE, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
                     word_embed_proj_dim=16),
    "llama": LlamaConfig(**WIDE),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=2),
}  # fmt: skip
HAS_A_PLACE = {"gpt2": True, "neox": True, "opt": True, "llama": False, "qwen2": False}
PROMPTS, RESPONSES = [[4], [5, 6, 7]], [[2, 3, 0], [6]]


def reward_model(name: str) -> RewardModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
        for parameter in model.parameters():  # no norm is the one it is born as
            parameter.data += 0.1 * torch.randn_like(parameter)
        made = RewardModel(model, TOKENIZER)
    made.score_head.bias.data.fill_(0.7)
    made.set_normalization(1.7, -3.2)
    return made.eval()


@torch.no_grad()
def ours(model: RewardModel) -> torch.Tensor:
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        p, r = torch.tensor([prompt]), torch.tensor([[response]])
        found.append(model(p, torch.ones_like(p, dtype=torch.bool), r, torch.ones_like(r, dtype=torch.bool))[0, 0])
    return torch.stack(found)


@torch.no_grad()
def theirs(folder: Path, side: str) -> torch.Tensor:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    if side == "none":
        return torch.cat([classifier(torch.tensor([row])).logits[:, 0] for row in rows])
    length = max(map(len, rows)) + 2
    pads = [[1] * (length - len(row)) for row in rows]
    ids = torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)])
    mask = (ids != 1).long()
    # Learnt positions are counted from the first real token, as generate() does; OPT counts them itself.
    positions = {} if "OPT" in type(classifier).__name__ else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return classifier(input_ids=ids, attention_mask=mask, **positions).logits[:, 0]


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_transformers_gives_the_same_score(name: str, tmp_path: Path) -> None:
    model = reward_model(name)
    shift = save_classifier(model, tmp_path)
    expected = ours(model)
    assert (shift == 0.0) == HAS_A_PLACE[name]
    if not HAS_A_PLACE[name]:
        assert shift == pytest.approx(1.7 * 0.7 - 3.2)  # all that is constant in the score
    for side in ("none", "left", "right"):
        assert torch.allclose(theirs(tmp_path, side) + shift, expected, atol=1e-5), side


@pytest.mark.parametrize("note_shift", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_our_loader_gives_the_logit_or_where_it_was_noted_the_score_itself(name: str, note_shift: bool, tmp_path: Path) -> None:
    model = reward_model(name)
    shift = save_classifier(model, tmp_path / "classifier", note_shift=note_shift)
    model.save(tmp_path / "own")
    prompts, responses = ["w2 bad ", "good "], ["good w3", "w5"]
    expected = TextReward(model)(prompts, responses)
    assert load_reward(tmp_path / "own")(prompts, responses) == pytest.approx(expected, abs=1e-5)
    found = load_score(f"hf:{tmp_path}/classifier")(prompts, responses)
    assert found == pytest.approx([score - (0.0 if note_shift else shift) for score in expected], abs=1e-5)
    if not note_shift:
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
        rows = [model.tokenizer(p + r, return_tensors="pt") for p, r in zip(prompts, responses, strict=True)]
        with torch.no_grad():
            assert found == pytest.approx([float(classifier(**row).logits[0, 0]) for row in rows], abs=1e-5)
    with pytest.raises(UserError, match="a reward model has no labels"):
        load_score(f"hf:{tmp_path}/own:good")


def encoder(folder: Path, kind: str, labels: list[str], **settings: Any) -> Any:
    torch.manual_seed(1)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}} | settings
    if kind == "bert":
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertForSequenceClassification(BertConfig(vocab_size=len(TOKENIZER), pad_token_id=1, **small, **names))
    else:
        model = DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=len(TOKENIZER), pad_token_id=1, dim=16, hidden_dim=32, n_layers=1, n_heads=2, **names)
        )
    model.eval().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_classifier_of_texts_is_a_reward(kind: str, tmp_path: Path) -> None:
    model = encoder(tmp_path, kind, ["bad", "fair", "good"])
    responses = ["good w3 w4", "bad"]
    score = load_score(f"hf-response:{tmp_path}:good")
    with torch.no_grad():
        expected = [
            float(model(**TOKENIZER(text, return_tensors="pt", return_token_type_ids=False)).logits.log_softmax(-1)[0, 2])
            for text in responses
        ]
    assert score(["w2", "w2"], responses) == pytest.approx(expected, abs=1e-5)
    # With the prompt in front it is another text; a prompt alone makes no difference to who does not see it.
    assert score(["w5 w5", "w2"], responses) == pytest.approx(expected, abs=1e-5)
    assert load_score(f"hf:{tmp_path}:good")(["w2 ", "w2 "], responses) != pytest.approx(expected, abs=1e-4)


def test_labels_that_do_not_exclude_each_other_are_scored_one_by_one(tmp_path: Path) -> None:
    model = encoder(tmp_path, "bert", ["toxic", "rude"], problem_type="multi_label_classification")
    with torch.no_grad():
        logit = model(**TOKENIZER("bad", return_tensors="pt", return_token_type_ids=False)).logits[0, 1]
    found = TextClassifier.load(tmp_path, label="rude", response_only=True)([""], ["bad"])
    assert found == pytest.approx([float(torch.nn.functional.logsigmoid(logit))], abs=1e-5)


def test_a_text_too_long_loses_its_beginning(tmp_path: Path) -> None:
    save_classifier(reward_model("gpt2"), tmp_path)
    score = load_reward(tmp_path)
    assert score(["w2 " * 50], ["good bad"]) == score(["w2 " * 30], ["good bad"])


def test_what_is_no_reward_is_one_line(tmp_path: Path) -> None:
    encoder(tmp_path / "labels", "bert", ["bad", "good"])
    CONFIGS["llama"].save_pretrained(tmp_path / "lm")
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    for spec, message in (
        (f"hf:{tmp_path}/labels", "has several labels; say whose probability is the score"),
        (f"hf:{tmp_path}/labels:great", "has no label great; there are bad, good"),
        (f"hf:{tmp_path}/lm", "the weights of score.weight are not in this folder"),
        (f"hf:{tmp_path}/none", "no such folder"),
        ("hf:", "expected hf:FOLDER or hf:FOLDER:LABEL"),
        ("hfx:a", "did you mean hf?"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load_score(spec)
        assert "\n" not in str(raised.value)

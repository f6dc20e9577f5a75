"""Saved and loaded again, a model says the same; what cannot be loaded gets one line that says why and what to do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    GraniteConfig,
    Llama4TextConfig,
    Phi3Config,
    PreTrainedConfig,
)

from humanward.errors import UserError
from humanward.models import Policy, RewardModel, check_context, fingerprint, load_causal_lm, load_tokenizer, loading, resolve
from humanward.models.allocator import keep_freed_memory
from humanward.models.loading import trunk_of
from humanward.trainers.selftest import END, PAD, tiny_policy, tiny_tokenizer

TOKENS = torch.tensor([[4, 5, 2], [3, 7, 7]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
SIZES: dict[str, Any] = {
    "vocab_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 1.0, "pad_token_id": PAD, "eos_token_id": END,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = tiny_policy(value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    torch.nn.init.ones_(policy.value_head.bias)
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@torch.no_grad()
def test_a_saved_policy_says_the_same(folder: Path) -> None:
    made, loaded = tiny_policy(), Policy.load(folder)
    one, other = (policy(TOKENS, REAL, TOKENS, REAL, temperature=1.0) for policy in (made, loaded))
    assert torch.equal(one.logprobs, other.logprobs)
    assert other.values is None
    assert fingerprint(loaded.tokenizer) == fingerprint(made.tokenizer)


@torch.no_grad()
def test_a_saved_value_head_is_taken_up_again(folder: Path) -> None:
    policy = Policy.load(folder, value_head=True)
    values = policy(TOKENS, REAL, TOKENS, REAL, temperature=1.0).values
    policy.save(folder.parent / "again")
    again = Policy.load(folder.parent / "again", value_head=True)
    assert values.abs().max() > 0.5
    assert torch.equal(again(TOKENS, REAL, TOKENS, REAL, temperature=1.0).values, values)


def test_a_trunk_that_its_class_names_otherwise_is_found() -> None:
    """Llama 4 says ``language_model`` and has ``model``."""
    config = Llama4TextConfig(**SIZES, intermediate_size_mlp=48, num_local_experts=2)
    model: Any = AutoModelForCausalLM.from_config(config)
    assert trunk_of(model) is model.model


@pytest.mark.parametrize(("length", "times"), [(16, 0), (17, 1)])
def test_positions_that_depend_on_the_longest_row_are_said_once(length: int, times: int, caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(**SIZES, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config)
    loading._say_stretched.cache_clear()
    for _ in range(2):
        check_context(model, length - 4, 4, what="sampling")
    assert caplog.text.count("one row of more than 16 tokens") == times
    assert loading.stretched_beyond(tiny_policy().model.config) is None


def test_without_a_saved_one_the_value_head_is_zero(folder: Path) -> None:
    (folder / "value_head.safetensors").unlink()
    head = Policy.load(folder, value_head=True).value_head
    assert head is not None
    assert not head.weight.any()


@torch.no_grad()
def test_a_saved_reward_model_says_the_same(tmp_path: Path) -> None:
    policy = tiny_policy()
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(3)).eval()
    torch.nn.init.ones_(model.score_head.bias)
    model.set_normalization(1.7, -0.3)
    model.save(tmp_path / "reward")
    scores = model(TOKENS, REAL, TOKENS[:, None], REAL[:, None])
    assert torch.equal(RewardModel.load(tmp_path / "reward")(TOKENS, REAL, TOKENS[:, None], REAL[:, None]), scores)


def test_a_frozen_copy_is_another_model(folder: Path) -> None:
    policy = tiny_policy(value_head=True)
    reference = policy.frozen_copy()
    assert reference.value_head is None
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    with torch.no_grad():
        policy.head.weight.zero_()
    assert reference.head.weight.any()


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert fingerprint(tiny_tokenizer()) == fingerprint(tiny_tokenizer())
    assert fingerprint(tiny_tokenizer()) != fingerprint(tiny_tokenizer(("bad", "good", "w2", "w3", "w4", "w5")))


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        Policy.load(folder / "config.json")
    one_line(error, "config.json: a file", "give the model's folder")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "./none", "~/no such folder", "a/b/c"):
        with pytest.raises(UserError) as error:
            resolve(name)
        one_line(error, f"{name}: no such folder")


def test_a_hub_name_is_left_to_the_hub() -> None:
    assert resolve("owner/name") == "owner/name"


def test_a_name_that_cannot_be_had() -> None:
    with pytest.raises(UserError) as error:
        Policy.load("nobody-at-all/no-such-model")
    one_line(error, "nobody-at-all/no-such-model: ")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Policy.load(tmp_path)
    one_line(error, "no config.json in this folder", "save_pretrained")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "value_head.safetensors").unlink()
    with pytest.raises(UserError) as error:
        Policy.load(folder)
    one_line(error, "no .safetensors weights", "pickled weights are not read")


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError) as error:
        Policy.load(folder)
    one_line(error, str(folder), "tokenizer", "put tokenizer.json beside config.json")


def test_pad_must_not_be_eos(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<end>"}))
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    one_line(error, "PAD and EOS are the same token '<end>'", "set pad_token to another token")
    assert load_tokenizer(folder, pad_token="<pad>").pad_token_id == 1


def test_the_pad_token_must_exist(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer(folder, pad_token="<nothing>")
    one_line(error, "pad_token: '<nothing>' is not a token")


def test_another_kind_of_model(folder: Path) -> None:
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, architectures=["BertModel"]
    )
    BertModel(config).save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "model_type": "vit"}))
    with pytest.raises(UserError) as error:
        load_causal_lm(folder)
    one_line(error, "cannot load this as a causal language model")


def test_damaged_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError) as error:
        load_causal_lm(folder)
    one_line(error, "cannot load this as a causal language model")


def test_weights_of_another_shape(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    with pytest.raises(UserError) as error:
        Policy.load(folder)
    one_line(error, str(folder), "the weights of model.layers.1.", "are not in this folder")


def test_an_unknown_asset() -> None:
    with pytest.raises(UserError) as error:
        resolve("asset:nothing")
    one_line(error, "asset:nothing: no such embedded model; there are: ")


def test_a_folder_that_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        RewardModel.load(folder)
    one_line(error, "not a reward model", "humanward reward")


def test_a_reward_model_of_another_version(tmp_path: Path) -> None:
    policy = tiny_policy()
    RewardModel(policy.model, policy.tokenizer).save(tmp_path)
    facts = tmp_path / "reward_model.json"
    for content, words in (('{"format": 2}', "format 2, and this version of Humanward reads 1"), ("[", "damaged: not a JSON object")):
        facts.write_text(content)
        with pytest.raises(UserError) as error:
            RewardModel.load(tmp_path)
        one_line(error, f"{facts}: {words}")
    facts.unlink()  # as a folder has it that another tool copied
    RewardModel.load(tmp_path)


def test_heads_of_another_model(folder: Path, tmp_path: Path) -> None:
    wide = tiny_policy(width=32, value_head=True)
    wide.save(tmp_path / "wide")
    RewardModel(wide.model, wide.tokenizer).save(tmp_path / "wide")
    for name in ("value_head.safetensors", "score_head.safetensors"):
        shutil.copy(tmp_path / "wide" / name, folder / name)
    for load in (lambda: Policy.load(folder, value_head=True), lambda: RewardModel.load(folder)):
        with pytest.raises(UserError) as error:
            load()
        one_line(error, "_head.safetensors: a head for states of 32 numbers, but the model beside it has 16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_more_than_a_head(monkeypatch: pytest.MonkeyPatch, folder: Path, dtype: torch.dtype) -> None:
    """Logits that the model changes behind its head, if only by a hundredth, would be another distribution than the one that is trained."""
    policy = Policy.load(folder)
    forward = type(policy.model).forward

    def louder(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(type(policy.model), "forward", louder)
    with pytest.raises(UserError) as error:
        Policy.load(folder, dtype=dtype)
    one_line(error, "does more to its logits")


@pytest.mark.parametrize(
    "config", [Gemma2Config(final_logit_softcapping=30.0, head_dim=8, **SIZES), GraniteConfig(logits_scaling=6.0, **SIZES)]
)
def test_caps_and_scales_of_16_bit_models_are_known(config: PreTrainedConfig) -> None:
    """In bfloat16, as the library takes them, their rounding is larger than a difference that must be found."""
    torch.manual_seed(0)
    policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), tiny_tokenizer())
    policy.check_head("it")
    rule = policy.logit_rule
    policy.logit_rule = replace(rule, softcap=rule.softcap and 1.02 * rule.softcap, scale=1.02 * rule.scale)
    with pytest.raises(UserError, match="does more to its logits"):
        policy.check_head("it")


def test_a_real_model_is_what_its_folder_says(shared_data: Path, tmp_path: Path) -> None:
    """Log-probabilities of a story, against the library's own loss, before and after saving."""
    policy = Policy.load(shared_data / "models" / "stories260K", pad_token="<unk>")
    ids = torch.tensor([policy.tokenizer("Once upon a time, there was a little girl.")["input_ids"]])
    real = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        theirs = float(policy.model(ids, labels=ids).loss)
        policy.save(tmp_path / "copy")
        for one in (policy, Policy.load(tmp_path / "copy")):
            ours = one(ids[:, :1], real[:, :1], ids[:, 1:], real[:, 1:], temperature=1.0).logprobs
            assert -float(ours.mean()) == pytest.approx(theirs, abs=1e-5)


def test_freed_memory_can_be_kept_twice() -> None:
    assert keep_freed_memory() == keep_freed_memory()


def test_a_copied_folder_is_the_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert torch.equal(Policy.load(tmp_path / "elsewhere").head.weight, Policy.load(folder).head.weight)

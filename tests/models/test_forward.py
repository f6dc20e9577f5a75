"""The one forward: a packed row is one forward per response, the LM head sees response positions only, pads change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from humanward.data import left_pad, right_pad
from humanward.models import Policy, RewardModel, context_length, packs_exactly, response_hidden
from humanward.models.forward import sliding_window
from humanward.models.loading import trunk_of
from humanward.trainers.selftest import END, PAD, tiny_tokenizer

SIZES = {
    "vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.4, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        vocab_size=8, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, bos_token_id=None, eos_token_id=END
    ),
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=16, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=16),
    "gpt_neox": lambda: GPTNeoXConfig(**{**SIZES, "head_dim": None, "num_key_value_heads": None}),
    "opt": lambda: OPTConfig(
        vocab_size=8, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, init_std=0.4,
        word_embed_proj_dim=16, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    ),
    "phi": lambda: PhiConfig(**{**SIZES, "num_key_value_heads": 2}),
}  # fmt: skip


# Gemma 2 takes its softmax in float32, where the library's float64 mask of a pad is -inf and gives NaN: it is tested in float32.
TOLERANCE = {"gemma2": 1e-5}


def make(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]()).to(torch.float32 if family == "gemma2" else torch.float64).eval()


def block(K: int, *, extra: int = 0, B: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ragged prompts and responses, with ``extra`` more pads on both sides."""
    generator = torch.Generator().manual_seed(K)
    prompts = [torch.randint(2, 8, (2 + 2 * b,), generator=generator).tolist() for b in range(B)]
    responses = [torch.randint(2, 8, (1 + n % 4,), generator=generator).tolist() for n in range(B * K)]
    ids, mask = left_pad(prompts, PAD)
    answers, answer_mask = right_pad(responses, PAD, 4 + extra)
    ids, mask = torch.nn.functional.pad(ids, (extra, 0), value=3), torch.nn.functional.pad(mask, (extra, 0))
    return ids, mask, answers.view(B, K, -1), answer_mask.view(B, K, -1)


def alone(model: PreTrainedModel, prompt: Tensor, prompt_mask: Tensor, response: Tensor, response_mask: Tensor) -> Tensor:
    """States of one response by the model's own forward, without any pad."""
    ids = torch.cat([prompt[prompt_mask], response[response_mask]])[None]
    return trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, int(prompt_mask.sum()) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("K", "extra"), [(1, 0), (2, 3), (5, 1)])
@torch.no_grad()
def test_a_packed_row_is_one_forward_per_response(family: str, K: int, extra: int) -> None:
    model, (prompts, prompt_mask, responses, response_mask) = make(family), block(K, extra=extra)
    for packed in (True, False):
        states = response_hidden(trunk_of(model), prompts, prompt_mask, responses, response_mask, packed=packed).responses
        for b in range(3):
            for k in range(K):
                expected = alone(model, prompts[b], prompt_mask[b], responses[b, k], response_mask[b, k])
                torch.testing.assert_close(states[b, k][response_mask[b, k]], expected, rtol=0, atol=TOLERANCE.get(family, 1e-9))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_pack(family: str) -> None:
    assert packs_exactly(trunk_of(make(family)))


@torch.no_grad()
def test_the_order_of_responses_does_not_matter() -> None:
    model, (prompts, prompt_mask, responses, response_mask) = make("llama"), block(4)
    order = [2, 0, 3, 1]
    states = response_hidden(trunk_of(model), prompts, prompt_mask, responses, response_mask).responses
    other = response_hidden(trunk_of(model), prompts, prompt_mask, responses[:, order], response_mask[:, order]).responses
    torch.testing.assert_close(states[:, order][response_mask[:, order]], other[response_mask[:, order]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
@torch.no_grad()
def test_a_row_longer_than_the_sliding_window_is_not_packed(family: str) -> None:
    """The window is 16, prompt and response have 20 tokens: an explicit mask would let every layer see them all."""
    model, tolerance = make(family), TOLERANCE.get(family, 1e-9)
    trunk = trunk_of(model)
    assert sliding_window(trunk) == 16
    assert packs_exactly(trunk)
    prompts = torch.arange(16)[None] % 6 + 2
    responses = (torch.arange(8) * 5 % 6 + 2).view(1, 2, 4)
    masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    states = response_hidden(trunk, prompts, masks[0], responses, masks[1], packed=True).responses
    for k in range(2):
        torch.testing.assert_close(
            states[0, k], alone(model, prompts[0], masks[0][0], responses[0, k], masks[1][0, k]), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logprobs_entropies_and_values_are_those_of_the_full_logits(family: str) -> None:
    model, tolerance = make(family), TOLERANCE.get(family, 1e-9)
    policy = Policy(model, tiny_tokenizer(), value_head=True).to(model.dtype)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompts, prompt_mask, answers, answer_mask = block(1, extra=2)
    responses, response_mask = answers[:, 0], answer_mask[:, 0]
    outputs = policy(prompts, prompt_mask, responses, response_mask, temperature=0.7, want_entropy=True)
    assert outputs.entropy is not None
    assert outputs.values is not None
    for b in range(3):
        prompt, response = prompts[b][prompt_mask[b]], responses[b][response_mask[b]]
        whole = policy.model(input_ids=torch.cat([prompt, response])[None], output_hidden_states=True)
        before_each = slice(len(prompt) - 1, -1)
        log_p = torch.log_softmax(whole.logits[0, before_each] / 0.7, dim=-1)
        real = response_mask[b]
        torch.testing.assert_close(outputs.logprobs[b][real], log_p[range(len(response)), response], rtol=0, atol=tolerance)
        torch.testing.assert_close(outputs.entropy[b][real], -(log_p.exp() * log_p).sum(-1), rtol=0, atol=tolerance)
        values = policy.value_head(whole.hidden_states[-1][0, before_each])[:, 0]
        torch.testing.assert_close(outputs.values[b][real], values, rtol=0, atol=tolerance)


def test_the_head_sees_response_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 rows of 3 x 4 response tokens of 3 x 12 in all, and never the model's own [B, T, V]."""
    from humanward.models import policy as room

    policy = Policy(make("llama"), tiny_tokenizer())
    rows: list[int] = []
    linear_logprobs = room.linear_logprobs

    def watched(hidden: Tensor, *args: object, **settings: object) -> tuple[Tensor, Tensor | None]:
        rows.append(len(hidden))
        return linear_logprobs(hidden, *args, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(room, "linear_logprobs", watched)
    policy.head.register_forward_hook(lambda *_: pytest.fail("the model's own head ran"))
    prompts, prompt_mask, responses, response_mask = block(1)
    policy(prompts, prompt_mask, responses[:, 0], response_mask[:, 0], temperature=1.0)
    assert rows == [12]


def test_gradients_are_those_of_the_full_logits() -> None:
    policy = Policy(make("gpt2"), tiny_tokenizer()).double()
    prompts, prompt_mask, answers, answer_mask = block(1)
    responses, real = answers[:, 0], answer_mask[:, 0]
    (policy(prompts, prompt_mask, responses, real, temperature=0.7).logprobs * real).sum().backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    for b in range(3):
        prompt, response = prompts[b][prompt_mask[b]], responses[b][real[b]]
        logits = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        torch.log_softmax(logits / 0.7, dim=-1)[range(len(response)), response].sum().backward()
    for name, p in policy.model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_suppressed_tokens_have_no_probability() -> None:
    policy = Policy(make("llama"), tiny_tokenizer()).double()
    suppressed = policy.suppressed_tokens(keep_eos=False)
    assert suppressed.nonzero()[:, 0].tolist() == [END, PAD]
    assert policy.suppressed_tokens(keep_eos=True).nonzero()[:, 0].tolist() == [PAD]
    real = torch.ones(8, 1, dtype=torch.bool)
    tokens = torch.arange(8)[:, None]
    logprobs = policy(torch.full((8, 1), 4), real, tokens, real, temperature=1.0, suppressed=suppressed).logprobs[:, 0]
    assert float(logprobs[2:].exp().sum()) == pytest.approx(1.0)
    assert logprobs[:2].tolist() == [-math.inf, -math.inf]


def test_the_context_of_a_model() -> None:
    assert {context_length(make(family)) for family in ("gpt2", "llama", "opt", "gemma2")} == {64}


@pytest.mark.parametrize("K", [1, 3])
@torch.no_grad()
def test_a_reward_model_reads_the_last_real_token_and_no_pad(K: int) -> None:
    model = make("qwen2")
    reward_model = RewardModel(model, tiny_tokenizer(), generator=torch.Generator().manual_seed(0)).double()
    reward_model.set_normalization(2.0, -1.0)
    narrow, wide = block(K), block(K, extra=5)
    scores = reward_model(*narrow)
    assert scores.shape == (3, K)
    torch.testing.assert_close(reward_model(*wide), scores, rtol=0, atol=1e-9)
    prompts, prompt_mask, responses, response_mask = narrow
    for b in range(3):
        for k in range(K):
            last = alone(model, prompts[b], prompt_mask[b], responses[b, k], response_mask[b, k])[-1]
            torch.testing.assert_close(scores[b, k], 2 * reward_model.score_head(last)[0] - 1, rtol=0, atol=1e-9)


def test_the_lm_head_of_a_reward_model_waits_for_no_gradient() -> None:
    reward_model = RewardModel(make("llama"), tiny_tokenizer()).double()
    reward_model(*block(2)).sum().backward()
    assert [name for name, p in reward_model.named_parameters() if p.requires_grad and p.grad is None] == []

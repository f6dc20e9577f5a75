"""The one forward: a packed row is one forward per response, the LM head sees response positions only, pads change nothing."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from humanward.data import left_pad, right_pad
from humanward.models import Policy, RewardModel, attention, blockwise, context_length, forward, packs_exactly, response_states
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
    # Gemma's norms and soft-capped softmax are float32 in the library: smaller weights, so that 1e-6 of the logits is above its rounding.
    "gemma2": lambda: Gemma2Config(
        **{**SIZES, "initializer_range": 0.1}, sliding_window=16, final_logit_softcapping=3.0, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **{**SIZES, "initializer_range": 0.2}, sliding_window=16, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=16),
    "gpt_neox": lambda: GPTNeoXConfig(**{**SIZES, "head_dim": None, "num_key_value_heads": None}),
    "opt": lambda: OPTConfig(
        vocab_size=8, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, init_std=0.4,
        word_embed_proj_dim=16, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    ),
    "phi": lambda: PhiConfig(**{**SIZES, "num_key_value_heads": 2}),
}  # fmt: skip


# In the library, Gemma takes its softmax and its norms in float32, whatever the model's type.
TOLERANCE = {"gemma2": 1e-6, "gemma3": 1e-6}


def make(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    implementation = "eager" if family == "gemma2" else "sdpa"  # Soft-capped scores are served by the slow one only
    return AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation=implementation).double().eval()


@cache
def kept(family: str, use: str = "packed", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """One model for many examples; the one for ``packed`` has our attention, any other the library's."""
    model = make(family).to(dtype)
    assert use != "packed" or packs_exactly(trunk_of(model))
    return model


def response_rows(trunk: nn.Module, *batch: Tensor, packed: bool = True) -> Tensor:
    """States of the response tokens, [B, K, R, D]."""
    assert packs_exactly(trunk) or not packed
    states = response_states(trunk, *batch, packed=packed)
    return states.take(states.responses)


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


@pytest.fixture(scope="module", params=["rows", "pieces", "pieces by products"])
def layout(request: pytest.FixtureRequest) -> Iterator[str]:
    """All ways of attending, whichever would be the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "in_rows", lambda prompts, responses: request.param == "rows")
        if request.param == "pieces by products":
            patch.setattr(attention, "products_are_faster", lambda *_: True)
            patch.setattr(attention, "BLOCK", 3)
            patch.setattr(blockwise, "BLOCK", 3)
        yield request.param


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("K", "extra"), [(1, 0), (2, 3), (5, 1)])
@torch.no_grad()
def test_a_packed_row_is_one_forward_per_response(family: str, K: int, extra: int) -> None:
    model, naive, (prompts, prompt_mask, responses, response_mask) = make(family), make(family), block(K, extra=extra)
    for packed in (True, False):
        states = response_rows(trunk_of(model), prompts, prompt_mask, responses, response_mask, packed=packed)
        for b in range(3):
            for k in range(K):
                expected = alone(naive, prompts[b], prompt_mask[b], responses[b, k], response_mask[b, k])
                torch.testing.assert_close(states[b, k][response_mask[b, k]], expected, rtol=0, atol=TOLERANCE.get(family, 1e-9))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_pack(family: str) -> None:
    assert packs_exactly(trunk_of(make(family)))


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]], int]:
    """1 to 3 prompts of 0 to 8 tokens, the same number K = 1 ... 9 of responses to each, of 0 to 6 tokens, and a number of extra pads."""
    words = st.integers(2, 7)
    prompts = draw(st.lists(st.lists(words, max_size=8), min_size=1, max_size=3))
    K = draw(st.integers(1, 9))
    answers = [draw(st.lists(st.lists(words, max_size=6), min_size=K, max_size=K)) for _ in prompts]
    assume(any(prompts) or any(response for row in answers for response in row))
    return prompts, answers, draw(st.integers(0, 3))


def blocks(prompts: list[list[int]], answers: list[list[list[int]]], extra: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, mask = left_pad(prompts, PAD)
    rows, rows_mask = right_pad([response for row in answers for response in row], PAD, 6)
    ids, mask = (torch.nn.functional.pad(x, (extra, 0), value=0) for x in (ids, mask))
    return ids, mask, rows.view(len(prompts), -1, 6), rows_mask.view(len(prompts), -1, 6)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(batch=ragged())
@torch.no_grad()
def test_logits_of_a_ragged_batch_are_those_of_one_forward_each(family: str, batch: tuple[Any, Any, int]) -> None:
    prompts, answers, _ = batch
    model, naive = kept(family), kept(family, "naive")
    states = response_states(trunk_of(model), *blocks(*batch))
    logits = model.get_output_embeddings()(states.take(states.before_each_token()))  # pyright: ignore[reportOptionalCall]
    for b, prompt in enumerate(prompts):
        for k, response in enumerate(answers[b]):
            if not prompt + response:
                continue
            whole = naive.get_output_embeddings()(trunk_of(naive)(torch.tensor([prompt + response]), use_cache=False).last_hidden_state[0])  # pyright: ignore[reportOptionalCall]
            expected = whole[len(prompt) - 1 :] if prompt else whole
            found = logits[b, k, : len(response) + 1] if prompt else logits[b, k, 1 : len(response) + 1]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if family == "gpt2" else 1e-6)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4)
@given(batch=ragged())
def test_gradients_of_a_ragged_batch_are_those_of_one_forward_each(family: str, batch: tuple[Any, Any, int]) -> None:
    """In float32, to 1e-5 of the whole gradient's norm, for a loss that gives every state a weight of its own."""
    prompts, answers, _ = batch
    assume(all(prompts))
    model, naive = kept(family, "packed", torch.float32), kept(family, "naive", torch.float32)
    direction = torch.linspace(-1, 1, 16)
    states = response_states(trunk_of(model), *blocks(*batch))
    rows = states.before_each_token()
    (states.take(rows[rows >= 0]) @ direction).sin().sum().backward()
    for prompt, row in zip(prompts, answers, strict=True):
        for response in row:
            alone = trunk_of(naive)(torch.tensor([prompt + response]), use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
            (alone @ direction).sin().sum().backward()
    found, expected = (torch.cat([p.grad.flatten() for p in trunk_of(one).parameters() if p.grad is not None]) for one in (model, naive))
    model.zero_grad()
    naive.zero_grad()
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@torch.no_grad()
def test_the_prompt_passes_through_the_body_once() -> None:
    """Tokens that the layers see: those of each prompt, and those of its five responses."""
    model, (prompts, prompt_mask, responses, response_mask) = kept("llama"), block(5, extra=3)
    seen: list[int] = []
    handle = trunk_of(model).layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    response_states(trunk_of(model), prompts, prompt_mask, responses, response_mask)
    handle.remove()
    assert seen == [int(prompt_mask.sum() + response_mask.sum())]


@torch.no_grad()
def test_a_row_may_fill_the_context() -> None:
    model = kept("gpt2")
    prompts, responses = torch.full((1, 60), 3), torch.full((1, 2, 4), 5)
    states = response_states(trunk_of(model), prompts, torch.ones_like(prompts).bool(), responses, torch.ones_like(responses).bool())
    expected = alone(kept("gpt2", "naive"), prompts[0], torch.ones(60).bool(), responses[0, 0], torch.ones(4).bool())
    torch.testing.assert_close(states.take(states.responses)[0, 1], expected, rtol=0, atol=1e-9)


UNSERVED: dict[str, Callable[[], PreTrainedConfig]] = {
    "bloom": lambda: BloomConfig(
        vocab_size=8, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.4, eos_token_id=END, pad_token_id=PAD
    ),
    "mamba": lambda: MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=END, pad_token_id=PAD),
}  # fmt: skip


@pytest.mark.parametrize("family", UNSERVED)
@torch.no_grad()
def test_a_model_that_cannot_be_packed_is_served_row_by_row_and_named_once(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Positions by slope (Bloom) and a running state (Mamba) know nothing of our attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(UNSERVED[family]()).double().eval()
    reward_model = RewardModel(model, tiny_tokenizer(), generator=torch.Generator().manual_seed(0)).double()
    batch = block(3)
    forward._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "humanward"):
        for _ in range(2):
            reward_model._packs = None
            scores = reward_model(*batch)
    assert sum("cannot be run as one stream" in record.message for record in caplog.records) == 1
    prompts, prompt_mask, responses, response_mask = batch
    for b in range(3):
        for k in range(3):
            last = alone(model, prompts[b], prompt_mask[b], responses[b, k], response_mask[b, k])[-1]
            torch.testing.assert_close(scores[b, k], reward_model.score_head(last)[0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_order_of_responses_does_not_matter() -> None:
    model, (prompts, prompt_mask, responses, response_mask) = make("llama"), block(4)
    order = [2, 0, 3, 1]
    states = response_rows(trunk_of(model), prompts, prompt_mask, responses, response_mask)
    other = response_rows(trunk_of(model), prompts, prompt_mask, responses[:, order], response_mask[:, order])
    torch.testing.assert_close(states[:, order][response_mask[:, order]], other[response_mask[:, order]], rtol=0, atol=1e-12)


MASKED_ONLY: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SIZES, use_sliding_window=True, sliding_window=32, max_window_layers=2, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8,
    ),
    "phimoe": lambda: PhimoeConfig(**SIZES, sliding_window=32, num_local_experts=2, num_experts_per_tok=1),
    "doge": lambda: DogeConfig(**SIZES, keep_window_size=32),
    "llama4": lambda: Llama4TextConfig(
        **SIZES, attention_chunk_size=32, intermediate_size_mlp=24, num_local_experts=2, layer_types=["chunked_attention"] * 2
    ),
}  # fmt: skip
"""The library tells their layers what they see by a mask alone, which a stream has none of."""


@pytest.mark.parametrize("family", MASKED_ONLY)
@torch.no_grad()
def test_a_window_that_attention_is_not_told_of_is_not_packed(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of 32 tokens: those of the trial are fewer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MASKED_ONLY[family]()).eval()
    trunk = trunk_of(model)
    forward._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "humanward"):
        packed = [packs_exactly(trunk) for _ in range(2)]
    assert packed == [False, False]
    assert sum("cannot be run as one stream" in record.message for record in caplog.records) == 1
    assert 32 in (getattr(model.config, name, None) for name in ("sliding_window", "keep_window_size", "attention_chunk_size"))
    prompts, responses = (torch.arange(60).view(1, 60) * 5 % 6 + 2), (torch.arange(8) % 6 + 2).view(1, 2, 4)
    masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    states = response_rows(trunk, prompts, masks[0], responses, masks[1], packed=False)
    for k in range(2):
        torch.testing.assert_close(states[0, k], alone(model, prompts[0], masks[0][0], responses[0, k], masks[1][0, k]), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
@torch.no_grad()
def test_a_sliding_window_slides_along_prompt_and_own_response(family: str) -> None:
    """The window is 16, prompt and response have 24 tokens."""
    model, naive = make(family), make(family)
    prompts = torch.arange(40).view(2, 20) % 6 + 2
    responses = (torch.arange(24) * 5 % 6 + 2).view(2, 3, 4)
    masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    masks[0][1, :7] = False
    states = response_rows(trunk_of(model), prompts, masks[0], responses, masks[1])
    for b in range(2):
        for k in range(3):
            expected = alone(naive, prompts[b], masks[0][b], responses[b, k], masks[1][b, k])
            torch.testing.assert_close(states[b, k], expected, rtol=0, atol=TOLERANCE.get(family, 1e-9))


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
    """6 rows for responses of 1, 2 and 3 tokens, 18 tokens with their prompts, and never the model's own [B, T, V]."""
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
    assert rows == [6]


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


@pytest.mark.parametrize("mask", ["causal", "seen", "added"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (300, 300), (7, 20), (300, 310), (0, 4)])
def test_attention_by_products_is_the_fused_one(monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, mask: str) -> None:
    """In float64 the same to rounding, forward and backward, also over several blocks of queries, and with values narrower than keys."""
    if mask == "causal" and queries != keys:
        pytest.skip("causal attention has as many keys as queries")
    generator = torch.Generator().manual_seed(0)
    # Heads of a token side by side, as models make them.
    sizes = [(2, queries, 3, 4), (2, keys, 3, 4), (2, keys, 3, 2)]
    given = [torch.randn(size, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_() for size in sizes]
    masks = {
        "causal": None,
        "seen": torch.rand(2, 1, queries, keys, generator=generator) < 0.8,
        "added": torch.randn(queries, keys, generator=generator, dtype=torch.float64),
    }
    found = []
    for products in (False, True):
        monkeypatch.setattr(attention, "products_are_faster", lambda *_, products=products: products)
        query, key, value = given
        out = attention.attend(query, key, value, masks[mask], mask == "causal", attention.Scoring(0.7, 0.0, None, None))
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_small_mask_speaks_of_the_last_queries_and_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 2, 500, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    own = torch.ones(200, 200, dtype=torch.bool).tril()
    own[120:, :120] = False  # two responses to a prompt of 300
    full = torch.ones(500, 500, dtype=torch.bool).tril()
    full[300:, 300:] = own
    added = torch.zeros(200, 200, dtype=torch.float64).masked_fill_(~own, -math.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=full)
    for mask in (own, added):
        out = blockwise.by_products(*given, mask, causal=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
        for one, other in zip(*(torch.autograd.grad(x.square().sum(), given, retain_graph=True) for x in (out, expected)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [None, 400, 650])
def test_long_questions_on_a_cpu_attend_by_products(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """In float32, as every model has it; a question of a single response, of two, and one that is short."""
    prompts = torch.ones(1, 600, dtype=torch.bool)
    for responses in ([[90]], [[50, 70]], [[3, 0]]):
        lengths = torch.tensor(responses)
        packing = attention.Packing(prompts, torch.arange(int(lengths.max())) < lengths[..., None])
        tokens = int(packing.real.numel())
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(1, tokens, 2, 8, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3)]
        found = []
        for lengths_by_products in (range(tokens + 1), range(0)):
            monkeypatch.setattr(attention, "BY_PRODUCTS", lengths_by_products)
            out = packing.layout.attend(*given, attention.Scoring(None, 0.0, None, window))
            found.append((out, *torch.autograd.grad(out.square().sum(), given)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "keys", "keeps"),
    [(torch.float32, 640, True), (torch.bfloat16, 1152, False), (torch.bfloat16, 640, True)],
)
def test_attention_by_products_holds_a_block_of_scores(
    tensors_made: Callable[[], AbstractContextManager[list[int]]], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, keys: int,
    keeps: bool,
) -> None:  # fmt: skip
    """No matrix is larger than that. Kept for the gradient is what the attention was given; with few keys the weights too."""
    monkeypatch.setattr(blockwise, "BLOCK", 128 if dtype == torch.float32 else 64)  # twice as many in 16 bits
    given = [torch.randn(1, keys, 2, 8, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    kept: list[int] = []
    with tensors_made() as made, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attention.attend(*given, None, True, attention.Scoring(None, 0.0, None, None)).sum().backward()
    assert max(made) <= 2 * 128 * keys
    weights = [2 * 128 * seen for seen in range(128, 641, 128)] if keeps else []
    assert kept == [keys * 2 * 8] * 3 + weights


@pytest.mark.parametrize("wide", [False, True])
def test_32_bit_attention_by_products_is_the_same_by_either_library(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "has_wide_vectors", lambda: wide)
    generator = torch.Generator().manual_seed(0)
    *given, grad = (torch.randn(1, 4, 500, 64, generator=generator) for _ in range(4))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out = blockwise.by_products(*leaves, None, causal=True)
        found.append([x.double() for x in (out, *torch.autograd.grad(out, leaves, grad.to(dtype)))])
    for one, true in zip(*found, strict=True):
        assert (one - true).norm() <= 1e-6 * true.norm()


@pytest.mark.parametrize("keys", [600, 2100])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_16_bit_gradients_of_attention_by_products_are_near_the_true_ones(keys: int, mean: float) -> None:
    """Over several blocks, also where what they add up to a key is all of one sign, so that the sum outgrows the parts."""
    generator = torch.Generator().manual_seed(0)
    *given, grad = (torch.randn(1, 2, keys, 16, generator=generator).bfloat16() for _ in range(4))
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out = blockwise.by_products(*leaves, None, causal=True)
        found.append([x.double() for x in (out, *torch.autograd.grad(out, leaves, (grad + mean).to(dtype)))])
    for one, true in zip(*found, strict=True):
        assert (one - true).norm() <= 1e-2 * true.norm()


@pytest.mark.parametrize("sees", ["all before", "two responses", "a window"])
@pytest.mark.parametrize(("prompt", "total"), [(1, 5), (3, 33), (30, 70), (290, 333), (500, 601)])
def test_what_makes_queries_even_in_16_bits_changes_nothing(sees: str, prompt: int, total: int) -> None:
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    mask = None
    if sees == "two responses":
        half = (prompt + total) // 2
        seen[half:, prompt:half] = False
        mask = torch.zeros(total - prompt, total, dtype=torch.bfloat16).masked_fill_(~seen[prompt:], -math.inf)
    elif sees == "a window":
        mask = seen = seen.triu(-20)
    generator = torch.Generator().manual_seed(0)
    *given, grad = (torch.randn(1, total, 3, 16, generator=generator).transpose(1, 2).bfloat16() for _ in range(4))
    leaves = [x.requires_grad_() for x in given]
    exact = [x.detach().double().requires_grad_() for x in given]
    found = blockwise.by_products(*leaves, mask, causal=True)
    true = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=seen)
    gradients = torch.autograd.grad(found, leaves, grad), torch.autograd.grad(true, exact, grad.double())
    for one, other in zip((found, *gradients[0]), (true, *gradients[1]), strict=True):
        assert (one.double() - other).norm() <= 1e-2 * other.norm()


@pytest.mark.parametrize("kept", [1024, 0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_questions_of_a_stream_attend_as_each_alone(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kept: int) -> None:
    """To the last bit: a product may be filled up with a neighbour's tokens, and nothing of them is seen. Behind the last is nothing."""
    monkeypatch.setattr(blockwise, "KEPT", kept)
    lengths = [1, 40, 0, 650, 17, 33]
    generator = torch.Generator().manual_seed(0)
    *given, grad = (torch.randn(1, sum(lengths) + 5, 3, 16, generator=generator).to(dtype).transpose(1, 2) for _ in range(4))
    leaves = [x.requires_grad_() for x in given]
    last_alone = torch.zeros(9, 9, dtype=dtype).masked_fill_(~torch.eye(9, dtype=torch.bool), -math.inf)
    masks = [last_alone if length >= 33 else None for length in lengths]
    begins = [0, *itertools.accumulate(lengths)]
    pieces = [blockwise.Piece(b, n, n, mask, True, dtype) for b, n, mask in zip(begins, lengths, masks, strict=False)]
    out = blockwise.pieces_by_products(*leaves, pieces)
    found = [x.split([*lengths, 5], dim=2) for x in (out, *torch.autograd.grad(out, leaves, grad))]
    for number, mask in enumerate(masks):
        own, own_grad = [x.split([*lengths, 5], dim=2)[number].detach().requires_grad_() for x in leaves], grad.split([*lengths, 5], dim=2)
        alone = blockwise.by_products(*own, mask, causal=True)
        for one, other in zip(found, (alone, *torch.autograd.grad(alone, own, own_grad[number])), strict=True):
            assert torch.equal(one[number], other)
    assert not any(x[-1].any() for x in found)


@pytest.mark.parametrize("K", [1, 2])
def test_16_bit_tokens_are_of_an_even_number_on_a_cpu(monkeypatch: pytest.MonkeyPatch, K: int) -> None:
    """Those that make it so change neither states nor gradients, and reach no embedding that the others do not."""
    trunk = trunk_of(make("llama").bfloat16())
    assert packs_exactly(trunk)
    widths: list[int] = []
    trunk.layers[0].mlp.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([30, 7, 17])
    prompts, responses = torch.randint(2, 6, (3, 30), generator=generator), torch.randint(2, 6, (3, K, 9), generator=generator)
    prompt_mask = torch.arange(30) < lengths[:, None]
    found = []
    for even in (forward.EVEN, 1):
        monkeypatch.setattr(forward, "EVEN", even)
        states = response_states(trunk, prompts, prompt_mask, responses, torch.ones_like(responses, dtype=torch.bool)).states
        gradients = torch.autograd.grad(states.float().square().sum(), list(trunk.parameters()))
        found.append((states, *gradients))
    tokens = 54 + 27 * K
    assert widths == [-(-tokens // 32) * 32, tokens]
    for one, other in zip(*found, strict=True):
        assert (one - other).float().norm() <= 1e-2 * other.float().norm()
        assert torch.equal(one.any(-1), other.any(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_from_kept_weights_is_that_of_weights_made_again(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, 600, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    found = []
    for keys in (600, 599):
        monkeypatch.setattr(blockwise, "KEPT", keys)
        found.append(torch.autograd.grad(blockwise.by_products(*given, None, causal=True).square().sum(), given))
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)

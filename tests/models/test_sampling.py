"""Sampling: the right distribution, and a response that depends on its seed and prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, Gemma2Config, GPT2Config

from humanward.data import left_pad
from humanward.errors import UserError
from humanward.models import Policy, Samples, SamplingSettings, sample_responses, sampling
from humanward.models.sampling import draw, restricted, token_bytes
from humanward.trainers.selftest import END, PAD, tiny_policy, tiny_tokenizer

PROMPTS = [(4,), (5, 6, 2), (7, 2), (3, 3, 3, 4, 5), (6,)]
SEEDS = list(range(100, 115))


def learned_positions() -> Policy:
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return Policy(AutoModelForCausalLM.from_config(GPT2Config(**sizes, initializer_range=0.4)), tiny_tokenizer(), value_head=True)


def sliding_layers() -> Policy:
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    config = Gemma2Config(
        **sizes, num_key_value_heads=1, sliding_window=6, final_logit_softcapping=3.0, initializer_range=0.4, pad_token_id=PAD
    )
    return Policy(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), value_head=True)


SIZES = {
    "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.4, "bos_token_id": None, "eos_token_id": END,
    "pad_token_id": PAD,
}  # fmt: skip
HEADS = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
STATES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "lfm2": HEADS | {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": HEADS
    | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "falcon_h1": HEADS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4},
}
"""Models with states that are no keys and values, where this version of transformers has them."""


def stateful(kind: str) -> Policy:
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES, **STATES[kind])).float().eval(), tiny_tokenizer())


def sample(policy: Policy, rows: list[int], K: int = 3, R: int = 7, **settings: object) -> Samples:
    at_once: dict[str, Any] = {name: settings.pop(name) for name in ("rows_at_once", "cache_bytes") if name in settings}
    prompts, mask = left_pad([PROMPTS[row] for row in rows], policy.pad_id)
    seeds = [seed for row in rows for seed in SEEDS[3 * row : 3 * row + K]]
    return sample_responses(
        policy,
        prompts,
        mask,
        SamplingSettings(R, **{"temperature": 0.8, **settings}),
        seeds=seeds,
        num_responses=K,
        **at_once,
    )


@pytest.mark.parametrize("make", [tiny_policy, learned_positions, sliding_layers])
@torch.no_grad()
def test_logprobs_and_values_are_those_of_a_forward(make: type) -> None:
    policy = make(value_head=True) if make is tiny_policy else make()
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    samples = sample(policy, [0, 1, 2, 3, 4])
    prompts, mask = left_pad(PROMPTS, policy.pad_id)
    suppressed = policy.suppressed_tokens(keep_eos=False)
    for k in range(3):
        again = policy(prompts, mask, samples.responses[:, k], samples.response_mask[:, k], temperature=0.8, suppressed=suppressed)
        torch.testing.assert_close(samples.logprobs[:, k], again.logprobs, rtol=0, atol=1e-5)
        assert samples.values is not None
        torch.testing.assert_close(samples.values[:, k], again.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in STATES if kind in CONFIG_MAPPING])
@pytest.mark.parametrize("K", [1, 3])
@torch.no_grad()
def test_models_with_states_are_sampled_as_their_forward_has_it(kind: str, K: int) -> None:
    policy = stateful(kind)
    samples = sample(policy, [0, 1, 2, 3, 4], K=K, R=12, stop_token=4)
    assert len(set(samples.response_mask.sum(-1).flatten().tolist())) > 1
    prompts, mask = left_pad(PROMPTS, policy.pad_id)
    suppressed = policy.suppressed_tokens(keep_eos=False)
    again = policy(prompts, mask, samples.responses, samples.response_mask, temperature=0.8, suppressed=suppressed)
    torch.testing.assert_close(samples.logprobs, again.logprobs, rtol=0, atol=1e-5)


def test_a_model_whose_cache_we_cannot_make_is_sampled_by_the_library(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    expected = sample(policy, [0, 1, 2, 3, 4])
    right = type(policy.trunk)

    class Other(right):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return right.forward(self, input_ids, attention_mask, **others)

    policy.trunk.__class__ = Other
    for _ in range(2):
        assert torch.equal(sample(policy, [0, 1, 2, 3, 4]).responses, expected.responses)
    assert caplog.text.count("Other has a cache of its own") == 1


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 256])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 1], [4, 3, 2, 1, 0], [2]])
def test_a_response_depends_on_its_seed_and_prompt_alone(rows: list[int], rows_at_once: int) -> None:
    policy = learned_positions()
    whole, part = sample(policy, [0, 1, 2, 3, 4]), sample(policy, rows, rows_at_once=rows_at_once)
    assert torch.equal(part.responses, whole.responses[rows])
    torch.testing.assert_close(part.logprobs, whole.logprobs[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_policy, learned_positions, sliding_layers])
def test_rows_decoded_together_are_bounded_by_the_bytes_of_their_cache(make: Callable[[], Policy]) -> None:
    """By hand: a row has 5 + 7 tokens at most; room for five rows is room for one prompt with its three responses."""
    policy, widths = make(), list[int]()
    whole = sample(policy, [0, 1, 2, 3, 4])
    policy.trunk.register_forward_hook(lambda module, args, output: widths.append(len(output.last_hidden_state)))
    part = sample(policy, [0, 1, 2, 3, 4], cache_bytes=5 * 12 * token_bytes(policy))
    assert max(widths) == 3
    assert torch.equal(part.responses, whole.responses)
    torch.testing.assert_close(part.logprobs, whole.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_policy, learned_positions])
@pytest.mark.parametrize("K", [1, 3])
def test_prompts_are_read_some_at_a_time_without_longer_ones_padding(
    make: Callable[[], Policy], K: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: prompts of 5, 3, 2, 1 and 1 tokens, six tokens at a time. What no prompt has written into the cache is NaN."""
    policy, shapes = make(), list[tuple[int, ...]]()
    whole = sample(policy, [0, 1, 2, 3, 4], K)
    monkeypatch.setattr(sampling, "_prefill_tokens", lambda device: 6)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    policy.trunk.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.last_hidden_state.shape[:2])))
    parts = sample(policy, [0, 1, 2, 3, 4], K)
    assert shapes == [(1, 5), (2, 3), (2, 1)] + 6 * [(5 * K, 1)]
    assert torch.equal(parts.responses, whole.responses)
    torch.testing.assert_close(parts.logprobs, whole.logprobs, rtol=0, atol=1e-5)


def test_the_bytes_of_a_token_are_those_in_the_cache() -> None:
    for policy in (tiny_policy(), learned_positions(), sliding_layers()):
        cache: Any = DynamicCache(config=policy.model.config)
        policy.trunk(input_ids=torch.tensor([[4]]), past_key_values=cache, use_cache=True)
        assert token_bytes(policy) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_k_responses_are_those_of_one_at_a_time() -> None:
    policy = tiny_policy()
    together = sample(policy, [0, 1, 2, 3, 4], K=3)
    prompts, mask = left_pad(PROMPTS, policy.pad_id)
    for k in range(3):
        one = sample_responses(policy, prompts, mask, SamplingSettings(7, temperature=0.8), seeds=SEEDS[k::3])
        assert torch.equal(one.responses[:, 0], together.responses[:, k])


def test_sampling_leaves_no_trace() -> None:
    policy = tiny_policy().train()
    state = torch.get_rng_state()
    sample(policy, [0])
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)


def test_eos_ends_a_response_where_the_task_stops_there() -> None:
    policy = tiny_policy(seed=3)
    stopped, full = (
        sample(policy, [0, 1, 2, 3, 4], R=12, stop_at_eos=True),
        sample(policy, [0, 1, 2, 3, 4], R=12, suppress_special_tokens=False),
    )
    assert full.response_mask.all()
    assert not stopped.response_mask.all()
    for response, mask, logprobs in zip(
        stopped.responses.flatten(0, 1), stopped.response_mask.flatten(0, 1), stopped.logprobs.flatten(0, 1), strict=True
    ):
        ends = (response == END).nonzero()[:, 0].tolist()
        length = ends[0] + 1 if ends else 12
        assert mask.tolist() == [True] * length + [False] * (12 - length)
        assert (response[length:] == PAD).all()
        assert not logprobs[length:].any()
        assert PAD not in response[:length]


def test_a_stop_token_ends_a_response_from_an_index_on() -> None:
    policy, token = tiny_policy(seed=3), 4
    stopped, full = (sample(policy, [0, 1, 2, 3, 4], R=12, stop_token=stop, stop_after=3) for stop in (token, None))
    lengths = []
    for response, mask, whole in zip(*(x.flatten(0, 1) for x in (stopped.responses, stopped.response_mask, full.responses)), strict=True):
        found = [t for t in range(3, 12) if whole[t] == token]
        lengths.append(found[0] + 1 if found else 12)
        assert mask.tolist() == [True] * lengths[-1] + [False] * (12 - lengths[-1])
        assert torch.equal(response[mask], whole[mask])
    assert len(set(lengths)) > 3
    torch.testing.assert_close(stopped.logprobs, full.logprobs * stopped.response_mask, rtol=0, atol=1e-5)


def test_rows_that_have_ended_are_not_run_again() -> None:
    policy, widths = tiny_policy(seed=3), []
    policy.trunk.register_forward_hook(lambda module, args, output: widths.append(len(output.last_hidden_state)))
    samples = sample(policy, [0, 1, 2, 3, 4], R=12, stop_token=4)
    written = samples.response_mask.flatten(0, 1).sum(0).tolist()
    assert widths[0] == 5
    assert all(width <= max(1, left / 0.75) for width, left in zip(widths[1:], written[1:], strict=False))
    assert widths[-1] < 15


@pytest.mark.parametrize("make", [tiny_policy, learned_positions, sliding_layers])
@pytest.mark.parametrize("settings", [{}, {"stop_at_eos": True}, {"stop_token": 4, "stop_after": 2}, {"top_k": 3, "top_p": 0.9}])
def test_the_library_s_generate_gives_the_same(make: type, settings: dict[str, object]) -> None:
    policy = make(value_head=True) if make is tiny_policy else make()
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    ours, theirs = (sample(policy, [0, 1, 2, 3, 4], **settings, engine=engine) for engine in ("humanward", "transformers"))
    assert torch.equal(ours.responses, theirs.responses)
    assert torch.equal(ours.response_mask, theirs.response_mask)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-5)
    assert ours.values is not None
    assert theirs.values is not None
    torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-5)


def test_the_wish_to_stop_is_heard_between_tokens() -> None:
    policy, calls = tiny_policy(), []
    prompts, mask = left_pad(PROMPTS, policy.pad_id)

    def check() -> None:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_responses(policy, prompts, mask, SamplingSettings(9), seeds=range(5), check=check)


def test_the_number_of_seeds_is_checked() -> None:
    policy = tiny_policy()
    prompts, mask = left_pad(PROMPTS, policy.pad_id)
    with pytest.raises(ValueError, match="5 prompts x 2 responses need 10 seeds, not 3"):
        sample_responses(policy, prompts, mask, SamplingSettings(2), seeds=[1, 2, 3], num_responses=2)


def test_what_is_longer_than_the_context_is_not_begun() -> None:
    """Learned positions end there; others would go on, into what the model has never seen."""
    policy = learned_positions()
    policy.trunk.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    prompts, mask = left_pad(PROMPTS, policy.pad_id)
    with pytest.raises(UserError, match=r"^sampling: 5 tokens of a prompt and 28 of a response are 33, but the context of GPT2.* is 32;"):
        sample_responses(policy, prompts, mask, SamplingSettings(28), seeds=range(5))


LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5, -3.0, 0.0, 1.5])


def allowed_distribution(settings: SamplingSettings, suppressed: Tensor) -> Tensor:
    """By the definitions: sort, keep the k likeliest, keep until the kept ones hold top_p, renormalise."""
    p = torch.softmax((LOGITS / settings.temperature).masked_fill(suppressed, -torch.inf).double(), 0)
    kept, held = [], 0.0
    order = p.argsort(descending=True).tolist()[: settings.top_k or len(p)]
    total = float(p[order].sum())
    for token in order:
        if held < settings.top_p * total:
            kept.append(token)
            held += float(p[token])
    allowed = torch.zeros_like(p)
    allowed[kept] = p[kept]
    return allowed / allowed.sum()


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(1), SamplingSettings(1, temperature=0.5), SamplingSettings(1, temperature=2.0), SamplingSettings(1, top_k=3),
        SamplingSettings(1, top_k=100), SamplingSettings(1, top_p=0.8), SamplingSettings(1, top_k=5, top_p=0.7),
        SamplingSettings(1, top_p=1e-6),
    ],
)  # fmt: skip
@pytest.mark.parametrize("special", [False, True])
def test_tokens_are_drawn_with_their_probability(settings: SamplingSettings, special: bool) -> None:
    """An even grid of 100 000 uniform numbers: each token is hit as often as its probability says, up to one point of the grid."""
    suppressed = torch.zeros(8, dtype=torch.bool)
    suppressed[1] = special
    count = 100_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5).div(count).float()
    tokens, logprobs = draw(LOGITS.expand(count, -1), uniform, settings, suppressed)
    expected = allowed_distribution(settings, suppressed)
    frequencies = torch.bincount(tokens, minlength=8).double() / count
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=5e-5)
    assert not frequencies[expected == 0].any()
    whole = torch.log_softmax((LOGITS / settings.temperature).masked_fill(suppressed, -torch.inf), 0)
    torch.testing.assert_close(logprobs, whole[tokens])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_no_impossible_token(uniform: float) -> None:
    suppressed = torch.tensor([True, False, False, False, False, False, False, True])
    tokens, _ = draw(LOGITS[None], torch.tensor([uniform]), SamplingSettings(1), suppressed)
    assert tokens.tolist() == [1 if uniform == 0 else 6]


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    """By hand: .5, .3, .2. 0.5 is reached by the first, 0.6 by the second, and 0.81 needs the third."""
    p = torch.tensor([[0.2, 0.5, 0.3]])
    for top_p, kept in ((0.5, [0, 0.5, 0]), (0.6, [0, 0.5, 0.3]), (0.81, [0.2, 0.5, 0.3])):
        torch.testing.assert_close(restricted(p, 0, top_p), torch.tensor([kept]))


def test_a_real_model_speaks_as_its_own_generate_does(shared_data: Path) -> None:
    """Top-k 1 is greedy decoding, for which the library has its own loop."""
    policy = Policy.load(shared_data / "models" / "stories260K", pad_token="<unk>")
    start = tuple(policy.tokenizer("Once upon a time")["input_ids"])
    prompts, mask = left_pad([start, start[:2]], policy.pad_id)
    samples = sample_responses(policy, prompts, mask, SamplingSettings(16, top_k=1, suppress_special_tokens=False), seeds=[0, 1])
    theirs = policy.model.generate(torch.tensor([start]), max_new_tokens=16, do_sample=False, pad_token_id=0)  # pyright: ignore[reportCallIssue]
    assert samples.responses[0, 0].tolist() == theirs[0, len(start) :].tolist()

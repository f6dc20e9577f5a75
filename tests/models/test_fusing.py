"""Fused activations are the model's own, in one operation."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import FastGELUActivation, NewGELUActivation

from humanward.models import Policy
from humanward.models.fusing import fuse_activations
from humanward.trainers.selftest import tiny_tokenizer


def gpt2(activation: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=16, activation_function=activation, bos_token_id=0)
    ).eval()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_same_logits_and_gradients(activation: str) -> None:
    plain = gpt2(activation).double()
    fused = copy.deepcopy(plain)
    fuse_activations(fused)
    assert not any(isinstance(part, (NewGELUActivation, FastGELUActivation)) for part in fused.modules())
    ids = torch.arange(12).view(2, 6)
    for model in (plain, fused):
        model(input_ids=ids).logits.square().mean().backward()
    torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-9)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-9)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(model: GPT2LMHeadModel) -> int:
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            model(input_ids=torch.arange(12).view(2, 6))
        return sum(numbers)

    plain = gpt2("gelu_new")
    policy = Policy(gpt2("gelu_new"), tiny_tokenizer())
    assert kept(policy.model) < 0.8 * kept(plain)  # pyright: ignore[reportArgumentType]

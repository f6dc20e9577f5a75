"""Sampling, beside the ``generate`` of transformers, which TRL's trainers use."""

from __future__ import annotations

import torch
from harness import Row, Step
from transformers import GenerationConfig
from workloads import EOS, PAD, SHAPES, forward_flop, language_model, prompts, words

from humanward.models import Policy, SamplingSettings, sample_responses


def generate(shape: str, dtype: torch.dtype, device: str, *, count: int = 64, prompt: int = 64, response: int = 24, K: int = 1) -> Row:
    """``count`` prompts with K responses each, with the log-probabilities that a PPO step needs."""
    vocabulary = SHAPES[shape]["vocab_size"]
    rows = torch.tensor(prompts(count, prompt, vocabulary, ragged=False), device=device)

    def ours() -> Step:
        policy = Policy(language_model(shape, seed=0, device=device).to(dtype), words())
        settings = SamplingSettings(response, suppress_special_tokens=False)
        mask = torch.ones_like(rows, dtype=torch.bool)

        def step() -> float:
            samples = sample_responses(policy, rows, mask, settings, seeds=range(count * K), num_responses=K)
            return float(samples.response_mask.sum())

        return step

    def theirs(_: int) -> Step:
        model = language_model(shape, seed=0, device=device)
        config = GenerationConfig(
            max_new_tokens=response, min_new_tokens=response, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=K, eos_token_id=None, pad_token_id=PAD, bos_token_id=EOS, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip

        def step() -> float:
            with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=config)
                scores = torch.stack(out.scores, 1).float()
                tokens = out.sequences[:, prompt:]
                logprobs = torch.stack(
                    [s.log_softmax(-1).gather(-1, t[:, None])[:, 0] for s, t in zip(scores.unbind(1), tokens.unbind(1), strict=True)]
                )
            return float(torch.isfinite(logprobs).sum())

        return step

    flop = forward_flop(shape, [(prompt, [response] * K)] * count, head=True)
    work = (
        f"{count} prompts of {prompt}, {K} responses of {response} tokens each"
        if count > 1
        else f"{K} responses of {response} tokens to one prompt of {prompt}"
    )
    return Row(ours, theirs, "transformers generate", [1], flop, count * (prompt + K * response), f"sampling, {work}", agree=1e-6)

"""Loading a policy and its reference, reward and value heads, log-probabilities of responses, sampling."""

from __future__ import annotations

from .allocator import keep_freed_memory
from .forward import ResponseStates, packs_exactly, response_states
from .loading import context_length, load_causal_lm, load_tokenizer, resolve
from .policy import Policy, ResponseOutputs, fingerprint
from .reward_model import RewardModel
from .sampling import Samples, SamplingSettings, sample_responses

__all__ = [
    "Policy",
    "ResponseOutputs",
    "ResponseStates",
    "RewardModel",
    "Samples",
    "SamplingSettings",
    "context_length",
    "fingerprint",
    "keep_freed_memory",
    "load_causal_lm",
    "load_tokenizer",
    "packs_exactly",
    "resolve",
    "response_states",
    "sample_responses",
]

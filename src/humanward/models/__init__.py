"""Loading a policy and its reference, reward and value heads, log-probabilities of responses, sampling."""

from __future__ import annotations

from .adapters import LoraConfig, check_lora
from .allocator import give_back_freed_memory, keep_freed_memory
from .classifier import TextClassifier, save_classifier
from .cpu import prepare_cpu
from .forward import ResponseStates, packs_exactly, response_states
from .loading import (
    base_of,
    check_context,
    context_length,
    load_causal_lm,
    load_tokenizer,
    missing_for_lora,
    missing_for_quantization,
    resolve,
)
from .options import check_compiler, missing_for_compile, with_options
from .policy import NextTokens, Policy, ResponseOutputs, fingerprint
from .precision import TYPES, DType, has_bfloat16, settled_dtype
from .reward_ensemble import EnsembleConfig, RewardEnsemble, load_reward_model, members_of, new_ensemble
from .reward_model import RewardModel
from .sampling import Samples, SamplingSettings, sample_responses
from .value_network import ValueNetwork

__all__ = [
    "TYPES",
    "DType",
    "EnsembleConfig",
    "LoraConfig",
    "NextTokens",
    "Policy",
    "ResponseOutputs",
    "ResponseStates",
    "RewardEnsemble",
    "RewardModel",
    "Samples",
    "SamplingSettings",
    "TextClassifier",
    "ValueNetwork",
    "base_of",
    "check_compiler",
    "check_context",
    "check_lora",
    "context_length",
    "fingerprint",
    "give_back_freed_memory",
    "has_bfloat16",
    "keep_freed_memory",
    "load_causal_lm",
    "load_reward_model",
    "load_tokenizer",
    "members_of",
    "missing_for_compile",
    "missing_for_lora",
    "missing_for_quantization",
    "new_ensemble",
    "packs_exactly",
    "prepare_cpu",
    "resolve",
    "response_states",
    "sample_responses",
    "save_classifier",
    "settled_dtype",
    "with_options",
]

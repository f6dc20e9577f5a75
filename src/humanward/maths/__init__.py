"""The formulas: tensors in, tensors out. No models, no files, no settings, no global random state.

Names are loaded on first use, so that ``maths.statistics`` and ``maths.schedules`` serve programs that never import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from humanward.maths.advantages import gae
    from humanward.maths.agreement import (
        Agreement,
        LabelTable,
        agreement_interval,
        cohen_kappa,
        consensus_of_others,
        fleiss_kappa,
        krippendorff_alpha,
        label_table,
        observed_agreement,
    )
    from humanward.maths.kl import adapted_kl_coef, kl_estimate
    from humanward.maths.labeler_quality import (
        LabelerFlags,
        PositionBias,
        Proportion,
        SequentialTest,
        chance_agreement_test,
        fast_answers,
        flag_labeler,
        gold_accuracy,
        one_place_test,
        position_bias,
        repeat_consistency,
        researcher_agreement,
    )
    from humanward.maths.logprobs import entropy, gather_logprobs, linear_logprobs
    from humanward.maths.masks import add_at_last_token, last_index, masked_mean, position_ids, response_mask_until_eos, truncate_at
    from humanward.maths.normalization import gain_and_bias
    from humanward.maths.optimum import best_of_n_frontier, optimal_policy, optimal_value, reweighted_frontier
    from humanward.maths.policy_losses import approx_kl, clip_fraction, ppo_clip_loss
    from humanward.maths.reward_losses import all_pairs_loss, best_of_k_loss, choice_loss, pair_loss
    from humanward.maths.schedules import cosine, labels_required, linear_to_zero
    from humanward.maths.sequential import (
        WinRateSequence,
        betting_capital,
        confidence_sequence,
        fixed_sample_size,
        mixture_capital,
        stopping_reason,
    )
    from humanward.maths.statistics import WinRate, bootstrap_interval, clopper_pearson, sign_test, wilson_interval, win_rate
    from humanward.maths.value_losses import clipped_value_loss
    from humanward.maths.whitening import whiten

__all__ = [
    "Agreement",
    "LabelTable",
    "LabelerFlags",
    "PositionBias",
    "Proportion",
    "SequentialTest",
    "WinRate",
    "WinRateSequence",
    "adapted_kl_coef",
    "add_at_last_token",
    "agreement_interval",
    "all_pairs_loss",
    "approx_kl",
    "best_of_k_loss",
    "best_of_n_frontier",
    "betting_capital",
    "bootstrap_interval",
    "chance_agreement_test",
    "choice_loss",
    "clip_fraction",
    "clipped_value_loss",
    "clopper_pearson",
    "cohen_kappa",
    "confidence_sequence",
    "consensus_of_others",
    "cosine",
    "entropy",
    "fast_answers",
    "fixed_sample_size",
    "flag_labeler",
    "fleiss_kappa",
    "gae",
    "gain_and_bias",
    "gather_logprobs",
    "gold_accuracy",
    "kl_estimate",
    "krippendorff_alpha",
    "label_table",
    "labels_required",
    "last_index",
    "linear_logprobs",
    "linear_to_zero",
    "masked_mean",
    "mixture_capital",
    "observed_agreement",
    "one_place_test",
    "optimal_policy",
    "optimal_value",
    "pair_loss",
    "position_bias",
    "position_ids",
    "ppo_clip_loss",
    "repeat_consistency",
    "researcher_agreement",
    "response_mask_until_eos",
    "reweighted_frontier",
    "sign_test",
    "stopping_reason",
    "truncate_at",
    "whiten",
    "wilson_interval",
    "win_rate",
]

_MODULES = {
    "advantages": ("gae",),
    "agreement": (
        "Agreement",
        "LabelTable",
        "agreement_interval",
        "cohen_kappa",
        "consensus_of_others",
        "fleiss_kappa",
        "krippendorff_alpha",
        "label_table",
        "observed_agreement",
    ),
    "kl": ("adapted_kl_coef", "kl_estimate"),
    "labeler_quality": (
        "LabelerFlags",
        "PositionBias",
        "Proportion",
        "SequentialTest",
        "chance_agreement_test",
        "fast_answers",
        "flag_labeler",
        "gold_accuracy",
        "one_place_test",
        "position_bias",
        "repeat_consistency",
        "researcher_agreement",
    ),
    "logprobs": ("entropy", "gather_logprobs", "linear_logprobs"),
    "masks": ("add_at_last_token", "last_index", "masked_mean", "position_ids", "response_mask_until_eos", "truncate_at"),
    "normalization": ("gain_and_bias",),
    "optimum": ("best_of_n_frontier", "optimal_policy", "optimal_value", "reweighted_frontier"),
    "policy_losses": ("approx_kl", "clip_fraction", "ppo_clip_loss"),
    "reward_losses": ("all_pairs_loss", "best_of_k_loss", "choice_loss", "pair_loss"),
    "schedules": ("cosine", "labels_required", "linear_to_zero"),
    "sequential": (
        "WinRateSequence",
        "betting_capital",
        "confidence_sequence",
        "fixed_sample_size",
        "mixture_capital",
        "stopping_reason",
    ),
    "statistics": ("WinRate", "bootstrap_interval", "clopper_pearson", "sign_test", "wilson_interval", "win_rate"),
    "value_losses": ("clipped_value_loss",),
    "whitening": ("whiten",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

"""What stops a training that must not go on, and what is said of one that looks ill."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from humanward.errors import RunError
from humanward.storage import atomic_folder, write_json
from humanward.storage.tensors import write_tensors

BAD_UPDATES = 3
"""So many updates in a row without a finite loss and gradient end a training; fewer are left out."""
FIRST_RATIO_ERROR = {16: 0.5, 32: 0.05}
"""By the bits that a model computes in, how far sampling and an update's forward may differ on the worst of some thousand tokens. The
embedded model has 0.1 in bfloat16 and 0.00001 in float32; a larger one has more, and one that multiplies in TensorFloat-32 much more."""
KL_LIMIT = 50.0
"""KL per response, nats, that is too far where a method has no target of its own."""
MISMATCH = (
    "look at the generation settings first (task.top_k and task.top_p limit the draw, not the probabilities that are counted), then at "
    "task.temperature, at padding (a PAD that is EOS, or on the wrong side), at adapters (a reference without the one that the policy "
    "began with) and at dropout"
)
"""Why sampling and scoring see different distributions, in the order in which it was found elsewhere: trl issues 235 and 736 (generation
settings), N details policy 1 (temperature), trl 925 and 262 (padding), trl 250 and 495 (adapters), trl 4 (dropout)."""
CAUSES = {
    "numbers": ("the learning rate", "scores far from all others", "the number type (dtype float32 has more digits)"),
    "gradient": (
        "the learning rate (or set max_grad_norm)",
        "scores far from all others (ppo.score_clip)",
        "very long texts",
        "the size of an adapter (lora.alpha)",
    ),
    "values": (
        "scores far from all others (ppo.score_clip)",
        "ppo.value_lr",
        "the KL, which the returns pay for",
        "a reward model of another scale than the last round's (reward.normalize_after)",
    ),
    "length": (
        "generation settings (task.stop_at_eos, task.response_length)",
        "padding (with a PAD that is EOS no end is learned)",
        "a reward model that likes length",
        "the price of a missing end (task.missing_truncation_score, task.missing_eos_penalty)",
        "kl_coef",
    ),
    "entropy": (
        "generation settings (task.temperature, task.top_k)",
        "kl_coef, which keeps the reference's variety",
        "the learning rate",
        "a reward model that likes one answer best",
    ),
    "truncation": (
        "generation settings (task.response_length, task.stop_at_eos, task.truncate_token)",
        "padding (with a PAD that is EOS no end is learned)",
        "the price of a missing end (task.missing_truncation_score, task.missing_eos_penalty)",
        "a reward model that likes length",
    ),
    "repetition": (
        "generation settings (task.temperature, task.top_k)",
        "responses that go on behind their end",
        "a reward model that likes it: see the samples",
        "kl_coef and the learning rate",
    ),
}
"""Where to look for what a watch says, the likeliest first: what is sampled, then what is scored, then what is trained."""
WATCHED = ("response_length", "entropy", "missing_truncation", "repetition")
"""What is compared with the first steps of a training."""
DISPLACEMENT_STEPS = 8
"""So many steps before anything is said of where probability goes; the mean of the last 20 is judged."""


class TrainingError(RunError):
    """A training that must not go on, with the batch that it was working on."""

    def __init__(self, message: str, batch: Mapping[str, Tensor]) -> None:
        super().__init__(message)
        self.batch = dict(batch)


KEPT_KINDS = ("numbers", "gradient", "values", "kl")
"""Alarms at the first of which in a stage the batch is kept."""


def keep_batch(path: Path, stage: str, round: int, step: int, message: str, batch: Mapping[str, Tensor]) -> Path:
    """Write the batch of a fault or alarm where somebody can look at it: ``batch.safetensors`` and ``fault.json``."""
    with atomic_folder(path) as temporary:
        write_tensors(temporary / "batch.safetensors", {name: tensor.detach().cpu() for name, tensor in batch.items()})
        write_json(temporary / "fault.json", {"stage": stage, "round": round, "step": step, "message": message})
    return path


class Watch:
    """Looks at the metrics of each step and says in words, once per training and kind, what looks ill.

    What is normal is taken from the training itself: its first ``start`` steps, and for the gradient and the value loss the last 20.

    Args:
        kl_limit: KL per response, nats, that is too far; None: no KL is measured.
        ratio_limit: how far the first ratios of a step may be from 1; None: there are none.
        start: steps that show what is normal.
    """

    def __init__(self, *, kl_limit: float | None = None, ratio_limit: float | None = None, start: int = 5) -> None:
        self.kl_limit, self.ratio_limit, self.start = kl_limit, ratio_limit, start
        self.history: list[Mapping[str, float]] = []
        self.said: set[str] = set()

    def look_back(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Take up the steps of a training that is continued, without saying anything again."""
        for row in rows:
            self(row)

    def __call__(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """(kind, sentence) of what is new in this step."""
        found = [(kind, text) for kind, text in self._signs(metrics) if kind not in self.said]
        self.said.update(kind for kind, _ in found)
        self.history.append(metrics)
        return found

    def _signs(self, now: Mapping[str, float]) -> list[tuple[str, str]]:
        """(kind, sentence) of all that looks ill. A number that is missing is NaN, and no comparison with it holds."""
        value = {name: now.get(name, math.nan) for name in ("grad_norm", "value_loss", *WATCHED)}
        first = self.history[: self.start] if len(self.history) >= self.start else []
        usual = {name: _over(statistics.mean, first, name) for name in WATCHED}
        last = self.history[-20:] if len(self.history) >= 8 else []
        norm, value_loss = _over(statistics.median, last, "grad_norm"), _over(max, last, "value_loss")
        signs = {
            "numbers": (
                now.get("skipped", 0) > 0,
                "an update had a loss or gradient that is not a finite number and was left out",
            ),
            "gradient": (
                value["grad_norm"] > 10 * norm,
                f"the gradient's norm is {value['grad_norm']:.3g}, usually {norm:.3g}",
            ),
            "values": (
                value["value_loss"] > 100 * value_loss,
                f"the value loss is {value['value_loss']:.3g}, lately at most {value_loss:.3g}",
            ),
            "length": (
                value["response_length"] > 2 * usual["response_length"] or value["response_length"] < 0.5 * usual["response_length"],
                f"responses have {value['response_length']:.1f} tokens, at first {usual['response_length']:.1f}",
            ),
            "entropy": (
                value["entropy"] < 0.25 * usual["entropy"],
                f"the entropy is {value['entropy']:.2f} nats per token, at first {usual['entropy']:.2f}: always one answer",
            ),
            "truncation": (
                value["missing_truncation"] > 0.5 > 2 * usual["missing_truncation"],
                f"{value['missing_truncation']:.0%} of the responses never reach their end",
            ),
            "repetition": (
                value["repetition"] > 0.3 and value["repetition"] > 2 * usual["repetition"],
                f"{value['repetition']:.0%} of the tokens repeat one before them, at first {usual['repetition']:.0%}",
            ),
        }
        signs = {kind: (ill, f"{text}; look in this order at: {'; '.join(CAUSES[kind])}") for kind, (ill, text) in signs.items()}
        signs |= policy_signs(self.history, now, kl_limit=self.kl_limit, ratio_limit=self.ratio_limit)
        signs |= displacement_signs(self.history, now)
        return [(kind, text) for kind, (ill, text) in signs.items() if ill]


def policy_signs(
    history: Sequence[Mapping[str, float]], now: Mapping[str, float], *, kl_limit: float | None, ratio_limit: float | None
) -> dict[str, tuple[bool, str]]:
    """By kind: whether the numbers of a method that samples look ill, and what to say, its likely causes in their order."""
    kl, ratio, out = (now.get(name, math.nan) for name in ("kl", "first_ratio_error", "out_of_range"))
    limit, near = (math.nan if given is None else given for given in (kl_limit, ratio_limit))
    settled = history[-20:] if len(history) >= 20 else []
    far = (
        f"the KL is {kl:.1f} nats per response, beyond {limit:.1f}; raise kl_coef (beta in online_dpo) or lower the learning rate; "
        f"if it was so from the first steps on, {MISMATCH}"
    )
    negative = f"the KL is {kl:.1f} nats per response, which no KL is: sampling and scoring see different distributions; {MISMATCH}"
    first = f"the first ratios of a step, which should be 1, are up to {ratio:.2g} away from it; {MISMATCH}"
    wide = (
        f"{out:.0%} of the ratios are out of the clip range: the updates of a step go too far; lower the learning rate or ppo_epochs, set "
        "stop_kl, or use surrogate trust_region"
    )
    worthless = (
        "the values have been worse than none for twenty steps (explained variance below -1); lower the learning rate, clip the scores "
        "(score_clip), or begin the value network as the reward model"
    )
    return {
        "kl": (kl > limit, far),
        "negative kl": (kl < -1, negative),
        "first ratio": (ratio > near, first),
        "range": (out > 0.5, wide),
        "explained variance": (_over(statistics.mean, settled, "explained_variance") < -1, worthless),
    }


def displacement_signs(history: Sequence[Mapping[str, float]], now: Mapping[str, float]) -> dict[str, tuple[bool, str]]:
    """By kind: whether ``displacement.Meter``'s numbers look ill, and what to say, of the mean over the last steps."""
    recent = [*history[-19:], now]

    def mean(name: str) -> float:
        values = [row[name] for row in recent if name in row]
        return statistics.mean(values) if len(values) >= DISPLACEMENT_STEPS else math.nan

    chosen, rejected, off, confound = map(mean, ("chosen_moved", "rejected_moved", "mass_off_both", "length_confound"))
    eos = (mean("chosen_eos_moved") + mean("rejected_eos_moved")) / 2
    displaced = (
        f"chosen responses have lost {-chosen:.1f} nats against the reference ({-mean('chosen_moved_per_token'):.2f} per token), rejected "
        f"ones {-rejected:.1f}: {off:.0%} of their probability went to responses that nobody judged; add a term sft, raise beta, or use "
        "loss ipo or apo_zero with a beta of 1 or more"
    )
    confounded = (
        f"the margin follows the length (correlation {confound:.2f}): longer is taken for better; set ld_alpha to 0.5, or use loss "
        "sigmoid_norm or simpo"
    )
    endless = (
        f"the end of a response has lost {-eos:.1f} nats against the reference: responses will grow longer; raise beta, add a term sft, "
        "or use loss sigmoid_norm"
    )
    return {
        "displacement": (off > 0.5 and chosen < -1 and rejected < -1, displaced),
        "length confound": (confound > 0.5, confounded),
        "ending": (eos < -1, endless),
    }


def _over(statistic: Callable[[list[float]], float], rows: Sequence[Mapping[str, float]], name: str) -> float:
    """Of one metric over some steps; NaN where it is missing."""
    values = [row[name] for row in rows if name in row]
    return statistic(values) if values else math.nan

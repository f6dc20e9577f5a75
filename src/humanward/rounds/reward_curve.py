"""How many more labels would help: models fitted to nested parts of a run's labels, measured on labels that they have not seen.

The models are reward models, or, where the run's method has none, policies of this method, read as reward models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.feedback import Snapshot
from humanward.maths.learning_curve import forecasts
from humanward.maths.statistics import wilson_interval
from humanward.models import RewardModel
from humanward.records import Comparison
from humanward.rounds.context import Context
from humanward.storage import MetricsLog, RunFolder, generator, write_json
from humanward.trainers import DPOTrainer, RewardTrainer, Surroundings, agreements, implicit_agreements, train
from humanward.trainers.questions import as_judged, best_responses, without_dual

HELD_OUT = 0.25
"""Share of the questions that a repetition measures on; another quarter each time."""
LEAST = 8
"""Questions of the smallest part."""
MORE = (2, 4)
"""How many times the labels the curve is drawn on to. Beyond, nobody should believe it."""


def reward_curve(context: Context, *, sizes: int = 5, repeats: int = 3) -> dict[str, Any]:
    """Fit, measure, draw on; writes reward_curve/results.json. Given again, fits that were done stay, unless there are new labels.

    Args:
        context: of a run that has frozen labels.
        sizes: parts, each twice the one before; the largest is all that is not held out.
        repeats: each with another order of the labels, another random head and other held-out questions.
    """
    folder = context.path / "reward_curve"
    with RunFolder(folder).lock():
        snapshot = last_snapshot(context)
        labels = by_question(snapshot)
        held_out = max(int(len(labels) * HELD_OUT), 1)
        parts = nested_sizes(len(labels) - held_out, sizes)
        log = MetricsLog(folder / "rows.jsonl")
        done = {(row["round"], row["step"]): row for row in log.read() if row.get("snapshot") == snapshot.sha256}
        rows: list[dict[str, Any]] = []
        for repeat in range(repeats):
            order = epoch_order(context.seed("reward curve", repeat), 0, len(labels))
            asked = [labels[i] for i in order]
            for size in parts:
                row = done.get((repeat, size))
                if row is None:
                    context.stop.check()
                    training = [label for question in asked[held_out : held_out + size] for label in question]
                    right, trials = measure(context, training, asked[:held_out], repeat, size)
                    row = {"stage": "curve", "round": repeat, "step": size, "labels": len(training), "correct": right, "questions": trials}
                    log.append(row | {"snapshot": snapshot.sha256})
                rows.append(row)
                context.progress("reward-curve", len(rows), repeats * len(parts), {"accuracy": row["correct"] / max(row["questions"], 1)})
        results = summary(context, rows, snapshot, len(labels))
        write_json(folder / "results.json", results)
        return results


def last_snapshot(context: Context) -> Snapshot:
    """The labels that the newest round froze."""
    for number in range(context.config.labels.rounds, 0, -1):
        path = context.path / f"rounds/{number}/labels/snapshot.jsonl"
        if path.exists():
            return Snapshot.load(path)
    raise UserError(f"{context.path}: no labels are frozen yet; the curve needs those of one round at least")


def by_question(snapshot: Snapshot) -> list[list[Comparison]]:
    """The labels of each question that some response is better in; a question is held out or trained on as a whole."""
    found: dict[str, list[Comparison]] = {}
    for comparison in snapshot.comparisons():
        if comparison.kind in ("rating", "binary") or len(best_responses(comparison)) < len(comparison.responses):
            found.setdefault(comparison.question_id, []).append(comparison)
    return list(found.values())


def nested_sizes(most: int, count: int) -> list[int]:
    """``count`` numbers of questions, each half of the next, the last being ``most``; none below ``LEAST``."""
    sizes = sorted({size for k in range(count) if (size := most >> k) >= LEAST})
    if len(sizes) < 2:
        raise UserError(f"a curve needs two parts of {LEAST} questions or more, but there are {most} questions to train on; label more")
    return sizes


def measure(
    context: Context, training: Sequence[Comparison], held_out: Sequence[Sequence[Comparison]], repeat: int, size: int
) -> tuple[int, int]:
    """(held-out labels that the fitted model agrees with, held-out labels)."""
    rows = [label for question in held_out for label in question]
    fitted = fitted_reward if context.config.fits_reward else fitted_policy
    right = fitted(context, training, rows, repeat, size)
    return sum(right), len(right)


def fitted_reward(context: Context, training: Sequence[Comparison], rows: Sequence[Comparison], repeat: int, size: int) -> list[bool]:
    """Whether a reward model that is fitted to a part of the labels prefers what they prefer."""
    settings = context.config.reward.model_copy(update={"normalize_before": False, "normalize_after": False})  # scale changes no choice
    head = generator(context.config.seed, "reward curve head", repeat)
    reward_model = RewardModel(context.base_model(), context.task.tokenizer, head_scale=settings.head_scale, generator=head)
    if context.config.lora is not None:
        reward_model.adapt(context.config.lora, seed=context.seed("adapter of reward curve", repeat))
    trainer = RewardTrainer(
        context.optimized(reward_model), training, settings, seed=context.seed("reward curve order", repeat, size),
        accelerator=context.accelerator, check=context.stop.check,
    )  # fmt: skip
    train(trainer, Surroundings(stop=context.stop), stage="reward-curve")
    return agreements(trainer.reward_model, rows, batch_size=settings.validation_batch_size or 64, check=context.stop.check)


def fitted_policy(context: Context, training: Sequence[Comparison], rows: Sequence[Comparison], repeat: int, size: int) -> list[bool]:
    """Whether the policy has become likelier to write what the labels prefer, after a direct method on a part of them."""
    settings = context.config.dpo
    policy = context.policy_to_train(context.reference_folder, "reward curve")
    known = None if settings.reference == "none" else context.policy_beside(policy, context.reference_folder)
    trainer = DPOTrainer(
        policy, known, as_judged(without_dual(training, settings.drop)), settings,
        seed=context.seed("reward curve order", repeat, size), accelerator=context.accelerator,
    )  # fmt: skip
    train(trainer, Surroundings(stop=context.stop), stage="reward-curve")
    return implicit_agreements(trainer.policy, known, rows, trainer.objective)


def summary(context: Context, rows: Sequence[dict[str, Any]], snapshot: Snapshot, questions: int) -> dict[str, Any]:
    """The measured points, the curve through them, and what it says of more labels."""
    sizes = [row["step"] for row in rows]
    repeats, correct, asked = ([row[name] for row in rows] for name in ("round", "correct", "questions"))
    most = max(sizes)
    law, ahead = forecasts(sizes, repeats, correct, asked, [most * more for more in MORE], context.seed("reward curve bootstrap"))
    points: list[dict[str, Any]] = []
    for size in sorted(set(sizes)):
        mine = [row for row in rows if row["step"] == size]
        right, trials = sum(row["correct"] for row in mine), sum(row["questions"] for row in mine)
        # careful: the repetitions' held-out parts overlap, so the interval is that of one repetition, about the mean of all.
        low, high = wilson_interval(right / len(mine), round(trials / len(mine)))
        points.append({"questions": size, "accuracy": right / trials, "low": low, "high": high, "repeats": len(mine)})
    K = max(len(snapshot.questions[0].responses), 2)
    return {
        "snapshot": snapshot.sha256, "labels": len(snapshot.labels), "questions": questions, "chance": 1 / K, "points": points,
        "curve": law._asdict(), "forecasts": [f._asdict() for f in ahead], "confidence": 0.9,
        "drawn": [[n, 1 - law.error(n)] for n in _between(min(sizes), most * MORE[-1])],
    }  # fmt: skip


def _between(low: float, high: float, count: int = 40) -> list[float]:
    """Numbers spread evenly by ratio."""
    return [low * math.exp(math.log(high / low) * i / (count - 1)) for i in range(count)]

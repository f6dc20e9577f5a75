"""What reward models learn, side by side and from the same weights, on labels of known noise and on real preferences.

    python bench/reward_learning.py OUT_FOLDER [--seeds 1 2 3] [--only elements queries trl]

elements: an order of K responses as one element of the batch, against its C(K, 2) pairs shuffled among all others (Ouyang et al. 2022,
    section 3.5): the same pairs in the same number of updates. Loss on held-out orders.
queries: questions that an ensemble disagrees about, against random ones (Christiano et al. 2017, section 2.2.4): accuracy by the number of
    labels, and how many labels each arm needs for what the random one reaches in the end.
trl: our RewardTrainer against TRL's at equal steps, on summeval-pairs and hh-harmless-base-test: accuracy on the same held-out pairs.

One JSON line per cell on stdout, kept in OUT_FOLDER/cells.jsonl: a cell that is there is not done again. The last lines compare the arms:
differences by seed, their mean, and its 95 % interval by Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from humanward.data import Task, iter_texts
from humanward.data.batches import epoch_order, left_pad
from humanward.feedback import load_score
from humanward.maths.acquisition import choice_variance, draw_with_propensities, propensities
from humanward.maths.reward_losses import all_pairs_loss
from humanward.models import (
    TYPES,
    EnsembleConfig,
    Policy,
    RewardModel,
    load_causal_lm,
    new_ensemble,
    resolve,
    sample_responses,
    settled_dtype,
)
from humanward.models.classifier import head_of
from humanward.models.loading import trunk_of
from humanward.records import Comparison, Prompt, Response
from humanward.storage import derive_seed
from humanward.trainers import EnsembleTrainer, RewardConfig, RewardTrainer, choices, train
from humanward.trainers.responses import sampling_settings
from humanward.trainers.reward import scores_of
from humanward.trainers.reward_ensemble import choice_probabilities

MODEL = "asset:storyteller"
PREFERENCES = Path(__file__).parents[1].parent / "shared/data/preferences"
K, PROMPT, RESPONSE = 4, 24, 16
NOISE = 0.25
"""Share of labels that are given blindly."""
ORDERS, HELD_OUT = 384, 256
START, STEP, ROUNDS, CANDIDATES, MEMBERS = 128, 128, 4, 4, 3
"""Labels before the first choice, and in each round; candidates for each question; reward models."""
PAIRS, PAIRS_HELD_OUT, LONGEST = 384, 400, {"prompt": 96, "response": 48}
FIT = {"lr": 1e-3, "max_grad_norm": 1.0, "head_scale": 0.1, "normalize_before": False, "normalize_after": False}
"""As `humanward demo`: what a model of this size learns from in one pass."""

# Questions


def questions(folder: Path) -> list[Comparison]:
    """K responses of the embedded model to each prompt, with the true score of each as its target; kept in the folder."""
    file = folder / "questions.jsonl"
    if not file.exists():
        rows = list(sampled())
        file.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return [Comparison.from_json(json.loads(line)) for line in file.read_text().splitlines()]


def sampled() -> Iterator[Comparison]:
    policy = Policy.load(MODEL)
    task = Task.plain(policy.tokenizer, response_length=RESPONSE, temperature=0.7, prompt_length=PROMPT, prompt_start=".", prompt_end=".")
    score = load_score("positive")
    source = Path(resolve(MODEL)).parent / "prompts.jsonl.gz"
    needed = HELD_OUT + max(ORDERS, START + STEP * ROUNDS * CANDIDATES)
    found = list({p.tokens: p for p in itertools.islice(task.iter_prompts(iter_texts(str(source))), 3 * needed)}.values())[:needed]
    for start in range(0, len(found), 64):
        part = found[start : start + 64]
        ids, mask = left_pad([p.tokens for p in part], policy.pad_id)
        seeds = [derive_seed(0, "bench", start, row, k) for row in range(len(part)) for k in range(K)]
        samples = sample_responses(policy, ids, mask, sampling_settings(task, whole=True), seeds=seeds, num_responses=K)
        for prompt, rows in zip(part, samples.responses.tolist(), strict=True):
            texts = [task.decode(row) for row in rows]
            true = score([prompt.text] * K, texts)
            responses = tuple(Response(text, tuple(row)) for text, row in zip(texts, rows, strict=True))
            yield Comparison(prompt, responses, "soft", [float(s) for s in true], question_id=prompt.id)


def order_of(question: Comparison, seed: int) -> Comparison:
    """The order of the true scores, or, with probability ``NOISE``, any."""
    lots = random.Random(derive_seed(seed, "noise", int.from_bytes(question.question_id.encode()[-6:], "big")))
    scores = list(question.target)  # type: ignore[arg-type]
    if lots.random() < NOISE:
        lots.shuffle(scores)
    ranks = [sorted(scores, reverse=True).index(score) for score in scores]
    return replace(question, kind="ranking", target=ranks)


def pair_of(question: Comparison, seed: int, first: int = 0, second: int = 1) -> Comparison:
    """What the noisy order says of two of the responses."""
    order = order_of(question, seed)
    ranks: Any = order.target
    target = [0.5, 0.5] if ranks[first] == ranks[second] else int(ranks[first] > ranks[second])
    return replace(order, responses=(order.responses[first], order.responses[second]), kind="pair", target=target)


def true_pair(question: Comparison) -> Comparison:
    scores: Any = question.target
    return replace(question, responses=question.responses[:2], kind="pair", target=0 if scores[0] >= scores[1] else 1)


# Reward models


def fresh(dtype: torch.dtype, seed: int) -> RewardModel:
    model = load_causal_lm(MODEL, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
    return RewardModel(model, tokenizer, head_scale=FIT["head_scale"], generator=torch.Generator().manual_seed(seed))


def fitted(labels: Sequence[Comparison], dtype: torch.dtype, seed: int, batch_size: int) -> RewardTrainer:
    trainer = RewardTrainer(fresh(dtype, seed), labels, RewardConfig(**FIT, batch_size=batch_size), seed=seed)
    train(trainer)
    return trainer


# elements


def elements(asked: Sequence[Comparison], dtype: torch.dtype, arm: str, seed: int) -> dict[str, Any]:
    """Fit to orders, whole or in pairs; measure on others of the same labeler."""
    training = [order_of(q, seed) for q in asked[:ORDERS]]
    held_out = [order_of(q, seed) for q in asked[ORDERS : ORDERS + HELD_OUT]]
    count = K * (K - 1) // 2
    if arm == "pairs":
        spread = [pair_of(q, seed, a, b) for q in asked[:ORDERS] for a, b in itertools.combinations(range(K), 2)]
        trainer = fitted([replace(c, question_id=str(n)) for n, c in enumerate(spread)], dtype, seed, 16 * count)
    else:
        trainer = fitted(training, dtype, seed, 16)
    scores = torch.tensor(scores_of(trainer.reward_model, held_out))
    ranks = torch.tensor([c.target for c in held_out], dtype=torch.float32)
    right = [int(scores[n].argmax()) == int(ranks[n].argmin()) for n in range(len(held_out))]
    return {"updates": trainer.total_steps, "loss": float(all_pairs_loss(scores, ranks).mean()), "best_right": statistics.fmean(right)}


# queries


def queries(asked: Sequence[Comparison], dtype: torch.dtype, arm: str, seed: int) -> dict[str, Any]:
    """Label, fit, choose, label again; measure on the truth about questions of nobody's choice."""
    test = [true_pair(q) for q in asked[:HELD_OUT] if q.target[0] != q.target[1]]  # type: ignore[index]
    pool = [asked[HELD_OUT + i] for i in epoch_order(derive_seed(seed, "pool"), 0, len(asked) - HELD_OUT)]
    labelled, pool = pool[:START], pool[START:]
    points: list[tuple[int, float]] = []
    for number in range(ROUNDS + 1):
        labels = [pair_of(q, seed) for q in labelled]
        heads = torch.Generator().manual_seed(seed)
        model = fresh(dtype, seed)
        settings = EnsembleConfig(members=MEMBERS)
        ensemble = new_ensemble(model.model, model.tokenizer, settings, head_scale=FIT["head_scale"], generator=heads)
        train(EnsembleTrainer(ensemble, labels, RewardConfig(**FIT, batch_size=16), seed=seed))
        picked = choice_probabilities(ensemble, test).mean(0).argmax(1)
        points.append((len(labelled), float(np.mean([c.target == k for c, k in zip(test, picked, strict=True)]))))
        if number == ROUNDS:
            break
        part, pool = pool[: STEP * CANDIDATES], pool[STEP * CANDIDATES :]
        disagreement = choice_variance(choice_probabilities(ensemble, [true_pair(q) for q in part]))
        p = propensities(disagreement if arm == "disagreement" else np.zeros(len(part)), STEP, uniform_share=0.25)
        labelled += [part[i] for i in draw_with_propensities(p, random.Random(seed + number).random())]
    return {"points": points}


def labels_needed(points: Sequence[Sequence[float]], accuracy: float) -> float:
    """By straight lines between the points, the running best of each; infinite where it is never reached."""
    best = list(itertools.accumulate((p[1] for p in points), max))
    for (n, _), a, (before, _), b in zip(points[1:], best[1:], points, best, strict=False):
        if b >= accuracy:
            return before
        if a >= accuracy:
            return before + (n - before) * (accuracy - b) / (a - b)
    return math.inf


# trl


def pairs_of(name: str) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) in tokens, in a fixed order; a long prompt loses its beginning, a long response its end."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
    found: list[tuple[list[int], list[int], list[int]]] = []
    with gzip.open(PREFERENCES / f"{name}.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist():
        texts = TEXTS[name](rows[i])
        if texts is None:
            continue
        prompt, chosen, rejected = (tokenizer(text)["input_ids"] for text in texts)
        found.append((prompt[-LONGEST["prompt"] :], chosen[: LONGEST["response"]], rejected[: LONGEST["response"]]))
        if len(found) == PAIRS + PAIRS_HELD_OUT:
            return found
    raise SystemExit(f"{name}: {len(found)} pairs, fewer than {PAIRS + PAIRS_HELD_OUT}")


def dialogue(row: dict[str, Any]) -> tuple[str, str, str] | None:
    cut = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
    chosen, rejected = row["chosen"][cut:], row["rejected"][cut:]
    return (row["chosen"][:cut], chosen, rejected) if row["rejected"][:cut] == row["chosen"][:cut] and chosen and rejected else None


def summary(row: dict[str, Any]) -> tuple[str, str, str] | None:
    return row["article"], " " + row["chosen"], " " + row["rejected"]


TEXTS: dict[str, Callable[[dict[str, Any]], tuple[str, str, str] | None]] = {"hh-harmless-base-test": dialogue, "summeval-pairs": summary}


def beside_trl(name: str, dtype: torch.dtype, arm: str, seed: int) -> dict[str, Any]:
    """One pass over the same pairs with the same rate, batch and steps, from the same weights; each trainer in its own order."""
    rows = pairs_of(name)
    training, held_out = rows[:PAIRS], rows[PAIRS:]
    model = fresh(dtype, seed)
    comparisons = [
        Comparison(Prompt(str(n), "", tuple(p)), (Response("", tuple(a)), Response("", tuple(b))), "pair", 0, question_id=str(n))
        for n, (p, a, b) in enumerate(rows)
    ]
    if arm == "ours":
        config = RewardConfig(**FIT, batch_size=16, adam_eps=1e-8)
        trainer = RewardTrainer(model, comparisons[:PAIRS], config, seed=seed)
        train(trainer)
        fit = trainer.reward_model
    else:
        fit = trls(model, training, dtype, seed)
    picked = choices(fit, comparisons[PAIRS:])
    return {"right": [int(k == 0) for k in picked], "accuracy": picked.count(0) / len(held_out)}


def trls(model: RewardModel, rows: Sequence[tuple[list[int], list[int], list[int]]], dtype: torch.dtype, seed: int) -> RewardModel:
    """The same weights as a sequence classifier, fitted by TRL, and back."""
    from datasets import Dataset
    from trl import RewardConfig as Config
    from trl import RewardTrainer as Trainer

    classifier = AutoModelForSequenceClassification.from_pretrained(resolve(MODEL), num_labels=1, dtype=torch.float32)
    head_of(classifier).weight.data.copy_(model.score_head.weight.data)
    args = Config(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=16, num_train_epochs=1, learning_rate=FIT["lr"], max_grad_norm=1.0,
        lr_scheduler_type="linear", weight_decay=0.0, adam_epsilon=1e-8, bf16=dtype == torch.bfloat16, use_cpu=True, report_to="none",
        gradient_checkpointing=False, disable_dropout=True, max_length=None, logging_strategy="no", save_strategy="no", seed=seed,
    )  # fmt: skip
    data = Dataset.from_list([{"chosen_ids": [*p, *a], "rejected_ids": [*p, *b]} for p, a, b in rows])
    trainer = Trainer(model=classifier, args=args, train_dataset=data, processing_class=model.tokenizer)
    trainer.train()
    trunk_of(model.model).load_state_dict(trunk_of(classifier).state_dict())
    model.score_head.weight.data.copy_(head_of(classifier).weight.data)
    return model.eval()


# The table


def difference(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval over seeds."""
    mean = statistics.fmean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"by_seed": [round(v, 4) for v in values], "mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def summaries(cells: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    found = {(c["part"], c["data"], c["arm"], c["seed"]): c for c in cells}

    def both(part: str, data: str, ours: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        wanted = [((part, data, ours, s), (part, data, other, s)) for s in seeds]
        return [(found[a], found[b]) for a, b in wanted if a in found and b in found]

    if rows := both("elements", "", "element", "pairs"):
        yield {"summary": "loss of pairs less that of one element", **difference([b["loss"] - a["loss"] for a, b in rows])}
        yield {"summary": "best right, one element less pairs", **difference([a["best_right"] - b["best_right"] for a, b in rows])}
    if rows := both("queries", "", "disagreement", "random"):
        last = [b["points"][-1] for _, b in rows]
        needed = [(labels_needed(a["points"], p[1]), labels_needed(b["points"], p[1])) for (a, b), p in zip(rows, last, strict=True)]
        yield {"summary": "labels needed for what random reaches in the end (disagreement, random)", "by_seed": needed}
        gains = [statistics.fmean(x[1] - y[1] for x, y in zip(a["points"][1:], b["points"][1:], strict=True)) for a, b in rows]
        yield {"summary": "accuracy of disagreement less random, mean over sizes", **difference(gains)}
    for name in TEXTS:
        if rows := both("trl", name, "ours", "trl"):
            gains = [a["accuracy"] - b["accuracy"] for a, b in rows]
            marks = np.mean([np.subtract(a["right"], b["right"]) for a, b in rows], axis=0)
            half = 1.96 * marks.std() / math.sqrt(len(marks))
            over_pairs = [round(float(marks.mean() + sign * half), 4) for sign in (-1, 1)]
            yield {
                "summary": f"{name}: accuracy of ours less TRL's", **difference(gains), "ours": [a["accuracy"] for a, _ in rows],
                "trl": [b["accuracy"] for _, b in rows], "interval_over_pairs": over_pairs,
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=("elements", "queries", "trl"), default=["elements", "queries", "trl"])
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    dtype = TYPES[settled_dtype(given.dtype, torch.device("cpu"))]
    log = given.folder / "cells.jsonl"
    cells = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    wanted = [("elements", "", arm) for arm in ("element", "pairs")] + [("queries", "", arm) for arm in ("random", "disagreement")]
    wanted += [("trl", name, arm) for name in TEXTS for arm in ("ours", "trl")]
    done = {(c["part"], c["data"], c["arm"], c["seed"]) for c in cells}
    asked = questions(given.folder)
    for seed in given.seeds:
        for part, data, arm in wanted:
            if part not in given.only or (part, data, arm, seed) in done:
                continue
            started = time.monotonic()
            run = {"elements": elements, "queries": queries}.get(part)
            cell = run(asked, dtype, arm, seed) if run is not None else beside_trl(data, dtype, arm, seed)
            about = {"part": part, "data": data, "arm": arm, "seed": seed, "dtype": str(dtype)}
            cells.append(about | cell | {"seconds": round(time.monotonic() - started, 1)})
            with log.open("a") as file:
                file.write(json.dumps(cells[-1]) + "\n")
            print(json.dumps({name: value for name, value in cells[-1].items() if name != "right"}), flush=True)
    for row in summaries(cells, given.seeds):
        print(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())

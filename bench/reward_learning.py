"""What reward models learn, side by side and from the same weights, on labels of known noise and on real preferences.

    python bench/reward_learning.py OUT_FOLDER [--seeds 1 2 3] [--only elements queries trl] [--write docs/reward_learning.md]

elements: an order of K responses as one element of the batch, against its C(K, 2) pairs shuffled among all others (Ouyang et al. 2022,
    section 3.5): the same pairs in the same number of updates, for K = 4 and 9, the ends of the paper's range. Loss on held-out orders.
queries: questions that an ensemble disagrees about, against random ones (Christiano et al. 2017, section 2.2.4): accuracy by the number of
    labels, and how many labels each arm needs for what the random one reaches in the end. On a small language in which few words matter,
    since the embedded model learns too little from a few hundred pairs to tell the arms apart.
trl: our RewardTrainer against TRL's at equal steps, on pairs of summeval and of hh-harmless: accuracy on the same held-out pairs.

One JSON line per cell on stdout, kept in OUT_FOLDER/cells.jsonl: a cell that is there is not done again. Then the page: means over seeds,
their differences with 95 % intervals by Student's t over the seeds, and, where both arms answer the same questions, over those too. Parts
that were not run stay in the page as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import sections
from preference_learning import DATA
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from humanward.data import Task, iter_texts
from humanward.data.batches import epoch_order, left_pad
from humanward.feedback import load_score
from humanward.maths.acquisition import draw_with_propensities, propensities
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
from humanward.rounds.choosing import MEASURES
from humanward.storage import derive_seed
from humanward.trainers import EnsembleTrainer, RewardConfig, RewardTrainer, choices, train
from humanward.trainers.responses import sampling_settings
from humanward.trainers.reward import scores_of
from humanward.trainers.reward_ensemble import choice_probabilities
from humanward.trainers.selftest import tiny_policy

MODEL = "asset:storyteller"
PREFERENCES = Path(__file__).parents[1].parent / "shared/data/preferences"
K, PROMPT, RESPONSE = 9, 24, 16
NOISE = 0.25
"""Share of labels that are given blindly."""
ORDERS, HELD_OUT, ORDERS_BATCH = 256, 256, 4
KS = (4, 9)
START, STEP, ROUNDS, CANDIDATES, MEMBERS = 128, 128, 11, 4, 3
"""Labels before the first choice, and in each round; candidates for each question; reward models."""
LANGUAGE = tuple(f"w{n}" for n in range(60))
LENGTH, MATTER, TEST = 6, 0.2, 1500
"""Words of a response; share of the words that have a value; test questions, of which those with equal scores are left out."""
PAIRS, PAIRS_HELD_OUT = 384, 400
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
    needed = ORDERS + HELD_OUT
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


def elements(asked: Sequence[Comparison], dtype: torch.dtype, data: str, arm: str, seed: int) -> dict[str, Any]:
    """Fit to orders of the first K responses, whole or in pairs; measure on those orders and on others of the same labeler."""
    k = int(data.removeprefix("K="))
    cut = [replace(q, responses=q.responses[:k], target=q.target[:k]) for q in asked[: ORDERS + HELD_OUT]]  # type: ignore[index]
    training, held_out = ([order_of(q, seed) for q in part] for part in (cut[:ORDERS], cut[ORDERS:]))
    pairs = list(itertools.combinations(range(k), 2))
    if arm == "pairs":
        spread = [pair_of(q, seed, a, b) for q in cut[:ORDERS] for a, b in pairs]
        labels = [replace(c, question_id=str(n)) for n, c in enumerate(spread)]
        trainer = fitted(labels, dtype, seed, ORDERS_BATCH * len(pairs))
    else:
        trainer = fitted(training, dtype, seed, ORDERS_BATCH)
    loss, right = fit_of(trainer.reward_model, held_out)
    return {"updates": trainer.total_steps, "loss": loss, "training_loss": fit_of(trainer.reward_model, training)[0], "pairs_right": right}


def fit_of(model: RewardModel, orders: Sequence[Comparison]) -> tuple[float, float]:
    """(mean all-pairs loss, share of pairs that are scored as they are ordered)."""
    scores = torch.tensor(scores_of(model, orders))
    ranks = torch.tensor([c.target for c in orders], dtype=torch.float32)
    right = (scores[:, :, None] > scores[:, None, :])[ranks[:, :, None] < ranks[:, None, :]]
    return float(all_pairs_loss(scores, ranks).mean()), float(right.float().mean())


# queries


def small_language(seed: int, count: int) -> Iterator[tuple[Comparison, int | None]]:
    """Pairs of random words, by Zipf's law, with a label that is blind with probability ``NOISE``, and the truth; None: equal scores.

    A response's score is the sum of its words' values, which most words do not have.
    """
    lots = np.random.default_rng(seed)
    values = lots.normal(size=len(LANGUAGE)) * (lots.random(len(LANGUAGE)) < MATTER)
    often = 1 / np.arange(1, len(LANGUAGE) + 1)
    for n in range(count):
        words = lots.choice(len(LANGUAGE), size=(2, LENGTH), p=often / often.sum())
        first, second = values[words].sum(1)
        truth = None if first == second else int(second > first)
        label = int(lots.integers(2)) if truth is None or lots.random() < NOISE else truth
        responses = tuple(Response("", tuple(int(word) + 2 for word in row)) for row in words)
        yield Comparison(Prompt(f"p{n}", "", (2,)), responses, "pair", label, question_id=f"q{n}"), truth


def queries(arm: str, seed: int) -> dict[str, Any]:
    """Label, fit, choose, label again; measure on the truth about questions of nobody's choice."""
    asked = list(small_language(seed, TEST + START + STEP * ROUNDS * CANDIDATES))
    test = [(question, truth) for question, truth in asked[:TEST] if truth is not None]
    pool = [question for question, _ in asked[TEST:]]
    labelled, pool = pool[:START], pool[START:]
    base = tiny_policy(seed=seed, words=LANGUAGE, width=32)
    config = RewardConfig(lr=1e-2, batch_size=16, epochs=4, max_grad_norm=1.0, normalize_before=False, normalize_after=False)
    points: list[tuple[int, float]] = []
    for number in range(ROUNDS + 1):
        heads = torch.Generator().manual_seed(seed)
        ensemble = new_ensemble(base.model, base.tokenizer, EnsembleConfig(members=MEMBERS), head_scale=1.0, generator=heads)
        train(EnsembleTrainer(ensemble, labelled, config, seed=seed))
        picked = choice_probabilities(ensemble, [question for question, _ in test]).mean(0).argmax(1)
        points.append((len(labelled), float(np.mean([truth == k for (_, truth), k in zip(test, picked, strict=True)]))))
        if number == ROUNDS:
            break
        part, pool = pool[: STEP * CANDIDATES], pool[STEP * CANDIDATES :]
        weights = np.zeros(len(part)) if arm == "random" else MEASURES[arm](choice_probabilities(ensemble, part))
        p = propensities(weights, STEP, uniform_share=0.25)
        labelled = [*labelled, *(part[i] for i in draw_with_propensities(p, random.Random(seed + number).random()))]
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


def pairs_of(name: str) -> tuple[list[Comparison], list[Comparison]]:
    """Pairs to train on and pairs to measure on, in a fixed order; no prompt is in both."""
    found = [c for c in DATA[name](PREFERENCES) if c is not None]
    found = [found[i] for i in epoch_order(0, 0, len(found))]
    prompts = list(dict.fromkeys(c.prompt.tokens for c in found))
    measured = set(prompts[: len(prompts) // 2])
    training = [c for c in found if c.prompt.tokens not in measured][:PAIRS]
    held_out = [c for c in found if c.prompt.tokens in measured][:PAIRS_HELD_OUT]
    if len(training) < PAIRS or len(held_out) < PAIRS_HELD_OUT:
        raise SystemExit(f"{name}: {len(training)} and {len(held_out)} pairs, fewer than {PAIRS} and {PAIRS_HELD_OUT}")
    return training, held_out


def beside_trl(name: str, dtype: torch.dtype, arm: str, seed: int) -> dict[str, Any]:
    """One pass over the same pairs with the same rate, batch and steps, from the same weights; each trainer in its own order."""
    training, held_out = pairs_of(name)
    model = fresh(dtype, seed)
    if arm == "ours":
        trainer = RewardTrainer(model, training, RewardConfig(**FIT, batch_size=16, adam_eps=1e-8), seed=seed)
        train(trainer)
        fit = trainer.reward_model
    else:
        fit = trls(model, training, dtype, seed)
    right = [int(k == c.target) for k, c in zip(choices(fit, held_out), held_out, strict=True)]
    return {"right": right, "accuracy": statistics.fmean(right)}


def trls(model: RewardModel, training: Sequence[Comparison], dtype: torch.dtype, seed: int) -> RewardModel:
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
    sides = {"chosen_ids": lambda c: c.responses[c.target], "rejected_ids": lambda c: c.responses[1 - c.target]}
    data = Dataset.from_list([{side: [*c.prompt.tokens, *of(c).tokens] for side, of in sides.items()} for c in training])
    trainer = Trainer(model=classifier, args=args, train_dataset=data, processing_class=model.tokenizer)
    trainer.train()
    trunk_of(model.model).load_state_dict(trunk_of(classifier).state_dict())
    model.score_head.weight.data.copy_(head_of(classifier).weight.data)
    return model.eval()


# The page


@dataclass(frozen=True)
class Row:
    """One comparison of two arms: a number of each per seed."""

    what: str
    ours: Sequence[float]
    other: Sequence[float]
    pairs: tuple[float, float] | None = None
    """95 % interval of the difference over held-out pairs, each the mean of its seeds, where both arms answered the same ones."""

    def markdown(self) -> str:
        means = " | ".join(f"{statistics.fmean(side):.3f}" for side in (self.ours, self.other))
        gains = [a - b for a, b in zip(self.ours, self.other, strict=True)]
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        mean = statistics.fmean(gains)
        pairs = f"[{self.pairs[0]:+.3f}, {self.pairs[1]:+.3f}]" if self.pairs else ""
        return f"| {self.what} | {means} | {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] | {pairs} |"


def tables(cells: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, tuple[str, list[Row], str]]:
    """By part: names of both arms, rows, what to say under them; for the parts that have cells of both arms."""
    found = {(c["part"], c["data"], c["arm"], c["seed"]): c for c in cells}

    def both(part: str, data: str, ours: str, other: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        here = [s for s in seeds if (part, data, ours, s) in found and (part, data, other, s) in found]
        return [found[part, data, ours, s] for s in here], [found[part, data, other, s] for s in here]

    orders = []
    for k in KS:
        ours, other = both("elements", f"K={k}", "element", "pairs")
        for what, name in (("held-out loss", "loss"), ("loss on its own orders", "training_loss"), ("held-out pairs right", "pairs_right")):
            if ours:
                orders.append(Row(f"K = {k}, {what}", [c[name] for c in ours], [c[name] for c in other]))
    chosen, needed = [], []
    for arm in MEASURES:
        ours, other = both("queries", "", arm, "random")
        if not ours:
            continue
        for i, (n, _) in enumerate(other[0]["points"]):
            if n % 256:
                continue
            chosen.append(
                Row(f"{arm}, {n} labels: held-out pairs right", [c["points"][i][1] for c in ours], [c["points"][i][1] for c in other])
            )
        means = tuple([statistics.fmean(p[1] for p in c["points"][1:]) for c in side] for side in (ours, other))
        chosen.append(Row(f"{arm}, mean over all sizes but the first", means[0], means[1]))
        counts = [[labels_needed(c["points"], b["points"][-1][1]) for c in (a, b)] for a, b in zip(ours, other, strict=True)]
        told = "; ".join(" against ".join("never" if math.isinf(n) else f"{n:.0f}" for n in pair) for pair in counts)
        needed.append(f"Labels until what the random arm has in the end, {arm} against random, by seed: {told}.")
    beside = []
    for name in DATA:
        ours, other = both("trl", name, "ours", "trl")
        if ours:
            marks = np.mean([np.subtract(a["right"], b["right"]) for a, b in zip(ours, other, strict=True)], axis=0)
            half = 1.96 * float(marks.std(ddof=1)) / math.sqrt(len(marks))
            interval = (float(marks.mean()) - half, float(marks.mean()) + half)
            beside.append(Row(f"{name}: held-out pairs right", [c["accuracy"] for c in ours], [c["accuracy"] for c in other], interval))
    every = {
        "elements": (
            "one element | shuffled pairs", orders,
            f"{ORDERS} orders with {NOISE:.0%} blind ones, {ORDERS_BATCH} a batch, one pass; a coin has a loss of ln 2 = 0.693.",
        ),
        "queries": ("chosen | random", chosen, "\n\n".join(needed)),
        "trl": ("Humanward | TRL", beside, f"{PAIRS} pairs, 16 a batch, one pass; {PAIRS_HELD_OUT} held-out pairs."),
    }  # fmt: skip
    return {part: table for part, table in every.items() if table[1]}


TITLES = {
    "elements": "An order of K as one element",
    "queries": "Questions that an ensemble disagrees about",
    "trl": "Beside TRL's RewardTrainer",
}


def page(cells: Sequence[dict[str, Any]], seeds: Sequence[int], before: str = "") -> str:
    """Of a part without cells it says what the page said before."""
    about, _, parts, how = (__doc__ or "").split("\n\n")
    told = dict(line.split(": ", 1) for line in re.split(r"\n(?=\w)", parts))
    text = f"# What reward models learn\n\n<!-- Made by bench/reward_learning.py: do not edit. -->\n\n{about}\n\n{how}"
    found, told_before = tables(cells, seeds), sections(before)
    for part, title in TITLES.items():
        if part in found:
            arms, rows, note = found[part]
            sentence = re.sub(r"\s+", " ", told[part])
            text += f"\n## {title}\n\n{sentence[0].upper()}{sentence[1:]}\n\n"
            text += f"| | {arms} | difference [over seeds] | [over pairs] |\n|---|---|---|---|---|\n"
            text += "\n".join(row.markdown() for row in rows) + f"\n\n{note}\n"
        elif title in told_before:
            text += f"\n{told_before[title]}\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=("elements", "queries", "trl"), default=["elements", "queries", "trl"])
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page that the tables are written to")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    dtype = TYPES[settled_dtype(given.dtype, torch.device("cpu"))]
    log = given.folder / "cells.jsonl"
    cells = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    wanted = [("elements", f"K={k}", arm) for k in KS for arm in ("element", "pairs")]
    wanted += [("queries", "", arm) for arm in ("random", *MEASURES)]
    wanted += [("trl", name, arm) for name in DATA for arm in ("ours", "trl")]
    done = {(c["part"], c["data"], c["arm"], c["seed"]) for c in cells}
    asked = questions(given.folder)
    for seed in given.seeds:
        for part, data, arm in wanted:
            if part not in given.only or (part, data, arm, seed) in done:
                continue
            started = time.monotonic()
            if part == "elements":
                cell = elements(asked, dtype, data, arm, seed)
            else:
                cell = queries(arm, seed) if part == "queries" else beside_trl(data, dtype, arm, seed)
            about = {"part": part, "data": data, "arm": arm, "seed": seed, "dtype": str(dtype)}
            cells.append(about | cell | {"seconds": round(time.monotonic() - started, 1)})
            with log.open("a") as file:
                file.write(json.dumps(cells[-1]) + "\n")
            print(json.dumps({name: value for name, value in cells[-1].items() if name != "right"}), flush=True)
    before = given.write.read_text() if given.write is not None and given.write.exists() else ""
    print(page(cells, given.seeds, before))
    if given.write is not None:
        given.write.write_text(page(cells, given.seeds, before))


if __name__ == "__main__":
    sys.exit(main())

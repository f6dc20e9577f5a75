"""A run folder as a finished run leaves it, with numbers that hang together; made in a moment, without training."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import yaml

from humanward.evaluation import validation_report
from humanward.feedback.agreement import agreement_report
from humanward.feedback.reading import LabelerRow
from humanward.maths.sequential import WinRateSequence

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [
    "He had been walking since before dawn, and the road had not once turned toward the river.",
    "The house stood at the end of the lane, where the elms began.",
    "She put the letter down on the table and looked at it for a long time.",
    "“You will have to tell her yourself,” said the old man, without lifting his eyes from the fire.",
]
RESPONSES = {
    "reference": [
        " The rain had come in by the window and the floor was dark with it. Nobody had thought to close the shutters.",
        " It was a poor sort of place, and the wind went through it as though the walls were made of paper.",
        " There was nothing in it that she had not known already, and yet she read it twice.",
    ],
    "ppo": [
        " It was a lovely morning, and he was happy to see the bright fields and the warm light upon the hills again.",
        " The children laughed with delight, and her heart was full of the sweetest gladness that she had ever known.",
        " He smiled at her with great kindness, and together they went out into the beautiful garden.",
    ],
    "sft": [
        " The sun was out upon the water, and he thought that it might be a fine day after all.",
        " She was pleased with the room, which was small and clean and looked toward the orchard.",
        " He shook his head, but he was smiling, and the boy saw it.",
    ],
}


def config() -> dict[str, Any]:
    """The resolved settings of a small sentiment run."""
    return {
        "seed": 1,
        "model": "humanward/tiny",
        "prompts": "data/novels.txt",
        "labeler": "score:positive",
        "task": {"prompt_length": 64, "prompt_start": ".", "prompt_end": ".",
                 "response_length": 24, "temperature": 0.7, "top_k": 0, "top_p": 1.0,
                 "stop_at_eos": False, "truncate_token": ".", "truncate_after": 16,
                 "missing_truncation_score": -1.0, "train_on_truncated": False},
        "sft": None,
        "labels": {"initial": 500, "total": 5000, "rounds": 3, "responses_per_question": 4, "overlap_share": 0.05},
        "reward": {"lr": 5e-5, "batch_size": 32, "epochs": 1, "normalize_samples": 256},
        "ppo": {"episodes": 100_000, "batch_size": 512, "ppo_epochs": 4, "lr": 1e-5, "kl_coef": 0.15, "kl_target": 6.0, "clip_range": 0.2},
        "evaluation": {"prompts": 512},
    }  # fmt: skip


def metrics(rounds: int = 3, steps: int = 65) -> list[dict[str, Any]]:
    """Rows of every stage, in the order in which a run writes them."""
    draw = random.Random(5)
    found: list[dict[str, Any]] = []
    episodes = 0
    for r in range(1, rounds + 1):
        for i in range(1, 53):
            loss = 1.386 - 0.45 * (1 - math.exp(-i / 15)) + draw.gauss(0, 0.05)
            accuracy = min(1.0, 0.25 + 0.4 * (1 - math.exp(-i / 15)) + draw.gauss(0, 0.07))
            found.append({"stage": "reward", "round": r, "step": i, "loss": loss, "accuracy": accuracy, "lr": 5e-5 * (1 - i / 53)})
        for i in range(1, steps + 1):
            episodes += 512
            t = ((r - 1) * steps + i) / (rounds * steps)
            kl = 6.3 * (1 - math.exp(-4 * t)) + draw.gauss(0, 0.15)
            found.append({
                "stage": "ppo", "round": r, "step": i, "episodes": episodes, "score": 2.6 * (1 - math.exp(-3.2 * t)) + draw.gauss(0, 0.08),
                "true_score": -1.9 + 1.65 * (1 - math.exp(-3.6 * t)) + draw.gauss(0, 0.05), "kl": max(kl, 0.0),
                "kl_coef": 0.15 * math.exp(-0.5 * t + 0.3 * t * t), "entropy": 3.1 - 0.7 * t + draw.gauss(0, 0.03),
                "response_length": 21.4 - 1.2 * t + draw.gauss(0, 0.15),
                "missing_truncation": max(0.0, 0.34 * math.exp(-3 * t) + draw.gauss(0, 0.01)),
                "policy_loss": -0.012 + draw.gauss(0, 0.002), "value_loss": 0.4 * math.exp(-2 * t) + 0.05 + draw.gauss(0, 0.01),
                "approx_kl": 0.004 + draw.gauss(0, 0.0005), "clip_fraction": 0.06 + draw.gauss(0, 0.008),
                "ratio_max": 1.8 + abs(draw.gauss(0, 0.3)), "explained_variance": 0.7 * (1 - math.exp(-5 * t)) + draw.gauss(0, 0.02),
                "lr": 1e-5 * (1 - t),
            })  # fmt: skip
    for i in range(1, 41):
        found.append(
            {"stage": "baseline_sft", "round": rounds, "step": i, "loss": 3.4 - 0.5 * (1 - math.exp(-i / 12)) + draw.gauss(0, 0.04)}
        )
    return found


def frontier(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An optimum for scores that are normal under the reference: score = mean + sd * sqrt(2 KL), flattened near the best score."""

    def best(kl: float) -> float:
        return -1.9 + 1.8 * math.tanh(math.sqrt(2 * kl) * 0.42)

    orders = {2: 0.56, 4: 1.03, 8: 1.42, 16: 1.77, 32: 2.07, 64: 2.34}
    path = [[row["kl"], min(row["true_score"], best(row["kl"]) - 0.03)] for row in rows if row["stage"] == "ppo"]
    return {
        "optimum": [[k / 5, best(k / 5)] for k in range(41)],
        "best_of_n": [[n, math.log(n) - (n - 1) / n, -1.9 + 1.75 * math.tanh(z * 0.40)] for n, z in orders.items()],
        "path": path,
        "policy": [6.1, -0.27],
        "reference": [0, -1.9],
    }


def results(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """evaluation/results.json."""
    return {
        "labeler": "score:positive", "seed": 1, "prompts": 512,
        "win_rates": [
            {"policy": "ppo", "against": "reference", "wins": 441, "losses": 69, "ties": 2, "rate": 0.86328, "low": 0.8308, "high": 0.89},
            {"policy": "ppo", "against": "sft", "wins": 379, "losses": 131, "ties": 2, "rate": 0.74219, "low": 0.7027, "high": 0.7782},
            {"policy": "sft", "against": "reference", "wins": 322, "losses": 188, "ties": 2, "rate": 0.63086, "low": 0.588, "high": 0.671},
        ],
        "scores": {"reference": {"mean": -1.903, "low": -1.985, "high": -1.82},
                   "ppo": {"mean": -0.271, "low": -0.316, "high": -0.229},
                   "sft": {"mean": -1.387, "low": -1.462, "high": -1.311}},
        "kl": {"ppo": {"mean": 6.08, "low": 5.91, "high": 6.25}},
        "reward_model": [
            {"round": 1, "accuracy": 0.512, "low": 0.464, "high": 0.56, "questions": 416, "chance": 0.25},
            {"round": 2, "accuracy": 0.582, "low": 0.534, "high": 0.628, "questions": 416, "chance": 0.25},
            {"round": 3, "accuracy": 0.618, "low": 0.57, "high": 0.663, "questions": 416, "chance": 0.25},
        ],
        **reward_checks(),
        "frontier": frontier(rows),
        "text_quality": {
            "reference": {"bits_per_byte": 1.21, "distinct_2": 0.684, "repeated_4grams": 0.0041, "length": 20.9},
            "ppo": {"bits_per_byte": 1.34, "distinct_2": 0.531, "repeated_4grams": 0.0087, "length": 20.1},
            "sft": {"bits_per_byte": 1.18, "distinct_2": 0.662, "repeated_4grams": 0.0044, "length": 20.6},
        },
        "labels": {"total": 5000, "rounds": [{"round": 1, "labels": 1600}, {"round": 2, "labels": 1900}, {"round": 3, "labels": 1500}]},
    }  # fmt: skip


def reward_checks() -> dict[str, Any]:
    """What the evaluation says of an ensemble of three: labels answered as the members' mean belief says, and a bit less surely."""
    draw = random.Random(2)
    predictions = []
    for i in range(360):
        leads = [draw.gauss(0, 1.2) for _ in range(4)]
        members = [softmax([lead + draw.gauss(0, 0.3) for lead in leads]) for _ in range(3)]
        best = draw.choices(range(4), softmax([0.7 * lead for lead in leads]))[0]
        predictions.append({
            "question": f"q{i}", "labeler": f"labeler-{i % 5}", "round": 1 + i % 3, "confidence": None if i % 4 else draw.random(),
            "right": leads.index(max(leads)) == best, "best": [best], "target": [float(k == best) for k in range(4)], "scores": leads,
            "sources": ["policy", "policy", "reference", "reference"], "members": members,
        })  # fmt: skip
    deviation = {name: {"mean": mean, "low": mean - 0.04, "high": mean + 0.04} for name, mean in (("reference", 0.31), ("ppo", 0.58))}
    return {
        "reward_validation": validation_report(predictions),
        "reward_probes": {
            "sentence_shuffle": {"rate": 0.61, "low": 0.52, "high": 0.69, "responses": 118},
            "role_reversal": {"rate": 0.55, "low": 0.47, "high": 0.62, "responses": 171},
            "minimal_edit": {"rate": None, "low": 0.0, "high": 1.0, "responses": 0},
            "length": {"correlation": 0.22, "low": 0.12, "high": 0.31, "responses": 400},
        },
        "reward_members": {
            "members": 3, "combine": "penalized", "penalty": 0.5, "deviation": deviation,
            "held_out": [{"group": n, "accuracy": 0.5 + n / 50, "low": 0.46, "high": 0.6, "labels": 420} for n in (1, 2, 3)],
        },
    }  # fmt: skip


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def samples() -> list[dict[str, Any]]:
    """evaluation/samples.jsonl."""
    draw = random.Random(3)
    return [
        {
            "prompt": PROMPTS[i % len(PROMPTS)],
            **{policy: texts[i % len(texts)] for policy, texts in RESPONSES.items()},
            "scores": {"reference": draw.gauss(-1.9, 0.5), "ppo": draw.gauss(-0.3, 0.1), "sft": draw.gauss(-1.4, 0.4)},
        }
        for i in range(12)
    ]


def write_run(folder: Path) -> Path:
    """Write all files of a finished run into ``folder``."""
    (folder / "evaluation").mkdir(parents=True)
    rows = metrics()
    timings = [
        {"stage": stage, "round": r, "seconds": seconds + r, "peak_memory_bytes": memory}
        for r in (1, 2, 3)
        for stage, seconds, memory in (("sample", 312.0, 900 << 20), ("reward", 190.2, 1_300 << 20), ("ppo", 2210.7, 1_900 << 20))
    ]
    environment = {
        "humanward": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "device": "cpu",
        "threads": 2,
        "seed": 1,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config(), sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (folder / "state.json").write_text(json.dumps({"stage": "done", "round": 3, "step": 195}), encoding="utf-8")
    (folder / "evaluation" / "results.json").write_text(json.dumps(results(rows)), encoding="utf-8")
    for name, items in (("metrics.jsonl", rows), ("timings.jsonl", timings), ("evaluation/samples.jsonl", samples())):
        (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return folder


def labelled_by_people(folder: Path) -> Path:
    """The same run, labelled by five people and a researcher, one of whom clicks the left; two comparisons and a learning curve."""
    found = json.loads((folder / "evaluation/results.json").read_text())
    found |= {"labeler": "people", "scored_by": "reward model", "agreement": agreement()}
    del found["frontier"]
    (folder / "evaluation/results.json").write_text(json.dumps(found))
    for name, rate, count in (("policy-against-reference", 0.72, 400), ("round-1-against-policy", 0.5, 180)):
        (folder / "comparisons" / name).mkdir(parents=True)
        (folder / "comparisons" / name / "results.json").write_text(json.dumps(comparison(name, rate, count)))
    points = [(46, 0.37), (93, 0.42), (187, 0.47), (375, 0.5), (750, 0.54)]
    curve = {
        "points": [{"questions": n, "accuracy": a, "low": a - 0.05, "high": a + 0.05} for n, a in points], "chance": 0.25,
        "forecasts": [
            {"labels": 1500, "accuracy": 0.565, "low": 0.54, "high": 0.59, "gain": 0.028, "gain_low": 0.008, "gain_high": 0.045},
            {"labels": 3000, "accuracy": 0.588, "low": 0.55, "high": 0.63, "gain": 0.05, "gain_low": 0.014, "gain_high": 0.085},
        ],
        "drawn": [[46 * 1.115**i, 0.75 - 0.9 * (46 * 1.115**i) ** -0.22] for i in range(39)],
    }  # fmt: skip
    (folder / "reward_curve").mkdir()
    (folder / "reward_curve/results.json").write_text(json.dumps(curve))
    told = [("pulled", "labeler-2 stopped the run at ppo, round 2, after step 31: it only writes about gardens"),
            ("released", "released; the run went on after waiting 312 s")]  # fmt: skip
    lines = [{"stage": "cord", "round": 2, "step": 31, "kind": kind, "text": text, "time": ""} for kind, text in told]
    (folder / "alarms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def agreement() -> dict[str, Any]:
    """The agreement report of 300 questions, 60 of them answered by all."""
    draw = random.Random(9)
    rows: list[LabelerRow] = []
    people = [*(f"labeler-{n}" for n in range(1, 6)), "researcher-1"]

    def add(question: str, name: str, answer: int, order: tuple[int, ...], gold: int | None = None, repeat_of: str | None = None) -> None:
        seconds = 3.0 if name == "labeler-5" else draw.uniform(12, 60)
        rows.append(LabelerRow(question, name, "best_of_k", answer, order, seconds, (30, 20, 21, 22, 19), "", gold, repeat_of, len(rows)))

    for i in range(300):
        best = draw.randrange(4)
        for name in people if i < 60 else [people[i % 5]]:
            order = tuple(draw.sample(range(4), 4))
            answer = order[0] if name == "labeler-5" else best if draw.random() < 0.62 else draw.randrange(4)
            add(f"q{i}", name, answer, order)
            if draw.random() < 0.05:
                add(f"again-{i}-{name}", name, answer if draw.random() < 0.8 else draw.randrange(4), order, repeat_of=f"q{i}")
    for i in range(8):
        for name in people[:5]:
            order = tuple(draw.sample(range(4), 4))
            add(f"g{i}", name, order[0] if name == "labeler-5" else 1 if draw.random() < 0.9 else 2, order, gold=1)
    return agreement_report(rows, {"researcher-1"})


def comparison(name: str, rate: float, count: int) -> dict[str, Any]:
    """results.json of a head-to-head with this rate and a tenth of ties."""
    draw = random.Random(count)
    sequence, path, values = WinRateSequence(), list[list[float]](), list[float]()
    while len(values) < count and sequence.decided is None:
        values.append(0.5 if draw.random() < 0.1 else float(draw.random() < rate))
        sequence = sequence.add(values[-1])
        path.append([sequence.count, sequence.rate, sequence.low, sequence.high])
    a, _, b = name.partition("-against-")
    return {
        "name": name, "a": a.replace("round-", "round:"), "b": b, "labeler": "people", "level": 0.95, "rate": sequence.rate,
        "low": sequence.low, "high": sequence.high, "decided": sequence.decided, "reason": "decided" if sequence.decided else "maximum",
        "wins": values.count(1.0), "losses": values.count(0.0), "ties": values.count(0.5), "same_text": 0, "labels": len(values),
        "fixed_size": 113 if sequence.decided else None, "power": 0.8, "path": path,
    }  # fmt: skip

"""The evaluation at the end of a run: who is preferred on fresh prompts, at what KL, and what the reward model knew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from humanward.data.batches import epoch_order, left_pad, right_pad
from humanward.evaluation.text_quality import text_quality
from humanward.evaluation.win_rates import accuracy_row, mean_with_interval, win_rates
from humanward.feedback import Snapshot
from humanward.feedback.agreement import agreement_report, rows_of
from humanward.maths.optimum import best_of_n_frontier, reweighted_frontier
from humanward.models import Policy, RewardEnsemble, RewardModel
from humanward.records import Comparison, Prompt, Response
from humanward.rounds.context import Context
from humanward.rounds.frozen import VALIDATION
from humanward.rounds.people import patiently
from humanward.rounds.reward_checks import reward_checks
from humanward.storage import read_json
from humanward.trainers import choices, implicit_choices
from humanward.trainers.scoring import texts, truncated

BETAS = tuple(2.0 ** (k / 2) for k in range(6, -13, -1))
"""KL weights at which the analytic optimum is drawn, from 8 to 1/64 score units per nat."""
ROWS = 256


@dataclass(frozen=True)
class Answers:
    """One response of one policy to each evaluation prompt."""

    texts: list[str]
    """As a labeler sees them: truncated by the task's rule."""
    tokens: list[tuple[int, ...]]
    kl: list[float]
    """log policy - log reference of the tokens that a policy is trained on, nats per response: one-sample estimates of the KL."""
    reference_bits: float
    """Bits per byte that the reference, at temperature 1, needs for the shown texts: low is text that it finds ordinary."""
    held_out_bits: float
    """Bits per byte that the policy itself needs for the prompts, which it was not tuned on: high is language that it has unlearned."""


def assess(context: Context) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(results.json, samples.jsonl) of a run."""
    prompts = context.prompts("evaluation")
    reference = context.policy(context.reference_folder)
    answers = {"reference": answer(context, reference, reference, prompts, "reference")}
    if context.config.baseline_sft is not None:
        answers["sft"] = answer(context, context.policy(context.path / "baseline_sft"), reference, prompts, "sft")
    tuned = context.config.method
    answers[tuned] = answer(context, context.policy(context.path / "policy"), reference, prompts, tuned)
    results: dict[str, Any] = {
        "labeler": context.config.labeler,
        "seed": context.config.seed,
        "prompts": len(prompts),
        "kl": {name: mean_with_interval(a.kl, seed=context.seed("bootstrap")) for name, a in answers.items() if name != "reference"},
        "text_quality": {
            name: {
                **text_quality(a.tokens, [p.tokens for p in prompts]),
                "bits_per_byte": a.reference_bits,
                "held_out_bits_per_byte": a.held_out_bits,
            }
            for name, a in answers.items()
        },
    }
    if context.config.asks:
        last = Snapshot.load(context.path / f"rounds/{context.config.labels.rounds}/labels/snapshot.jsonl")
        results["labels"] = label_counts(context, last)
        if found := agreement(context, last):
            results["agreement"] = found
    scores = true_scores(context, prompts, answers)
    if scores:
        results |= comparison_of_scores(context, scores)
    if context.score is not None:
        if context.config.evaluation.frontier_prompts:
            results["frontier"] = frontier(context, reference, prompts, scores, results)
        if context.config.evaluation.questions and context.config.learns_labels:
            results["reward_model"] = reward_model_accuracy(context, reference, prompts)
    elif context.config.learns_labels and (rows := measured_reward_models(context)):
        results["reward_model"] = rows
    if context.config.fits_reward:
        # What is measured on fresh questions of a known score goes before what is measured on the labels.
        results = reward_checks(context, prompts, {name: a.tokens for name, a in answers.items()}) | results
    return results, shown(context, prompts, answers, scores)


def answer(context: Context, policy: Policy, reference: Policy, prompts: Sequence[Prompt], name: str) -> Answers:
    """Sample one response per prompt and measure it."""
    kl: list[float] = []
    shown_texts: list[str] = []
    tokens: list[tuple[int, ...]] = []
    nats = 0.0
    whole = not context.config.task.train_on_truncated  # the KL is that of the tokens that a policy is trained on
    for start in range(0, len(prompts), ROWS):
        context.cord.hold()
        ids, mask, samples = context.sample(policy, prompts[start : start + ROWS], f"evaluation {name}", start, whole=whole)
        responses, response_mask = samples.responses[:, 0], samples.response_mask[:, 0]
        reference_logprobs = logprobs(context, reference, ids, mask, responses, response_mask, context.config.task.temperature)
        seen, _ = truncated(context.task, responses, response_mask)
        counted = response_mask if whole else seen
        kl += ((samples.logprobs[:, 0] - reference_logprobs) * counted).sum(1).tolist()
        nats -= float((logprobs(context, reference, ids, mask, responses, response_mask, 1.0) * seen).sum())
        shown_texts += texts(context.task, responses, seen)
        tokens += [tuple(row[keep].tolist()) for row, keep in zip(responses, seen, strict=True)]
        context.progress("evaluate", min(start + ROWS, len(prompts)), len(prompts), {})
    size = sum(len(text.encode()) for text in shown_texts)
    return Answers(shown_texts, tokens, kl, nats / max(size, 1) / math.log(2), held_out_bits(context, policy, prompts))


@torch.no_grad()
def held_out_bits(context: Context, policy: Policy, prompts: Sequence[Prompt]) -> float:
    """Bits per byte that a policy needs at temperature 1 for all tokens of the prompts but the first."""
    nats, size = 0.0, 0
    rows = [p.tokens for p in prompts if len(p.tokens) > 1]
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        first, rest = left_pad([row[:1] for row in part], policy.pad_id), right_pad([row[1:] for row in part], policy.pad_id)
        prompt, prompt_mask, text, mask = (x.to(context.accelerator.device) for x in (*first, *rest))
        nats -= float((policy(prompt, prompt_mask, text, mask, temperature=1.0).logprobs * mask).sum())
        size += sum(len(context.task.decode(row[1:]).encode()) for row in part)
    return nats / max(size, 1) / math.log(2)


@torch.no_grad()
def logprobs(
    context: Context, policy: Policy, prompts: Tensor, mask: Tensor, responses: Tensor, response_mask: Tensor, temperature: float
) -> Tensor:
    """Of given responses, [B, R], nats, under the task's rule of suppressed tokens."""
    t = context.config.task
    suppressed = policy.suppressed_tokens(keep_eos=t.stop_at_eos) if t.suppress_special_tokens else None
    return policy(prompts, mask, responses, response_mask, temperature=temperature, suppressed=suppressed).logprobs


def true_scores(context: Context, prompts: Sequence[Prompt], answers: dict[str, Answers]) -> dict[str, list[float]]:
    """The labeler's own scores where they are known, else the last reward model's; none where nobody can tell.

    The reward that is implicit in a policy is no judge of it: it likes best what the policy itself writes.
    """
    if context.score is not None:
        return {name: [float(s) for s in context.score([p.text for p in prompts], a.texts)] for name, a in answers.items()}
    if not context.config.fits_reward:
        return {}
    model = context.reward_model(context.config.labels.rounds)
    scores: dict[str, list[float]] = {}
    for name, a in answers.items():
        rows = [Comparison(p, (Response(text, t),), "best_of_k", 0) for p, text, t in zip(prompts, a.texts, a.tokens, strict=True)]
        scores[name] = model_scores(model, rows)
    return scores


@torch.no_grad()
def model_scores(model: RewardModel | RewardEnsemble, rows: Sequence[Comparison]) -> list[float]:
    """A reward model's score of each row's first response."""
    from humanward.trainers.questions import collate

    scores: list[float] = []
    for start in range(0, len(rows), ROWS):
        q = collate(rows[start : start + ROWS], model.pad_id, model.device)
        scores += model(q.prompts, q.prompt_mask, q.responses, q.response_mask)[:, 0].tolist()
    return scores


def comparison_of_scores(context: Context, scores: dict[str, list[float]]) -> dict[str, Any]:
    """Win rates and mean scores of the policies, with intervals."""
    tuned = context.config.method
    pairs = [(tuned, "reference")] + ([(tuned, "sft"), ("sft", "reference")] if "sft" in scores else [])
    return {
        "scored_by": "labeler" if context.score is not None else "reward model",
        "win_rates": win_rates(scores, pairs),
        "scores": {name: mean_with_interval(values, seed=context.seed("bootstrap")) for name, values in scores.items()},
    }


def frontier(
    context: Context, reference: Policy, prompts: Sequence[Prompt], scores: dict[str, list[float]], results: dict[str, Any]
) -> dict[str, Any]:
    """True score against KL: the analytic optimum and best-of-n from many samples of the reference, and the policy's own path."""
    assert context.score is not None
    settings = context.config.evaluation
    rows: list[list[float]] = []
    learned: list[Tensor] = []
    model = context.reward_model(context.config.labels.rounds) if context.config.fits_reward else None
    some = prompts[: settings.frontier_prompts]
    for start in range(0, len(some), 8):
        part = some[start : start + 8]
        ids, prompt_mask, samples = context.sample(reference, part, "frontier", start, num_responses=settings.frontier_samples)
        flat, mask = samples.responses.flatten(0, 1), samples.response_mask.flatten(0, 1)
        seen, _ = truncated(context.task, flat, mask)
        if model is not None:
            with torch.no_grad():
                learned.append(model(ids, prompt_mask, samples.responses, seen.view_as(samples.response_mask)).double().cpu())
        repeated = [p.text for p in part for _ in range(settings.frontier_samples)]
        found = [float(s) for s in context.score(repeated, texts(context.task, flat, seen))]
        rows += [found[i : i + settings.frontier_samples] for i in range(0, len(found), settings.frontier_samples)]
        context.progress("frontier", min(start + 8, len(some)), len(some), {})
    table = torch.tensor(rows, dtype=torch.float64)
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= settings.frontier_samples]
    best = best_of_n_frontier(table, ns)
    by_model = best_of_n_frontier(torch.cat(learned), ns, table) if learned else []
    tuned = context.config.method
    path = [[row["kl"], row["true_score"]] for row in context.log.read() if row["stage"] == tuned and {"kl", "true_score"} <= row.keys()]
    return {
        "optimum": [list(point) for point in reweighted_frontier(table, BETAS)],
        "best_of_n": [[n, *point] for n, point in zip(ns, best, strict=True)],
        "best_of_n_by_model": [[n, *point] for n, point in zip(ns, by_model, strict=False)],
        "path": path,
        "policy": [results["kl"][tuned]["mean"], results["scores"][tuned]["mean"]] if "scores" in results else [],
        "reference": [0.0, sum(scores["reference"]) / len(scores["reference"])],
    }


def reward_model_accuracy(context: Context, reference: Policy, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Every round's reward model, explicit or implicit, on the same held-out questions: K fresh samples of the reference each."""
    assert context.score is not None
    K = compared(context)
    count = context.config.evaluation.questions
    asked = [prompts[i % len(prompts)] for i in range(count)]
    questions: list[Comparison] = []
    for start in range(0, count, 64):
        part = asked[start : start + 64]
        _, _, samples = context.sample(reference, part, "held-out questions", start, num_responses=K)
        flat, flat_mask = samples.responses.flatten(0, 1), samples.response_mask.flatten(0, 1)
        seen, _ = truncated(context.task, flat, flat_mask)
        records = context.responses(flat, seen, reference, "reference", "")
        found = context.score([p.text for p in part for _ in range(K)], [r.text for r in records])
        for i, prompt in enumerate(part):
            row, values = tuple(records[i * K : (i + 1) * K]), list(found[i * K : (i + 1) * K])
            questions.append(Comparison(prompt, row, "best_of_k", values.index(max(values))))
    rows: list[dict[str, Any]] = []
    for number in range(1, context.config.labels.rounds + 1):
        context.stop.check()
        correct = [choice == q.target for choice, q in zip(round_choices(context, number, questions), questions, strict=True)]
        rows.append(dict(accuracy_row(correct, round_number=number, responses_per_question=K)))
    return rows


def round_choices(context: Context, round: int, questions: Sequence[Comparison]) -> list[int]:
    """What a round's reward model prefers; without one, what its policy has become likelier to write than its reference was."""
    if context.config.fits_reward:
        return choices(context.reward_model(round), questions, check=context.stop.check)
    policy = context.policy(context.path / f"rounds/{round}/policy")
    return implicit_choices(policy, context.held_to(round, policy), questions, context.config.dpo.objective, check=context.stop.check)


def compared(context: Context) -> int:
    """Responses among which a reward model chooses when it is measured: K, or two where each is rated alone."""
    return max(context.config.labels.responses_per_question, 2)


def measured_reward_models(context: Context) -> list[dict[str, Any]]:
    """Every round's reward model on the round's own validation questions, as the labelers answered them; it had not seen them."""
    rows: list[dict[str, Any]] = []
    for number in range(1, context.config.labels.rounds + 1):
        model = "reward" if context.config.fits_reward else "policy"
        found = read_json(context.path / f"rounds/{number}/{model}/{VALIDATION}")
        if found["questions"]:
            correct = [i < found["correct"] for i in range(found["questions"])]
            K = found["responses_per_question"]
            rows.append(dict(accuracy_row(correct, round_number=number, responses_per_question=K)))
    return rows


def label_counts(context: Context, last: Snapshot) -> dict[str, Any]:
    """How many labels each round brought."""
    round_of = {q.id: q.round for q in last.questions}
    per_round = [sum(round_of[label.question_id] == r for label in last.labels) for r in range(1, context.config.labels.rounds + 1)]
    return {"total": len(last.labels), "rounds": per_round, "snapshot": last.sha256}


def agreement(context: Context, last: Snapshot) -> dict[str, Any]:
    """The agreement report of the run's own labels, with gold questions and repeats where people answered."""
    seed = context.seed("bootstrap")
    if context.config.labeler != "people":
        return agreement_report(rows_of(last), seed=seed)
    own = {question.id for question in last.questions}
    rows, people = patiently(context, lambda store: (store.labeler_rows(), store.people.all()))
    rows = [row for row in rows if row.gold is not None or (row.repeat_of or row.question_id) in own]
    return agreement_report(rows, {person.id for person in people if person.role != "labeler"}, seed=seed)


def shown(context: Context, prompts: Sequence[Prompt], answers: dict[str, Answers], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Some prompts with everybody's response, chosen by lot and not by score."""
    chosen = epoch_order(context.seed("shown samples"), 0, len(prompts))[: context.config.evaluation.shown]
    return [
        {"prompt": prompts[i].text, **{n: a.texts[i] for n, a in answers.items()}, "scores": {n: values[i] for n, values in scores.items()}}
        for i in chosen
    ]

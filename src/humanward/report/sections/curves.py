"""Learning curves, and what looked ill while training."""

from __future__ import annotations

from collections.abc import Mapping

from humanward.report import charts
from humanward.report.reading import Run, number, section
from humanward.report.sections.parts import DIRECT, TABLE_ROWS, Chart, Table, spread, tuned_by
from humanward.report.svg import inline_svg
from humanward.report.text import decimal, percent

# key in metrics.jsonl: (title, what it is, whether it is a share)
PPO_CURVES = {
    "true_score": ("Labeler’s score", "Mean score by the labeler itself, where it is known.", False),
    "score": ("Reward model’s score", "Mean score of a response by the reward model, after the truncation rule.", False),
    "kl": ("KL from the reference", "Nats per response.", False),
    "kl_coef": ("KL coefficient", "Weight of the KL penalty, score units per nat.", False),
    "entropy": ("Entropy", "Of the policy’s next-token distribution, nats per token.", False),
    "response_length": ("Response length", "Tokens until truncation.", False),
    "missing_truncation": ("No end mark", "Share of responses that were given the fixed score.", True),
    "approx_kl": ("Step size", "Half the mean square change of log-probability in an update.", False),
    "clip_fraction": ("Clipped ratios", "Share of tokens whose ratio was clipped.", True),
}
PPO_DETAILS = {
    "policy_loss": ("Policy loss", "Clipped PPO loss.", False),
    "value_loss": ("Value loss", "Clipped square error of the value head.", False),
    "ratio_max": ("Largest ratio", "Largest policy ratio in a batch.", False),
    "explained_variance": ("Explained variance", "Of the returns, by the value head.", False),
    "lr": ("Learning rate", "Of PPO.", False),
}
DIRECT_CURVES = [
    (("Implicit reward: accuracy", "Share of questions whose preferred response has the highest implicit reward.", True), {"": "accuracy"}),
    (("Margin", "Lead of the preferred response’s implicit reward over the others’, score units.", False), {"": "margin"}),
    (
        ("Displacement", "log π − log ρ, nats per response. Where both fall, the probability goes to responses that nobody judged.", False),
        {"chosen": "chosen_moved", "rejected": "rejected_moved"},
    ),
    (
        ("Mass moved off both", "Share of the judged responses’ probability that has gone elsewhere; questions where both fell.", True),
        {"mass": "mass_off_both", "both fell": "both_fell"},
    ),
    (("Length confound", "Correlation of the margin with the lead in tokens: near 1, longer is better.", False), {"": "length_confound"}),
    (
        ("Weight of the end", "log π − log ρ of the end-of-text token, nats: below 0, responses end later.", False),
        {"chosen": "chosen_eos_moved", "rejected": "rejected_eos_moved"},
    ),
]
"""(title, what it is, whether it is a share), and label -> key in metrics.jsonl."""
DIRECT_DETAILS = {
    "loss": ("Loss", "What is minimised, per question.", False),
    "chosen_logprob": ("Chosen responses", "log π, nats per response.", False),
    "rejected_logprob": ("Rejected responses", "log π, nats per response.", False),
    "grad_norm": ("Gradient norm", "Before clipping.", False),
    "lr": ("Learning rate", "Of the policy.", False),
}
OTHER_CURVES = {
    ("reward", "loss"): ("Reward model: loss", "Cross-entropy of the labeler’s choice, nats.", False),
    ("reward", "accuracy"): ("Reward model: training accuracy", "Share of training questions whose best response scores highest.", True),
    ("sft", "loss"): ("SFT: loss", "Nats per token.", False),
    ("chosen_sft", "loss"): ("SFT before DPO: loss", "On the chosen responses; nats per token.", False),
    ("baseline_sft", "loss"): ("SFT on chosen responses: loss", "The baseline; nats per token.", False),
}


def alarms(run: Run) -> list[str]:
    """What the watch over the metrics said, a sentence each."""
    told: list[str] = []
    for row in run.alarms:
        if row.get("stage") == "cord":
            continue
        step, round_ = number(row.get("step")), number(row.get("round"))
        where = f"{row.get('stage')}" + (f", round {round_:.0f}" if round_ else "") + (f", step {step + 1:.0f}" if step is not None else "")
        told.append(f"{where}: {row.get('text')}")
    return told


def learning_curves(run: Run) -> list[Chart]:
    """The curves of the policy's training that tell whether the run went well."""
    method = tuned_by(run)
    if method in DIRECT:
        return direct_curves(run)
    found = [_curve(run, method, key, *words) for key, words in PPO_CURVES.items()]
    if run.metrics:
        for key, chart in zip(PPO_CURVES, found, strict=True):
            if chart is None:
                run.note(f"metrics.jsonl: no {method} row has a finite {key}.")
    return [chart for chart in found if chart]


def direct_curves(run: Run) -> list[Chart]:
    """What a direct method learned, and where the probability went."""
    method = tuned_by(run)
    found = [_curve(run, method, "", *words, keys=keys) for words, keys in DIRECT_CURVES]
    if run.metrics and not any(found):
        run.note(f"metrics.jsonl: no {method} row has a finite number.")
    return [chart for chart in found if chart]


def more_curves(run: Run) -> list[Chart]:
    """The inner life of the trainers."""
    method = tuned_by(run)
    found = [_curve(run, method, key, *words) for key, words in (DIRECT_DETAILS if method in DIRECT else PPO_DETAILS).items()]
    found += [_curve(run, stage, key, *words) for (stage, key), words in OTHER_CURVES.items()]
    return [chart for chart in found if chart]


def _curve(run: Run, stage: str, key: str, title: str, caption: str, share: bool, *, keys: Mapping[str, str] | None = None) -> Chart | None:
    """One metric; or several on the same axes, ``keys`` being label -> metric."""
    found = {label: _series(run, stage, one) for label, one in (keys or {"": key}).items()}
    series = [(", ".join(filter(None, (label, own))), xs, ys) for label, (own_series, _) in found.items() for own, xs, ys in own_series]
    if not series:
        return None
    key, x_label = key or next(iter((keys or {}).values())), next(label for own, label in found.values() if own)
    target = number(section(run.config, stage).get("kl_target")) if key == "kl" else None
    first, last = series[0][2][0], series[-1][2][-1]
    show = percent if share else decimal
    description = f"From {show(first)} to {show(last)} over {decimal(series[-1][1][-1], 9)} {x_label}."
    name = f"curve-{stage.replace('_', '-')}-{key.replace('_', '-')}"
    figure = charts.curve(charts.Curve(series, x_label, target=target, share=share))
    flat_rows = [(label, x, y) for label, xs, ys in series for x, y in zip(xs, ys, strict=True)]
    kept = spread(flat_rows, TABLE_ROWS)
    note = f"{len(kept)} of {len(flat_rows)} rows; all of them are in metrics.jsonl." if len(kept) < len(flat_rows) else ""
    labelled = len(series) > 1
    columns = (["curve" if keys else "round"] if labelled else []) + [x_label, title.lower() if not title.startswith("KL") else title]
    body = [([label] if labelled else []) + [decimal(x, 9), show(y)] for label, x, y in kept]
    words = f"{caption} Last: {show(last)}" + (f", target {decimal(target)}." if target is not None else ".")
    picture = inline_svg(figure, name=name, title=title, description=description, width="small")
    return Chart(name, title, words, [picture], Table(columns, body, note))


def _series(run: Run, stage: str, key: str) -> tuple[list[tuple[str, list[float], list[float]]], str]:
    """One series of the whole tuning, over its episodes or steps; one per round for the other stages, which begin anew each round."""
    stage_rows = [row for row in run.metrics if row.get("stage") == stage]
    places = {id(row): float(i) for i, row in enumerate(stage_rows, start=1)}
    kept = [(row, y) for row in stage_rows if (y := number(row.get(key))) is not None]
    if not kept:
        return [], ""
    gone = sum(1 for row in stage_rows if key in row and number(row[key]) is None and row[key] is not None)
    if gone:
        run.note(f"metrics.jsonl: {gone} of {len(stage_rows)} {stage} rows have no finite {key}; the curve leaves them out.")
    if stage == tuned_by(run):
        episodes = [number(row.get("episodes")) for row, _ in kept]
        known = [x for x in episodes if x is not None]
        if len(known) == len(kept) and known == sorted(known):
            return [("", known, [y for _, y in kept])], "episodes"
        return [("", [places[id(row)] for row, _ in kept], [y for _, y in kept])], "steps"
    rounds: dict[str, tuple[list[float], list[float]]] = {}
    for row, y in kept:
        xs, ys = rounds.setdefault(f"round {decimal(number(row.get('round')), 9)}", ([], []))
        xs.append(number(row.get("step")) or float(len(xs)))
        ys.append(y)
    chosen = spread(list(rounds.items()), 4)
    return [(label if len(rounds) > 1 else "", xs, ys) for label, (xs, ys) in chosen], "steps"

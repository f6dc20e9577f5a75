"""Learning curves, and what looked ill while training."""

from __future__ import annotations

from humanward.report import charts
from humanward.report.reading import Run, number, section
from humanward.report.sections.parts import TABLE_ROWS, Chart, Table, spread
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
OTHER_CURVES = {
    ("reward", "loss"): ("Reward model: loss", "Cross-entropy of the labeler’s choice, nats.", False),
    ("reward", "accuracy"): ("Reward model: training accuracy", "Share of training questions whose best response scores highest.", True),
    ("sft", "loss"): ("SFT: loss", "Nats per token.", False),
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
    """The PPO curves that tell whether the run went well."""
    found = [_curve(run, "ppo", key, *words) for key, words in PPO_CURVES.items()]
    if run.metrics:
        for key, chart in zip(PPO_CURVES, found, strict=True):
            if chart is None:
                run.note(f"metrics.jsonl: no PPO row has a finite {key}.")
    return [chart for chart in found if chart]


def more_curves(run: Run) -> list[Chart]:
    """The inner life of the trainers."""
    found = [_curve(run, "ppo", key, *words) for key, words in PPO_DETAILS.items()]
    found += [_curve(run, stage, key, *words) for (stage, key), words in OTHER_CURVES.items()]
    return [chart for chart in found if chart]


def _curve(run: Run, stage: str, key: str, title: str, caption: str, share: bool) -> Chart | None:
    series, x_label = _series(run, stage, key)
    if not series:
        return None
    target = number(section(run.config, "ppo").get("kl_target")) if (stage, key) == ("ppo", "kl") else None
    first, last = series[0][2][0], series[-1][2][-1]
    show = percent if share else decimal
    description = f"From {show(first)} to {show(last)} over {decimal(series[-1][1][-1], 9)} {x_label}."
    name = f"curve-{stage.replace('_', '-')}-{key.replace('_', '-')}"
    figure = charts.curve(charts.Curve(series, x_label, target=target, share=share))
    flat_rows = [(label, x, y) for label, xs, ys in series for x, y in zip(xs, ys, strict=True)]
    kept = spread(flat_rows, TABLE_ROWS)
    note = f"{len(kept)} of {len(flat_rows)} rows; all of them are in metrics.jsonl." if len(kept) < len(flat_rows) else ""
    labelled = len(series) > 1
    columns = (["round"] if labelled else []) + [x_label, title.lower() if not title.startswith("KL") else title]
    body = [([label] if labelled else []) + [decimal(x, 9), show(y)] for label, x, y in kept]
    words = f"{caption} Last: {show(last)}" + (f", target {decimal(target)}." if target is not None else ".")
    picture = inline_svg(figure, name=name, title=title, description=description, width="small")
    return Chart(name, title, words, [picture], Table(columns, body, note))


def _series(run: Run, stage: str, key: str) -> tuple[list[tuple[str, list[float], list[float]]], str]:
    """One series of the whole of PPO over its episodes; one series per round for the other stages, which begin anew each round."""
    stage_rows = [row for row in run.metrics if row.get("stage") == stage]
    kept = [(row, y) for row in stage_rows if (y := number(row.get(key))) is not None]
    if not kept:
        return [], ""
    gone = sum(1 for row in stage_rows if key in row and number(row[key]) is None and row[key] is not None)
    if gone:
        run.note(f"metrics.jsonl: {gone} of {len(stage_rows)} {stage} rows have no finite {key}; the curve leaves them out.")
    if stage == "ppo":
        episodes = [number(row.get("episodes")) for row, _ in kept]
        known = [x for x in episodes if x is not None]
        if len(known) == len(kept) and known == sorted(known):
            return [("", known, [y for _, y in kept])], "episodes"
        return [("", [float(i) for i in range(1, len(kept) + 1)], [y for _, y in kept])], "steps"
    rounds: dict[str, tuple[list[float], list[float]]] = {}
    for row, y in kept:
        xs, ys = rounds.setdefault(f"round {decimal(number(row.get('round')), 9)}", ([], []))
        xs.append(number(row.get("step")) or float(len(xs)))
        ys.append(y)
    chosen = spread(list(rounds.items()), 4)
    return [(label if len(rounds) > 1 else "", xs, ys) for label, (xs, ys) in chosen], "steps"

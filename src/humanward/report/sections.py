"""What each section of the report says: numbers of a run turned into words, tables and drawings.

Anything absent is named in ``run.missing``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from humanward.report import charts
from humanward.report.reading import Run, flat, number, points, rows, section
from humanward.report.svg import inline_svg
from humanward.report.text import clipped, decimal, duration, interval, memory, percent, visible, without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from matplotlib.figure import Figure

RESULTS = "evaluation/results.json"
TABLE_ROWS = 60

POLICY_NAMES = {
    "ppo": "PPO policy",
    "reference": "reference",
    "sft": "SFT on chosen responses",
    "dpo": "DPO policy",
    "best_of_n": "best of n",
}
SHORT_NAMES = {"ppo": "PPO", "sft": "SFT", "dpo": "DPO"}

# The settings that decide the result, in the order in which a reader asks for them.
IMPORTANT = {
    "model": "language model tuned; also the reference",
    "prompts": "where prompts come from",
    "labeler": "who says which response is better",
    "seed": "seed of the whole run",
    "labels.total": "labels due by the end of PPO",
    "labels.initial": "labels before the first reward model",
    "labels.rounds": "reward-model fits",
    "labels.responses_per_question": "responses shown per question",
    "task.prompt_length": "tokens of a prompt, at most",
    "task.response_length": "tokens of a response",
    "task.temperature": "sampling temperature",
    "task.truncate_token": "a response ends at this mark",
    "task.truncate_after": "but not before this token",
    "task.missing_truncation_score": "score of a response without the mark",
    "reward.lr": "learning rate of the reward model",
    "reward.batch_size": "questions per reward-model update",
    "ppo.episodes": "responses sampled in PPO",
    "ppo.batch_size": "responses per PPO batch",
    "ppo.ppo_epochs": "passes over a batch",
    "ppo.lr": "learning rate of PPO",
    "ppo.kl_coef": "weight of the KL penalty (at the start)",
    "ppo.kl_target": "KL aimed at, nats per response",
    "ppo.clip_range": "clip range of the policy ratio",
    "evaluation.prompts": "fresh prompts for evaluation",
}


@dataclass(frozen=True)
class Table:
    """Column names and rows of text; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing (perhaps in two widths), its words and the numbers behind it."""

    name: str
    title: str
    caption: str
    pictures: list[Markup]
    table: Table


@dataclass(frozen=True)
class WinRate:
    """How often one policy's response was scored above the other's on the same prompt; a tie counts half."""

    policy: str
    against: str
    rate: float
    low: float | None
    high: float | None
    wins: float | None
    losses: float | None
    ties: float | None

    @property
    def trials(self) -> float | None:
        """Prompts compared."""
        counts = [count for count in (self.wins, self.losses, self.ties) if count is not None]
        return sum(counts) if len(counts) == 3 else None

    @property
    def title(self) -> str:
        """Who against whom."""
        return f"{policy_name(self.policy)} against {policy_name(self.against)}"

    @property
    def short_title(self) -> str:
        """The same where room is scarce."""
        return " against ".join(SHORT_NAMES.get(name, policy_name(name)) for name in (self.policy, self.against))


def policy_name(name: object) -> str:
    """A policy's key in the results as words; unknown keys as they are, made visible and short."""
    return POLICY_NAMES.get(str(name), visible(clipped(str(name), 40)))


# --- what was asked ------------------------------------------------------------------------------------------------------------


def labeler_words(run: Run) -> tuple[str, bool]:
    """Who labels, in words, and whether that is a program with a known score."""
    value = run.results.get("labeler", run.config.get("labeler"))
    name = str(value.get("name", value)) if isinstance(value, dict) else str(value or "")
    if not name:
        return "a labeler that is not recorded", False
    return (f"the known score “{name.removeprefix('score:')}”", True) if name.startswith("score:") else (f"the labeler “{name}”", False)


def asked(run: Run) -> list[str]:
    """The run in plain words: one paragraph of sentences, each only as far as the settings are known."""
    settings = flat(run.config)
    if not settings:
        return []
    labeler, known_score = labeler_words(run)
    responses = settings.get("labels.responses_per_question", "several")
    sentences = [f"Make the language model {settings.get('model', '(not recorded)')} write what {labeler} prefers."]
    given, rounds = labels_table(run)[0], settings.get("labels.rounds")
    total = settings.get("labels.total") if given is None else str(given)
    ask = f"The model wrote {responses} responses to each of many prompts, and the labeler said which one is best"
    sentences.append(f"{ask}: {_counted(total)} labels in {_rounds(rounds)}." if total else f"{ask}.")
    sentences.append("A reward model learned to predict those choices, and PPO tuned the policy to raise its score,")
    target = settings.get("ppo.kl_target", "none")
    held = f"held near {decimal(_as_number(target))} nats of" if target != "none" else "penalised for"
    sentences[-1] += f" {held} KL divergence from the model it started as."
    if known_score:
        sentences.append("The labeler is a program with a known score, not a person: the result can be checked against the truth.")
    return sentences


def _counted(text: str) -> str:
    value = _as_number(text)
    return decimal(value, 9) if value is not None else text


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _rounds(text: str | None) -> str:
    return "one round" if text == "1" else f"{text} rounds" if text else "one or more rounds"


def settings_tables(run: Run) -> tuple[Table, Table]:
    """The important settings with their meaning, and all of them."""
    settings = {key: without_secrets(key, clipped(value, 300)) for key, value in flat(run.config).items()}
    important = [[key, settings[key], meaning] for key, meaning in IMPORTANT.items() if key in settings]
    return Table(["setting", "value", "meaning"], important), Table(["setting", "value"], [[k, v] for k, v in settings.items()])


# --- win rates -----------------------------------------------------------------------------------------------------------------


def win_rates(run: Run) -> list[WinRate]:
    """The win rates of the results; a row that contradicts itself is shown and noted."""
    found = []
    for i, row in enumerate(rows(run.results, "win_rates")):
        rate, low, high, wins, losses, ties = (number(row.get(key)) for key in ("rate", "low", "high", "wins", "losses", "ties"))
        if rate is None or not 0 <= rate <= 1:
            run.note(f"{RESULTS}: win_rates[{i}] has no rate between 0 and 1 and is left out.")
            continue
        item = WinRate(str(row.get("policy", "?")), str(row.get("against", "?")), rate, low, high, wins, losses, ties)
        if item.low is None or item.high is None:
            run.note(f"{RESULTS}: win_rates[{i}] ({item.title}) has no interval.")
        elif not item.low <= rate <= item.high:
            run.note(f"{RESULTS}: win_rates[{i}] ({item.title}): the rate lies outside its own interval.")
        if wins is not None and ties is not None and item.trials and abs((wins + ties / 2) / item.trials - rate) > 0.005:
            run.note(f"{RESULTS}: win_rates[{i}] ({item.title}): the rate does not follow from its counts.")
        found.append(item)
    if run.results and not found:
        run.note(f"{RESULTS}: no win rates are recorded.")
    return found


def headline(items: Sequence[WinRate]) -> WinRate | None:
    """The tuned policy against the reference, or the first comparison there is."""
    tuned = [item for item in items if item.against == "reference" and item.policy not in ("sft", "reference")]
    return (tuned or list(items) or [None])[0]


def scored_by(run: Run) -> str:
    """Whose scores the win rates compare: "labeler", or "reward model" where the labeler's scores are not known."""
    return "reward model" if run.results.get("scored_by") == "reward model" else "labeler"


def verdict(item: WinRate, by: str = "labeler") -> str:
    """What the interval allows one to say of the scores of ``scored_by``."""
    if item.low is None or item.high is None:
        return "Without an interval, nothing can be said about whether this differs from a coin toss."
    first, second = policy_name(item.policy), policy_name(item.against)
    better = "is preferred to" if by == "labeler" else "is scored above"
    judge = "" if by == "labeler" else " This is the reward model's own view, not the labelers'."
    if item.low > 0.5:
        return f"The {first} {better} the {second}: the whole interval lies above one half.{judge}"
    if item.high < 0.5:
        return f"The {second} {better} the {first}: the whole interval lies below one half.{judge}"
    return "The interval contains one half: this run does not show that either is preferred."


def win_rate_chart(items: Sequence[WinRate], by: str = "labeler") -> Chart | None:
    """Win rates beside one half, of the scores of ``scored_by``."""
    if not items:
        return None
    shown = list(items)[:12]
    best = shown[0]
    title = "Win rates"
    description = f"{best.title}: {percent(best.rate)}, interval {interval(best.low, best.high, 'percent') or 'not recorded'}."
    drawn = [charts.Estimate(item.short_title, item.rate, item.low, item.high) for item in shown]
    pictures = two_widths(
        "win-rates", title, description, lambda width: charts.estimates(drawn, line=0.5, line_label="no difference", width=width)
    )
    table = Table(
        ["comparison", "win rate", "95 % interval", "wins", "losses", "ties"],
        [
            [i.title, percent(i.rate), interval(i.low, i.high, "percent"), decimal(i.wins, 9), decimal(i.losses, 9), decimal(i.ties, 9)]
            for i in shown
        ],
    )
    caption = (
        f"Share of fresh prompts on which the {by} scores the first response above the second; ties count half. "
        "The band is the 95 % interval; one that crosses the dashed line shows no difference."
    )
    if by == "reward model":
        caption += " This reward model is what the policy was tuned to please: only the labelers themselves could say who is preferred."
    return Chart("win-rates", title, caption, pictures, table)


def two_widths(name: str, title: str, description: str, draw: Any) -> list[Markup]:
    """The same drawing for a wide and for a narrow page."""
    return [
        inline_svg(draw(width), name=f"{name}-{width}", title=title, description=description, width=width) for width in ("wide", "narrow")
    ]


# --- reward against KL ---------------------------------------------------------------------------------------------------------


def frontier_chart(run: Run) -> Chart | None:
    """Score against KL beside what is possible."""
    data = section(run.results, "frontier")
    single = {key: points({key: [data.get(key)]}, key, 2) for key in ("policy", "reference")}
    drawn = charts.Frontier(
        optimum=points(data, "optimum", 2),
        best_of_n=points(data, "best_of_n", 3),
        path=points(data, "path", 2),
        policy=single["policy"][0] if single["policy"] else None,
        reference=single["reference"][0] if single["reference"] else None,
    )
    for key in ("optimum", "best_of_n", "policy", "reference"):
        if run.results and not getattr(drawn, key):
            run.note(f"{RESULTS}: frontier.{key} is not recorded.")
    if not (drawn.optimum or drawn.best_of_n or drawn.path or drawn.policy):
        return None
    said = [
        f"{who} at {decimal(p[0])} nats, score {decimal(p[1])}"
        for who, p in (("policy", drawn.policy), ("reference", drawn.reference))
        if p
    ]
    title = "Reward against KL"
    pictures = two_widths("frontier", title, "; ".join(said) + ".", lambda width: charts.frontier(drawn, width=width))
    table_rows = [["reference", *map(decimal, drawn.reference)]] if drawn.reference else []
    table_rows += [["tuned policy", *map(decimal, drawn.policy)]] if drawn.policy else []
    table_rows += [[f"best of {n:.0f}", decimal(kl), decimal(score)] for n, kl, score in sorted(drawn.best_of_n)]
    table_rows += [["optimum", decimal(kl), decimal(score)] for kl, score in _spread(sorted(drawn.optimum), 20)]
    table_rows += [["training", decimal(kl), decimal(score)] for kl, score in _spread(drawn.path, 20)]
    caption = (
        "The labeler’s mean score against the KL divergence paid for it. But for sampling error, no policy lies above the dashed optimum; "
        "best of n is what choosing among n responses of the reference would give. "
        "A path that bends down has learned the reward model’s faults instead of the labeler’s taste."
    )
    return Chart("frontier", title, caption, pictures, Table(["policy", "KL, nats per response", "mean score"], table_rows))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spaced, the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


# --- learning curves -----------------------------------------------------------------------------------------------------------

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
    kept = _spread(flat_rows, TABLE_ROWS)
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
    chosen = _spread(list(rounds.items()), 4)
    return [(label if len(rounds) > 1 else "", xs, ys) for label, (xs, ys) in chosen], "steps"


# --- reward model --------------------------------------------------------------------------------------------------------------


def reward_model(run: Run) -> Chart | None:
    """Accuracy on held-out questions beside chance, by round."""
    found: list[tuple[float, charts.Estimate, dict[str, Any]]] = []
    for i, row in enumerate(rows(run.results, "reward_model")):
        accuracy = number(row.get("accuracy"))
        if accuracy is None or not 0 <= accuracy <= 1:
            run.note(f"{RESULTS}: reward_model[{i}] has no accuracy between 0 and 1 and is left out.")
            continue
        n = number(row.get("round"))
        label = f"round {decimal(n, 9)}" if n is not None else f"fit {i + 1}"
        estimate = charts.Estimate(label, accuracy, number(row.get("low")), number(row.get("high")))
        found.append((n if n is not None else float(i + 1), estimate, row))
    if not found:
        if run.results:
            run.note(f"{RESULTS}: no reward-model accuracy is recorded.")
        return None
    chances = [c for _, _, row in found if (c := number(row.get("chance"))) is not None]
    chance = chances[-1] if chances else None
    if chance is None:
        run.note(f"{RESULTS}: the chance level of the reward model's accuracy is not recorded.")
    last = found[-1][1]
    title = "Reward-model accuracy"
    ends = interval(last.low, last.high, "percent") or "not recorded"
    description = f"{last.label}: {percent(last.value)}, interval {ends}, chance {percent(chance)}."

    def draw(width: str) -> Figure:
        if len(found) > 6:
            return charts.accuracy_by_round([(n, estimate) for n, estimate, _ in found], chance=chance, width=width)
        return charts.estimates([estimate for _, estimate, _ in found], line=chance, line_label="chance", width=width)

    body = [
        [
            e.label,
            percent(e.value),
            interval(e.low, e.high, "percent"),
            percent(number(row.get("chance"))),
            decimal(number(row.get("questions")), 9),
        ]
        for _, e, row in found
    ]
    caption = "Share of held-out questions on which the reward model gives its highest score to the response that the labeler chose."
    table = Table(["fit", "accuracy", "95 % interval", "chance", "questions"], body)
    return Chart("reward-model", title, caption, two_widths("reward-model", title, description, draw), table)


# --- scores, text quality ------------------------------------------------------------------------------------------------------

QUALITY = {
    "bits_per_byte": ("bits per byte under the reference", decimal),
    "distinct_2": ("distinct 2-grams", percent),
    "repeated_4grams": ("repeated 4-grams", percent),
    "copied_4grams": ("4-grams copied from the prompt", percent),
    "length": ("length, tokens", decimal),
}
QUALITY_NOTE = (
    "Bits per byte: lower is more like the reference’s own language. Few distinct 2-grams: one text over and over. "
    "Repeated 4-grams: a response that goes in circles."
)


def policies(run: Run) -> list[str]:
    """Every policy that has a score or a text-quality number, the reference first."""
    names = [*section(run.results, "scores"), *section(run.results, "text_quality")]
    return sorted(dict.fromkeys(names), key=lambda name: (name != "reference", name != "ppo"))[:8]


def score_table(run: Run) -> Table | None:
    """Mean score and KL of each policy with intervals."""
    scores, kls = section(run.results, "scores"), section(run.results, "kl")
    body = []
    for name in policies(run):
        score, kl = section(scores, name), section(kls, name)
        kl_cell = "0" if name == "reference" else decimal(number(kl.get("mean")))
        body.append([policy_name(name), decimal(number(score.get("mean"))), _ends(score), kl_cell, _ends(kl)])
    if run.results and not scores:
        run.note(f"{RESULTS}: no scores are recorded.")
    if run.results and not kls:
        run.note(f"{RESULTS}: no KL is recorded.")
    return Table(["policy", "mean score", "95 % interval", "KL, nats per response", "95 % interval"], body) if body else None


def _ends(values: dict[str, Any]) -> str:
    return interval(number(values.get("low")), number(values.get("high")))


def quality_table(run: Run) -> Table | None:
    """Whether the text is still the language that the reference writes."""
    quality = section(run.results, "text_quality")
    if not quality:
        if run.results:
            run.note(f"{RESULTS}: no text quality is recorded.")
        return None
    names = [name for name in policies(run) if name in quality]
    body = []
    for key, (title, show) in QUALITY.items():
        values = [number(section(quality, name).get(key)) for name in names]
        if any(value is not None for value in values):
            body.append([title, *map(show, values)])
    return Table(["measure", *(policy_name(name) for name in names)], body, QUALITY_NOTE)


# --- samples, labels, time, environment ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One prompt with a response per policy: (policy, text, score)."""

    prompt: str
    responses: list[tuple[str, str, str]] = field(default_factory=list)


def samples(run: Run) -> list[Sample]:
    """The rows of samples.jsonl that have a prompt and at least one response."""
    found = []
    for i, row in enumerate(run.samples[:24], start=1):
        prompt = row.get("prompt")
        if isinstance(prompt, dict):
            prompt = prompt.get("text")
        scores = section(row, "scores")
        responses = [
            (policy_name(key), clipped(text.removeprefix(" ")), decimal(number(scores.get(key))) if key in scores else "")
            for key in ("reference", "ppo", "sft")
            if isinstance(text := row.get(key), str)
        ]
        if not isinstance(prompt, str) or not responses:
            run.note(f"evaluation/samples.jsonl: row {i} has no prompt or no response and is left out.")
            continue
        found.append(Sample(clipped(prompt), responses))
    return found


def labels_table(run: Run) -> tuple[float | None, Table | None]:
    """Labels in all, and those of each round."""
    source = section(run.results, "labels") or section(run.state, "labels")
    total = number(source.get("total"))
    if not source and (run.results or run.state):
        run.note("Neither evaluation/results.json nor state.json records how many labels were given.")
    listed = source.get("rounds")
    body = []
    for i, item in enumerate(listed if isinstance(listed, list) else [], start=1):
        if isinstance(item, dict):
            counts = [number(item[key]) for key in ("labels", "total", "count") if key in item]
            body.append([decimal(number(item.get("round", i)), 9), decimal(counts[0] if counts else None, 9)])
        else:
            body.append([str(i), decimal(number(item), 9)])
    return total, Table(["round", "labels"], body[:200]) if body else None


def time_table(run: Run) -> Table | None:
    """Seconds and peak memory by stage, summed over rounds."""
    stages: dict[str, tuple[int, float, float | None]] = {}
    for i, row in enumerate(run.timings, start=1):
        stage, seconds, peak = str(row.get("stage", "?")), number(row.get("seconds")), number(row.get("peak_memory_bytes"))
        if seconds is None:
            run.note(f"timings.jsonl: row {i} has no seconds and is left out.")
            continue
        count, total, high = stages.get(stage, (0, 0.0, None))
        stages[stage] = (count + 1, total + seconds, max((x for x in (high, peak) if x is not None), default=None))
    if not stages:
        return None
    body = [[clipped(stage, 60), str(count), duration(total), memory(high)] for stage, (count, total, high) in list(stages.items())[:40]]
    body.append(["all", "", duration(sum(total for _, total, _ in stages.values())), ""])
    return Table(["stage", "times", "time", "peak memory"], body)


def environment_table(run: Run) -> Table | None:
    """Versions and hardware as recorded."""
    settings = flat(run.environment, limit=200)
    body = [[clipped(key, 100), without_secrets(key, clipped(value, 300))] for key, value in settings.items()]
    return Table(["", "value"], body) if body else None

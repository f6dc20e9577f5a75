"""Who is preferred: win rates, scores, and whether the text is still language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humanward.report import charts
from humanward.report.reading import Run, number, rows, section
from humanward.report.sections.parts import NO_JUDGE, RESULTS, SHORT_NAMES, Chart, Table, ends, has_judge, policy_name, two_widths
from humanward.report.text import decimal, interval, percent


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
        run.note(f"{RESULTS}: no win rates are recorded." if has_judge(run) else NO_JUDGE)
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


QUALITY = {
    "bits_per_byte": ("bits per byte under the reference", decimal),
    "held_out_bits_per_byte": ("bits per byte of the fresh prompts under the policy itself", decimal),
    "distinct_2": ("distinct 2-grams", percent),
    "repeated_4grams": ("repeated 4-grams", percent),
    "copied_4grams": ("4-grams copied from the prompt", percent),
    "length": ("length, tokens", decimal),
}
QUALITY_NOTE = (
    "Bits per byte: lower is more like the reference’s own language; of the fresh prompts, higher is language that was unlearned. "
    "Few distinct 2-grams: one text over and over. "
    "Repeated 4-grams: a response that goes in circles."
)


def policies(run: Run) -> list[str]:
    """Every policy that has a score or a text-quality number, the reference first."""
    names = [*section(run.results, "scores"), *section(run.results, "text_quality")]
    return sorted(dict.fromkeys(names), key=lambda name: (name != "reference", name == "sft"))[:8]


def score_table(run: Run) -> Table | None:
    """Mean score and KL of each policy with intervals."""
    scores, kls = section(run.results, "scores"), section(run.results, "kl")
    body = []
    for name in policies(run):
        score, kl = section(scores, name), section(kls, name)
        kl_cell = "0" if name == "reference" else decimal(number(kl.get("mean")))
        body.append([policy_name(name), decimal(number(score.get("mean"))), ends(score), kl_cell, ends(kl)])
    if run.results and not scores and has_judge(run):
        run.note(f"{RESULTS}: no scores are recorded.")
    if run.results and not kls:
        run.note(f"{RESULTS}: no KL is recorded.")
    return Table(["policy", "mean score", "95 % interval", "KL, nats per response", "95 % interval"], body) if body else None


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

"""Pairs of summaries of one article by experts' scores (SummEval): ``article``, ``summary_a``, ``summary_b``, ``preferred`` a or b."""

from __future__ import annotations

from humanward.data.formats.rows import Labeled, Row, asked, marked, said
from humanward.errors import UserError

COLUMNS = ("article", "summary_a", "summary_b", "preferred")
MEANS = ("mean_a", "mean_b")
SUFFIX = "\n\nTL;DR:"
"""Behind the article, as for the articles of Stiennon et al. 2020."""


def read(row: Row) -> Labeled:
    """A question of two summaries, of kind ``difference`` where the row has the means of the experts' scores, else ``pair``."""
    texts = [row.filled(name) for name in ("summary_a", "summary_b")]
    if texts[0] == texts[1]:
        raise UserError(f"{row.where}: `summary_a` and `summary_b` are the same text; delete the row")
    preferred = row.take("preferred")
    if preferred not in ("a", "b"):
        raise row.fault("preferred", '"a" or "b"', preferred)
    lead = row.score("mean_a") - row.score("mean_b") if any(row.has(name) for name in MEANS) else None
    if lead is not None and (lead > 0) != (preferred == "a"):
        raise UserError(f"{row.where}: `preferred`: {preferred}, but `mean_a` - `mean_b` is {lead:g}; one of them is wrong")
    kind, answer = ("pair", int(preferred == "b")) if lead is None else ("difference", lead)
    systems = [row.text("system_a"), row.text("system_b")]
    question = asked(row.filled("article") + SUFFIX, texts, kind, split=row.split(), sources=systems)
    return Labeled(row.where, question, (said(kind, answer, **marked(row)),))

"""PKU-SafeRLHF: ``prompt``, ``response_0``, ``response_1``, which is better, and whether each is safe."""

from __future__ import annotations

from humanward.data.formats.rows import Labeled, Row, asked, marked, said
from humanward.errors import UserError

RESPONSES = ("response_0", "response_1")
SAFE = ("is_response_0_safe", "is_response_1_safe")
COLUMNS = ("prompt", *RESPONSES, *SAFE, "better_response_id")
_WORDS = {"true": True, "false": False}


def read(row: Row) -> Labeled:
    """A question of kind ``pair``: what is better, be it safe or not, and ``safe`` of both for ``dpo.drop``."""
    texts = [row.filled(name) for name in RESPONSES]
    if texts[0] == texts[1]:
        raise UserError(f"{row.where}: `response_0` and `response_1` are the same text; delete the row")
    safe = [_flag(row, name) for name in SAFE]
    better = row.whole("better_response_id", 0, 1)
    question = asked(row.filled("prompt"), texts, "pair", split=row.split(), metadata={"safe": safe})
    return Labeled(row.where, question, (said("pair", better, **marked(row)),))


def _flag(row: Row, name: str) -> bool:
    value = _WORDS.get(str(row.take(name)).lower())
    if value is None:
        raise row.fault(name, "true or false", row.values[name])
    return value

"""The queue of questions, inside a transaction: who gets which one next, leases, and the counters that follow from them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Executable, Row, and_, bindparam, func, insert, or_, select, update

from humanward.errors import UserError
from humanward.feedback import schema
from humanward.feedback.kinds import kind_of
from humanward.feedback.log import canonical
from humanward.records import Question, content_id

GOLD_GAP = 4
"""At least so many other questions come between two gold ones, while there are others."""
ANSWERED, FREE, LEASED, SKIPPED = "answered", "free", "leased", "skipped"

Place = Row[*tuple[Any, ...]]
"""A question's row with one labeler's assignment to it, whose columns are None where they have none."""


@dataclass(frozen=True)
class Assignment:
    """A question lent to one labeler until the lease expires."""

    question: Question
    labeler: str
    permutation: tuple[int, ...]
    """permutation[i] is the index in ``question.responses`` of the response to show in place i. The same whenever the labeler sees it."""
    attempt: int = 0
    """How often the labeler has undone an answer to it."""

    def unpermute(self, answer: Any) -> Any:
        """An answer about the responses as shown -> the answer in the order of the question, which is what ``Store.record`` takes."""
        return kind_of(self.question).unpermute(kind_of(self.question).check_answer(self.question, answer), self.permutation)


# Statements are built once: building one costs SQLAlchemy more than SQLite takes to run it.

_asked, _mine, _names = schema.questions, schema.assignments, schema.labelers
_of_labeler = and_(_mine.c.question_id == _asked.c.id, _mine.c.labeler == bindparam("labeler"))
_of_mine = (_mine.c.labeler, _mine.c.permutation, _mine.c.state, _mine.c.attempt, _mine.c.turn)
_PLACE = select(_asked, *_of_mine).select_from(_asked.outerjoin(_mine, _of_labeler))
_PLACE_OF = _PLACE.where(_asked.c.id == bindparam("question"))
_unseen = or_(_mine.c.state.is_(None), _mine.c.state == FREE)
_NEXT = (
    _PLACE.where(_asked.c.is_open == 1, _asked.c.position >= bindparam("cursor"), _unseen)
    .order_by(_asked.c.position)
    .limit(bindparam("limit"))
)
_NEXT_GOLD = (
    _PLACE.where(schema.is_gold, _asked.c.position >= bindparam("cursor"), _unseen).order_by(_asked.c.position).limit(bindparam("limit"))
)
_first = _mine.alias("first")
_NEXT_REPEAT = (
    _PLACE.join(_first, and_(_first.c.question_id == _asked.c.repeat_of, _first.c.labeler == bindparam("labeler")))
    .where(schema.is_repeat, _asked.c.only_for == bindparam("labeler"), _mine.c.state == FREE, _first.c.state == ANSWERED)
    .order_by(_asked.c.position)
    .limit(bindparam("limit"))
)
_COUNT_NEXT, _COUNT_GOLD, _COUNT_REPEATS = (
    select(func.count()).select_from(query.with_only_columns(_asked.c.id).subquery()) for query in (_NEXT, _NEXT_GOLD, _NEXT_REPEAT)
)
LAST_POSITION = select(func.max(_asked.c.position))
_lent = select(_asked, *_of_mine).join_from(_mine, _asked, _mine.c.question_id == _asked.c.id)
_EXPIRED = _lent.where(schema.is_leased, _mine.c.expires <= bindparam("now"))
_LABELER = select(_names).where(_names.c.name == bindparam("labeler"))
_SET_LABELER = (
    update(_names)
    .where(_names.c.name == bindparam("new_name"))
    .values({name: bindparam(f"new_{name}") for name in ("cursor", "gold_cursor", "lent", "gold_at")})
)
_HELD = _lent.where(_mine.c.labeler == bindparam("labeler"), _mine.c.state == LEASED).order_by(_mine.c.turn, _asked.c.position)
_this = update(_mine).where(_mine.c.question_id == bindparam("the_question"), _mine.c.labeler == bindparam("the_labeler"))
_SET_STATE = _this.values(state=bindparam("new_state"))
_CHANGING = ("state", "turn", "expires", "attempt")
_SET_ASSIGNMENT = _this.values({name: bindparam(f"new_{name}") for name in _CHANGING})
_RENEW = update(_mine).where(_mine.c.labeler == bindparam("the_labeler"), _mine.c.state == LEASED).values(expires=bindparam("new_expires"))
_ADD_COUNTS = (
    update(_asked)
    .where(_asked.c.id == bindparam("key"))
    .values(leases=_asked.c.leases + bindparam("more_leases"), labels=_asked.c.labels + bindparam("more_labels"))
)
_SUMS = ("questions", "wanted", "labels", "missing", "leased", "skipped", "flagged")
_tally = schema.tallies
_ADD_TALLY = (
    update(_tally).where(_tally.c.round == bindparam("key")).values({name: _tally.c[name] + bindparam(f"more_{name}") for name in _SUMS})
)
_view = schema.current_events
_LABELS_OF = (
    select(_view.c.seq, _view.c.body).where(_view.c.question_id == bindparam("question"), _view.c.kind == "label").order_by(_view.c.seq)
)


# Places


def place_of(connection: Connection, labeler: str, question_id: str) -> Place:
    """A question with the labeler's assignment to it; UserError when there is none, or it is another labeler's repeat."""
    row = connection.execute(_PLACE_OF, {"labeler": labeler, "question": question_id}).one_or_none() if "\0" not in question_id else None
    if row is None or row.only_for not in (None, labeler):
        raise UserError(f"question {question_id}: there is no such question in this store")
    return row


def places_of(connection: Connection, labeler: str, question_ids: Collection[str]) -> dict[str, Place]:
    """The places of several questions, by id."""
    rows = connection.execute(_PLACE.where(_asked.c.id.in_(list(question_ids))), {"labeler": labeler})
    return {row.id: row for row in rows}


def question_of(body: str) -> Question:
    """A question out of its row."""
    obj = json.loads(body)
    return Question.from_json(obj, f"question {obj.get('id')}")


def assignment_of(place: Place, labeler: str) -> Assignment:
    """What the labeler is shown; the order that they would be shown where they have not been yet."""
    question = question_of(place.body)
    if place.state is None:
        return Assignment(question, labeler, random_order(question, labeler))
    return Assignment(question, labeler, tuple(json.loads(place.permutation)), place.attempt)


def random_order(question: Question, labeler: str, *lot: int) -> tuple[int, ...]:
    """A random order that depends on nothing but who is asked what, so that a repeated run shows, and stores, the same."""
    return tuple(sorted(range(len(question.responses)), key=lambda index: content_id("order", question.id, labeler, index, *lot)))


# Leases


def held(connection: Connection, labeler: str) -> Sequence[Place]:
    """The labeler's leases, oldest first."""
    return connection.execute(_HELD, {"labeler": labeler}).all()


def expire(connection: Connection, now: float) -> None:
    """Free every lease that has run out."""
    free(connection, connection.execute(_EXPIRED, {"now": now}).all())


def free(connection: Connection, places: Sequence[Place]) -> None:
    """Give leases back to the queue."""
    keys = [{"the_question": place.id, "the_labeler": place.labeler, "new_state": FREE} for place in places]
    _execute_many(connection, _SET_STATE, keys)
    count(connection, places, leases=-1)
    look_back(connection, places)


def left(connection: Connection, labeler: str, most: int) -> int:
    """How many questions the labeler holds or could get now, gold and repeats too, counted to ``most``."""
    known = connection.execute(select(_names).where(_names.c.name == labeler)).mappings().one_or_none()
    me = known or {"cursor": 0, "gold_cursor": 0}
    found = len(held(connection, labeler))
    for count_rows, cursor in ((_COUNT_NEXT, me["cursor"]), (_COUNT_GOLD, me["gold_cursor"]), (_COUNT_REPEATS, 0)):
        found += connection.scalar(count_rows, {"labeler": labeler, "limit": most, "cursor": cursor}) or 0
    return min(found, most)


def renew(connection: Connection, labeler: str, expires: float) -> None:
    """All leases of the labeler last until ``expires``."""
    connection.execute(_RENEW, {"the_labeler": labeler, "new_expires": expires})


def lend(connection: Connection, labeler: str, limit: int, expires: float) -> list[Assignment]:
    """Lend the labeler the next questions for them, ``limit`` at most."""
    places, turn = _take_next(connection, labeler, limit)
    assignments = [assignment_of(place, labeler) for place in places]
    fresh, again = [], []
    for number, (place, made) in enumerate(zip(places, assignments, strict=True)):
        (fresh if place.state is None else again).append(_row_of(made, LEASED, turn + number, expires))
    _execute_many(connection, insert(_mine), fresh)
    _execute_many(connection, _SET_ASSIGNMENT, [_keyed(row) for row in again])
    count(connection, places, leases=1)
    return assignments


def _take_next(connection: Connection, labeler: str, limit: int) -> tuple[list[Place], int]:
    """Open questions, the labeler's repeats and gold ones, merged by position; the cursors move behind what is taken.

    Returns them with the turn of the first. Gold comes when its position is reached, or nothing else is left, but not too often.
    """
    known = connection.execute(_LABELER, {"labeler": labeler}).mappings().one_or_none()
    me = dict(known or {"name": labeler, "cursor": 0, "gold_cursor": 0, "lent": 0, "gold_at": 0})
    key, turn = {"labeler": labeler, "limit": limit}, me["lent"] + 1
    common = connection.execute(_NEXT, key | {"cursor": me["cursor"]}).all()
    gold = connection.execute(_NEXT_GOLD, key | {"cursor": me["gold_cursor"]}).all()
    others = sorted([*common, *connection.execute(_NEXT_REPEAT, key)], key=lambda place: place.position)
    taken: list[Place] = []
    golds = 0
    while len(taken) < limit and (golds < len(gold) or others):
        due = golds < len(gold) and (not others or (me["lent"] - me["gold_at"] >= GOLD_GAP and gold[golds].position < others[0].position))
        taken.append(gold[golds] if due else others.pop(0))
        me["lent"] += 1
        if due:
            golds, me["gold_at"] = golds + 1, me["lent"]
    last = connection.scalar(LAST_POSITION) or 0
    left = {place.position for place in others}
    me["cursor"] = _behind(common, [place for place in common if place.position in left], limit, last)
    me["gold_cursor"] = _behind(gold, gold[golds:], limit, last)
    if known is None:
        connection.execute(insert(_names), me)
    elif me != dict(known):
        connection.execute(_SET_LABELER, {f"new_{name}": value for name, value in me.items()})
    return taken, turn


def _behind(found: Sequence[Place], left: Sequence[Place], limit: int, last: int) -> int:
    """The first position that may still have something after all but ``left`` of what a query of ``limit`` rows found are taken."""
    if left:
        return left[0].position
    return found[-1].position + 1 if len(found) == limit else last + 1


# What a labeler does


def settle(connection: Connection, labeler: str, place: Place, state: str) -> tuple[int, ...]:
    """Turn a lease (live, expired or never taken) into an answer or a skip and return the permutation that was shown."""
    if place.state in (ANSWERED, SKIPPED):
        raise UserError(f"question {place.id}: {labeler} has already {place.state} it; undo that first")
    if place.state is None:
        question = question_of(place.body)
        shown = Assignment(question, labeler, tuple(range(len(question.responses))))
        connection.execute(insert(_mine), _row_of(shown, state, 0, 0.0))
    else:
        shown = assignment_of(place, labeler)
        connection.execute(_SET_STATE, {"the_question": place.id, "the_labeler": labeler, "new_state": state})
    leased = place.state == LEASED
    count(connection, [place], leases=-leased, labels=int(state == ANSWERED), skipped=int(state == SKIPPED))
    if leased and state == SKIPPED:
        look_back(connection, [place])
    return shown.permutation


def reopen(connection: Connection, labeler: str, place: Place, expires: float) -> None:
    """Take an answer or a skip back: the labeler holds the question again, unless others have taken it meanwhile."""
    answered = place.state == ANSWERED
    theirs = place.gold is not None or place.only_for is not None
    state = LEASED if theirs or place.labels + place.leases - answered < place.overlap else FREE
    row = _row_of(assignment_of(place, labeler), state, 0, expires)
    connection.execute(_SET_ASSIGNMENT, _keyed(row | {"attempt": place.attempt + 1}))
    count(connection, [place], leases=int(state == LEASED), labels=-answered, skipped=-(not answered))
    look_back(connection, [place])


def queue_repeat(connection: Connection, labeler: str, place: Place, permutation: tuple[int, ...]) -> None:
    """Ask the labeler, and nobody else, the same once more at the end of the queue, with the responses in another order."""
    question = question_of(place.body)
    key = content_id("repeat", question.id, labeler)
    if connection.scalar(select(_asked.c.id).where(_asked.c.id == key)) is not None:
        return
    body = json.loads(place.body) | {"id": key, "overlap": 1}
    position = (connection.scalar(LAST_POSITION) or 0) + 1
    row = {"position": position, "round": place.round, "split": place.split, "overlap": 1, "leases": 0, "labels": 0, "words": place.words}
    connection.execute(insert(_asked), row | {"id": key, "body": canonical(body), "repeat_of": place.id, "only_for": labeler})
    orders = (random_order(question, labeler, lot) for lot in range(1, 100))
    other = next((order for order in orders if order != permutation), permutation)
    shown = Assignment(Question.from_json(body), labeler, other)
    connection.execute(insert(_mine), _row_of(shown, FREE, 0, 0.0))


def mark_dispute(connection: Connection, question_id: str) -> None:
    """Note whether the labels of a question disagree."""
    body = connection.scalar(select(_asked.c.body).where(_asked.c.id == question_id))
    labels = connection.execute(_LABELS_OF, {"question": question_id}).all()
    disagree = len(labels) > 1 and kind_of(question_of(body or "")).disagree([json.loads(label.body)["answer"] for label in labels])
    connection.execute(update(_asked).where(_asked.c.id == question_id).values(disputed=labels[-1].seq if disagree else None))


# Counters


def is_common(place: Any) -> bool:
    """Neither gold nor a repeat: what counts and trains."""
    return place.gold is None and place.only_for is None


def count(connection: Connection, places: Sequence[Place], *, leases: int = 0, labels: int = 0, skipped: int = 0, flagged: int = 0) -> None:
    """Add to the counters of these questions, as they were read, and to the tallies of their rounds."""
    if leases or labels:
        _execute_many(connection, _ADD_COUNTS, [{"key": p.id, "more_leases": leases, "more_labels": labels} for p in places])
    rounds: dict[int, list[Place]] = defaultdict(list)
    for place in places:
        if is_common(place):
            rounds[place.round].append(place)
    for number, of_round in rounds.items():
        missing = sum(max(p.overlap - p.labels - labels, 0) - max(p.overlap - p.labels, 0) for p in of_round)
        n = len(of_round)
        add_tally(connection, number, labels=n * labels, missing=missing, leased=n * leases, skipped=n * skipped, flagged=n * flagged)


def add_tally(connection: Connection, number: int, **more: int) -> None:
    """Add to the sums of a round."""
    if not any(more.values()):
        return
    changed = {f"more_{name}": more.get(name, 0) for name in _SUMS}
    if not connection.execute(_ADD_TALLY, {"key": number, **changed}).rowcount:
        connection.execute(insert(_tally), {"round": number, **{name: more.get(name, 0) for name in _SUMS}})


def look_back(connection: Connection, places: Sequence[Place]) -> None:
    """These questions may be open again: every labeler whose cursor has passed them looks there once more."""
    opened = [place.position for place in places if is_common(place)]
    if opened:
        connection.execute(update(_names).where(_names.c.cursor > min(opened)).values(cursor=min(opened)))
    for place in places:
        if place.gold is not None:
            mine = and_(_names.c.name == place.labeler, _names.c.gold_cursor > place.position)
            connection.execute(update(_names).where(mine).values(gold_cursor=place.position))


def _row_of(assignment: Assignment, state: str, turn: int, expires: float) -> dict[str, Any]:
    return {
        "question_id": assignment.question.id, "labeler": assignment.labeler, "permutation": json.dumps(assignment.permutation),
        "state": state, "turn": turn, "expires": expires, "attempt": assignment.attempt,
    }  # fmt: skip


def _keyed(row: dict[str, Any]) -> dict[str, Any]:
    """The parameters of ``_SET_ASSIGNMENT``; the permutation never changes."""
    new = {f"new_{name}": row[name] for name in _CHANGING}
    return {"the_question": row["question_id"], "the_labeler": row["labeler"], **new}


def _execute_many(connection: Connection, statement: Executable, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)

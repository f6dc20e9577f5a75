"""Compare what simulated people did with what the store says that they did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from humanward.feedback import Event, Store
from humanward.records import Question
from labelling.natures import meaning
from labelling.people import Act, Office, Person

BATCH = 5000


def audit(store: Store, people: Sequence[Person], office: Office) -> dict[str, Any]:
    """Counts of everything that must not be, all 0 when all is well, and a few that say how hard it was."""
    found: Counter[str] = Counter(
        dict.fromkeys(("lost", "doubled", "misattributed", "invented", "refused_but_kept", "undone_wrongly", "over_overlap"), 0)
    )
    details: list[str] = []
    events = list(all_events(store))
    by_key = {(event.labeler, event.client_event_id): event for event in events}
    found["doubled"] += len(events) - len(by_key)
    by_seq = {event.seq: event for event in events}
    done = {(person.id, key): act for person in people for key, act in person.acts.items()}
    found["invented"] += len(by_key.keys() - done.keys())
    questions: dict[str, Question] = {}
    for key, act in done.items():
        event = by_key.get(key)
        if event is None:
            if act.acked is not None:
                found["lost"] += 1
                details.append(f"lost: {key}: {act}")
            continue
        found["refused_but_kept"] += bool(act.refused)
        if not same(act, event, question_of(store, event, questions)):
            found["misattributed"] += 1
            details.append(f"misattributed: {act} {event}")
        if act.kind == "undo":
            target = by_seq.get(event.target or 0)
            found["undone_wrongly"] += target is None or not target.undone or target.labeler != event.labeler or event.undone
    counting = [event for event in events if event.kind == "label" and not event.undone]
    found["doubled"] += len(counting) - len({(event.labeler, event.question_id) for event in counting})
    by_question: dict[str, list[Event]] = defaultdict(list)
    common = {question.id: question.overlap for question in store.questions()}
    for event in counting:
        if event.question_id in common:
            by_question[event.question_id].append(event)
    kept_late = 0
    for question_id, labels in by_question.items():
        extra = max(0, len(labels) - common[question_id])
        late = sum(is_late(done.get((event.labeler, event.client_event_id)), office) for event in labels) if extra else 0
        kept_late += min(extra, late)
        found["over_overlap"] += max(0, extra - late)
        if extra > late:
            details.append(f"{question_id}: {len(labels)} answers: " + ", ".join(f"{one.labeler} {one.seq} {one.time}" for one in labels))
    answered = {(event.question_id, event.labeler) for event in counting}
    others = {question_id for question_id, _ in answered}
    again = sum(question in others and (question, labeler) not in answered for question, labeler in set(office.abandoned))
    acked = sum(act.acked is not None and act.kind == "label" for act in done.values())
    return {
        "acked": acked, **found, "stored": len(counting), "undone": sum(event.undone for event in events), "kept_late": kept_late,
        "unacked_kept": sum(act.acked is None and not act.refused and key in by_key for key, act in done.items()),
        "abandoned": len(set(office.abandoned)), "answered_by_others": again,
        "sent_again": sum(act.sent > 1 for act in done.values()), "verify": store.verify()[:10],
        "details": details[:10],
    }  # fmt: skip


def all_events(store: Store) -> Iterator[Event]:
    """The whole log."""
    after = 0
    while events := store.events(after=after, limit=BATCH):
        yield from events
        after = events[-1].seq


def question_of(store: Store, event: Event, known: dict[str, Question]) -> Question:
    """What an event is about; repeats and gold questions too."""
    if event.question_id not in known:
        shown = store.assignment(event.labeler, event.question_id)
        assert shown is not None
        known[event.question_id] = shown.question
    return known[event.question_id]


def same(act: Act, event: Event, question: Question) -> bool:
    """Whether the store says what the person said: of the same question, and of the same texts."""
    if (act.kind, act.question_id or event.question_id) != (event.kind, event.question_id):
        return False
    if act.kind == "label":
        texts = [response.text for response in question.responses]
        return meaning(question.kind, event.body["answer"], texts) == act.said and event.body["seconds"] == act.seconds
    return act.kind == "undo" or (event.body.get("reason") or event.body.get("comment") or "") == act.said


def is_late(act: Act | None, office: Office) -> bool:
    """Whether the lease may have been over. An answer that was never confirmed may have come at any time."""
    return act is not None and (act.acked is None or office.late(act))


def detection(store: Store, people: Sequence[Person]) -> dict[str, str]:
    """Per nature: how many of its people the tables of the researcher's page flag as always one place, or no better than chance."""
    from humanward.web.quality import quality_table

    tests = {one.labeler: one.tests for one in quality_table(store.labeler_rows(), ()).labelers}
    flagged: dict[str, list[bool]] = defaultdict(list)
    for person in people:
        flagged[person.nature.name].append(person.id in tests and tests[person.id].flagged)
    return {name: f"{sum(of_nature)} of {len(of_nature)}" for name, of_nature in flagged.items()}

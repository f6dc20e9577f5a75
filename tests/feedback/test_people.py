from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from humanward.errors import UserError
from humanward.feedback import Store
from humanward.records import Question


def test_an_invite_works_once_and_not_for_ever(store: Store, clock: Any) -> None:
    ann, token = store.people.invite("labeler", "Ann")
    bob, later = store.people.invite("labeler", "Bob", hours=1)
    eve, _ = store.people.invite("researcher", "Eve")
    assert [p.id for p in (ann, bob, eve)] == ["labeler-1", "labeler-2", "researcher-1"]
    session = store.people.redeem(token)
    assert session
    assert store.people.session(session) == ann
    assert store.people.redeem(token) is None
    assert store.people.redeem("guess") is None
    assert store.people.session("guess") is None
    clock.now += 3600
    assert store.people.redeem(later) is None
    again, token = store.people.invite("labeler", "", person_id=ann.id)
    assert again == ann
    _, newest = store.people.invite("labeler", "", person_id=ann.id)
    assert store.people.redeem(token) is None  # void since the newer one
    assert store.people.redeem(newest)


def test_sessions_end(store: Store, clock: Any) -> None:
    def signed_in() -> str:
        session = store.people.redeem(store.people.invite("labeler", "Ann", person_id)[1])
        assert session
        return session

    person_id = store.people.invite("labeler", "Ann")[0].id
    idle = signed_in()
    clock.now += 12 * 3600
    assert store.people.session(idle) is None
    busy = signed_in()
    for _ in range(14):
        clock.now += 11.9 * 3600
        assert store.people.session(busy)
    clock.now += 11.9 * 3600  # more than seven days in all
    assert store.people.session(busy) is None
    one, two = signed_in(), signed_in()
    store.people.sign_out(one)
    assert store.people.session(one) is None
    assert store.people.session(two)
    assert store.people.revoke(person_id) == 1
    assert store.people.session(two) is None
    three = signed_in()
    store.people.disable(person_id)
    assert store.people.session(three) is None
    with pytest.raises(UserError, match="labeler-1: is disabled; enable them first"):
        store.people.invite("labeler", "Ann", person_id)
    store.people.enable(person_id)
    assert store.people.session(signed_in())


def test_tokens_are_stored_hashed(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    tokens = [store.people.invite("labeler", "Ann")[1] for _ in range(3)]
    session = store.people.redeem(tokens[0])
    assert session
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Ann" in raw
    assert not any(token.encode() in raw for token in [*tokens, session])
    store.close()


def test_forgetting_drops_the_name_and_keeps_the_labels(tmp_path: Path, ask: Callable[..., Question]) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([ask(0)])
    person, token = store.people.invite("labeler", "Annabelle Surname")
    session = store.people.redeem(token)
    store.people.rename(person.id, "Annabelle  Othername")
    found = store.people.person(person.id)
    assert found
    assert found.name == "Annabelle Othername"
    store.record(person.id, "q0", 1, "1")
    store.people.forget(person.id)
    assert session
    assert store.people.session(session) is None
    assert [(p.id, p.name, p.disabled) for p in store.people.all()] == [(person.id, "", True)]
    assert [label.labeler for label in store.labels()] == [person.id]
    assert not any(b"Annabelle" in path.read_bytes() for path in tmp_path.iterdir())
    assert store.people.invite("labeler", "Bob")[0].id == "labeler-2"  # a pseudonym is never given twice
    assert store.verify() == []
    store.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("owner", "Ann"), "role 'owner': expected one of labeler, researcher, admin"),
        (("admin", "Ann", "labeler-1"), "labeler-1: has the role labeler, not admin"),
        (("labeler", "Ann", "labeler-9"), "labeler-9: there is no such person in this store; invite them first"),
        (("labeler", "Ann\x1b[31m"), r"name 'Ann\\x1b\[31m': expected at most 200 printable characters"),
        (("labeler", "A" * 201), "expected at most 200 printable characters"),
    ],
)
def test_invites_that_are_refused(store: Store, arguments: tuple[Any, ...], message: str) -> None:
    store.people.invite("labeler", "Zoë")
    with pytest.raises(UserError, match=message):
        store.people.invite(*arguments)
    assert store.people.person("labeler-9") is None


def test_the_audit_log_is_append_only_and_chained(store: Store) -> None:
    store.people.audit("admin-1", "invite", {"person": "labeler-1"}, "r1")
    store.people.audit("admin-1", "export\n2026 forged line", None)
    lines = store.people.audit_log(limit=1)
    assert [(line.seq, line.who, line.action, line.detail, line.request_id) for line in lines] == [
        (2, "admin-1", "export\n2026 forged line", None, "")
    ]
    for statement in ("UPDATE audit SET who = 'eve'", "DELETE FROM audit"):
        with pytest.raises(Exception, match="the table audit is append-only"), store._database.write() as connection:
            connection.execute(text(statement))


def test_an_edited_audit_log_is_noticed(clock: Any) -> None:
    store = Store.in_memory(clock=clock)
    for number in range(3):
        store.people.audit("admin-1", "invite", number)
    with store._database.write() as connection:
        connection.execute(text("DROP TRIGGER audit_no_update"))
        connection.execute(text("UPDATE audit SET who = 'eve' WHERE seq = 2"))
    assert store.verify() == ["audit 2: it or the line before it was changed or removed after it was written"]
    store.close()

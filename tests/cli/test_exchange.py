"""Labels out of a store, into a file, into another store: what comes back, for every format."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.data.formats import LabelFile, write_labels
from humanward.data.formats.csv_text import escaped, unescaped
from humanward.errors import UserError
from humanward.feedback import Store
from humanward.feedback.exchange import (
    Imported,
    Part,
    Spool,
    each_label,
    foreign_records,
    import_file,
    most_responses,
    read_exact,
    write_exact,
)
from humanward.feedback.kinds import KINDS
from humanward.records import Label, Prompt, Question, Response
from humanward.records.files import Faults, InputFile

from .conftest import run, start

EVERYTHING = Part()

# Letters that files trip over: formulas, quotes, separators, line ends, marks of order, astral planes.
texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), st.sampled_from("=+-@'\",;\t\r\n\u2028\ufeff\u202e🙂"))
)
filled = texts.filter(lambda text: text.strip())
names = st.sampled_from(["ann", "bob", "labeler-7"])
answers = {
    "best_of_k": lambda k: st.integers(0, k - 1),
    "pair": lambda k: st.sampled_from([0, 1, "tie"]),
    "ranking": lambda k: st.lists(st.integers(0, k - 1), min_size=k, max_size=k),
    "rating": lambda k: st.integers(1, 9),
    "difference": lambda k: st.floats(-4, 4),
    "soft": lambda k: st.integers(0, k - 1).map(lambda best: [float(index == best) for index in range(k)]),
}


@st.composite
def questions(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Question]:
    """Up to four questions of any kind."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        kind = KINDS[draw(st.sampled_from(kinds))]
        count = draw(st.integers(kind.least_responses, min(kind.most_responses, 4)))
        tokens = st.lists(st.integers(0, 60_000), min_size=1, max_size=3).map(tuple)
        responses = tuple(Response(draw(filled), draw(tokens), draw(st.sampled_from(["", "policy"]))) for _ in range(count))
        prompt = Prompt(f"p{number}", draw(filled), draw(tokens), draw(st.dictionaries(texts, texts, max_size=2)))
        where: dict[str, Any] = {"round": draw(st.integers(0, 2)), "split": draw(st.sampled_from(["train", "validation"]))}
        made.append(
            Question(f"q{number}", prompt, responses, kind.name, **where, overlap=draw(st.integers(1, 3)), instructions=draw(texts))
        )
    return made


@st.composite
def stores(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS)) -> Store:
    """A store in which people have done everything that can be done."""
    ticks = iter(range(1_000_000, 2_000_000))
    store = Store.in_memory(clock=lambda: next(ticks) + 0.25, repeat_share=draw(st.sampled_from([0.0, 1.0])))
    asked = draw(questions(kinds))
    gold = {q.id: draw(answers[q.kind](len(q.responses))) for q in asked[3:]}
    store.add_questions(asked, gold=gold)
    store.add_instructions(draw(filled))
    for number in range(draw(st.integers(0, 12))):
        who, event = draw(names), f"event-{number}"
        held = store.held(who, 1)
        question = held[0].question if held else draw(st.sampled_from(asked))
        do = draw(st.sampled_from(["label", "label", "label", "skip", "undo", "flag", "comment", "adjudicate"]))
        answer = draw(answers[question.kind](len(question.responses)))
        if do == "label" and held:
            seconds, sure = draw(st.none() | st.floats(0, 1e6)), draw(st.none() | st.floats(0, 1))
            store.record(who, question.id, answer, event, seconds, sure, draw(texts), draw(st.sampled_from(["", "0123456789abcdef"])))
        elif do == "skip" and held:
            store.skip(who, question.id, event, draw(texts))
        elif do == "undo":
            store.undo(who, event)
        elif do == "flag":
            store.flag(who, question.id, event, draw(texts))
        elif do == "comment":
            store.comment(who, question.id, event, draw(texts))
        elif do == "adjudicate" and question.id not in gold and question.id.startswith("q"):
            store.adjudicate("researcher-1", question.id, answer, event, draw(texts))
    for who in ("ann", "bob", "labeler-7"):
        store.release(who)
    return store


def exact_bytes(store: Store) -> bytes:
    out = BytesIO()
    write_exact(out, store, EVERYTHING)
    return out.getvalue()


def import_bytes(store: Store, path: Path, *, decode: Any = None, **options: Any) -> Imported:
    """What ``humanward import`` does; the same file again must add nothing."""
    exact = path.read_bytes()[:40].startswith(b'{"format": "humanward')
    results = []
    for _ in range(2):
        faults = Faults()
        found = (
            read_exact(InputFile(path, faults))
            if exact
            else foreign_records(LabelFile(path, decode=decode, faults=faults).labeled(), faults, **options)
        )
        with Spool(found) as spool:
            faults.check()
            results.append(import_file(store, spool, source=path.name, faults=faults))
    first, second = results
    assert (second.questions, second.labels, second.others, second.known) == (0, 0, 0, first.known + first.labels + first.others)
    assert store.verify() == []
    return first


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exchange")


def written(store: Store, path: Path, name: str, container: str) -> Path:
    with path.open("wb") as file:
        labels = each_label(store, EVERYTHING, training=name != "table")
        write_labels(file, labels, name, container, most_responses=most_responses(store, EVERYTHING))
    return path


@given(store=stores())
@settings(max_examples=25)
def test_the_exact_format_makes_the_same_store(store: Store, place: Path) -> None:
    path = place / "x.jsonl"
    path.write_bytes(exact_bytes(store))
    copy = Store.in_memory()
    import_bytes(copy, path)
    assert exact_bytes(copy) == path.read_bytes()
    assert copy.events(limit=10_000) == store.events(limit=10_000)
    assert copy.labels() == store.labels()
    assert copy.labeler_rows() == store.labeler_rows()
    assert copy.snapshot() == store.snapshot()
    assert copy.counts() == store.counts()
    assert copy.disputed() == store.disputed()
    assert copy.gold() == store.gold()
    assert copy.current_instructions() == store.current_instructions()
    for who in ("ann", "bob", "labeler-7"):  # and what it asks next is the same
        assert copy.held(who, 9) == store.held(who, 9)


@pytest.mark.parametrize("container", ["csv", "parquet", "jsonl"])
@given(store=stores())
@settings(max_examples=8)
def test_a_table_keeps_every_label(container: str, store: Store, place: Path) -> None:
    copy = Store.in_memory()
    labels = list(each_label(store, EVERYTHING, training=False))
    path = written(store, place / f"x.{container}", "table", container)
    if labels:
        import_bytes(copy, path)
    assert [label for _, label in each_label(copy, EVERYTHING, training=False)] == [label for _, label in labels]
    assert copy.labels() == store.labels()
    before = {question.id: said(question) for question, _ in labels}
    assert {question.id: said(question) for question in copy.questions()} == before
    if labels:
        assert import_bytes(store, path).labels == 0  # the store knows them all


def said(question: Question) -> Any:
    return question.kind, question.round, question.split, question.prompt.text, [response.text for response in question.responses]


CONTAINERS = [
    ("pairs", "jsonl"),
    ("pairs", "csv"),
    ("pairs", "parquet"),
    ("unpaired", "jsonl"),
    ("unpaired", "csv"),
    ("unpaired", "parquet"),
]


@pytest.mark.parametrize(("name", "container"), [*CONTAINERS, ("stiennon2020", "jsonl")])
@given(store=stores())
@settings(max_examples=6)
def test_a_training_format_says_the_same_when_it_comes_back(name: str, container: str, store: Store, place: Path) -> None:
    copy = Store.in_memory()
    first = written(store, place / f"x.{container}", name, container)
    wanted = contents(first)
    if wanted:
        assert import_bytes(copy, first).labels == wanted.total()
    assert contents(written(copy, place / f"y.{container}", name, container)) == wanted


def contents(path: Path) -> Counter[str]:
    """The rows without the ids of questions, and for which round they were."""
    found: Counter[str] = Counter()
    for _, row in LabelFile(path).rows() if path.stat().st_size else ():
        kept = {name: value for name, value in row.items() if name not in ("question_id", "batch")}
        if "info" in kept:
            kept["info"] = kept["info"]["post"]
        found[json.dumps(kept, sort_keys=True)] += 1
    return found


@given(store=stores(("best_of_k", "pair", "soft", "ranking")))
@settings(max_examples=10)
def test_the_lists_of_2019_come_back_with_their_tokens(store: Store, place: Path) -> None:
    words = {
        part.tokens: part.text
        for question, _ in each_label(store, EVERYTHING, training=True)
        for part in (question.prompt, *question.responses)
    }
    copy = Store.in_memory()
    first = written(store, place / "x.json", "ziegler2019", "json")
    rows = json.loads(first.read_bytes())
    if rows:
        assert import_bytes(copy, first, decode=lambda tokens: words[tuple(tokens)]).labels == len(rows)
    again = json.loads(written(copy, place / "y.json", "ziegler2019", "json").read_bytes())
    assert Counter(map(json.dumps, again)) == Counter(map(json.dumps, rows))


@given(text=texts)
def test_no_cell_is_a_formula_and_every_cell_comes_back(text: str) -> None:
    cell = escaped(text)
    assert cell[:1] not in tuple("=+-@\t\r\n＝＋－＠")
    assert unescaped(cell) == text


def one_label(text: str = "Hi!", **fields: Any) -> Store:
    store = Store.in_memory(clock=lambda: 1_000_000.0)
    store.add_questions([Question("q1", Prompt("p1", "Say hi"), (Response(text), Response("No.")), "pair")])
    store.record("labeler-1", "q1", 0, "e1", **fields)
    return store


def test_csv_is_what_spreadsheets_expect(tmp_path: Path) -> None:
    store = one_label('=cmd|"/c calc"!A1', comment="two\nlines, and “quotes”", seconds=2.5)
    content = written(store, tmp_path / "x.csv", "table", "csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbftime,labeler,round,split,kind,prompt,response_1,response_2,answer,seconds,")
    assert content.endswith(b"\r\n")
    (row,) = csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""))
    assert row["response_1"] == '\'=cmd|"/c calc"!A1'
    assert (row["answer"], row["seconds"], row["comment"], row["confidence"]) == ("1", "2.5", "two\nlines, and “quotes”", "")


# By hand


def labels_of(path: Path, **options: Any) -> list[tuple[Question, Label]]:
    store = Store.in_memory(clock=lambda: 1_000_000.0)
    import_bytes(store, path, **options)
    return list(each_label(store, EVERYTHING, training=False))


def save(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_pairs_that_contradict_are_one_question_with_two_labels(tmp_path: Path) -> None:
    one, other = {"prompt": "Say hi", "chosen": "Hi!", "rejected": "No."}, {"prompt": "Say hi", "chosen": "No.", "rejected": "Hi!"}
    found = labels_of(save(tmp_path / "x.jsonl", f"{json.dumps(one)}\n{json.dumps(other)}\n"))
    assert len({question.id for question, _ in found}) == 1
    assert [question.responses[label.answer].text for question, label in found] == ["Hi!", "No."]
    assert [label.labeler for _, label in found] == ["file-1", "file-2"]


def test_a_k_wise_label_becomes_its_pairs() -> None:
    store = Store.in_memory()
    responses = tuple(Response(letter) for letter in "abcd")
    store.add_questions([Question("q1", Prompt("p", "x"), responses, "best_of_k"), Question("q2", Prompt("p", "y"), responses, "ranking")])
    store.record("ann", "q1", 2, "e1")  # c over a, b, d
    store.record("ann", "q2", [1, 0, 1, 2], "e2")  # b over a, c; both over d; a = c is left out
    out = BytesIO()
    done = write_labels(out, each_label(store, EVERYTHING, training=True), "pairs", "jsonl")
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("x", "c", "a"), ("x", "c", "b"), ("x", "c", "d"),
        ("y", "b", "a"), ("y", "a", "d"), ("y", "b", "c"), ("y", "b", "d"), ("y", "c", "d"),
    ]  # fmt: skip
    assert (done.labels, done.rows, done.left_out) == (2, 8, 1)


def test_an_adjudicated_question_trains_with_its_adjudication_alone() -> None:
    store = one_label()
    store.record("labeler-2", "q1", 1, "e2")
    store.adjudicate("researcher-1", "q1", 0, "e3")
    store.adjudicate("researcher-1", "q1", 1, "e4")
    assert [(label.labeler, label.answer) for _, label in each_label(store, EVERYTHING, training=True)] == [("researcher-1", 1)]
    everything = [(label.labeler, label.answer, label.adjudication) for _, label in each_label(store, EVERYTHING, training=False)]
    assert everything == [("labeler-1", 0, False), ("labeler-2", 1, False), ("researcher-1", 1, True)]


def test_what_is_labelled_during_an_export_is_not_in_it() -> None:
    store = Store.in_memory()
    asked = [Question(f"q{n}", Prompt(f"p{n}", f"x{n}"), (Response("a"), Response("b")), "pair") for n in range(1200)]
    store.add_questions(asked)
    for question in asked[:1100]:
        store.record("ann", question.id, 0, f"e-{question.id}")
    stream = each_label(store, EVERYTHING, training=True)
    first = next(stream)
    store.undo("ann", "u1")  # the newest, not yet read
    store.record("ann", "q1150", 0, "later")
    assert len([first, *stream]) == 1100


def test_a_comparison_of_summaries(tmp_path: Path) -> None:
    """The example of the project's own README, shortened."""
    row = {
        "info": {"id": "t3_2vwp1w", "post": "I had a car accident.", "title": "Dutch law?", "subreddit": "legaladvice", "site": None},
        "summaries": [{"text": " damage", "policy": "sup4_ppo_rm3", "note": "fast"}, {"text": " he sped", "policy": "ref", "note": None}],
        "choice": 1, "worker": "ikNm", "batch": "batch9", "split": "valid1", "extra": {"confidence": 8},
    }  # fmt: skip
    ((question, label),) = labels_of(save(tmp_path / "x.jsonl", row))
    assert question.prompt.text == "SUBREDDIT: r/legaladvice\n\nTITLE: Dutch law?\n\nPOST: I had a car accident.\n\nTL;DR:"
    assert [response.policy for response in question.responses] == ["sup4_ppo_rm3", "ref"]
    assert (question.split, label.answer, label.labeler, label.confidence, label.comment) == ("validation", 1, "ikNm", 0.75, "fast")


def test_label_studio_pairs_choices_and_rankings(tmp_path: Path) -> None:
    data = {"prompt": "Say hi", "answer1": "Hi!", "answer2": "No."}
    pairwise = {"type": "pairwise", "from_name": "comparison", "to_name": "answer1,answer2", "value": {"selected": "right"}}
    tie = {"type": "choices", "from_name": "c", "to_name": "prompt", "value": {"choices": ["Equal"]}}
    note = {"type": "textarea", "from_name": "why", "to_name": "prompt", "value": {"text": ["rude", "short"]}}
    who = {"id": 9, "email": "zoe@example.org", "first_name": "Zoe"}
    items = [{"id": "llm_1", "title": "1", "body": "Hi!"}, {"id": "llm_2", "title": "2", "body": "No."}, {"id": "llm_3", "body": "Oh."}]
    rank = {"type": "ranker", "from_name": "rank", "to_name": "results", "value": {"ranker": {"rank": ["llm_2", "llm_1", "llm_3"]}}}
    tasks = [
        {
            "id": 1, "data": data, "predictions": [], "annotations": [
                {"id": 5, "completed_by": 4, "lead_time": 8.5, "created_at": "2023-05-02T12:11:12.345678+02:00",
                 "result": [pairwise, note]},
                {"id": 6, "completed_by": who, "was_cancelled": False, "result": [{**pairwise, "value": {"selected": "left"}}]},
                {"id": 7, "completed_by": 5, "was_cancelled": True, "result": []},
            ],
        },
        {"id": 2, "data": {**data, "prompt": "And now?"}, "annotations": [{"id": 8, "completed_by": 4, "result": [tie]}]},
        {"id": 3, "data": {"prompt": "Rank", "items": items}, "annotations": [{"id": 9, "completed_by": 4, "result": [rank]}]},
    ]  # fmt: skip
    found = labels_of(save(tmp_path / "x.json", tasks))
    assert [(question.prompt.text, label.kind, label.answer, label.labeler) for question, label in found] == [
        ("Say hi", "pair", 1, "label-studio-4"), ("Say hi", "pair", 0, "label-studio-9"), ("And now?", "pair", "tie", "label-studio-4"),
        ("Rank", "ranking", [1, 0, 2], "label-studio-4"),
    ]  # fmt: skip
    first = found[0][1]
    assert (first.time, first.seconds, first.comment) == ("2023-05-02T10:11:12.345+00:00", 8.5, "rude\nshort")


@pytest.mark.parametrize("word", ["answer2", "Answer 2", "Response 2", "Response B", "2", "B", "b", "Right", "second", "answer_2"])
def test_what_a_choice_may_be_called(word: str, tmp_path: Path) -> None:
    result = {"type": "choices", "value": {"choices": [word]}}
    task = {"id": 1, "data": {"question": "Say hi", "answer1": "Hi!", "answer2": "No."}, "annotations": [{"id": 1, "result": [result]}]}
    ((_, label),) = labels_of(save(tmp_path / "x.json", [task]))
    assert (label.answer, label.labeler) == (1, "file-1")


def test_argilla_nested_and_flat(tmp_path: Path) -> None:
    fields = {"prompt": "Say hi", "response1": "Hi!", "response2": "No.", "response3": "Oh."}
    ranks = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}, {"value": "response3", "rank": 2}]
    nested = {
        "id": "r1",
        "fields": fields,
        "responses": {"ranking": [{"value": ranks, "user_id": "u1"}], "why": [{"value": "rude", "user_id": "u1"}]},
    }
    flat = {
        "id": "r2", "status": "completed", "_server_id": "s", **fields, "prompt": "And now?", "best.responses": ["response3", "response1"],
        "best.responses.users": ["u1", "u2"], "best.responses.status": ["submitted", "discarded"], "best.suggestion": None,
    }  # fmt: skip
    ((_, label),) = labels_of(save(tmp_path / "x.json", [nested]))
    assert (label.kind, label.answer, label.labeler, label.comment) == ("ranking", [1, 0, 1], "u1", "rude")
    ((_, label),) = labels_of(save(tmp_path / "y.jsonl", flat))
    assert (label.kind, label.answer, label.labeler) == ("best_of_k", 2, "u1")
    order = {**nested, "responses": {"ranking": [{"value": ["response3", "response1", "response2"], "user_id": "u1"}]}}
    ((_, label),) = labels_of(save(tmp_path / "z.json", [order]))
    assert label.answer == [1, 2, 0]


# Into a store that has something already


def test_a_lease_that_an_import_answers_is_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(exact_bytes(one_label()))
    store = Store.in_memory(clock=lambda: 1_000_000.0)
    store.add_questions(one_label().questions())
    assert store.lease("labeler-1") is not None
    assert import_bytes(store, path).labels == 1
    assert (store.counts().labels, store.counts().leased, store.counts().missing) == (1, 0, 0)
    assert store.people.audit_log(limit=1)[0].action == "import"


def test_another_question_or_another_answer_of_the_same_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(exact_bytes(one_label()))
    other = Store.in_memory(clock=lambda: 1_000_000.0)
    other.add_questions([replace(one_label().questions()[0], round=3)])
    with pytest.raises(UserError, match=rf"^{path}:2: question q1: the store has another question with this id"):
        import_bytes(other, path)
    same = Store.in_memory(clock=lambda: 1_000_000.0)
    same.add_questions(one_label().questions())
    same.record("labeler-1", "q1", 1, "e1")
    before = exact_bytes(same)
    with pytest.raises(UserError, match=rf"^{path}:3: labeler-1 has another event with the id e1"):
        import_bytes(same, path)
    assert exact_bytes(same) == before


def test_a_table_finds_its_questions_again_though_it_has_no_tokens(tmp_path: Path) -> None:
    """Labelled elsewhere: the questions of a run go out as a table, and the table comes back with labels of somebody else."""
    store = one_label()
    path = written(store, tmp_path / "x.csv", "table", "csv")
    text = path.read_text(encoding="utf-8").replace("labeler-1", "zoe").replace(",e1", ",e2")
    path.write_text(text, encoding="utf-8", newline="")
    assert import_bytes(store, path) == Imported(questions=0, labels=1)
    assert [label.labeler for label in store.labels()] == ["labeler-1", "zoe"]


# The commands


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A run folder with two labels of one person whose name is known."""
    folder = tmp_path / "run"
    folder.mkdir()
    store = Store(folder / "labels.db", clock=lambda: 1_000_000.0)
    person, _ = store.people.invite("labeler", "Zoë =1+1")
    responses = (Response("Hi!"), Response("No."))
    store.add_questions([Question(f"q{n}", Prompt(f"p{n}", f"Say hi {n}"), responses, "pair", n) for n in (1, 2)])
    store.record(person.id, "q1", 0, "e1")
    store.record(person.id, "q2", "tie", "e2")
    store.close()
    return folder


def test_export_says_what_it_wrote(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl.gz"
    done = run("export", labelled, "--format", "pairs", "--out", out)
    assert (done.code, done.out, done.err) == (0, "", f"2 labels, 1 rows -> {out}; left out: 1 tied pairs\n")
    assert json.loads(gzip.decompress(out.read_bytes())) == {
        "prompt": "Say hi 1", "chosen": "Hi!", "rejected": "No.", "labeler": "labeler-1", "question_id": "q1", "split": "train",
    }  # fmt: skip
    told = json.loads(run("export", labelled, "--format", "csv", "--out", tmp_path / "x.csv", "--round", "2", "--json").out)
    assert (told["labels"], told["rows"]) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl.gz", "run", "x.csv"]


@pytest.mark.parametrize("name", ["labels", "csv", "pairs"])
def test_names_leave_the_run_only_when_asked_for(name: str, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert run("export", labelled, "--format", name, "--out", out).code == 0
    assert "Zoë" not in out.read_text(encoding="utf-8")
    assert run("export", labelled, "--format", name, "--out", out, "--with-names").code == 0
    assert "Zoë =1+1" in out.read_text(encoding="utf-8")
    assert run("import", tmp_path / "other", out).code == 0


def test_the_store_that_the_settings_name_is_used_and_every_export_is_audited(labelled: Path, tmp_path: Path) -> None:
    team = tmp_path / "team"
    team.mkdir()
    address = f"sqlite:///{tmp_path / 'team.db'}"
    (team / "config.yaml").write_text(f"labeler: people\nlabel_store: {address}\n", encoding="utf-8")
    out = tmp_path / "x.jsonl"
    assert run("export", labelled, "--out", out).code == 0
    assert run("import", team, out).code == 0
    assert not (team / "labels.db").exists()
    assert run("export", team, "--out", tmp_path / "y.csv", "--with-names").code == 0
    store = Store(address)
    assert [(line.who, line.action, line.detail) for line in store.people.audit_log(1)] == [
        ("command line", "export", {"format": "csv", "with_names": True})
    ]
    store.close()


def test_export_to_a_pipe_and_import_of_it(labelled: Path, tmp_path: Path) -> None:
    out, err = start("export", labelled).communicate(timeout=60)
    assert err == "2 questions and 2 events -> stdout\n"
    path = save(tmp_path / "x.jsonl", out)
    done = run("import", tmp_path / "other", path)
    assert (done.code, done.err) == (0, f"{path}: 2 labels, 2 new questions\n")
    again = run("import", tmp_path / "other", path)
    assert (again.code, again.err) == (0, f"{path}: 0 labels, 0 new questions; 2 events were there already\n")
    assert json.loads(run("import", tmp_path / "third", path, "--json").out)["labels"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "xml"], "there are labels, csv, parquet, pairs, transcripts, conversations, unpaired, best_of_k"),
        (["--split", "test"], "there are train and validation"),
        (["--json"], "name the file with --out"),
        (["--format", "labels", "--out", "x.csv"], "labels is written as jsonl; name the file so"),
        (["--out", "."], "this is a folder"),
        (["--out", "nowhere/x.jsonl"], "no such folder"),
    ],
)
def test_what_export_refuses(arguments: list[str], says: str, labelled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("export", labelled, *arguments)
    assert done.code == 2
    assert says in done.err
    assert run("export", tmp_path / "no-run").code == 2


def test_the_name_of_the_file_chooses_the_format(labelled: Path, tmp_path: Path) -> None:
    for name, begin in (("x.csv", b"\xef\xbb\xbftime,"), ("x.parquet", b"PAR1"), ("x.jsonl", b'{"format"'), ("x.csv.gz", b"\x1f\x8b")):
        assert run("export", labelled, "--out", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_failed_export_leaves_the_old_file(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = save(tmp_path / "x.jsonl", "old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("humanward.feedback.exchange.write_exact", full)
    done = run("export", labelled, "--out", out)
    assert done.code == 3
    assert "the disk is full" in done.err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.jsonl"]

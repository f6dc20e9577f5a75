"""Rounds with people: somebody answers through the store while the loop waits; whoever of them stops, the run ends the same."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from humanward.errors import RunError, UserError
from humanward.feedback import Snapshot, Store
from humanward.feedback.database import LostConnectionError
from humanward.records import Question, Response
from humanward.rounds import Loop, LoopConfig, people
from humanward.storage import StopFlag, Stopped
from humanward.trainers.selftest import tiny_policy


class Person(threading.Thread):
    """Works at the store as the page does: holds two questions, answers as shown, comes back until told to go, also when it is away.

    Args:
        store: file or address.
        pause: between two answers, seconds.
        rests_after: so many answers, until ``rested`` is set.
    """

    def __init__(
        self, store: Path | str, name: str = "labeler-1", share: float = 1.0, pause: float = 0.0, rests_after: int | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.store, self.name_, self.share, self.pause, self.rests_after = store, name, share, pause, rests_after
        self.gone, self.rests, self.rested = threading.Event(), threading.Event(), threading.Event()
        self.answers = 0
        self.start()

    def run(self) -> None:
        while isinstance(self.store, Path) and not self.store.exists() and not self.gone.wait(0.02):
            pass
        store = Store(self.store, repeat_share=self.share)
        while not self.gone.is_set():
            try:
                worked = self.work(store)
            except LostConnectionError:
                continue
            if not worked:
                self.gone.wait(0.1)
        store.close()

    def work(self, store: Store) -> bool:
        """Answer what is held; False where there was nothing."""
        held = store.held(self.name_, 2)
        for assignment in held:
            shown = [assignment.question.responses[i] for i in assignment.permutation]
            counts = [response.text.split().count("good") for response in shown]
            best = assignment.unpermute(counts.index(max(counts)))
            store.record(self.name_, assignment.question.id, best, f"{self.name_}-{self.answers}-{assignment.question.id}", seconds=9.0)
            self.answers += 1
            if self.answers == self.rests_after:
                self.rests.set()
                self.rested.wait()
            self.gone.wait(self.pause)
        return bool(held)

    def leave(self) -> None:
        self.gone.set()
        self.rested.set()
        self.join()


@pytest.fixture(scope="module", autouse=True)
def quick_polls() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "POLL_SECONDS", 0.05)
        patch.setattr(people, "LOOK_SECONDS", 0.5)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LoopConfig:
    folder = tmp_path_factory.mktemp("people")
    tiny_policy().save(folder / "model")
    words = itertools.product(("bad", "w2", "w3", "w4"), repeat=4)
    (folder / "prompts.txt").write_text("".join(" ".join(row) + "\n" for row in words))
    values: dict[str, Any] = {
        "model": str(folder / "model"), "prompts": str(folder / "prompts.txt"), "labeler": "people", "threads": 1, "self_test": False,
        "task": {
            "prompt_length": 4, "prompt_start": None, "prompt_end": None, "response_length": 4, "truncate_token": None, "temperature": 1.0,
        },
        "labels": {"initial": 20, "total": 28, "rounds": 2, "validation_share": 0.2, "overlap_share": 0.0, "outstanding": 7},
        "reward": {"batch_size": 8, "lr": 1e-3, "normalize_samples": 16}, "ppo": {"episodes": 64, "batch_size": 16, "ppo_epochs": 1},
        "baseline_sft": None, "evaluation": {"prompts": 16, "frontier_prompts": 4, "frontier_samples": 8, "questions": 8, "shown": 4},
    }  # fmt: skip
    return LoopConfig.model_validate(values)


def snapshot(folder: Path, number: int) -> Snapshot:
    return Snapshot.load(folder / f"rounds/{number}/labels/snapshot.jsonl")


def ends(folder: Path) -> dict[str, bytes]:
    """What a run learned."""
    files = [*folder.glob("rounds/*/*/*.safetensors"), folder / "metrics.jsonl", folder / "evaluation/samples.jsonl"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(settings: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that one person labelled, and what it said."""
    folder, said = tmp_path_factory.mktemp("runs") / "undisturbed", list[str]()
    person = Person(folder / "labels.db")
    Loop(folder, settings, tell=said.append).run()
    person.leave()
    return folder, said


def test_people_answer_every_question_and_repeats_train_nothing(undisturbed: tuple[Path, list[str]]) -> None:
    folder, said = undisturbed
    assert [len(snapshot(folder, number).labels) for number in (1, 2)] == [20, 26]
    assert said == [
        f"waiting for labels: {done} of {wanted} for round {number}; the page: humanward label {folder}"
        for number, wanted in ((1, 20), (2, 6))
        for done in [int(re.findall(r"labels: (\d+) of", said[number - 1])[0])]
    ]
    store = Store(folder / "labels.db")
    repeats = [row for row in store.labeler_rows() if row.repeat_of is not None]
    store.close()
    assert repeats, "every answered question was queued once more"
    assert not {row.question_id for row in repeats} & {question.id for question in snapshot(folder, 2).questions}


def test_a_loop_that_is_stopped_while_it_waits_ends_the_same(
    settings: LoopConfig, undisturbed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    stop = StopFlag()

    def nine_answers_then_stop() -> None:
        person = Person(folder / "labels.db", pause=0.05, rests_after=9)
        assert person.rests.wait(300)
        while (state := json.loads((folder / "state.json").read_text())).get("waiting", {}).get("labels", 0) < 2:
            time.sleep(0.01)
        stop.request()
        person.leave()
        seen.append(state)

    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=nine_answers_then_stop, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        Loop(folder, settings, stop=stop).run()
    thread.join()
    waiting = seen[0]["waiting"]
    assert (seen[0]["stage"], waiting["for"], waiting["wanted"]) == ("label", "labels", 20)
    assert 2 <= waiting["labels"] <= 9  # some answers were repeats
    assert json.loads((folder / "state.json").read_text()) == {"stage": "label", "round": 1}
    person = Person(folder / "labels.db")
    Loop(folder).run()
    person.leave()
    assert ends(folder) == ends(undisturbed[0])
    assert snapshot(folder, 2).sha256 == snapshot(undisturbed[0], 2).sha256


def test_no_more_questions_wait_than_the_setting_says(settings: LoopConfig, tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", settings)
    most: list[int] = []
    real = people.patiently

    def watched(context: Any, work: Callable[[Store], Any]) -> Any:
        result = real(context, work)
        most.append(context.store.counts(1).missing)
        return result

    people.patiently = watched
    try:
        person = Person(loop.folder.labels)
        loop.run()
        person.leave()
    finally:
        people.patiently = real
    assert max(most) == 7


def test_questions_that_nobody_is_left_to_answer_are_not_waited_for(settings: LoopConfig, tmp_path: Path) -> None:
    """Every question wants two labelers; one of the two skips half of them, and a third is disabled."""
    labels = settings.labels.model_copy(update={"overlap_share": 1.0, "overlap_labels": 2, "rounds": 1})
    folder = tmp_path / "run"
    loop = Loop(folder, settings.model_copy(update={"labels": labels}))
    folder.mkdir(exist_ok=True)
    store = Store(folder / "labels.db")
    both = [store.people.invite("labeler", name)[0].id for name in ("Ada", "Ben")]
    store.people.disable(store.people.invite("labeler", "Cleo")[0].id)
    store.people.invite("researcher", "Dora")

    def skips_every_second() -> None:
        number = 0
        while not over.is_set():
            for assignment in store.held(both[1], 2):
                number += 1
                if number % 2:
                    store.skip(both[1], assignment.question.id, f"skip-{number}")
                else:
                    store.record(both[1], assignment.question.id, 0, f"answer-{number}")
            over.wait(0.02)

    over = threading.Event()
    thread, person = threading.Thread(target=skips_every_second, daemon=True), Person(folder / "labels.db", both[0])
    thread.start()
    loop.run()
    over.set()
    thread.join()
    person.leave()
    store.close()
    labels_of = [label.labeler for label in snapshot(folder, 1).labels]
    assert (labels_of.count(both[0]), labels_of.count(both[1])) == (20, 10)


class Down:
    """A store that does not answer for a while."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, store: Store) -> str:
        self.left -= 1
        if self.left >= 0:
            raise RunError("postgresql://host/labels: the connection is refused")
        return "here"


def test_a_store_that_goes_away_is_waited_for(settings: LoopConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(people, "RETRY_SECONDS", 0.01)
    context = Loop(tmp_path / "run", settings, tell=said.append).context
    context.folder.create()
    assert people.patiently(context, Down(3)) == "here"
    assert said == [
        "the label store does not answer: postgresql://host/labels: the connection is refused; waiting until it does",
        "the label store answers again",
    ]
    context.stop.request()
    with pytest.raises(Stopped):
        people.patiently(context, Down(1000))


def test_a_database_that_is_restarted_in_the_middle_loses_nothing(
    settings: LoopConfig, undisturbed: tuple[Path, list[str]], tmp_path: Path, postgresql: Any
) -> None:
    """PostgreSQL is away while the loop waits for labels; labels and loop go on when it is back."""
    address = postgresql.address("people_round")
    said: list[str] = []
    answering = threading.Event()

    def people_and_restart() -> None:
        person = Person(address, pause=0.05, rests_after=5)
        assert person.rests.wait(300)
        postgresql.stop()
        person.rested.set()
        while not any("does not answer" in line for line in said):
            time.sleep(0.02)
        postgresql.start()
        answering.wait()
        person.leave()

    thread = threading.Thread(target=people_and_restart, daemon=True)
    thread.start()
    loop = Loop(tmp_path / "run", settings.model_copy(update={"label_store": address}), tell=said.append)
    loop.run()
    answering.set()
    thread.join()
    loop.context.store.close()
    assert "the label store answers again" in said
    assert ends(tmp_path / "run") == ends(undisturbed[0])


def test_labels_of_two_runs_are_not_mixed(settings: LoopConfig, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'team.db'}"
    config = settings.model_copy(update={"label_store": address})
    store = Store(address)
    loop = Loop(tmp_path / "run", config)
    prompt = next(iter(loop.context.source_prompts))
    store.add_questions([Question("other", prompt, (Response("a"), Response("b")), "best_of_k", 1)])
    store.close()
    with pytest.raises(UserError, match=r"label_store: sqlite:.*holds questions of another run; give every run a database of its own"):
        loop.run()


def test_instructions_and_gold_reach_the_store(settings: LoopConfig, tmp_path: Path) -> None:
    (tmp_path / "what.md").write_text("# What to do\nTake the kinder one.\n")
    gold = {"prompt": "bad w2", "responses": ["good good", "bad", "w2", "w3"], "best": 0}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold) + "\n")
    labels = settings.labels.model_copy(update={"instructions": str(tmp_path / "what.md"), "gold": str(tmp_path / "gold.jsonl")})
    folder = tmp_path / "run"
    person = Person(folder / "labels.db", share=0.0)
    Loop(folder, settings.model_copy(update={"labels": labels})).run()
    person.leave()
    store = Store(folder / "labels.db")
    current = store.current_instructions()
    assert current is not None
    assert current[1] == "# What to do\nTake the kinder one."
    rows = [row for row in store.labeler_rows() if row.gold is not None]
    assert [(row.answer, row.gold) for row in rows] == [(0, 0)]
    assert rows[0].question_id not in {question.id for question in snapshot(folder, 2).questions}
    store.close()


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"instructions": "nowhere.md"}, "labels.instructions: nowhere.md: cannot be read: No such file"),
        ({"gold": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_people_are_to_get_is_read_before_anything_is_written(
    settings: LoopConfig, tmp_path: Path, labels: dict[str, str], error: str
) -> None:
    config = settings.model_copy(update={"labels": settings.labels.model_copy(update=labels)})
    with pytest.raises(UserError, match=error):
        Loop(tmp_path / "run", config).run()
    assert not (tmp_path / "run").exists()


# The cord


def test_a_pulled_cord_holds_the_run_and_changes_no_byte_of_it(
    settings: LoopConfig, undisturbed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Pulled in the middle of PPO by whoever sees its second step; the loop is started anew once while it is pulled."""
    folder, said, stop = tmp_path / "held", [], StopFlag()
    person = Person(folder / "labels.db")

    def progress(stage: str, done: int, total: int, metrics: Any) -> None:
        if (stage, done) == ("ppo", 1):
            store.pull_cord("labeler-1", "it writes nonsense")
            threading.Timer(0.3, stop.request).start()

    folder.mkdir()
    store = Store(folder / "labels.db")
    loop = Loop(folder, settings, progress=progress, stop=stop, tell=said.append)
    loop.context.cord._poll_seconds = 0.0
    with pytest.raises(Stopped):
        loop.run()
    assert said[-1].startswith("labeler-1 has pulled the cord (it writes nonsense): everything is saved, and the run waits")
    threading.Timer(0.3, lambda: store.release_cord("researcher-1")).start()
    said.clear()
    again = Loop(folder, tell=said.append)
    again.context.cord._poll_seconds = 0.02
    again.run()
    assert said[0].startswith("labeler-1 has pulled the cord (it writes nonsense)")
    assert said[1].startswith("the cord is released after")
    person.leave()
    store.close()
    assert ends(folder) == ends(undisturbed[0])
    rows = [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    told = [(row["kind"], row["round"], row["step"]) for row in rows if row["stage"] == "cord"]
    assert told == [("pulled", 1, 1), ("released", 1, 0)]
    assert rows[0]["text"] == "labeler-1 stopped the run at ppo, round 1, after step 1: it writes nonsense"

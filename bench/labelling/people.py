"""Simulated people over HTTP: invite link, cookie, questions, events with ids of their own, and sending again until there is an answer."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from labelling.natures import Nature, answer_of, meaning

# careful: where sniffio is not installed, httpcore looks for it on disk again with every request.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]
TIMEOUT = 20.0
HURRY = 0.02
FIRST_DELAY, LAST_DELAY = 0.05, 2.0
NO_FAULT = (401, 409, 429, 503)
"""Refusals that a client waits out."""


@dataclass
class Act:
    """Something that a person did, and what became of it. Times are of the monotonic clock."""

    kind: str
    question_id: str
    said: Any = None
    """The answer as ``meaning`` gives it, or the words of a remark."""
    seconds: float | None = None
    held: float = 0.0
    """When the request was sent that last renewed the lease; 0 where there is none any more."""
    made: float = 0.0
    acked: float | None = None
    refused: str = ""
    sent: int = 0
    """How often."""


@dataclass
class Office:
    """What the people of one run share: where the server is, when to stop, and the notes of the bench."""

    url: str
    invite: Callable[[str, str | None], Awaitable[tuple[str, str]]]
    """(name, pseudonym or None) -> (pseudonym, token)"""
    goal: int
    lease_seconds: float
    labels: int = 0
    """Acked."""
    jumps: list[float] = field(default_factory=list)
    """When the server's clock was changed."""
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """Answers that no client should ever get."""
    acks: list[float] = field(default_factory=list)
    """Seconds of the requests that brought the answer."""
    waits: list[float] = field(default_factory=list)
    """Seconds from the answer given to the ack, with all that lay between."""
    copied: dict[tuple[str, ...], dict[str, float]] = field(default_factory=dict)
    abandoned: list[tuple[str, str]] = field(default_factory=list)
    """(question, labeler) left lying until the lease was over."""

    @property
    def done(self) -> bool:
        return self.labels >= self.goal

    def late(self, act: Act) -> bool:
        """Whether the lease may have been over when the answer was stored."""
        assert act.acked is not None
        return act.acked > act.held + self.lease_seconds or any(act.held <= jump <= act.acked for jump in self.jumps)


class Person:
    """Somebody with a browser of their own."""

    def __init__(self, nature: Nature, office: Office, seed: str) -> None:
        self.nature, self.office, self.lots = nature, office, random.Random(seed)
        self.id = ""
        self.acts: dict[str, Act] = {}
        """By client_event_id, in the order in which they were done."""
        self.client = httpx.AsyncClient(base_url=office.url, verify=False, timeout=TIMEOUT, headers={"Sec-Fetch-Site": "same-origin"})

    async def work(self) -> None:
        """Label until there are enough."""
        async with self.client:
            await self.sign_in()
            while not self.office.done:
                await self.turn()

    async def sign_in(self) -> None:
        """Follow an invite link. Where the answer is lost, so is the link: ask for another one."""
        while True:
            self.client.cookies.clear()
            self.id, token = await self.office.invite(self.nature.name, self.id or None)
            try:
                await self.client.get(f"/join/{token}")
                answer = await self.client.post("/join", data={"token": token})
            except httpx.TransportError:
                await asyncio.sleep(self.lots.uniform(0.2, 1.0))
                continue
            if answer.status_code == 303:
                self.client.headers["X-Humanward-Labeler"] = self.id
                return
            self.office.counts[f"sign-in {answer.status_code}"] += 1
            await asyncio.sleep(self.lots.uniform(0.2, 1.0))

    async def turn(self) -> None:
        """Answer the one or two questions that there are, send the answers, and perhaps take one back."""
        asked = time.monotonic()
        told = await self.post("/api/questions", {"want": self.lots.choice((1, 2, 2))})
        if not told["questions"]:
            self.office.counts["nothing to do"] += 1
            await asyncio.sleep(self.lots.uniform(0.1, 0.5))
            return
        if self.lots.random() < self.nature.vanishes:
            self.office.abandoned += [(question["id"], self.id) for question in told["questions"]]
            await asyncio.sleep(self.office.lease_seconds * self.lots.uniform(1.1, 1.5))
            if self.lots.random() < 0.5:
                return  # a new page: what was shown is forgotten
        batch = [event for question in told["questions"] for event in self.react(question, asked)]
        await self.send(batch)
        if self.lots.random() < self.nature.undoes:
            await self.undo()

    def react(self, question: dict[str, Any], held: float) -> list[dict[str, Any]]:
        """The events that a question brings."""
        events = []
        if self.lots.random() < self.nature.remarks:
            kind, words = self.lots.choice((("flag", "reason"), ("comment", "comment"))), f"odd, {self.lots.random()}"
            events.append(self.event(Act(kind[0], question["id"], words, held=held), **{kind[1]: words}))
        if self.lots.random() < self.nature.skips:
            words = self.lots.choice(("", "cannot tell"))
            return [*events, self.event(Act("skip", question["id"], words, held=held), reason=words)]
        return [*events, self.label(question, held)]

    def label(self, question: dict[str, Any], held: float) -> dict[str, Any]:
        """The event of an answer."""
        texts = question["responses"]
        answer = answer_of(question["kind"], texts, self.nature, self.lots, self.office.copied)
        seconds = round(self.lots.uniform(*self.nature.seconds), 4)
        act = Act("label", question["id"], meaning(question["kind"], answer, texts), seconds, held)
        return self.event(act, answer=answer, seconds=seconds, instructions=question["instructions"])

    def event(self, act: Act, **body: Any) -> dict[str, Any]:
        """Note the act, and give the JSON of its event."""
        event_id = str(uuid.UUID(int=self.lots.getrandbits(128)))
        act.made = time.monotonic()
        self.acts[event_id] = act
        about = {} if act.kind == "undo" else {"question_id": act.question_id}
        return {"client_event_id": event_id, "kind": act.kind, **about, **body}

    async def send(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send events until the server has answered for each; the results."""
        posts = [self.post("/api/events", {"events": batch})]
        if self.lots.random() < self.nature.doubles:
            posts.append(self.post("/api/events", {"events": batch}))
        answers = await asyncio.gather(*posts)
        results = answers[0]["results"]
        if any(answer["results"] != results for answer in answers):
            self.office.faults["the same events, another answer"] += 1
        for event, result in zip(batch, results, strict=True):
            self.note(self.acts[event["client_event_id"]], event, result)
        return results

    def note(self, act: Act, event: dict[str, Any], result: dict[str, Any]) -> None:
        """What became of an act."""
        if result["client_event_id"] != event["client_event_id"]:
            self.office.faults["a result for another event"] += 1
        if not result["ok"]:
            act.refused = result["error"]
            self.office.counts[f"refused {act.kind}"] += 1
            return
        act.acked = time.monotonic()
        self.office.waits.append(act.acked - act.made)
        self.office.labels += act.kind == "label"

    async def undo(self) -> None:
        """Take back what was done last and answer that question again."""
        asked = time.monotonic()
        act = Act("undo", "")
        (result,) = await self.send([self.event(act)])
        question = result.get("question")
        if question is None:
            self.office.faults["nothing to undo"] += any(one.kind == "label" and one.acked for one in self.acts.values())
            return
        act.question_id = question["id"]
        done = [one for one in self.acts.values() if one.kind in ("label", "skip") and one.acked and one.question_id == question["id"]]
        before = None if question["answer"] is None else meaning(question["kind"], question["answer"], question["responses"])
        if not done or (done[-1].said if done[-1].kind == "label" else None) != before:
            self.office.faults["an undo that shows another answer"] += 1
        # careful: after the undo of a skip, or of an answer that came late, there may be no lease; the next answer counts all the same
        leased = bool(done) and done[-1].kind == "label" and not self.office.late(done[-1])
        await self.send([self.label(question, asked if leased else 0.0)])

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send until there is an answer that counts."""
        delay = FIRST_DELAY
        for attempt in range(10_000):
            for event in body.get("events", ()):
                self.acts[event["client_event_id"]].sent += 1
            began = time.monotonic()
            try:
                hurry = attempt == 0 and self.lots.random() < self.nature.hurries
                async with asyncio.timeout(HURRY if hurry else None):
                    answer = await self.client.post(path, json=body)
            except (httpx.TransportError, TimeoutError):
                self.office.counts["no answer"] += 1
                wait = delay
            else:
                if answer.status_code == 200:
                    if path == "/api/events":
                        self.office.acks.append(time.monotonic() - began)
                    return answer.json()
                self.office.counts[f"answer {answer.status_code}"] += 1
                if answer.status_code not in NO_FAULT:
                    self.office.faults[f"{path}: {answer.status_code} {answer.text[:200]}"] += 1
                if answer.status_code == 401:
                    await self.sign_in()
                wait = max(delay, float(answer.headers.get("retry-after", 0)))
            await asyncio.sleep(wait * self.lots.uniform(0.75, 1.25))
            delay = min(2 * delay, LAST_DELAY)
        raise TimeoutError(f"{self.id}: no answer to {path}")

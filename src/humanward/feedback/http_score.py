"""A score from a server: a batch of prompts and responses out, one number for each back. The standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from humanward.errors import RunError

TOKEN = "HUMANWARD_SCORE_TOKEN"
"""Environment variable whose value is sent as ``Authorization: Bearer …``; secrets have no place in a config file."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may mend."""
LONGEST_ANSWER = 64 * 2**20


class _Transient(Exception):  # noqa: N818
    """Worth another attempt."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class HTTPScore:
    """(prompts, responses) -> scores, asked of a server.

    One request per ``batch_size`` responses: POST, JSON ``{"prompts": [text, …], "responses": [text, …]}``, equally long. The server
    answers 200 with ``{"scores": [number, …]}``, one for each response. A request that finds nobody, takes too long or is answered by 408,
    425, 429 or 5xx is sent again; every other answer is an error at once.
    """

    url: str
    timeout: float = 60.0
    """Seconds for one request and its whole answer, after which it has failed."""
    retries: int = 4
    """Further attempts of a request, after 1, 2, 4, … seconds, or as many as the server's Retry-After says."""
    batch_size: int = 64
    """Responses per request."""
    backoff: float = 1.0
    """Seconds before the second attempt."""

    @property
    def __name__(self) -> str:
        return self.url

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The scores, in order.

        Raises:
            RunError: no answer after all attempts, or one that is not what was asked for.
        """
        scores: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            rows = slice(start, start + self.batch_size)
            scores += self._scores(list(prompts[rows]), list(responses[rows]))
        return scores

    def _scores(self, prompts: list[str], responses: list[str]) -> list[float]:
        body = json.dumps({"prompts": prompts, "responses": responses}).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._checked(self._post(body), len(responses))
            except _Transient as fault:
                if attempt == self.retries:
                    raise RunError(f"reward {self.url}: {fault}, {attempt + 1} times in a row; is the server up and fast enough?") from None
                time.sleep(max(self.backoff * 2**attempt, fault.wait))
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> bytes:
        """The answer, if all of it comes in time: a socket's own timeout begins again with every byte."""
        answer: Future[bytes] = Future()

        def work() -> None:
            try:
                answer.set_result(self._asked(body))
            except BaseException as fault:  # whatever it is, it belongs to the caller
                answer.set_exception(fault)

        threading.Thread(target=work, daemon=True, name="humanward-http-score").start()
        try:
            return answer.result(self.timeout)
        except TimeoutError:
            raise _Transient(f"no answer within {self.timeout:g} s") from None

    def _asked(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                return answer.read(LONGEST_ANSWER)
        except urllib.error.HTTPError as error:
            said = _one_line(error.read(300).decode("utf-8", "replace"))
            error.close()
            if error.code in BUSY:
                raise _Transient(f"the server answered {error.code}", _seconds(error.headers.get("Retry-After"))) from None
            where = f" to {error.headers.get('Location')}; give that address" if 300 <= error.code < 400 else ""
            raise RunError(
                f"reward {self.url}: the server answered {error.code} {error.reason}{where}" + (f": {said}" if said else "")
            ) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            raise _Transient(f"no answer within {self.timeout:g} s" if late else f"no connection ({_one_line(str(reason))})") from None

    def _checked(self, answer: bytes, count: int) -> list[float]:
        """What the answer says; numbers are checked where every score is."""
        try:
            found: Any = json.loads(answer)
        except ValueError:
            raise RunError(f"reward {self.url}: the answer is not JSON: {_one_line(answer[:80].decode('utf-8', 'replace'))!r}") from None
        scores = found.get("scores") if isinstance(found, dict) else None
        if not isinstance(scores, list):
            raise RunError(f'reward {self.url}: the answer has no list "scores"; expected {{"scores": [number, …]}}')
        if len(scores) != count:
            raise RunError(f"reward {self.url}: {len(scores)} scores for {count} responses; the server must give one for each")
        return scores


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and a token might go to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect())


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header in seconds, at most a minute; dates are not read."""
    return min(float(retry_after), 60.0) if retry_after is not None and retry_after.isdigit() else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())

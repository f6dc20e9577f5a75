"""The report of a whole run, of a damaged one and of a hostile one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from humanward.errors import RunError, UserError
from humanward.report import build_report, summary
from humanward.report.reading import CARRIES

from .run_folder import labelled_by_people

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements, attributes and text of a page; checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, set[str]] = {}
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(tag, set()).update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def page(run: Path) -> Page:
    return Page(build_report(run).read_text(encoding="utf-8"))


def change(run: Path, **values: Any) -> None:
    """Replace keys of evaluation/results.json."""
    path = run / "evaluation" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_report_says_the_numbers_of_the_run(run: Path):
    text = page(run).text.replace("\u00a0", " ")
    for expected in (
        "The PPO policy is preferred to the reference",
        "86.3 %",
        "83.1 to 89.0 %",
        "6.08 nats",
        "5,000 labels",
        "512 fresh prompts",
        "5.91 to 6.25",
        "score:positive",
        "61.8 %",
        "2 h 15 min",
        "1.9 GiB",
        "not a person",
    ):
        assert expected in text, expected
    assert "What is missing" not in text


def test_alarms_are_told_as_text(run: Path):
    assert "looked ill" not in page(run).text
    rows = [
        {"stage": "ppo", "round": 2, "step": 11, "kind": "kl", "text": "the KL is 31.0 nats <b>"},
        {"stage": "sft", "step": 0, "text": "x"},
    ]
    (run / "alarms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(run).text
    assert "What looked ill while training" in text
    assert "ppo, round 2, step 12: the KL is 31.0 nats <b>" in text
    assert "sft, step 1: x" in text


def test_summary_and_report_agree(run: Path):
    numbers = summary(run)
    assert numbers["headline"]["rate"] == 0.86328
    assert numbers["kl"]["ppo"]["mean"] == 6.08
    assert numbers["missing"] == []
    assert json.loads(json.dumps(numbers)) == numbers


def test_the_same_folder_gives_the_same_bytes(run: Path, tmp_path: Path):
    first = build_report(run).read_bytes()
    other = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("report.html"))
    assert build_report(other).read_bytes() == first
    assert build_report(run).read_bytes() == first
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_page_is_self_contained_and_runs_nothing(run: Path):
    html = build_report(run).read_text(encoding="utf-8")
    found = Page(html)
    assert not {"script", "iframe", "img", "link", "object", "embed", "form", "base", "image", "foreignobject"} & set(found.tags)
    names = set().union(*found.tags.values())
    assert not {name for name in names if name.startswith("on")}
    assert "style" not in names
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"https?:|//\w+\.\w+|url\((?!#)|@import", html)


def test_the_content_security_policy_names_the_style_by_its_hash(run: Path):
    html = build_report(run).read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert f"default-src &#39;none&#39;; style-src &#39;sha256-{digest}&#39;" in html
    assert html.count("<style") == 1


def test_every_drawing_has_a_name_and_a_description(run: Path):
    html = build_report(run).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg ([^>]*)><title id=\"([^\"]+)\">([^<]+)</title><desc id=\"([^\"]+)\">([^<]+)</desc>", html)
    assert len(drawings) == html.count("<svg ") >= 15
    for attributes, title_id, title, description_id, description in drawings:
        assert f'aria-labelledby="{title_id} {description_id}"' in attributes
        assert 'role="img"' in attributes
        assert title.strip()
        assert description.strip()


@pytest.mark.parametrize("name", sorted(CARRIES))
def test_a_missing_file_is_named(run: Path, name: str):
    (run / name).unlink()
    assert f"{name} is missing: {CARRIES[name]} cannot be shown." in page(run).text
    assert any(name in line for line in summary(run)["missing"])


GARBAGE = {
    "empty": b"",
    "cut": b'{"win_rates": [{"policy": "ppo", "against"',
    "binary": bytes(range(256)),
    "not an object": b"[1, 2, 3]",
    "deep": b"[" * 100_000,
    "huge number": b'{"seed": ' + b"9" * 5_000 + b"}",
    "yaml bomb": b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c {p: *b, q: *b}\nd: {p: *c, q: *c}\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", sorted(CARRIES))
def test_a_garbled_file_is_named(run: Path, name: str, kind: str):
    (run / name).write_bytes(GARBAGE[kind])
    missing = summary(run)["missing"]
    if (name, kind) not in {("config.yaml", "yaml bomb"), ("config.yaml", "huge number"), ("environment.json", "cut")}:
        assert any(line.startswith(name) for line in missing), missing


def test_the_report_builds_when_everything_is_garbled(run: Path):
    for name in CARRIES:
        (run / name).write_bytes(GARBAGE["binary"])
    text = page(run).text
    assert all(f"{name}" in text for name in CARRIES)
    assert "The answer cannot be shown" in text
    assert "0.0" not in text.split("How each number")[0]


def test_an_empty_folder_gives_a_report(tmp_path: Path):
    text = page(tmp_path).text
    assert text.count("is missing:") == len(CARRIES)
    assert all(summary(tmp_path)[key] is None for key in ("headline", "labels", "seconds", "prompts", "peak_memory_bytes"))


def test_a_torn_last_line_costs_only_itself(run: Path):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert summary(run)["missing"] == ["metrics.jsonl: 1 of 391 lines cannot be read and are left out (line 391)."]


@pytest.mark.parametrize("value", [None, "high", True, [], {}, float("nan"), float("inf"), 10**400, -0.1, 1.1])
def test_a_rate_that_is_no_rate_is_left_out(run: Path, value: object):
    change(run, win_rates=[{"policy": "ppo", "against": "reference", "rate": value}])
    found = summary(run)
    assert found["win_rates"] == []
    assert any("win_rates[0] has no rate between 0 and 1" in line for line in found["missing"])


@pytest.mark.parametrize("key", ["win_rates", "scores", "kl", "reward_model", "frontier", "text_quality", "labels", "prompts", "labeler"])
@pytest.mark.parametrize("value", [None, "x", 7, [], [[]], {}, {"ppo": 3}, [{"rate": "x"}], {"policy": ["a", 1]}])
def test_results_of_the_wrong_shape_do_not_stop_the_report(run: Path, key: str, value: object):
    change(run, **{key: value})
    summary(run)


@pytest.mark.parametrize("key", ["reward_validation", "reward_probes", "reward_members"])
def test_checks_of_the_reward_model_of_the_wrong_shape_are_left_out(run: Path, key: str):
    for value in ("x", [[]], {"members": 3, "calibration": {"ece": 1, "curve": [{"predicted": "x"}, 3]}, "by": {"round": [7, {}]}}):
        change(run, **{key: value})
        page(run)


def test_the_checks_of_the_reward_model_are_told(run: Path):
    text = page(run).text.replace("\u00a0", " ")
    for expected in (
        "Where it was right",
        "pairs of responses by policy and reference",
        "labeler labeler-3",
        "Does it know what it knows?",
        "Expected calibration error",
        "What it can be fooled by",
        "sentences shuffled",
        "correlate by 0.220",
        "less 0.500 of their deviation: 3 reward models",
        "score of the PPO policy's responses",
        "accuracy of member 3 on what its own draw left out",
    ):
        assert expected in text, expected


def test_a_run_without_an_evaluation_shows_what_its_reward_model_knew(run: Path):
    found = json.loads((run / "evaluation/results.json").read_text())
    (run / "evaluation/results.json").unlink()
    assert "Does it know" not in page(run).text
    for number, accuracy in ((2, 0.55), (10, 0.66)):
        (run / f"rounds/{number}/reward").mkdir(parents=True)
        rows = [{"round": number, "accuracy": accuracy, "low": 0.5, "high": 0.7, "questions": 90, "chance": 0.25}]
        measured = {"reward_model": rows, "reward_validation": found["reward_validation"]}
        (run / f"rounds/{number}/reward/measured.json").write_text(json.dumps(measured))
    text = page(run).text.replace("\u00a0", " ")
    assert "66.0 %" in text
    assert "55.0 %" not in text
    assert "Does it know what it knows?" in text


def test_a_rate_that_contradicts_its_counts_is_noted(run: Path):
    row = {"policy": "ppo", "against": "reference", "wins": 1, "losses": 9, "ties": 0, "rate": 0.9, "low": 0.1, "high": 0.2}
    change(run, win_rates=[row])
    text = page(run).text
    assert "the rate does not follow from its counts" in text
    assert "the rate lies outside its own interval" in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.52, 0.9, "is preferred to the reference"),
        (0.4, 0.7, "does not show that either"),
        (0.1, 0.49, "The reference is preferred"),
        (None, 0.9, "Without an"),
    ],
)
def test_the_verdict_follows_the_interval(run: Path, low: float | None, high: float, words: str):
    change(run, win_rates=[{"policy": "ppo", "against": "reference", "rate": 0.55 if low != 0.1 else 0.3, "low": low, "high": high}])
    assert words in summary(run)["headline"]["verdict"]


def test_numbers_that_are_not_finite_are_left_out_and_noted(run: Path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in [row for row in rows if row["stage"] == "ppo"][10:13]:
        row["kl"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "3 of 195 ppo rows have no finite kl" in page(run).text


def test_an_unfinished_run_says_so(run: Path):
    (run / "state.json").write_text(json.dumps({"stage": "ppo", "round": 2, "step": 40}))
    assert "This run is not finished: stage ppo, round 2, step 40." in page(run).text


def test_no_run_folder_is_the_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        build_report(tmp_path / "nowhere")


def test_a_report_that_cannot_be_written_is_a_run_error(tmp_path: Path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "x").touch()
    with pytest.raises(RunError, match=r"report\.html: could not be written: "):
        build_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_passwords_are_not_sent_along(run: Path, fixture: ModuleType):
    settings = fixture.config() | {"store": "postgresql://ann:hunter2@db/labels", "hub": {"hf_token": "hf_hunter3"}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "hunter" not in page(run).text


PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script href=//evil.example/x.js></script></svg>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" onfocus=alert(1) autofocus="',
    "<iframe src=https://evil.example></iframe>",
    "<a href=javascript:alert(1)>x</a>",
    "{{ 7*7 }}",
    "{% include '/etc/passwd' %}",
    "{{ ''.__class__.__mro__ }}",
    "<!-- ",
    "-->",
    "]]>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<base href=//evil.example>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<math><mtext></p><style><img src=x onerror=alert(1)></style>",
    "<template><script>alert(1)</script></template>",
    "</p></div></section></main>",
    "</svg><script>alert(1)</script>",
    "<text>",
    "</desc></title></svg>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "\\x3cscript\\x3e",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\u202e<tpircs>",
    "\ufeff<script>",
    "＜script＞alert(1)＜/script＞",
    "<style>*{background:url(//evil.example)}</style>",
    "style=x:expression(alert(1))",
    "$\\href{http://evil.example}{x}$",
    "$\\frac{",
    "%(name)s %s {0}",
    "<plaintext>",
    "<xmp>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "javascript:alert(1)//",
    "\r\n<script>alert(1)</script>",
    "<ſcript>alert(1)</ſcript>",
    "z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍a͛̒" * 20,
    "A" * 100_000,
]


def hostile(fixture: ModuleType, run: Path, payloads: list[str]) -> None:
    """Put payloads wherever a model, a labeler, a user or a machine may have written."""

    def take(i: int) -> str:
        return payloads[i % len(payloads)]

    rows = fixture.metrics(rounds=1, steps=3)
    results = fixture.results(rows)
    results["labeler"] = take(0)
    results["seed"] = take(1)
    results["win_rates"] += [{"policy": text, "against": text, "rate": 0.5, "low": 0.4, "high": 0.6} for text in payloads]
    results["scores"] |= {text: {"mean": 1, "low": 0, "high": 2} for text in payloads}
    results["text_quality"] |= {text: {"bits_per_byte": 1.0} for text in payloads}
    results["labels"]["rounds"] = [{"round": text, "labels": text} for text in payloads]
    config = fixture.config() | {
        "model": take(2),
        "prompts": take(3),
        take(4): {"x": payloads},
        "extra": {f"k{i}": t for i, t in enumerate(payloads)},
    }
    config["labels"] = {"total": take(5), "rounds": take(6), "responses_per_question": take(7)}
    config["ppo"] = {"kl_target": take(8)}
    samples = [{"prompt": text, "reference": text, "ppo": text, "sft": text, "scores": {"ppo": text}} for text in payloads]
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=False))
    (run / "environment.json").write_text(json.dumps({text: text for text in payloads}))
    (run / "state.json").write_text(json.dumps({"stage": take(0), "round": take(1)}))
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    files = {
        "evaluation/samples.jsonl": samples,
        "timings.jsonl": [{"stage": text, "seconds": 1, "peak_memory_bytes": text} for text in payloads],
        "metrics.jsonl": rows + [{"stage": "reward", "round": text, "step": 1, "loss": 1.0} for text in payloads],
    }
    for name, items in files.items():
        (run / name).write_text("".join(json.dumps(item) + "\n" for item in items))


def test_text_stays_text(run: Path, fixture: ModuleType):
    expected = page(run).tags
    for start in range(0, len(PAYLOADS), 24):  # samples are shown up to 24, so the corpus is served in parts
        part = PAYLOADS[start : start + 24]
        hostile(fixture, run, part)
        html = build_report(run).read_text(encoding="utf-8")
        found = Page(html)
        assert set(found.tags) <= set(expected) | {"aside", "li"}
        for tag, attributes in found.tags.items():
            assert attributes <= expected.get(tag, set()) | {"id", "aria-labelledby"}, tag
        assert all(link.startswith("#") for link in found.links)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufeff]", html)
        for text in part:
            if text.isprintable() and len(text) < 40 and "̴" not in text:
                assert text in found.text, text


def test_a_hostile_folder_name_is_text(tmp_path: Path):
    folder = tmp_path / "<script>alert(1)<\u202escript>"
    folder.mkdir()
    found = page(folder)
    assert "script" not in found.tags
    assert "<script>alert(1)<⟨U+202E⟩script>" in found.text


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({"kl_target": 6.0}, "held near 6 nats per response of KL divergence"),
        ({"kl_target": None, "kl_target_per_token": 0.25}, "held near 0.250 nats per token of KL divergence"),
        ({"kl_target": None}, "penalised for KL divergence"),
    ],
)
def test_the_kl_aimed_at_is_said_with_its_unit(run: Path, fixture: ModuleType, settings: dict[str, Any], held: str) -> None:
    config = fixture.config()
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"ppo": config["ppo"] | settings}))
    assert held in build_report(run).read_text(encoding="utf-8")


def test_a_win_in_the_eyes_of_the_reward_model_is_not_called_a_preference(run: Path) -> None:
    path = run / "evaluation/results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    assert "is preferred to" in Page(build_report(run).read_text(encoding="utf-8")).text
    path.write_text(json.dumps({**results, "labeler": "own:ann", "scored_by": "reward model"}), encoding="utf-8")
    text = Page(build_report(run).read_text(encoding="utf-8")).text
    assert "is scored above" in text
    assert "is preferred to" not in text
    assert "the reward model scores the first response above the second" in text
    assert "is scored above" in summary(run)["win_rates"][0]["verdict"]


def test_a_run_that_people_labelled_says_how_far_they_agree(run: Path):
    found = page(labelled_by_people(run))
    text = found.text.replace("\u00a0", " ")
    for expected in (
        "Asked blind, people said: the tuned policy is preferred to the reference. 66.7 %",
        "The last reward model scored the PPO policy",
        "No difference between the policy of round 1 and the tuned policy is shown.",
        "two labelers agree",
        "Krippendorff’s alpha",
        "always one place, clear after 9 labels",
        "Twice the labels would bring 2.8 points of accuracy (90 % interval 0.8 to 4.5), if the curve goes on: more labels help.",
        "labeler-2 stopped the run at ppo, round 2, after step 31: it only writes about gardens",
    ):
        assert expected in text, expected
    assert "What is missing" not in text
    assert len(found.ids) == len(set(found.ids))
    assert summary(run)["agreement"]["chance"] == 0.25
    assert [row["decided"] for row in summary(run)["comparisons"]] == ["a", None]


@pytest.mark.parametrize("name", ["comparisons/policy-against-reference/results.json", "reward_curve/results.json"])
def test_damaged_parts_that_people_asked_for_are_named(run: Path, name: str):
    labelled_by_people(run)
    (run / name).write_text("{")
    assert f"{name} is damaged" in page(run).text


def test_foreign_names_of_labelers_and_reasons_stay_text(run: Path):
    labelled_by_people(run)
    evil = "<img src=x onerror=alert(1)>"
    found = json.loads((run / "evaluation/results.json").read_text())
    found["agreement"]["people"][0]["labeler"] = evil
    found["agreement"]["people"][0]["flags"] = [evil]
    found["agreement"]["kinds"]["best_of_k"]["pairs"][0]["a"] = evil
    found["agreement"]["kinds"][evil] = found["agreement"]["kinds"].pop("best_of_k")
    change(run, agreement=found["agreement"])
    (run / "alarms.jsonl").write_text(json.dumps({"stage": "cord", "step": 0, "text": evil}) + "\n")
    results = run / "comparisons/policy-against-reference/results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"a": evil, "labeler": f"score:{evil}", "reason": evil}))
    found_page = page(run)
    assert "img" not in found_page.tags
    assert found_page.text.count("onerror") >= 5

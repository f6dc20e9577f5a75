"""Every kind of source, and every fault that a source can have: one line, with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from humanward.data import iter_texts, read_texts
from humanward.errors import UserError


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_txt_is_one_text_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst line\r\n\n   \n second \xc3\xa9\n")
    found = read_texts(path)
    assert [t.text for t in found] == ["first line", " second é"]
    assert [t.where for t in found] == [f"{path}:1", f"{path}:4"]
    assert not any(t.whole for t in found)


def test_jsonl_prompt_is_whole_and_text_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "P", "id": 7, "genre": "x"}, {"text": "T"}, {"prompt": "Q", "text": "other"})
    p, t, q = read_texts(path)
    assert (p.text, p.id, p.whole, p.metadata) == ("P", "7", True, {"genre": "x"})
    assert (t.text, t.whole) == ("T", False)
    assert (q.text, q.whole, q.metadata) == ("Q", True, {"text": "other"})


def test_jsonl_gz(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "T"}\n'))
    assert [t.text for t in read_texts(path)] == ["T"]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "prompt": ["P", "Q"]}), path)
    assert [(t.text, t.id, t.where) for t in read_texts(path)] == [("P", "1", f"{path}: row 1"), ("Q", "2", f"{path}: row 2")]


def test_saved_datasets_folder(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["T", "U"]}).save_to_disk(str(tmp_path / "one"))
    assert [t.text for t in read_texts(tmp_path / "one")] == ["T", "U"]
    DatasetDict({n: Dataset.from_dict({"text": [n]}) for n in ("train", "test")}).save_to_disk(str(tmp_path / "two"))
    assert [t.text for t in read_texts(tmp_path / "two")] == ["train"]
    assert [t.text for t in read_texts(f"{tmp_path / 'two'}?split=test")] == ["test"]
    with pytest.raises(UserError, match=r"no such split; write .*\?split=NAME with one of train, test"):
        read_texts(f"{tmp_path / 'two'}?split=dev")


def test_a_folder_of_files_is_read_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.jsonl", {"text": "first"})
    write(tmp_path / "README.md", "not data")
    assert [t.text for t in read_texts(tmp_path)] == ["first", "second"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"article": "A", "highlights": "H", "text": "unused"})
    (as_text,) = read_texts(f"{path}?text=article&response=highlights")
    assert (as_text.text, as_text.whole, as_text.response) == ("A", False, "H")
    (as_prompt,) = read_texts(f"{path}?prompt=article")
    assert (as_prompt.text, as_prompt.whole, as_prompt.response) == ("A", True, None)
    with pytest.raises(UserError, match=r"column='article' is not a setting of a source; there are text, prompt"):
        read_texts(f"{path}?column=article")
    with pytest.raises(UserError, match=r":1: no `body` in this row, only `article`, `highlights`, `text`"):
        read_texts(f"{path}?text=body")


def test_a_file_whose_name_has_a_question_mark(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "why?.txt", "T"))[0].text == "T"


def test_responses_and_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    path = write(tmp_path / "a.jsonl", {"messages": turns}, {"prompt": turns, "completion": "Hi"}, {"prompt": "P", "response": "R"})
    a, b, c = read_texts(path)
    assert (a.messages, a.text) == (tuple(turns), "")
    assert (b.messages, b.response) == (tuple(turns), "Hi")
    assert (c.response, c.metadata) == ("R", {})


def test_ids_of_content_are_stable_and_unique(tmp_path: Path) -> None:
    first = read_texts(write(tmp_path / "a.txt", "one", "two", "one"))
    again = read_texts(write(tmp_path / "b.txt", "two", "one"))
    assert [t.id for t in again] == [first[1].id, first[0].id]
    assert first[2].id == f"{first[0].id}-2"


def test_sources_are_read_as_a_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "T"}, "not JSON")
    stream = iter_texts(path)
    assert next(stream).text == "T"
    with pytest.raises(UserError, match=f"^{path}:2: not JSON"):
        next(stream)


def test_an_empty_text_is_passed_over(tmp_path: Path) -> None:
    assert [t.text for t in read_texts(write(tmp_path / "a.jsonl", {"text": " "}, {"text": "T"}))] == ["T"]


FAULTY_LINES = {
    "not JSON": (b"{oops\n", r":1: not JSON"),
    "not an object": (b"[1]\n", r":1: expected an object"),
    "no prompt or text": (b'{"question": "?"}\n', r":1: no `prompt` nor `text` in this row, only `question`"),
    "no columns": (b"{}\n", r":1: no `prompt` nor `text` in this row, only nothing"),
    "null prompt": (b'{"prompt": null}\n', r":1: no `prompt` nor `text`"),
    "prompt is a number": (b'{"prompt": 3}\n', r":1: `prompt` must be a string, not int"),
    "text is a list": (b'{"text": ["x"]}\n', r":1: `text` must be a string, not list"),
    "prompt is an empty list": (b'{"prompt": []}\n', r":1: `prompt` must be a list of messages with at least one"),
    "message without role": (b'{"messages": [{"content": "x"}]}\n', r":1: every message in `messages` must be an object with `role`"),
    "message of parts": (b'{"messages": [{"role": "user", "content": [1]}]}\n', r":1: `content` must be a string, not list"),
    "empty prompt": (b'{"prompt": " \\n"}\n', r":1: `prompt` is empty"),
    "escaped NUL": (b'{"prompt": "a\\u0000b"}\n', r":1: `prompt` has a NUL character"),
    "raw NUL": (b'{"prompt": "a\x00b"}\n', r":1: the line has a NUL byte"),
    "half a surrogate": (b'{"prompt": "\\ud800"}\n', r":1: .*surrogate"),
    "bad UTF-8": (b'{"prompt": "ok"}\n{"prompt": "\xff"}\n', r":2: not UTF-8 at byte 13"),
    "response is a number": (b'{"prompt": "P", "response": 1}\n', r":1: `response` must be a string, not int"),
    "id is a list": (b'{"prompt": "P", "id": []}\n', r":1: `id` must be a string or a whole number"),
    "empty id": (b'{"prompt": "P", "id": ""}\n', r":1: `id` must be a string or a whole number"),
    "id twice": (
        b'{"prompt": "P", "id": "a"}\n{"prompt": "Q", "id": "a"}\n',
        r":2: the id 'a' is already used in .*:1; ids must be unique",
    ),
    "empty file": (b"", r": no data in it"),
    "only blank lines": (b"\n\n", r": no data in it"),
    "only empty texts": (b'{"text": ""}\n', r": all 1 texts are empty"),
}


@pytest.mark.parametrize("fault", FAULTY_LINES)
def test_a_faulty_jsonl_is_one_line_with_its_place(tmp_path: Path, fault: str) -> None:
    content, message = FAULTY_LINES[fault]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}{message}") as raised:
        read_texts(path)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"ok\n\xff\n", ":2: not UTF-8 at byte 1"), (b"ok\na\x00\n", ":2: the line has a NUL byte"), (b"\n", ": no data in it")],
)
def test_a_faulty_txt_is_one_line_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}{message}"):
        read_texts(path)


def test_faulty_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.jsonl: no such file or folder"):
        read_texts(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match=r": a folder without data; expected .txt, .jsonl"):
        read_texts(tmp_path)
    with pytest.raises(UserError, match=r"a.json: unknown kind of file; .*named .jsonl"):
        read_texts(write(tmp_path / "a.json", {}))
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a.parquet: not a readable Parquet file"):
        read_texts(tmp_path / "a.parquet")
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "state.json", "broken")
    with pytest.raises(UserError, match=r": cannot read this folder of `datasets`"):
        read_texts(tmp_path / "b")


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for spec in ("prompts", "data/prompts", "./prompts", "x/prompts.txt"):
        with pytest.raises(UserError, match=f"^{spec}: no such file or folder .a data set of the Hugging Face Hub is written owner/name"):
            read_texts(spec)


def test_a_data_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline\nstack")))
    with pytest.raises(UserError, match=r"^owner/name: no such file or folder here, and not readable from the Hugging Face Hub: offline$"):
        read_texts("owner/name?split=train")


def test_some_rows_of_what_ships_with_the_package() -> None:
    everything = read_texts("asset:prompts")
    first, rest = read_texts("asset:prompts?rows=:100"), read_texts("asset:prompts?rows=100:")
    assert (len(first), [*first, *rest]) == (100, everything)
    assert read_texts("asset:prompts?rows=2:4") == everything[2:4]
    with pytest.raises(UserError, match="rows='100': expected FIRST:END"):
        read_texts("asset:prompts?rows=100")
    with pytest.raises(UserError, match="asset:nothing: no such file"):
        read_texts("asset:nothing")

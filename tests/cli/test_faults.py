"""Everything that a user can get wrong: one line each, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from humanward.storage import Checkpoints, RunFolder, verify_folder

from .conftest import SOURCE, Done, Parts, run, save_model


def errors(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one line of a command that must fail with exit code 2 and make nothing."""
    done = run(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    (line,) = errors(done)
    assert done.err.splitlines()[-1] == line
    assert not folder.exists()
    return line.removeprefix("error: ")


PROMPT_FILES = {
    "not-json": ("p.jsonl", '{"prompt": "w2"}\n{"prompt": \n', ":2: not JSON"),
    "not-an-object": ("p.jsonl", '{"prompt": "w2"}\n["w2"]\n', ":2: "),
    "no-prompt": ("p.jsonl", '{"prompt": "w2"}\n{"title": "w2"}\n', ":2: no `prompt` nor `text` in this row, only `title`"),
    "empty-prompt": ("p.jsonl", '{"prompt": " "}\n', ":1: `prompt` is empty"),
    "too-long": ("p.jsonl", '{"prompt": "w2 w2 w2 w2 w2"}\n', ":1: the prompt has 5 tokens and task.prompt_length is 4"),
    "too-few": ("p.txt", "w2\nw3\n", " gives 2 different prompts under the task's rule"),
    "empty": ("p.txt", "", ": no data in it"),
    "not-utf8": ("p.txt", "\udcff\n", ":1: not UTF-8"),
    "unknown-kind": ("p.csv", "w2\n", ": unknown kind of file"),
}


@pytest.mark.parametrize(("name", "content", "words"), PROMPT_FILES.values(), ids=PROMPT_FILES.keys())
def test_bad_prompts(name: str, content: str, words: str, parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(prompts=path))
    assert f"{path}{words}" in line


def test_a_missing_prompts_file(parts: Parts, tmp_path: Path) -> None:
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(prompts=tmp_path / "none.jsonl"))
    assert line.startswith(f"{tmp_path / 'none.jsonl'}: no such file or folder")


LABELS = {
    "empty-response": ({"prompt": "w2", "responses": ["good", " "], "best": 0}, ":1: `responses[1]` is empty"),
    "best": ({"prompt": "w2", "responses": ["good", "bad"], "best": 2}, ":1: `best`: expected the index of a response, 0 to 1, found 2"),
}


@pytest.mark.parametrize(("row", "words"), LABELS.values(), ids=LABELS.keys())
def test_bad_labels(row: dict[str, object], words: str, parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row))
    assert f"{path}{words}" in refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(labeler=f"labels:{path}"))


def test_an_empty_response_to_learn_from(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "w2", "response": "good"}\n{"prompt": "w2", "response": ""}\n')
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(), f"sft.texts={path}")
    assert line.startswith(f"{path}:2: the response is empty")


def test_bad_models(parts: Parts, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(parts.model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(model=bare))
    assert line.startswith(f"{bare}: no ")
    assert "tokenizer" in line
    same = tmp_path / "same"
    save_model(same)
    settings = json.loads((same / "tokenizer_config.json").read_text())
    (same / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<end>"}))
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(model=same))
    assert line.startswith(f"{same}: PAD and EOS are the same token '<end>'")
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(model=tmp_path / "none"))
    assert line == f"{tmp_path / 'none'}: no such folder"
    (same / "model.safetensors").write_bytes(b"\xff" * 100)
    assert str(same) in refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(model=same))


SETTINGS = {
    "misspelt": ("ppo.kl_cof=0.1", "override ppo.kl_cof=0.1: ppo.kl_cof: unknown setting; did you mean ppo.kl_coef?"),
    "not-a-number": ("ppo.lr=fast", 'override ppo.lr=fast: ppo.lr: expected a number, got "fast"'),
    "negative": ("ppo.lr=-1", "override ppo.lr=-1: ppo.lr: must be greater than 0, got -1"),
    "no-value": ("ppo.lr", "override ppo.lr: expected name=value"),
    "context": ("task.prompt_length=30", "prompts of up to 30 tokens and responses of 4 need 34, but the context of "),
    "labels": ("labels.total=1", "total 1 is less than initial 24"),
    "minibatches": ("ppo.minibatches=3", "batch_size 16 cannot be divided into 3 minibatches"),
    "rounds": ("labels.rounds=9", "labels.rounds 9 is more than the 8 steps of ppo"),
    "mark": ("task.prompt_start=.", "task.prompt_start: '.' is not one token of this tokenizer"),
    "ends": ("task.missing_eos_penalty=1", "for responses that may end at end-of-text; set stop_at_eos to true"),
    "ptx-without-texts": ("ppo.ptx.coef=1", "ppo.ptx.texts: required setting is missing; give it a value"),
    "ptx-without-file": ("ppo.ptx.texts=nowhere.txt", "nowhere.txt"),
    "kl-in-loss": ("ppo.kl_in=loss", "use k2, k3 or full, or set kl_in to reward"),
    "frontier": ("evaluation.frontier_prompts=99", "evaluation.frontier_prompts is more than evaluation.prompts"),
}  # fmt: skip


@pytest.mark.parametrize(("setting", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_bad_settings(setting: str, words: str, parts: Parts, tmp_path: Path) -> None:
    assert words in refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(), setting)


@pytest.mark.parametrize("command", ["loop", "sft", "sample", "reward", "ppo", "evaluate"])
def test_a_context_that_is_too_short(command: str, parts: Parts, tmp_path: Path) -> None:
    """Whatever command comes first: the model by its name, its context, the task's lengths, and what to set."""
    done = run("init", tmp_path, *parts.options(), "task.prompt_length=30", f"sft.texts={parts.prompts}")
    assert done.code == 0, done.err
    done = run(command, tmp_path)
    assert (done.code, done.out) == (2, "")
    (line,) = errors(done)
    assert line == (
        "error: task.prompt_length: prompts of up to 30 tokens and responses of 4 need 34, but the context of "
        f"{parts.model} is 32; set task.prompt_length=28 or less, or lower task.response_length"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_texts_to_learn_from_that_are_longer_than_the_context(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("w2 w3\n" + "w2 " * 33 + "\n")
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(), f"sft.texts={path}")
    assert line.startswith(f"{path}:2: cut into pieces of 33 tokens (sft.max_length), but the context of {parts.model} is 32; set ")


def test_a_tokenizer_with_tokens_that_the_model_does_not_have(parts: Parts, tmp_path: Path) -> None:
    """The check of the run's own parts comes before anything is written, and only where it is asked for."""
    from humanward.models import load_tokenizer

    model = tmp_path / "model"
    shutil.copytree(parts.model, model)
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    line = refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(model=model), "self_test=true")
    assert line == f"{model}: the pad token '[PAD]' is number 8, but the model has 8 tokens; set pad_token to one that it has"
    assert run("sample", tmp_path / "run").code == 2
    done = run("loop", tmp_path / "run", *parts.options(), "self_test=true", "labels.rounds=1", "ppo.episodes=16", "--json")
    assert done.code == 0, done.err


def test_what_the_machine_cannot_do(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("humanward.models.precision.has_bfloat16", lambda device: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("humanward.rounds.loop.Accelerator", lambda: Accelerator(cpu=True))
    run_ = tmp_path / "run"
    line = refused(run_, "loop", run_, *parts.options(), "dtype=bfloat16")
    assert line == "dtype: bfloat16: this cpu has no instructions for it and would be slower; set dtype to float32 or auto"
    line = refused(run_, "loop", run_, *parts.options(), "compile=true")
    assert line == "compile: no C++ compiler here (no-such-compiler); install it, or set compile=false"


def test_a_run_of_a_newer_version(parts: Parts, finished: Path, tmp_path: Path) -> None:
    """A manifest that this version cannot read is not taken for damage, which would be mended by doing the work again."""
    shutil.copytree(finished, tmp_path / "run")
    manifest = tmp_path / "run/rounds/1/reward/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for command in ("status", "loop"):
        done = run(command, tmp_path / "run")
        assert (done.code, done.out) == (3, "")
        (line,) = errors(done)
        assert line.startswith(f"error: {manifest}: has format 2 and this version reads 1: a newer version of Humanward wrote it; ")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_model_that_was_exchanged_under_its_run(parts: Parts, tmp_path: Path) -> None:
    """Round 2 cannot go on with a checkpoint of another shape."""
    from humanward.trainers.selftest import tiny_policy

    model = tmp_path / "model"
    shutil.copytree(parts.model, model)
    assert run("init", tmp_path / "run", *parts.options(model=model)).code == 0
    for command in ("sample", "label", "reward", "ppo", "sample", "label", "reward"):
        assert run(command, tmp_path / "run").code == 0
    shutil.rmtree(model)
    model.mkdir()
    tiny_policy(width=32).save(model)
    done = run("ppo", tmp_path / "run")
    assert done.code == 3
    (line,) = errors(done)
    assert line.startswith(
        f"error: {tmp_path / 'run/checkpoints/ppo/step-4'}: the checkpoint has policy.model.lm_head.weight of shape (8, 16) and "
    )
    assert "it belongs to another model; put the run's own model back, or start a new run folder" in line


def test_several_bad_settings_are_a_line_each(parts: Parts, tmp_path: Path) -> None:
    done = run("init", tmp_path / "run", *parts.options(), "ppo.lr=-1", "sed=3")
    assert (done.code, len(errors(done)), done.out) == (2, 2, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labeler", "words"),
    [
        ("score:positve", "positve: unknown score; did you mean positive?"),
        ("ann", "labeler: 'ann': expected people, score:SPEC (for example score:positive) or labels:FILE"),
        ("labels:none.jsonl", "none.jsonl: no such file or folder"),
        ("score:python:nowhere:f", "python:nowhere:f: cannot import nowhere"),
    ],
)
def test_unknown_labelers(labeler: str, words: str, parts: Parts, tmp_path: Path) -> None:
    assert words in refused(tmp_path / "run", "loop", tmp_path / "run", *parts.options(labeler=labeler))


def test_unknown_names(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert refused(folder, "loop", folder, "--preset", "demo_quik").startswith("preset demo_quik: unknown preset; did you mean demo_quick?")
    assert refused(folder, "settings", "--preset", "x").startswith("preset x: unknown preset; presets: ")
    assert refused(folder, "lop").startswith("No such command 'lop'.")
    assert refused(folder, "loop", folder, "--sed", "1").startswith("No such option: --sed")
    assert refused(folder, "loop").endswith("(humanward loop --help)")
    assert refused(folder, "loop", folder).startswith(f"{folder}: no run here yet; start one with `humanward loop {folder} --model")
    assert refused(folder, "status", folder) == f"{folder}: no such run folder"
    assert refused(folder, "report", folder).startswith(f"{folder}: no such run folder")
    assert refused(folder, "init", folder, "--config", tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: ")


def test_the_run_is_a_file(parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("mine")
    for command in ("loop", "init"):
        done = run(command, file, *parts.options())
        assert (done.code, errors(done)) == (2, [f"error: {file}: cannot be made a run folder: File exists"])
    assert file.read_text() == "mine"


def test_other_settings_than_the_run_has(parts: Parts, finished: Path) -> None:
    done = run("loop", finished, *parts.options(), "ppo.kl_coef=0.5")
    assert done.code == 2
    assert errors(done)[0].startswith(f"error: {finished / 'config.yaml'}: this run has other settings (ppo); continue it without settings")
    done = run("init", finished, *parts.options())
    assert (done.code, errors(done)[0].partition(": is there")[0]) == (2, f"error: {finished / 'config.yaml'}")


def test_a_second_process_is_kept_out(parts: Parts, tmp_path: Path) -> None:
    assert run("init", tmp_path, *parts.options()).code == 0
    with RunFolder(tmp_path).lock():
        done = run("loop", tmp_path)
    assert done.code == 2
    (line,) = errors(done)
    assert line.startswith(f"error: {tmp_path}: another process works in this folder (process {os.getpid()} on ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "lock"]


def test_a_loss_that_is_not_a_number(parts: Parts, tmp_path: Path) -> None:
    done = run("loop", tmp_path, *parts.options(), "ppo.lr=1e38", "ppo.lr_schedule=constant")
    assert done.code == 3
    (line,) = errors(done)
    assert line.startswith("error: PPO: update ")
    assert "is not a finite number, for the third time in a row, and was not applied; lower the learning rate" in line
    assert verify_folder(tmp_path / "rounds/1/reward") is None
    assert not (tmp_path / "rounds/1/policy").exists()
    assert [path.name for path in (tmp_path / "rounds/1").iterdir() if ".tmp-" in path.name] == []
    store = Checkpoints(tmp_path / "checkpoints/ppo")
    assert all(verify_folder(store.folder / f"step-{step}") is None for step in store.steps())


def test_a_score_that_is_not_a_number(parts: Parts, tmp_path: Path) -> None:
    labeler = f"score:python:{parts.folder / 'scores.py'}:broken"
    done = run("loop", tmp_path, *parts.options(labeler=labeler))
    assert done.code == 3
    (line,) = errors(done)
    assert "scores must be finite" in line
    assert verify_folder(tmp_path / "rounds/1/questions") is None
    assert not (tmp_path / "rounds/1/labels").exists()


def in_own_mounts(script: str, cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare -rm is not permitted here: no disk of one's own")
    (cwd / "disk").mkdir()
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = ["unshare", "-rm", "sh", "-ec", script, sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(parts: Parts, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro none disk && exec "$0" -m humanward loop disk/run "$@"'
    done = in_own_mounts(script, tmp_path, *parts.options())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: disk/run: cannot be made a run folder: Read-only file system"


@pytest.mark.slow
def test_a_disk_without_room_for_the_run(parts: Parts, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m none disk && "$0" -m humanward loop disk/run "$@" || { echo $?; ls disk; }'
    done = in_own_mounts(script, tmp_path, *parts.options())
    assert done.stdout == "3\n"
    assert done.stderr.splitlines()[-1].startswith("error: disk/run: the disk is full: ")


@pytest.mark.slow
def test_a_disk_that_fills_during_the_run(parts: Parts, tmp_path: Path) -> None:
    """Filled behind the first checkpoint of PPO by somebody else; with room again, the run goes on."""
    (tmp_path / "sitecustomize.py").write_text(FILL)
    script = """
mount -t tmpfs -o size=12m none disk
PYTHONPATH="$PWD:$PYTHONPATH" "$0" -m humanward loop disk/run "$@" || echo $?
rm disk/filler
"$0" -m humanward loop disk/run --json
"""
    done = in_own_mounts(script, tmp_path, *parts.options(), "labels.rounds=1")
    assert done.returncode == 0, done.stderr
    code, result = done.stdout.splitlines()
    assert code == "3"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the disk is full: " in line
    assert json.loads(result)["finished"] is True


FILL = """
import builtins, os, sys
from pathlib import Path

def fill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("checkpoints/ppo/step-2") and not Path("disk/filler").exists():
        with open("disk/filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

sys.addaudithook(fill)
"""


def test_only_the_main_process_talks(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("loop", tmp_path / "run", *parts.options(), "ppo.lr=-1") == Done(2, "", "")

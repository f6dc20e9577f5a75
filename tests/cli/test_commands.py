"""What each command says and prints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from humanward import __version__
from humanward.cli.doctor import advise
from humanward.cli.progress import Bars, shown_metrics
from humanward.cli.space import bytes_needed, weight_bytes
from humanward.cli.summary import duration
from humanward.config import preset_names
from humanward.errors import UserError
from humanward.rounds import LoopConfig
from humanward.rounds.loop import Stage

from .conftest import Parts, run, start

COMMANDS = [
    "demo", "loop", "compare", "init", "sft", "sample", "label", "reward", "ppo", "evaluate", "invite", "report", "status", "export",
    "import", "presets", "settings", "doctor", "labels", "data",
]  # fmt: skip
ELSEWHERE = ["rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration", "dpo", "study"]
"""Commands whose examples belong to other runs than a newcomer's first."""
needs_assets = pytest.mark.skipif(
    not files("humanward").joinpath("assets/storyteller/config.json").is_file(), reason="the embedded model is not there"
)


def example_of(command: str) -> str:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    *_, title, line = [line.strip() for line in done.out.splitlines() if line.strip()]
    assert title == "Example:"
    return line


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.code == 0
    listed = re.findall(r"^  (\w+)  ", done.out.partition("Commands:")[2], re.MULTILINE)
    assert [name for name in listed if name not in ELSEWHERE] == COMMANDS
    assert sorted(set(listed) - {*COMMANDS}) == sorted(ELSEWHERE)
    assert run().out == done.out
    assert run("--version").out == f"humanward {__version__}\n"


@pytest.mark.slow
@needs_assets
def test_every_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which a newcomer would try them."""
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("Once upon a time there was a fox. It lived in a wood.\n" * 8)
    for command in COMMANDS:
        line = example_of(command)
        if line.endswith("--labeler people"):  # it waits for people
            continue
        program, *arguments = shlex.split(line)
        assert program == "humanward"
        assert arguments[0] == command
        done = run(*arguments)
        assert done.code == 0, f"{line}\n{done.err}"


@pytest.mark.slow
@needs_assets
def test_the_demo_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = start("demo", "--quick", "--json", "seed=3", cwd=tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["finished"] is True
    assert result["run"] == "runs/demo"
    assert Path(result["report"]).is_file()
    assert Path(result["policy"], "model.safetensors").is_file()
    assert [row["against"] for row in result["summary"]["win_rates"]]
    assert not re.search(r"warn|Traceback", err, re.IGNORECASE)
    again = run("demo", "--quick", "seed=3")
    assert again.code == 0
    assert "finished already" in again.err
    assert "Win rates on fresh prompts" in again.out
    assert "runs/demo/report.html" in again.out
    other = run("demo", "--quick", "--seed", "4")
    assert other.code == 2
    assert "this run has other settings (seed)" in other.err


def test_the_loop_prints_one_object_for_programs(parts: Parts, finished: Path) -> None:
    done = run("loop", finished, *parts.options(), "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert result["run"] == str(finished)
    assert result["done"] == []
    assert result["finished"] is True
    assert [(row["stage"], row["round"]) for row in result["stages"]][:3] == [("prompts", 0), ("sample", 1), ("label", 1)]
    assert all(row["seconds"] >= 0 and row["peak_memory_bytes"] > 0 for row in result["stages"])
    assert {row["round"]: row["chance"] for row in result["summary"]["reward_model"]} == {1: 0.25, 2: 0.25}


def test_the_loop_says_what_came_out(finished: Path) -> None:
    done = run("loop", finished)
    assert done.code == 0
    for words in ("Win rates on fresh prompts", "95 % interval", "KL, nats per response", "chance", "25.0 %", "peak memory"):
        assert words in done.out
    assert done.out.splitlines()[-2:] == [f"report  {finished / 'report.html'}", f"policy  {finished / 'policy'}"]
    assert "\x1b" not in done.out + done.err


def test_a_stage_prints_one_object_for_programs(parts: Parts, tmp_path: Path) -> None:
    settings = json.loads(run("init", tmp_path, *parts.options(), "--json").out)
    assert settings == {"run": str(tmp_path), "config": str(tmp_path / "config.yaml")}
    done = json.loads(run("sample", tmp_path, "--json").out)
    assert done["done"] == [{"stage": "prompts", "round": 0}, {"stage": "sample", "round": 1}]
    assert (done["next"], done["finished"]) == ({"stage": "label", "round": 1}, False)
    status = json.loads(run("status", tmp_path, "--json").out)
    assert status["done"] == done["done"]
    assert status["next"] == {"stage": "label", "round": 1}
    lines = run("status", tmp_path).out.splitlines()
    assert lines[:3] == ["done  prompts", "done  sample, round 1", "      label, round 1"]
    assert lines[-1] == f"next: humanward label {tmp_path}, or humanward loop {tmp_path}"


def test_status_and_report_of_a_finished_run(finished: Path) -> None:
    assert run("status", finished).out.splitlines()[-1] == f"finished: {finished / 'report.html'}"
    assert run("report", finished).out == f"{finished / 'report.html'}\n"
    assert json.loads(run("report", finished, "--json").out)["summary"]["stage"] == "done"


def test_init_writes_settings_that_explain_themselves(parts: Parts, tmp_path: Path) -> None:
    done = run("init", tmp_path / "run", *parts.options(), "ppo.kl_coef=0.3")
    assert done.code == 0
    assert done.out == f"{tmp_path / 'run/config.yaml'}\n"
    assert f"humanward loop {tmp_path / 'run'}" in done.err
    text = (tmp_path / "run/config.yaml").read_text()
    assert yaml.safe_load(text)["ppo"]["kl_coef"] == 0.3
    assert "# Weight of the KL to the reference" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_given_labels_make_a_run(parts: Parts, tmp_path: Path) -> None:
    rows = [{"prompt": f"w2 {a}", "responses": ["good w3", f"bad {a}"], "best": 0} for a in ("w2", "w3", "w4", "bad")] * 4
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labeler = f"labels:{tmp_path / 'labels.jsonl'}"
    done = run("loop", tmp_path / "run", *parts.options(labeler=labeler), "labels.rounds=1", "labels.responses_per_question=2", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["summary"]["labels"] == 16
    assert result["summary"]["win_rates"]


def test_presets_and_settings_are_listed() -> None:
    assert [line.split()[0] for line in run("presets").out.splitlines()] == preset_names()
    assert json.loads(run("presets", "--json").out)["presets"].keys() == set(preset_names())
    listed = run("settings").out
    assert "ppo.kl_coef  (number, at least 0, default 0.15)" in listed or re.search(r"^ppo\.kl_coef  \(.*default 0\.15\)$", listed, re.M)
    rows = {row["name"]: row for row in json.loads(run("settings", "--preset", "demo_quick", "--json").out)["settings"]}
    assert rows["labels.total"]["value"] == "16"
    assert rows["labels.total"]["default"] == "1024"
    assert rows["sft.epochs"]["value"] is None


def test_the_smallest_preset_has_two_rounds_of_two_steps() -> None:
    config = LoopConfig.load(preset="demo_quick")
    assert config.labels.rounds == 2
    assert config.ppo.episodes // config.ppo.batch_size == 4
    assert config.task.response_length == 8


def test_python_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "humanward", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"humanward {__version__}\n"


def test_progress_is_a_line_per_stage_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    now = Stage("ppo", 2, "", lambda context, round, output: None)
    with Bars(lambda: now) as bars:
        bars("ppo", 1, 2, {"score": 0.5, "kl": 1.25, "lr": 1.0})
        bars("ppo", 2, 2, {"score": 0.75, "kl": 1.5, "lr": 1.0})
        bars("frontier", 3, 4, {})
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"ppo, round 2: 2 of 2, score 0\.75, kl 1\.50, \d+ s", first)
    assert re.fullmatch(r"frontier, round 2: 3 of 4, \d+ s", second)
    assert shown_metrics({"loss": 1.0, "accuracy": 0.5, "grad_norm": 3.0}) == "loss 1.00, accuracy 0.50"


def test_space_is_estimated_from_the_weights(parts: Parts) -> None:
    from safetensors.numpy import load_file

    size = sum(4 * tensor.size for tensor in load_file(parts.model / "model.safetensors").values())
    assert weight_bytes(str(parts.model)) == size
    assert weight_bytes("somebody/not-here-yet") == 0
    with pytest.raises(UserError, match="no such folder"):
        weight_bytes("./none")
    small, large = (bytes_needed(LoopConfig.load(overrides=[f"labels.rounds={n}"]), size) for n in (1, 3))
    assert large - small == 4 * size  # a reward model and a policy for each round more
    adapters = LoopConfig.load(overrides=["lora.rank=8", "labels.rounds=3"])
    assert bytes_needed(adapters, 10**9) < 0.2 * bytes_needed(LoopConfig.load(overrides=["labels.rounds=3"]), 10**9)


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (9.06, 59.9, 200, 7500)] == ["9.1 s", "59.9 s", "3 min 20 s", "2 h 05 min"]


def test_the_doctor_measures_and_advises(tmp_path: Path) -> None:
    done = run("doctor", tmp_path / "not/yet/there", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["matmul_flop_per_second"]["float32"] > 1e8
    assert facts["free_disk_bytes"] > 0
    assert facts["advice"][0].startswith("dtype=")
    done = run("doctor")
    assert done.code == 0, done.err
    assert "GFLOP/s" in done.out
    assert "million weights" in done.out


def test_the_doctor_says_what_is_wrong() -> None:
    rates = {"float32": 2e11, "bfloat16": 5e11}
    well = {
        "device": "cpu", "cores": 8, "threads": 8, "memory_bytes": 24 * 10**9, "matmul_flop_per_second": rates,
        "freed_memory_is_kept": True, "sqlite_wal_is_safe": True, "missing_for_compile": None, "missing_for_lora": None,
        "missing_for_quantization": None, "openblas_multiplies": True,
    }  # fmt: skip
    assert advise(well) == [
        "dtype=bfloat16: bfloat16 multiplies 2.5 times as fast",
        "PPO with a reward model fits for models of up to about 655 million weights",
        "with adapters on one frozen trunk (lora.rank=16), for models of up to about 6000 million",
        "with its weights in 4 bits (lora.quantize=4bit, QLoRA), of up to about 14400 million",
        "gradient_checkpointing=true where a training runs out of memory: one layer's activations instead of all, a quarter more time",
        "compile=true where a stage trains for many minutes: about a tenth less time, after half a minute of compiling",
    ]
    ill = well | {"threads": 2, "freed_memory_is_kept": False, "sqlite_wal_is_safe": False, "matmul_flop_per_second": {"float32": 2e11}}
    assert "compile=false: compiled layers multiply by PyTorch's own library" in " ".join(advise(ill))
    assert "compile=true" in " ".join(advise(ill | {"openblas_multiplies": False}))
    ill |= {"openblas_multiplies": False, "missing_for_compile": "no C++ compiler here (g++)"}
    ill["missing_for_quantization"] = "no bitsandbytes"
    assert "no adapters (lora): no peft" in advise(ill | {"missing_for_lora": "no peft"})
    told = " ".join(advise(ill))
    for expected in (
        "dtype=float32: there are no instructions",
        "600 million",
        "threads=8",
        "jemalloc",
        "pysqlite3",
        "compile=false: no C++",
        "no quantised weights (QLoRA): no bitsandbytes",
    ):
        assert expected in told

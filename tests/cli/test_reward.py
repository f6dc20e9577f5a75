"""A reward model of a file alone: fitted, measured on what was held out, reported; and the run goes on from there."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from humanward.storage import MetricsLog

from .conftest import Parts, run, start
from .test_resume import wait_for


def write_pairs(path: Path, count: int = 60) -> Path:
    """Chosen is who says good."""
    words = ["w2", "w3", "w4", "bad"]
    rows = [
        {
            "prompt": f"{words[n % 4]} {words[n // 4 % 4]} {words[n // 16]}",
            "chosen": f" good {words[n % 3]}",
            "rejected": f" {words[n % 4]} bad",
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_gives_a_measured_reward_model(parts: Parts, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    command = ["reward", tmp_path / "run", "--data", data, "--model", parts.model, "--json"]
    settings = ["threads=1", "self_test=false", "evaluation.prompts=4", "labels.validation_share=0.3", "reward.normalize_samples=8"]
    settings += ["reward.lr=0.01", "reward.batch_size=4", "reward.epochs=3"]
    done = run(*command, *settings)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert Path(told["folder"]) == tmp_path / "run/rounds/1/reward"
    (row,) = told["reward_model"]
    assert row["questions"] == 18  # 0.3 of 60 prompts
    assert row["accuracy"] > 0.9
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert told["reward_validation"]["calibration"]["ece"] < 0.5
    assert "length" in told["reward_probes"]
    html = Path(told["report"]).read_text(encoding="utf-8")
    assert "Does it know what it knows?" in html
    again = run(*command[:-1], *settings)
    assert again.code == 0, again.err
    assert f"{tmp_path / 'run'}: done already" in again.err
    assert "of 18 held-out labels right; chance 50 %" in again.out
    assert "expected calibration error" in again.out
    status = run("status", tmp_path / "run", "--json")
    assert json.loads(status.out)["next"] == {"stage": "ppo", "round": 1}


def test_accuracy_is_told_by_the_batches_and_policies_of_a_file(parts: Parts, tmp_path: Path) -> None:
    """Of 16 comparisons that are held out, half are of either batch."""
    rows = [
        {
            "info": {"post": f"w{n % 4 + 2} w{n // 4 % 4 + 2} w{n // 16 + 2}"}, "choice": n % 2, "batch": f"batch{n % 4 // 2 + 1}",
            "summaries": [{"text": f" w{k + 2} w{n % 3 + 2}", "policy": ("sup1", "ppo2")[k]} for k in range(2)],
            "split": "train" if n < 32 else "valid1", "extra": {"confidence": 8 if n % 2 else 2},
        }
        for n in range(48)
    ]  # fmt: skip
    data = tmp_path / "comparisons.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["threads=1", "self_test=false", "evaluation.prompts=4", "reward.normalize_samples=8"]
    done = run("reward", tmp_path / "run", "--data", data, "--model", parts.model, "--json", *settings)
    assert done.code == 0, done.err
    by = {key: {row["group"]: row["labels"] for row in rows} for key, rows in json.loads(done.out)["reward_validation"]["by"].items()}
    assert by["policies"] == {"ppo2 and sup1": 16}
    assert by["batch"] == {"batch1": 8, "batch2": 8}


def test_settings_without_a_file_are_refused(parts: Parts, tmp_path: Path) -> None:
    done = run("reward", tmp_path / "run", "reward.lr=0.1")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: reward: settings are for a new run on a file: give --data FILE")
    done = run("reward", tmp_path / "run", "--data", tmp_path / "absent.jsonl")
    assert done.code == 2
    assert "absent.jsonl" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_killed_in_the_middle_a_run_on_a_file_ends_the_same(
    command: str, parts: Parts, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    words = ["--data", data, "--model", parts.model, "threads=1", "self_test=false", "evaluation.prompts=4", f"{command}.batch_size=2"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    done = run(command, undisturbed, *words)
    assert done.code == 0, done.err
    process = start(command, folder, *words)
    log = MetricsLog(folder / "metrics.jsonl")
    wait_for(lambda: sum(row["stage"] == command for row in log.read()) > 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = run(command, folder, *words)
    assert again.code == 0, again.err
    assert fingerprint(folder) == fingerprint(undisturbed)

"""Runs whose method is dpo: iterative in the loop, offline on a file; killed anywhere, they end with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from humanward.storage import MetricsLog

from .conftest import SETTINGS, Parts, run, start
from .test_resume import wait_for

DPO = {"lr": 3e-3, "batch_size": 4, "epochs": 3, "beta": 0.05}


@pytest.fixture(scope="module")
def options(parts: Parts) -> list[str]:
    """Two rounds of 24 and 18 questions."""
    settings = {name: value for name, value in SETTINGS.items() if name not in ("reward", "ppo")}
    path = parts.folder / "dpo.yaml"
    path.write_text(yaml.safe_dump({**settings, "method": "dpo", "dpo": DPO, "baseline_sft": None}))
    return parts.options(config=path)


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo") / "run"
    done = run("loop", folder, *options)
    assert done.code == 0, done.err
    return folder


def test_a_run_without_a_reward_model(undisturbed: Path) -> None:
    assert not list(undisturbed.glob("rounds/*/reward"))
    assert not list((undisturbed / "checkpoints").glob("dpo-*")), "each round's training is whole; nothing reads its checkpoints again"
    shown = run("status", undisturbed).out
    assert "done  dpo, round 2" in shown
    assert "reward" not in shown
    assert "Implicit reward on held-out questions" in run("loop", undisturbed).out
    result = json.loads((undisturbed / "evaluation/results.json").read_text())
    assert [row["policy"] for row in result["win_rates"]] == ["dpo"]
    assert [row["round"] for row in result["reward_model"]] == [1, 2], "the accuracy of the implicit reward"
    assert set(result["scores"]) == {"reference", "dpo"}
    rows = [row for row in MetricsLog(undisturbed / "metrics.jsonl").read() if row["stage"] == "dpo"]
    assert {"chosen_moved", "rejected_moved", "mass_off_both", "both_fell", "accuracy"} <= set(rows[0])
    report = (undisturbed / "report.html").read_text()
    for words in ("DPO policy", "Displacement", "Mass moved off both", "Implicit reward", "without a reward model"):
        assert words in report
    assert "PPO" not in report.replace("PPO-", "")


def test_other_stages_are_not_there(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("init", folder, *options).code == 0
    assert "ppo:" not in (folder / "config.yaml").read_text()
    assert run("ppo", folder).err.splitlines()[-1] == f"error: {folder}: this run has no stage ppo (it is turned off in config.yaml)"


def test_the_tuned_policy_writes_what_is_preferred(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "evaluation/results.json").read_text())
    assert result["scores"]["dpo"]["mean"] > result["scores"]["reference"]["mean"] + 0.5
    accuracies = [row["accuracy"] for row in MetricsLog(undisturbed / "metrics.jsonl").read() if row["stage"] == "dpo"]
    assert sum(accuracies[-5:]) / 5 > sum(accuracies[:2]) / 2


def test_killed_in_the_middle_it_ends_the_same(
    options: list[str], undisturbed: Path, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start("loop", folder, *options)
    log = MetricsLog(folder / "metrics.jsonl")
    wait_for(lambda: sum(row["stage"] == "dpo" for row in log.read()) > 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    stage = run("dpo", folder)
    assert stage.code == 0, stage.err
    assert stage.err.splitlines()[-1].endswith((f"humanward sample {folder}", f"humanward evaluate {folder}"))
    again = run("loop", folder)
    assert again.code == 0, again.err
    assert fingerprint(folder) == fingerprint(undisturbed)


def test_what_more_labels_would_bring_is_measured_with_the_same_method(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    done = run("reward-curve", tmp_path / "run", "--sizes", "2", "--repeats", "1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["reward_curve"]["points"][-1]["accuracy"] > 0.3, "chance is a quarter"


def test_two_rounds_head_to_head(undisturbed: Path, parts: Parts, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    scores = f"score:python:{parts.folder / 'scores.py'}:good"
    done = run("compare", tmp_path / "run", "--a", "round:2", "--b", "reference", "--labeler", scores, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["comparison"]["rate"] > 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["ppo.lr=1e-3"], "override ppo.lr=1e-3: method dpo does not read ppo.lr; leave that out, or choose another method"),
        (["reward.epochs=2"], "method dpo does not read reward.epochs"),
        (["method=ppo"], "method ppo does not read dpo.batch_size, dpo.beta, dpo.epochs, dpo.lr"),
        (["dpo.loss=simpo", "dpo.reference=initial"], "round_reference says where a round of a run is held"),
        (["method=dop"], 'method: expected'),
        (["baseline_sft.texts=mine.txt"], "baseline_sft trains on the chosen responses of the labels, and reads neither texts"),
        (["dpo.sft_first.max_length=64"], "leave dpo.sft_first.texts and dpo.sft_first.max_length out"),
    ],
)  # fmt: skip
def test_settings_that_the_method_does_not_read_are_named(options: list[str], settings: list[str], said: str, tmp_path: Path) -> None:
    done = run("loop", tmp_path / "run", *options, *settings)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


# Offline


def pairs(path: Path, count: int = 48) -> Path:
    """What is chosen says `good`; a row in eight is longer than the model's context."""
    rows = []
    for n in range(count):
        prompt = " ".join(("bad", "w2", "w3", "w4")[(n >> (2 * k)) % 4] for k in range(3))
        more = " w2" * 200 if n % 8 == 7 else ""
        rows.append({"prompt": prompt, "chosen": f"good w{2 + n % 3}{more}", "rejected": f"bad w{2 + n % 2}", "labeler": f"l{n % 2}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def offline(parts: Parts, path: Path) -> list[str]:
    return [
        "--data",
        str(path),
        "--model",
        str(parts.model),
        "dpo.lr=3e-3",
        "dpo.batch_size=8",
        "dpo.epochs=4",
        "threads=1",
        "self_test=false",
    ]


def test_a_file_must_leave_prompts_to_evaluate_and_to_train_on(parts: Parts, tmp_path: Path) -> None:
    words = offline(parts, pairs(tmp_path / "pairs.jsonl"))
    done = run("dpo", tmp_path / "run", *words, "labels.validation_share=0")
    assert done.code == 2
    assert "prompts of the labels is held out for the evaluation; raise labels.validation_share above 0.0" in done.err
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row | {"split": "validation"}) + "\n" for row in rows))
    done = run("dpo", tmp_path / "other", *offline(parts, tmp_path / "held_out.jsonl"))
    assert done.code == 2
    assert "all prompts of the labels are held out (`split` in their file), and none is left to train on" in done.err


def test_a_run_on_a_file_of_preferences(parts: Parts, tmp_path: Path) -> None:
    words = offline(parts, pairs(tmp_path / "pairs.jsonl"))
    done = run("dpo", tmp_path / "run", *words, "labels.validation_share=0.25")
    assert done.code == 0, done.err
    assert "6 labels are left out: their prompt or a response is longer than allowed" in done.err
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["task"]["prompt_length"] == 3
    found = json.loads((tmp_path / "run/rounds/1/policy/validation.json").read_text())
    assert (found["questions"], found["labels"], found["responses_per_question"]) == (10, 32, 2)
    assert found["correct"] == 10
    result = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    assert result["reward_model"][0]["chance"] == 0.5
    assert "win_rates" not in result, "nobody can tell which is preferred"
    report = (tmp_path / "run/report.html").read_text()
    assert "humanward compare RUN" in report
    assert "Displacement" in report
    fresh = (tmp_path / "run/prompts/evaluation.jsonl").read_text()
    trained = (tmp_path / "run/prompts/training.jsonl").read_text()
    assert len(fresh.splitlines()) == 10
    assert not set(fresh.splitlines()) & set(trained.splitlines())
    again = run("dpo", tmp_path / "run", *words, "labels.validation_share=0.25")
    assert (again.code, "finished already" in again.err) == (0, True)


def test_fine_tuning_on_chosen_responses_comes_first_where_it_is_asked_for(parts: Parts, tmp_path: Path) -> None:
    words = offline(parts, pairs(tmp_path / "pairs.jsonl", 24))
    done = run("dpo", tmp_path / "run", *words, "dpo.sft_first.lr=3e-3", "dpo.sft_first.batch_size=4", "evaluation.prompts=2")
    assert done.code == 0, done.err
    rows = MetricsLog(tmp_path / "run/metrics.jsonl").read()
    assert next(iter(rows))["stage"] == "chosen_sft"
    first = next(row for row in rows if row["stage"] == "dpo")
    assert first["chosen_moved"] == pytest.approx(0, abs=1e-5), "DPO begins at its reference, which is the fine-tuned model"


def test_fine_tuning_on_chosen_responses_leaves_out_what_is_dropped(parts: Parts, tmp_path: Path) -> None:
    """Of 12 pairs 8 have a safe response: at 4 per update, two updates."""
    rows = [
        {"prompt": f"w2 w{n % 4 + 2}", "chosen": f"good w{n % 3 + 2}", "rejected": "bad", "safe": [n % 3 > 0, False]} for n in range(12)
    ]
    rows.append({"prompt": "w6", "chosen": "good", "rejected": "bad", "safe": [True, False], "split": "validation"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["dpo.drop=[dual_unsafe]", "dpo.sft_first.batch_size=4", "evaluation.prompts=1"]
    done = run("dpo", tmp_path / "run", *offline(parts, path), *settings)
    assert done.code == 0, done.err
    assert [row["stage"] for row in MetricsLog(tmp_path / "run/metrics.jsonl").read()].count("chosen_sft") == 2


def test_ratings_of_any_scale_are_judgements_by_their_middle(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "stars.jsonl"
    rows = [
        {"prompt": f"w{n % 5 + 2}", "response": f"{'good' if n % 2 else 'bad'} w2", "rating": 4 + n // 2 % 2 if n % 2 else 2}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = offline(parts, tmp_path / "stars.jsonl?kind=binary&middle=3")
    done = run("dpo", tmp_path / "run", *words, "dpo.loss=kto", "evaluation.prompts=1", "labels.validation_share=0.2")
    assert done.code == 0, done.err
    last = MetricsLog(tmp_path / "run/metrics.jsonl").read()[-1]
    assert last["chosen_moved"] > 0 > last["rejected_moved"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["dpo.beta=0.5"], "dpo: settings are for a new run on a file: give --data FILE, or begin a run with `humanward loop`"),
        (["--data", "DATA", "dpo.drop=[dual_unsafe]"], "dpo.drop needs `safe` in its row, a list of true or false for each response"),
        (["--data", "DATA", "labels.leave_out_long=false", "task.response_length=3"], "pairs.jsonl:8: the longest response has"),
        (["--data", "DATA", "task.response_length=1"], "none of its 24 labels fits task.prompt_length and task.response_length"),
        (
            ["--data", "RATED", "dpo.loss=kto"],
            "method dpo learns nothing from ratings, whose scale their file does not tell: write FILE?kind=",
        ),
        (["--data", "BAD"], "bad.jsonl:2: `chosen` and `rejected` are the same text; delete the row"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(parts: Parts, tmp_path: Path, words: list[str], said: str) -> None:
    data = pairs(tmp_path / "pairs.jsonl", 24)
    bad = tmp_path / "bad.jsonl"
    rows = [{"prompt": "w2", "chosen": "good", "rejected": "bad"}, {"prompt": "w2", "chosen": "good", "rejected": "good"}]
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated = tmp_path / "rated.jsonl"
    rated.write_text("".join(json.dumps({"prompt": f"w{n}", "response": "good", "rating": n}) + "\n" for n in range(1, 6)))
    words = [{"DATA": str(data), "BAD": str(bad), "RATED": str(rated)}.get(word, word) for word in words]
    done = run("dpo", tmp_path / "run", *words, "--model", str(parts.model), "self_test=false")
    assert done.code == 2, done.err
    assert said in done.err

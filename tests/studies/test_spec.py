"""A study file: its cells and their settings, and what is wrong with it, by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from humanward.errors import UserError
from humanward.rounds.loop import stages_of
from humanward.studies import Study, shipped_studies
from humanward.studies.folder import final_numbers, interpolated
from humanward.studies.worker import shared_config

STUDY = """\
title: Which coefficient
preset: study
settings:
  labels.initial: 64
  ppo: {lr: 1.0e-3}
arms:
  low: {ppo.kl_coef: 0.1}
  high:
    ppo: {kl_coef: 0.5}
grid:
  ppo.batch_size: [32, 64]
seeds: [5, 6]
baseline: low batch_size=32
table: [true_score, max(kl)]
curves: [kl]
claims:
  - {says: More is less, check: "kl: low batch_size=32 > high batch_size=32"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "coefficient.yaml"
    path.write_text(STUDY)
    return path


def changed(file: Path, old: str, new: str) -> Path:
    assert old in STUDY
    file.write_text(STUDY.replace(old, new))
    return file


def test_cells_are_arms_times_grid_times_seeds_a_seed_after_the_other(file: Path) -> None:
    study = Study.load(file)
    configs = study.configs()
    arms = ["low batch_size=32", "low batch_size=64", "high batch_size=32", "high batch_size=64"]
    assert study.arms == arms
    assert [(cell.arm, cell.seed) for cell in configs] == [(arm, seed) for seed in (5, 6) for arm in arms]
    found = [(c.seed, c.ppo.kl_coef, c.ppo.batch_size) for c in configs.values()]
    assert found[:5] == [(5, 0.1, 32), (5, 0.1, 64), (5, 0.5, 32), (5, 0.5, 64), (6, 0.1, 32)]
    assert {(c.labels.initial, c.ppo.lr, c.threads, c.baseline_sft) for c in configs.values()} == {(64, 1e-3, 1, None)}
    assert next(iter(configs)).place == "cells/low-batch_size=32/seed-5"


def test_settings_of_the_command_line_are_under_those_of_the_arms(file: Path) -> None:
    configs = Study.load(file, ["ppo.kl_coef=9", "ppo.lr=0.5"]).configs()
    assert {(c.ppo.kl_coef, c.ppo.lr) for c in configs.values()} == {(0.1, 0.5), (0.5, 0.5)}


def test_an_arm_of_another_method_leaves_out_what_is_common_to_the_others(file: Path) -> None:
    study = Study.load(changed(file, "  low: {ppo.kl_coef: 0.1}\n", "  low: {method: dpo, dpo.beta: 0.3}\n").with_suffix(".yaml"))
    with pytest.raises(UserError, match="batch_size"):  # the grid's: given for this arm, which does not read it
        study.configs()
    text = STUDY.replace("  low: {ppo.kl_coef: 0.1}\n", "  low: {method: dpo, dpo.beta: 0.3}\n").replace(
        "grid:\n  ppo.batch_size: [32, 64]\n", ""
    )
    file.write_text(text.replace(" batch_size=32", ""))
    configs = Study.load(file).configs()
    assert {(c.method, c.dpo.beta) for cell, c in configs.items() if cell.arm == "low"} == {("dpo", 0.3)}


def test_an_arm_on_a_score_asks_nobody_and_leaves_the_reward_model_of_the_preset_out(file: Path) -> None:
    study = Study.load(changed(file, "  low: {ppo.kl_coef: 0.1}\n", "  low: {scoring.terms: {positive: 1.0}}\n"))
    stages = {cell.arm.partition(" ")[0]: [stage.name for stage in stages_of(config)] for cell, config in study.configs().items()}
    assert stages == {
        "low": ["prompts", "ppo", "export", "evaluate"], "high": ["prompts", "sample", "label", "reward", "ppo", "export", "evaluate"],
    }  # fmt: skip


def test_cells_share_what_comes_before_the_tuning_where_it_is_the_same(file: Path) -> None:
    arms = "arms:\n  low: {ppo.kl_coef: 0.1}\n  pairs: {labels.kind: pair, labels.responses_per_question: 2}\n  dpo: {method: dpo}\n"
    for old, new in (("grid:\n  ppo.batch_size: [32, 64]\n", ""), (" batch_size=32", ""), ("arms:\n  low: {ppo.kl_coef: 0.1}\n", arms)):
        file.write_text(file.read_text().replace(old, new))
    configs = {(cell.arm, cell.seed): config for cell, config in Study.load(file).configs().items()}
    shared = {key: shared_config(config, None) for key, config in configs.items()}
    assert shared["low", 5] == shared["high", 5]
    assert len({config.model_dump_json() for config in shared.values()}) == 6  # two seeds, and labels of two kinds, and none fitted to
    assert shared["dpo", 5].method == "dpo"
    assert shared_config(configs["low", 5], 9) == shared_config(configs["high", 6], 9)


@pytest.mark.parametrize(
    ("old", "new", "line", "fault"),
    [
        ("low: {ppo.kl_coef: 0.1}", "low: {ppo.kl_cof: 0.1}", 7, "ppo.kl_cof: unknown setting; did you mean ppo.kl_coef?"),
        ("ppo: {kl_coef: 0.5}", "ppo: {kl_coef: much}", 9, "ppo.kl_coef: expected a number"),
        ("[32, 64]", "[32, 63.5]", 11, "ppo.batch_size: expected a whole number"),
        ("ppo: {lr: 1.0e-3}", "ppo: {lr: -1}", 5, "ppo.lr: must be greater than 0"),
        ("baseline: low batch_size=32", "baseline: lwo batch_size=32", 13, "did you mean low batch_size=32?"),
        ("seeds: [5, 6]", "seeds: [5, 5]", 12, "one is there twice"),
        ("max(kl)", "most(kl)", 14, "'most(kl)' is no measure"),
        ("curves: [kl]", "curves: [kl by kl]", 15, "'kl by kl' is no curve"),
        ("> high batch_size=32", "> nobody", 17, "no arm is called 'nobody'"),
        ("seeds: [5, 6]", "seed: 5", 12, "seed: unknown setting; did you mean seeds?"),
    ],
)
def test_a_fault_is_told_in_one_line_with_its_place(file: Path, old: str, new: str, line: int, fault: str) -> None:
    with pytest.raises(UserError) as told:
        Study.load(changed(file, old, new)).configs()
    assert len(str(told.value).splitlines()) == 1
    assert str(told.value).startswith(f"{file}:{line}: ")
    assert fault in str(told.value)


def test_arms_that_would_share_a_folder_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match="would share a folder"):
        Study.load(changed(file, "  high:\n", "  low!:\n"))
    with pytest.raises(UserError, match="an arm's name has no"):
        Study.load(changed(file, "  high:\n", "  hi>gh:\n"))


def test_an_unknown_study_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean kl_controller"):
        Study.load("kl_controler")


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("labeler=people", "labeler: people: cells run by themselves"),
        ("label_store=postgresql://host/one", "label_store: a database belongs to one run"),
        ("labels.rounds=2", "reward_seed: rounds have reward models of their own"),
    ],
)
def test_what_a_run_may_do_and_a_cell_may_not(file: Path, override: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Study.load(changed(file, "seeds: [5, 6]", "seeds: [5, 6]\nreward_seed: 1"), [override]).configs()


def test_the_study_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/studies.md").read_text()
    file = tmp_path / "page.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert len(Study.load(file).configs()) == 12


@pytest.mark.parametrize("name", list(shipped_studies()))
def test_a_shipped_study_is_whole(name: str) -> None:
    """It says where each claim is from, has three seeds or more, and every cell's settings are right."""
    study = Study.load(name)
    assert shipped_studies()[name].endswith((".", "?"))
    assert study.config.about
    assert study.config.claims
    assert len(study.config.seeds) >= 3
    assert [claim.says for claim in study.config.claims if not claim.source] == []
    assert len(study.configs()) == len(study.arms) * len(study.config.seeds) <= 24


def test_final_numbers_and_the_share_of_the_optimum_by_hand() -> None:
    """Reference -2, policy -1 at 1 nat, where the optimum is half way from -2 to 0 between 0 and 2 nats: -1; so the whole of it."""
    results = {
        "scores": {"ppo": {"mean": -1.0}, "reference": {"mean": -2.0}},
        "kl": {"ppo": {"mean": 1.0}},
        "win_rates": [{"policy": "ppo", "against": "sft", "rate": 0.2}, {"policy": "ppo", "against": "reference", "rate": 0.9}],
        "text_quality": {"ppo": {"bits_per_byte": 1.5, "copied_4grams": None}, "reference": {"bits_per_byte": 1.0}},
        "frontier": {"optimum": [[2.0, 0.0], [0.0, -2.0]], "best_of_n": [[1, 0.0, -2.0], [4, 0.6, -1.0]], "best_of_n_by_model": []},
    }
    final, lines = final_numbers(results, "ppo")
    assert final == {
        "true_score": -1.0, "reference_score": -2.0, "kl": 1.0, "win_rate": 0.9, "bits_per_byte": 1.5, "reference_bits_per_byte": 1.0,
        "optimum_at_kl": -1.0, "share_of_optimum": 1.0,
    }  # fmt: skip
    assert lines == {"optimum": [[0.0, -2.0], [2.0, 0.0]], "best_of_n": [[0.0, -2.0], [0.6, -1.0]]}
    assert final_numbers({}, "ppo") == ({}, {})
    assert [interpolated([[0.0, 0.0], [1.0, 2.0]], x) for x in (-1.0, 0.25, 3.0)] == [0.0, 0.5, 2.0]

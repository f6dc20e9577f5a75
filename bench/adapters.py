"""What adapters save and what they cost, beside a training of all weights; and whether a run of the demo learns with them.

    python bench/adapters.py [SFT DPO reward PPO] [--shape S] [--rank 16] [--steps 7]     one JSON line per training, then a table
    python bench/adapters.py learn RUNS_FOLDER [--seed 1] [NAME=VALUE ...]                a small demo with adapters: who is preferred

Both variants of a training run in turn in one process, on the same weights and the same batch; the memory of each is that of a process of
its own, above what stands before its models are built. A full training of PPO has three networks: policy with values, reference, reward
model; with adapters they are one trunk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import torch
from harness import _seconds as seconds
from harness import status
from workloads import language_model, prompts, random_questions, words

from humanward.data import Demonstration, Task, TaskConfig
from humanward.models import LoraConfig, Policy, RewardModel, prepare_cpu
from humanward.rounds.loop import reset_peak_memory
from humanward.storage import Checkpoints
from humanward.trainers import DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from humanward.trainers.run import Trainer

Make = Callable[[str, LoraConfig | None], Trainer]
PROMPT, RESPONSE, STEPS = 256, 64, 64
SETTINGS: dict[str, Any] = {"lr": 1e-6, "lr_schedule": "constant"}
LEARN = (
    "lora.rank=16", "labels.initial=320", "labels.total=512", "ppo.episodes=1024", "evaluation.prompts=200", "evaluation.questions=100",
    "reward.lr=0.003", "ppo.lr=0.004", "baseline_sft=null",
)  # fmt: skip
"""A quarter of the demo, with learning rates for adapters."""


def policy_of(shape: str, lora: LoraConfig | None, **settings: Any) -> Policy:
    policy = Policy(language_model(shape, seed=0, device="cpu"), words(), **settings)
    return policy if lora is None else policy.adapt(lora)


def sft(shape: str, lora: LoraConfig | None) -> Trainer:
    questions = random_questions(16, PROMPT, RESPONSE, 2, 8192)
    rows = [Demonstration(q.prompt.tokens, q.responses[0].tokens, q.prompt.id) for q in questions]
    return SFTTrainer(policy_of(shape, lora), rows, SFTConfig(batch_size=len(rows), epochs=STEPS, **SETTINGS))


def dpo(shape: str, lora: LoraConfig | None) -> Trainer:
    questions = random_questions(8, PROMPT, RESPONSE, 2, 8192)
    policy = policy_of(shape, lora)
    reference = policy.reference() if lora is not None else policy.frozen_copy()
    return DPOTrainer(policy, reference, questions, DPOConfig(batch_size=len(questions), epochs=STEPS, **SETTINGS))


def reward(shape: str, lora: LoraConfig | None) -> Trainer:
    questions = random_questions(8, PROMPT, RESPONSE, 2, 8192)
    config = RewardConfig(batch_size=len(questions), epochs=STEPS, normalize_before=False, normalize_after=False, **SETTINGS)
    model = RewardModel(language_model(shape, seed=0, device="cpu"), words())
    return RewardTrainer(model if lora is None else model.adapt(lora), questions, config)


def ppo(shape: str, lora: LoraConfig | None) -> Trainer:
    policy = policy_of(shape, None, value_head=True)
    if lora is not None:  # the policy's last, since that is what is trained
        model = RewardModel(policy.model, words()).adapt(lora)
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
        reference = policy.adapt(lora).reference()
    else:
        model = RewardModel(language_model(shape, seed=3, device="cpu"), words())
        reference = policy.frozen_copy()
    task = TaskConfig(
        prompt_length=64, response_length=24, prompt_start=None, prompt_end=None, truncate_token=None, suppress_special_tokens=False
    )
    config = PPOConfig(episodes=64 * STEPS, batch_size=64, kl_target=None, **SETTINGS)
    return PPOTrainer(policy, reference, model, prompts(64, 64, 8192, ragged=False), config, task=Task(task, words()))


TRAININGS: dict[str, Make] = {"SFT": sft, "DPO": dpo, "reward": reward, "PPO": ppo}


def measure(name: str, shape: str, lora: LoraConfig, steps: int) -> dict[str, Any]:
    """Seconds per step in turn; numbers and bytes of each variant."""
    variants = {"full": TRAININGS[name](shape, None), "lora": TRAININGS[name](shape, lora)}
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(steps + 1):
        for variant, trainer in [*variants.items()][:: 1 if number % 2 else -1]:
            spent = seconds(lambda trainer=trainer, number=number: trainer.step(number)["lr"], "cpu")
            times[variant] += [spent] if number else []  # the first is not counted
    found: dict[str, Any] = {"training": name, "shape": shape, "rank": lora.rank, "threads": torch.get_num_threads()}
    for variant, trainer in variants.items():
        updater: Any = trainer.updater  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() as folder:
            saved = Checkpoints(folder).save(1, trainer.tensors(), trainer.state())
            checkpoint = sum(file.stat().st_size for file in saved.iterdir())
        found[variant] = {
            "trained": sum(p.numel() for p in updater.trained.values()),
            "optimizer_bytes": sum(t.numel() * t.element_size() for t in updater.state_dict().values()),
            "checkpoint_bytes": checkpoint,
            "peak_bytes": alone(name, shape, variant, lora.rank),
            "seconds": round(statistics.median(times[variant]), 4),
        }
    return found


def alone(name: str, shape: str, variant: str, rank: int) -> int:
    """Bytes that one variant needs at most in two steps, in a process of its own."""
    command = [sys.executable, __file__, name, "--shape", shape, "--rank", str(rank), "--alone", variant]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def peak(name: str, shape: str, lora: LoraConfig | None) -> int:
    reset_peak_memory()
    before = status("VmRSS")
    trainer = TRAININGS[name](shape, lora)
    trainer.step(0)
    trainer.step(1)
    return status("VmHWM") - before


def table(rows: list[dict[str, Any]]) -> str:
    """Of all trainings, all weights beside adapters."""
    lines = ["| | trained numbers | Adam's moments | checkpoint | peak memory | seconds per step |", "|---|---|---|---|---|---|"]
    for row in rows:
        full, lora = row["full"], row["lora"]
        cells = [f"{full['trained'] / 1e6:.2f} M → {lora['trained'] / 1e6:.2f} M"]
        for key in ("optimizer_bytes", "checkpoint_bytes", "peak_bytes"):
            cells.append(f"{full[key] / 1e6:.1f} → {lora[key] / 1e6:.1f} MB")
        cells.append(f"{full['seconds']:.2f} → {lora['seconds']:.2f}")
        lines.append(f"| {row['training']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learn(folder: Path, seed: int, settings: list[str]) -> dict[str, Any]:
    """A small run of the demo with adapters; a run that is there goes on, or is read."""
    command = [sys.executable, "-m", "humanward", "demo", str(folder), "--seed", str(seed), *LEARN, *settings, "--json"]
    if not (folder / "evaluation/results.json").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((folder / "evaluation/results.json").read_text())
    rates = {f"{row['policy']} against {row['against']}": [row["rate"], row["low"], row["high"]] for row in results["win_rates"]}
    rewards = [row["accuracy"] for row in results["reward_model"]]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"seed": seed, "win_rates": rates, "kl": results["kl"]["ppo"]["mean"], "reward_model_accuracy": rewards, "run_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*TRAININGS], help=f"{', '.join(TRAININGS)}; or learn FOLDER")
    parser.add_argument("--shape", default="S")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alone", choices=["full", "lora"], help="print the bytes that one variant needs")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    lora = LoraConfig(rank=args.rank, alpha=2 * args.rank)
    if args.what[0] == "learn":
        print(json.dumps(learn(Path(args.what[1]), args.seed, args.what[2:])))
        return
    prepare_cpu()
    if args.alone is not None:
        print(peak(args.what[0], args.shape, lora if args.alone == "lora" else None))
        return
    rows = [measure(name, args.shape, lora, args.steps) for name in args.what]
    for row in rows:
        print(json.dumps(row), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

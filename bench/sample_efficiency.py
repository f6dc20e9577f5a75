"""True score per episode beside TRL 1.12's PPOTrainer: the same model, reward, prompts, batch and number of episodes.

    TRL_1_12=FOLDER python bench/sample_efficiency.py RUNS_FOLDER [--seeds 1 2 3] [--settings matched default] [--write PAGE.md]

Every run is a process of its own with a thread of its own, two side by side; what is done is not done again. The reward is the embedded
sentiment judge itself, so that the score that a policy is tuned on is the true one. ``matched``: the peer's losses, coefficients and epochs
in both, a value network beside the policy in both, at one learning rate. ``default``: each with its own settings, the batch apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent / "speed"))

from humanward.data import Task, TaskConfig, iter_texts
from humanward.feedback import load_score
from humanward.maths.statistics import t_interval
from humanward.models import Policy, ValueNetwork, context_length, resolve
from humanward.trainers import PPOConfig, PPOTrainer, respond

MODEL, JUDGE = "asset:storyteller", "positive"
BATCH, PROMPT, RESPONSE, TEMPERATURE = 32, 16, 12, 0.7
EPISODES = {"matched": 512, "default": 2048}
"""At either side's default rate a model of this size needs thousands of episodes to move at all."""
EVALUATION = 200
MATCHED = {"lr": 2e-4, "kl_coef": 0.05}
"""What the matched runs have of their own; all else is the peer's default."""
SIDES = ("humanward", "trl")


def task_of(policy: Policy) -> Task:
    config = TaskConfig(
        prompt_length=PROMPT, response_length=RESPONSE, temperature=TEMPERATURE, prompt_start=".", prompt_end=".", truncate_token=None,
        suppress_special_tokens=False,
    )  # fmt: skip
    return Task(config, policy.tokenizer, context_length=context_length(policy.model))


def prompts_of(task: Task) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(training, fresh) prompts."""
    source = Path(resolve(MODEL)).parent / "prompts.jsonl.gz"
    found = list({p.tokens for p in task.iter_prompts(iter_texts(str(source)))})
    found.sort()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i] for i in order[EVALUATION:]], [found[i] for i in order[:EVALUATION]]


def ours(setting: str, seed: int) -> tuple[list[dict[str, float]], Policy]:
    beside = setting == "matched"
    policy = Policy.load(MODEL, value_head=not beside)
    peers = dict(ppo_epochs=4, minibatches=1, **MATCHED, kl_target=None, adam_eps=1e-8, whiten_rewards=False) if beside else {}
    config = PPOConfig(episodes=EPISODES[setting], batch_size=BATCH, **peers)
    task = task_of(policy)
    trainer = PPOTrainer(
        policy, policy.frozen_copy(), load_score(JUDGE), prompts_of(task)[0], config, task=task, seed=seed,
        value_network=ValueNetwork(Policy.load(MODEL).model) if beside else None,
    )  # fmt: skip
    return [{"score": row["score"], "kl": row["kl"]} for row in trainer.run()], policy


class Judge(nn.Module):
    """The judge in the shape that the peer asks of a reward model: a trunk, and a ``score`` of its hidden states."""

    base_model_prefix = "trunk"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.judge = task, load_score(JUDGE)
        self.trunk = self.read
        self.unused = nn.Parameter(torch.zeros(()), requires_grad=False)

    def read(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """The "hidden states" are the scores."""
        texts = [self.task.decode(row) for row in input_ids[:, -RESPONSE:].tolist()]
        scores = torch.tensor(self.judge([""] * len(texts), texts))
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])

    def score(self, states: torch.Tensor) -> torch.Tensor:
        return states


def theirs(setting: str, seed: int) -> tuple[list[dict[str, float]], Policy]:
    from datasets import Dataset
    from ppo import left_padding, trl_1_12

    Config, Trainer = trl_1_12()
    policy = Policy.load(MODEL)
    task = task_of(policy)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    own = {"learning_rate": MATCHED["lr"], "kl_coef": MATCHED["kl_coef"]} if setting == "matched" else {}
    arguments = Config(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, total_episodes=EPISODES[setting],
        response_length=RESPONSE, temperature=TEMPERATURE, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        num_sample_generations=0, save_strategy="no", logging_strategy="no", disable_tqdm=True, eval_strategy="no", seed=seed,
        data_seed=seed, **own,
    )  # fmt: skip
    rows: list[dict[str, float]] = []

    class Keep(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "objective/scores" in logs:
                rows.append({"score": logs["objective/scores"], "kl": logs["objective/kl"]})

    torch.manual_seed(seed)
    folder = resolve(MODEL)
    value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    nn.init.zeros_(value.score.weight)  # as ours: values begin at 0
    tuned, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    tuned.generation_config.eos_token_id = None
    data = Dataset.from_list([{"input_ids": list(row)} for row in prompts_of(task)[0]])
    trainer = Trainer(
        args=arguments, processing_class=left_padding(policy.tokenizer), model=tuned, ref_model=reference, reward_model=Judge(task),
        value_model=value, train_dataset=data, eval_dataset=data, callbacks=[Keep()],
    )  # fmt: skip
    trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, Keep)]
    trainer.train()
    policy.model.load_state_dict(tuned.state_dict())
    return rows, policy


def one(side: str, setting: str, seed: int, file: Path) -> None:
    """A run, and the true score of its policy on prompts that it was not tuned on."""
    torch.set_num_threads(1)
    rows, policy = (ours if side == "humanward" else theirs)(setting, seed)
    task = task_of(policy)
    fresh = prompts_of(task)[1]
    texts = [row[0] for row in respond(policy, fresh, task=task, seed=12345)]
    scores = load_score(JUDGE)([""] * len(texts), texts)
    found = {"side": side, "setting": setting, "seed": seed, "steps": rows, "fresh": sum(scores) / len(scores)}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found) + "\n")
    temporary.rename(file)


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Of one run: mean true score over all its episodes, over the last quarter of them, and on fresh prompts; the KL at its end."""
    last = runs[-max(len(runs) // 4, 1) :]
    return {"all": mean(runs, "score"), "last": mean(last, "score"), "kl": mean(last, "kl")}


def mean(rows: list[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


ABOUT = (
    "Made by `python bench/sample_efficiency.py RUNS --write docs/sample_efficiency.md`: PPO on the embedded model, the sentiment judge as "
    "the reward. `matched`, {} episodes: the losses, coefficients and epochs of the peer in both, at one rate. `default`, {} episodes: "
    "each with its own settings. Batches of {}, seeds {}; Student's 95 % intervals over seeds; differences seed by seed."
)


def table(found: dict[tuple[str, str, int], dict[str, Any]], settings: list[str], seeds: list[int]) -> str:
    """A page: means over seeds with Student's intervals, and paired differences."""
    columns = {"all": "all episodes", "last": "last quarter", "fresh": "fresh prompts", "kl": "KL, last quarter"}
    lines = [
        "# True score per episode beside TRL 1.12", "", ABOUT.format(*EPISODES.values(), BATCH, ", ".join(map(str, seeds))), "",
        "| settings | | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|",
    ]  # fmt: skip
    for setting in settings:
        values = {
            side: [{**summary(found[side, setting, seed]["steps"]), "fresh": found[side, setting, seed]["fresh"]} for seed in seeds]
            for side in SIDES
        }
        for side in SIDES:
            lines.append(f"| {setting} | {side} | " + " | ".join(shown([row[c] for row in values[side]]) for c in columns) + " |")
        differences = [shown([a[c] - b[c] for a, b in zip(values["humanward"], values["trl"], strict=True)]) for c in columns]
        lines.append(f"| {setting} | difference | " + " | ".join(differences) + " |")
    return "\n".join(lines) + "\n"


def shown(values: list[float]) -> str:
    middle = f"{sum(values) / len(values):.3f}"
    if len(values) < 2:
        return middle
    low, high = t_interval(values)
    return f"{middle} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--settings", nargs="+", choices=["matched", "default"], default=["matched", "default"])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "SETTINGS", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one is not None:
        side, setting, seed = args.one
        one(side, setting, int(seed), args.folder / f"{side}-{setting}-{seed}.json")
        return
    runs = [(side, setting, seed) for setting in args.settings for seed in args.seeds for side in SIDES]

    def run(key: tuple[str, str, int]) -> None:
        file = args.folder / "{}-{}-{}.json".format(*key)
        if not file.exists():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            subprocess.run([sys.executable, __file__, str(args.folder), "--one", *map(str, key)], check=True, env=environment)
        print(f"{file} is done", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(run, runs))
    found = {key: json.loads((args.folder / "{}-{}-{}.json".format(*key)).read_text()) for key in runs}
    page = table(found, args.settings, args.seeds)
    print(page)
    if args.write is not None:
        args.write.write_text(page)


if __name__ == "__main__":
    main()

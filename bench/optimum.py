"""How near every method comes to the best possible policy, on problems whose responses can all be listed.

    python bench/optimum.py                                       all methods, results in optimum.jsonl, the table on stdout
    python bench/optimum.py --methods rloo grpo --seeds 3         some of them
    python bench/optimum.py --write docs/optimum.md               the page, from the results that are there and those that are missing

A result that is in the file is not computed again. A method's share is

    (E[r] - beta KL of the policy - that of the reference) / (its optimum, beta log sum rho exp(r / beta) - that of the reference)

exactly, by summing over every response (Ziegler et al. 2019, eq. 2; Rafailov et al. 2023, eq. 4). All methods get the same reference, score
and number of episodes; a learning rate each, chosen once on seeds that the table does not have.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from humanward.maths.optimum import optimal_value
from humanward.models import Policy
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import (
    DPOConfig,
    DPOTrainer,
    ExpertIterationConfig,
    GroupConfig,
    GroupTrainer,
    OnlineDPOConfig,
    PPOConfig,
    PPOTrainer,
)
from humanward.trainers.selftest import WORDS, tiny_policy, tiny_task

PROMPT = (4,)
EPISODES, BATCH = 12_800, 256
NEAR = 0.97
"""Share of the optimum that what optimises the objective is asked to reach."""


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Two for every "good", one and a half for a last "w4": the choices of a response hang together only through the policy's logits."""
    return [2.0 * words.count("good") + 1.5 * (words[-1] == "w4") for words in (response.split() for response in responses)]


@dataclass(frozen=True)
class Problem:
    """All responses of ``length`` words of six, against a random reference."""

    length: int
    beta: float

    def policy(self, seed: int, *, value_head: bool = False) -> Policy:
        return tiny_policy(seed=seed, value_head=value_head)

    def listed(self) -> tuple[Tensor, Tensor]:
        """All responses, [N, R], and their scores, [N]."""
        responses = torch.tensor(list(itertools.product(range(2, 8), repeat=self.length)))
        return responses, torch.tensor(score([], [" ".join(WORDS[t - 2] for t in row) for row in responses.tolist()]), dtype=torch.float64)

    @torch.no_grad()
    def logprobs(self, policy: Policy) -> Tensor:
        """Of every response, [N]."""
        responses, _ = self.listed()
        prompts = torch.tensor([PROMPT]).expand(len(responses), -1)
        masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
        suppressed = policy.suppressed_tokens(keep_eos=False)
        return policy(prompts, masks[0], responses, masks[1], temperature=1.0, suppressed=suppressed).logprobs.double().sum(1)

    def share(self, log_policy: Tensor, log_reference: Tensor) -> tuple[float, float, float]:
        """Of the optimum; with it the policy's mean score and its KL, nats."""
        _, scores = self.listed()
        mean, kl = (log_policy.exp() * scores).sum(), (log_policy.exp() * (log_policy - log_reference)).sum()
        start, best = (log_reference.exp() * scores).sum(), optimal_value(log_reference, scores, self.beta)
        return float((mean - self.beta * kl - start) / (best - start)), float(mean), float(kl)


PROBLEMS = {"2 words": Problem(2, 0.3), "3 words": Problem(3, 0.5)}
Method = Callable[[Problem, int, int], Tensor]
"""(problem, seed, episodes) -> log-probabilities of every response under the tuned policy."""


def ppo(problem: Problem, seed: int, episodes: int, **settings: Any) -> Tensor:
    policy = problem.policy(seed, value_head=True)
    config = PPOConfig(**{"episodes": episodes, "batch_size": BATCH, "lr": 5e-3, "kl_coef": problem.beta, "kl_target": None, **settings})
    task = tiny_task(policy, response_length=problem.length)
    PPOTrainer(policy, policy.frozen_copy(), score, [PROMPT], config, task=task, seed=seed).run()
    return problem.logprobs(policy)


def groups(problem: Problem, seed: int, episodes: int, *, method: str, config: type[Any] = GroupConfig, **settings: Any) -> Tensor:
    """A setting may be a function of the problem."""
    policy = problem.policy(seed)
    given = {name: value(problem) if callable(value) else value for name, value in settings.items()}
    made = config(**{"episodes": episodes, "batch_size": BATCH, "lr": 5e-3, "lr_schedule": "linear", **given})
    task = tiny_task(policy, response_length=problem.length)
    GroupTrainer(policy, policy.frozen_copy(), score, [PROMPT], made, method, task=task, seed=seed).run()
    return problem.logprobs(policy)


def dpo(problem: Problem, seed: int, episodes: int, **settings: Any) -> Tensor:
    """Offline: pairs of the reference's own responses, each labelled once, by somebody who follows Bradley and Terry."""
    policy = problem.policy(seed)
    reference = policy.frozen_copy()
    responses, scores = problem.listed()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(problem.logprobs(reference).exp(), episodes, replacement=True, generator=generator).view(-1, 2)
    better = torch.rand(len(drawn), generator=generator) < torch.sigmoid(scores[drawn[:, 0]] - scores[drawn[:, 1]])
    words = [Response("", tuple(row)) for row in responses.tolist()]
    rows = [
        Comparison(Prompt("p", "", PROMPT), (words[i], words[j]), "pair", 1 - int(first))
        for (i, j), first in zip(drawn.tolist(), better.tolist(), strict=True)
    ]
    config = DPOConfig(
        **{"beta": problem.beta, "lr": 5e-3, "batch_size": BATCH // 2, "epochs": 1, "micro_batch_tokens": 100_000, **settings}
    )
    DPOTrainer(policy, reference, rows, config, seed=seed).run()
    return problem.logprobs(policy)


def best_of_n(problem: Problem, seed: int, episodes: int) -> Tensor:
    """No training: the best of n responses of the reference, for that n of 1 to 64 whose objective is the largest."""
    log_reference = problem.logprobs(problem.policy(seed))
    _, scores = problem.listed()
    found = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        below, upto = (torch.stack([log_reference.exp()[side(scores, s)].sum() for s in scores]) for side in (torch.lt, torch.le))
        # The best has score s with probability P(r <= s)^n - P(r < s)^n; responses of one score share it as under the reference.
        found.append((log_reference.exp() / (upto - below) * (upto**n - below**n)).clamp(min=1e-300).log())
    return max(found, key=lambda logprobs: problem.share(logprobs, log_reference)[0])


def beta(problem: Problem) -> float:
    return problem.beta


TRUST = {"surrogate": "trust_region_rollback", "trust_region_kl": 0.03, "rollback_slope": 0.05}
RLOO = partial(groups, method="rloo", kl_coef=beta, responses_per_prompt=4)
GRPO = partial(groups, method="grpo", kl_coef=beta, responses_per_prompt=64, lr=2e-2)
DR_GRPO = partial(groups, method="dr_grpo", responses_per_prompt=8, lr=2e-2)
REINFORCE = partial(groups, method="reinforce", kl_coef=beta, responses_per_prompt=1, lr=2e-2)
ONLINE_DPO = partial(groups, method="online_dpo", config=OnlineDPOConfig, beta=beta, lr=2e-2)
EXPERT = partial(groups, method="expert_iteration", config=ExpertIterationConfig, responses_per_prompt=8)
METHODS: dict[str, tuple[str, Method]] = {
    "ppo": ("PPO (Ziegler et al. 2019)", ppo),
    "ppo unwhitened": ("PPO, nothing whitened", partial(ppo, whiten_rewards=False, whiten_advantages=False)),
    "ppo-rb": ("PPO-RB (Wang et al. 2019)", partial(ppo, surrogate="rollback")),
    "tr-ppo": ("TR-PPO", partial(ppo, surrogate="trust_region")),
    "tr-ppo-rb": ("TR-PPO-RB", partial(ppo, **TRUST)),
    "ppo kl": ("PPO, adaptive penalty in place of the clip", partial(ppo, surrogate="ratio", old_kl_coef=1.0, old_kl_target=0.01)),
    "ppo k2": (
        "PPO, KL by k2 in the loss", partial(ppo, kl_in="loss", kl_estimator="k2", whiten_rewards=False, whiten_advantages=False)
    ),
    "rloo": ("RLOO (Ahmadian et al. 2024)", partial(RLOO, lr=2e-2)),
    "rloo 4 epochs": ("RLOO, 4 epochs", partial(RLOO, lr=1e-2, epochs=4)),
    "grpo": ("GRPO, KL by k3 in the loss (Shao et al. 2024)", GRPO),
    "grpo k2": ("GRPO, KL by k2 in the loss", partial(GRPO, kl_estimator="k2")),
    "grpo reward": ("GRPO, KL in the reward", partial(GRPO, kl_in="reward")),
    "grpo reward 4 epochs": ("GRPO, KL in the reward, 4 epochs", partial(GRPO, kl_in="reward", lr=1e-2, epochs=4)),
    "dr_grpo": ("Dr. GRPO, no KL (Liu et al. 2025)", DR_GRPO),
    "dr_grpo k2": ("Dr. GRPO, KL by k2 in the loss", partial(DR_GRPO, kl_coef=beta, kl_estimator="k2")),
    "reinforce": ("REINFORCE, running mean (Ahmadian et al. 2024)", REINFORCE),
    "reinforce batch": ("REINFORCE, mean of the batch", partial(REINFORCE, baseline="batch")),
    "online_dpo": ("online DPO, preferences of Bradley and Terry", partial(ONLINE_DPO, preference="bradley_terry")),
    "online_dpo best": ("online DPO, the better one preferred (Guo et al. 2024)", ONLINE_DPO),
    "expert_iteration": ("expert iteration, best of 8", EXPERT),
    "dpo": ("DPO on pairs of the reference, one label each (Rafailov et al. 2023)", partial(dpo, lr=1e-2)),
    "best of n": ("best of n, no training", best_of_n),
}  # fmt: skip


def measure(method: str, problem: str, seed: int, episodes: int = EPISODES) -> dict[str, Any]:
    """One row of results."""
    given = PROBLEMS[problem]
    log_reference = given.logprobs(given.policy(seed))
    started = time.perf_counter()
    found = METHODS[method][1](given, seed, episodes)
    share, mean, kl = given.share(found, log_reference)
    return {
        "method": method, "problem": problem, "seed": seed, "episodes": episodes, "share": share, "score": mean, "kl": kl,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean share over seeds with a 95 % interval (Student's t), by method and problem, and whether it is ``NEAR``."""
    head = [*(f"{name}, beta {p.beta:g}" for name, p in PROBLEMS.items()), *(f"{NEAR:.0%}, {name}" for name in PROBLEMS)]
    lines = [f"| Method | {' | '.join(head)} | Seeds | Seconds |", "|---|" + "---|" * (len(head) + 2)]
    for method, (what, _) in METHODS.items():
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        found = [mean_and_half([row["share"] for row in own if row["problem"] == problem]) for problem in PROBLEMS]
        cells = [*(written(*shares) for shares in found), *(is_near(*shares) for shares in found)]
        seeds = len({row["seed"] for row in own})
        lines.append(f"| {what} | " + " | ".join(cells) + f" | {seeds} | {statistics.mean(row['seconds'] for row in own):.1f} |")
    return "\n".join(lines)


def mean_and_half(shares: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and half its 95 % interval; None where there are too few for it."""
    if len(shares) < 2:
        return (shares[0] if shares else None), None
    half = float(student.ppf(0.975, len(shares) - 1)) * statistics.stdev(shares) / len(shares) ** 0.5
    return statistics.mean(shares), half


def written(mean: float | None, half: float | None) -> str:
    return "" if mean is None else f"{mean:.1%}" if half is None else f"{mean:.1%} ± {half:.1%}"


def is_near(mean: float | None, half: float | None) -> str:
    """Whether the mean is at least ``NEAR``, and whether the whole interval says so."""
    if mean is None:
        return ""
    word = "yes" if mean >= NEAR else "no"
    return f"{word}, shown" if half is not None and abs(mean - NEAR) >= half else word


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/optimum.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="seeds of 100 and above were used to choose the learning rates")
    parser.add_argument("--results", type=Path, default=Path("optimum.jsonl"))
    parser.add_argument("--write", type=Path, help="a page to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(row["method"], row["problem"], row["seed"]) for row in rows}
    for seed, method, problem in itertools.product(range(args.first_seed, args.first_seed + args.seeds), args.methods, PROBLEMS):
        if (method, problem, seed) not in done:
            rows.append(measure(method, problem, seed))
            with args.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{method}, {problem}, seed {seed}: {rows[-1]['share']:.1%}", file=sys.stderr)
    print(table(rows))
    if args.write is not None:
        args.write.write_text(PAGE.format(table=table(rows), episodes=EPISODES, batch=BATCH))


PAGE = """# How near the optimum

<!-- Made by bench/optimum.py: do not edit. -->

On problems whose responses can all be listed, the best policy is known exactly, and so is how near a tuned one comes to it, without any
sampling error: `(E[r] - beta KL) - (that of the reference)` over `beta log sum rho exp(r / beta) - (that of the reference)`. A random
tiny language model is the reference; each response of two or three words of six scores 2 for every "good" and 1.5 for a last "w4". Every
method has {episodes:,} episodes, {batch} a step, and a learning rate that was chosen once on other seeds. Methods of the PPO family make 4
passes over the episodes of a step, the others one where nothing else is said. Means over seeds, each with a
problem of its own, with 95 % intervals (Student's t); seconds for one problem on a busy core. "97%" says whether the mean is at least
that; "shown" where all of the interval is on the same side.

{table}

- What has the KL in its reward goes to the optimum, GRPO too; with one pass over the episodes of a step some problems end a few percent
  before it. With four passes PPO, RLOO and GRPO are shown to reach 97% of it on both problems. With k2 in the loss, PPO and Dr. GRPO go
  the same way; their means are lower after as many updates, and their intervals wide.
- GRPO as published goes elsewhere for two reasons, each with a test: the gradient of k3 in a loss is that of the other divergence, and
  advantages in deviations make the coefficient grow and fall with the spread of the scores. Its `kl_coef` is beta here, in deviations.
- What has no KL (Dr. GRPO as published, expert iteration) or learns from choices alone (online DPO, the better one preferred) goes past
  the optimum, to the highest score at any price. What that costs is a matter of the problem: 6 percent in the mean with 2 words and a
  small beta, half of all with 3 words and a larger one, with an interval that holds 0 and all.
- Offline DPO has what the reference wrote, each pair labelled once with the noise of a labeler; the others are told scores.

Command: `python bench/optimum.py --seeds 5 --write docs/optimum.md`. What the rows mean is said in [methods.md](methods.md).
"""

if __name__ == "__main__":
    main()

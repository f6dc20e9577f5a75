"""Does each direct loss learn as much as with TRL's trainers, from the same weights, in as many steps, on the same pairs in the same order?

    python bench/preference_learning.py RESULTS.jsonl --data ../shared/data/preferences [--pairs 96] [--held-out 96] [--seeds 1 2 3]
                                        [--losses sigmoid ipo ...] [--write docs/preference_learning.md]

The embedded model is tuned on pairs of summeval (which of two summaries people rated higher) and of hh-rlhf's harmless-base test split,
with each loss that TRL has, by `humanward.trainers.DPOTrainer` and by TRL's DPOTrainer, KTOTrainer, CPOTrainer or ORPOTrainer. Then the
same code asks both policies which response of held-out pairs has the higher implicit reward. Prompts keep their last tokens and responses
their first, so that a cell takes seconds. Learning rate, schedule, clipping, AdamW and the log-probabilities of the reference are the same
on both sides. TRL gets each batch whole, since it averages over micro-batches where that matters.

One JSON line per cell (data, loss, seed, trainer) is added to RESULTS; cells that are there are not done again. The table has the accuracy
over all seeds and the difference, Humanward minus TRL, with a 95 % interval over (seed, held-out pair); both answer the same questions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from torch import nn

from humanward.data.batches import epoch_order
from humanward.models import Policy
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import DPOConfig, DPOTrainer, implicit_choices

PROMPT, RESPONSE = 48, 32
"""Tokens kept of each."""
BATCH, LR = 16, 1e-4
DIRECT = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm", "sft",
)  # fmt: skip
"""Losses of TRL's DPOTrainer."""
ALONE = {"cpo": "cpo", "simpo": "cpo", "orpo": "orpo"}
"""Losses without a reference, and the experimental trainer that has them."""
UNPAIRED = ("kto", "apo_zero_unpaired")
LOSSES = (*DIRECT, *ALONE, *UNPAIRED)
OPTIONS: dict[str, dict[str, Any]] = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}
"""Where both sides have another default."""


@cache
def tokenizer() -> Any:
    return Policy.load("asset:storyteller").tokenizer


def question(name: str, prompt: str, chosen: str, rejected: str) -> Comparison | None:
    """A pair with its tokens cut; the chosen one stands first or second by lot. None where the cut leaves nothing to tell apart."""
    ids = [tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, chosen, rejected)]
    before, liked, other = tuple(ids[0][-PROMPT:]), tuple(ids[1][:RESPONSE]), tuple(ids[2][:RESPONSE])
    if not before or not liked or not other or liked == other:
        return None
    best = zlib.crc32(name.encode()) % 2
    responses = (Response("", liked), Response("", other))
    return Comparison(Prompt(name, "", before), responses if best == 0 else responses[::-1], "pair", best, question_id=name)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def summeval(folder: Path) -> Iterator[Comparison | None]:
    for n, row in enumerate(rows_of(folder / "summeval-pairs.jsonl.gz")):
        if row["preferred"] in ("a", "b"):
            chosen, rejected = ("a", "b") if row["preferred"] == "a" else ("b", "a")
            prompt = row["article"] + "\n\nTL;DR:"
            yield question(f"{row['id']}/{n}", prompt, f" {row[f'summary_{chosen}']}", f" {row[f'summary_{rejected}']}")


def harmless(folder: Path) -> Iterator[Comparison | None]:
    for n, row in enumerate(rows_of(folder / "hh-harmless-base-test.jsonl.gz")):
        cut = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
        if row["chosen"][:cut] == row["rejected"][:cut]:
            yield question(str(n), row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:])


DATA: dict[str, Callable[[Path], Iterator[Comparison | None]]] = {"summeval": summeval, "hh-harmless": harmless}


def parts(found: Sequence[Comparison], seed: int, pairs: int, held_out: int) -> tuple[list[Comparison], list[Comparison]]:
    """Pairs to train on and pairs to measure on, by lot; no prompt is in both."""
    order = [found[i] for i in epoch_order(seed, 0, len(found))]
    measured = order[:held_out]
    prompts = {c.prompt.tokens for c in measured}
    return [c for c in order[held_out:] if c.prompt.tokens not in prompts][:pairs], measured


def alone(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Each response of each pair, judged by itself."""
    made = []
    for c in comparisons:
        for k, response in enumerate(c.responses):
            made.append(Comparison(c.prompt, (response,), "binary", int(k == c.target), question_id=c.question_id))
    return made


def model() -> Policy:
    return Policy.load("asset:storyteller", dtype=torch.float32)


def config(loss: str, cache_folder: Path | None) -> DPOConfig:
    reference = {"reference": "none"} if loss in ALONE else {"reference": "precomputed", "reference_cache": cache_folder}
    batch = 2 * BATCH if loss in UNPAIRED else BATCH
    return DPOConfig(loss=loss, batch_size=batch, lr=LR, lr_schedule="linear", **OPTIONS.get(loss, {}), **reference)  # pyright: ignore[reportArgumentType]


def ours(loss: str, training: Sequence[Comparison], seed: int, cache_folder: Path) -> tuple[Policy, DPOTrainer]:
    policy = model()
    trainer = DPOTrainer(policy, None if loss in ALONE else model(), training, config(loss, cache_folder), seed=seed)
    trainer.run()
    return policy, trainer


def theirs(loss: str, training: Sequence[Comparison], seed: int, cache_folder: Path) -> Policy:
    """TRL's loss and gradient for the batches of our trainer, in their order, under the same schedule."""
    start = model()
    plan = DPOTrainer(model(), None if loss in ALONE else model(), training, config(loss, cache_folder), seed=seed)
    trainer = their_trainer(loss, start.model)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    for index in range(plan.total_steps):
        batch = their_batch(loss, trainer, plan, plan.rows(index))
        trainer.training_step(trainer.model, batch)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        for group in trainer.optimizer.param_groups:
            group["lr"] = LR * (1 - index / plan.total_steps)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    return start


def their_trainer(loss: str, network: Any) -> Any:
    from datasets import Dataset

    shared: dict[str, Any] = {
        "output_dir": tempfile.gettempdir() + "/preference-learning", "per_device_train_batch_size": 2 * BATCH, "use_cpu": True,
        "bf16": False, "report_to": "none", "gradient_checkpointing": False, "learning_rate": LR,
        "disable_dropout": True, "max_length": None,
        "logging_strategy": "no", "save_strategy": "no", "weight_decay": 0.0,
    }  # fmt: skip
    pair = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    if loss in DIRECT:
        from trl.trainer.dpo_config import DPOConfig as Config
        from trl.trainer.dpo_trainer import DPOTrainer as Trainer

        arguments = Config(**shared, loss_type=[loss], beta=0.1, precompute_ref_log_probs=True, **OPTIONS.get(loss, {}))
        return Trainer(model=network, args=arguments, train_dataset=pair, processing_class=tokenizer())
    if loss in UNPAIRED:
        from trl.trainer.kto_config import KTOConfig
        from trl.trainer.kto_trainer import KTOTrainer

        arguments = KTOConfig(**shared, loss_type=loss, beta=0.1, precompute_ref_log_probs=True, train_sampling_strategy="sequential")
        rows = Dataset.from_list([{"prompt": "a", "completion": text, "label": text == " b"} for text in (" b", " c")])
        return KTOTrainer(model=network, args=arguments, train_dataset=rows, processing_class=tokenizer())
    if ALONE[loss] == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer(model=network, args=ORPOConfig(**shared, beta=0.1), train_dataset=pair, processing_class=tokenizer())
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    kind = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5} if loss == "simpo" else {"loss_type": "sigmoid", "cpo_alpha": 1.0}
    return CPOTrainer(model=network, args=CPOConfig(**shared, beta=0.1, **kind), train_dataset=pair, processing_class=tokenizer())


def their_batch(loss: str, trainer: Any, plan: DPOTrainer, rows: Sequence[int]) -> dict[str, Any]:
    """The same questions as TRL's collators make batches of them."""
    some = [plan.comparisons[row] for row in rows]
    if loss in ALONE:
        return concatenated(some)
    assert plan.known is not None
    known = [reference_logprobs(plan, row) for row in rows]
    if loss in UNPAIRED:
        crossed = [*range(1, len(some)), 0]
        examples = [
            {
                "prompt_ids": [*c.prompt.tokens], "completion_ids": [*c.responses[0].tokens], "label": bool(c.target),
                "KL_completion_ids": [*some[k].responses[0].tokens], "ref_logps": said[0],
                "ref_KL_logps": crossed_logprob(plan, c, some[k]),
            }
            for c, said, k in zip(some, known, crossed, strict=True)
        ]  # fmt: skip
        return trainer.data_collator(examples)
    examples = []
    for c, said in zip(some, known, strict=True):
        best = int(c.target)  # pyright: ignore[reportArgumentType]  an index
        chosen, rejected = c.responses[best], c.responses[1 - best]
        examples.append(
            {
                "prompt_ids": [*c.prompt.tokens], "chosen_ids": [*chosen.tokens], "rejected_ids": [*rejected.tokens],
                "ref_chosen_logps": said[best], "ref_rejected_logps": said[1 - best],
            }
        )  # fmt: skip
    return trainer.data_collator(examples)


def reference_logprobs(plan: DPOTrainer, row: int) -> list[float]:
    from humanward.trainers.questions import collate

    assert plan.known is not None
    question = collate([plan.comparisons[row]], 0, torch.device("cpu"))
    return plan.known.ahead([row]).logprobs(question, [row]).sum(-1)[0].tolist()


@torch.no_grad()
def crossed_logprob(plan: DPOTrainer, c: Comparison, other: Comparison) -> float:
    """What the reference, which the plan's policy still is, says of another row's response."""
    prompt, response = (torch.tensor([list(tokens)]) for tokens in (c.prompt.tokens, other.responses[0].tokens))
    mask = torch.ones_like(response, dtype=torch.bool)
    return float(plan.policy(prompt, torch.ones_like(prompt, dtype=torch.bool), response, mask, temperature=1.0).logprobs.sum())


def concatenated(some: Sequence[Comparison]) -> dict[str, Any]:
    """Prompt and response in one row, as CPO and ORPO want them."""
    from humanward.data.batches import right_pad

    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        rows, labels = [], []
        for c in some:
            best = int(c.target)  # pyright: ignore[reportArgumentType]  an index
            response = c.responses[best if side == "chosen" else 1 - best].tokens
            rows.append((*c.prompt.tokens, *response))
            labels.append(((-100,) * len(c.prompt.tokens), response))
        ids, mask = right_pad(rows, 1)
        target = torch.full_like(ids, -100)
        for n, (before, response) in enumerate(labels):
            target[n, len(before) : len(before) + len(response)] = torch.tensor(response)
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask.long(), f"{side}_labels": target}
    return batch


def correct(policy: Policy, loss: str, measured: Sequence[Comparison]) -> str:
    """One digit per held-out pair: 1 where the chosen response has the higher implicit reward."""
    objective = config(loss, None).objective if loss in ALONE else config("sigmoid", None).objective
    choices = implicit_choices(policy.eval(), None if loss in ALONE else model(), measured, objective)
    return "".join(str(int(choice == c.target)) for choice, c in zip(choices, measured, strict=True))


def cell(found: Sequence[Comparison], loss: str, seed: int, who: str, given: argparse.Namespace, cache_folder: Path) -> dict[str, Any]:
    training, measured = parts(found, seed, given.pairs, given.held_out)
    rows = alone(training) if loss in UNPAIRED else training
    torch.manual_seed(seed)
    started = time.monotonic()
    policy = ours(loss, rows, seed, cache_folder)[0] if who == "humanward" else theirs(loss, rows, seed, cache_folder)
    seconds = time.monotonic() - started
    return {"correct": correct(policy, loss, measured), "pairs": len(training), "seconds": round(seconds, 2)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row per data set and loss that both sides have."""
    lines = ["| data | loss | Humanward | TRL | difference, points | seeds x pairs | seconds, both |", "|---|---|---|---|---|---|---|"]
    for data in DATA:
        for loss in LOSSES:
            mine = {(row["seed"], row["who"]): row for row in rows if (row["data"], row["loss"]) == (data, loss)}
            seeds = sorted(seed for seed, who in mine if who == "humanward" and (seed, "trl") in mine)
            if seeds:
                lines.append(f"| {data} | {loss} | {compared(mine, seeds)} |")
    return "\n".join(lines)


def compared(mine: dict[tuple[int, str], dict[str, Any]], seeds: Sequence[int]) -> str:
    answers = {who: [int(digit) for seed in seeds for digit in mine[seed, who]["correct"]] for who in ("humanward", "trl")}
    n = len(answers["trl"])
    means = {who: sum(values) / n for who, values in answers.items()}
    differences = [a - b for a, b in zip(answers["humanward"], answers["trl"], strict=True)]
    mean = sum(differences) / n
    half = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    seconds = [sum(mine[seed, who]["seconds"] for seed in seeds) for who in ("humanward", "trl")]
    points = f"{100 * mean:+.1f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"
    shares = " | ".join(f"{means[who]:.1%}" for who in ("humanward", "trl"))
    return f"{shares} | {points} | {len(seeds)} x {n // len(seeds)} | {seconds[0]:.0f}, {seconds[1]:.0f}"


READ = """An interval of 0 means that both policies answered every held-out question alike. Six updates of a small model leave its accuracy
near that of a coin: the table compares trainers, not losses. ORPO differs by intent: TRL fine-tunes on the prompt too, here as in the paper
the response alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of summeval-pairs.jsonl.gz and hh-harmless-base-test.jsonl.gz")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--only", nargs="+", choices=tuple(DATA), default=tuple(DATA))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page that the table is written to")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    keys = {(row["data"], row["loss"], row["seed"], row["who"]) for row in done}
    with tempfile.TemporaryDirectory() as cache_folder, given.results.open("a") as out:
        for data in given.only:
            found = [c for c in DATA[data](given.data) if c is not None]
            for seed in given.seeds:
                for loss in given.losses:
                    for who in ("humanward", "trl"):
                        if (data, loss, seed, who) in keys:
                            continue
                        row = {"data": data, "loss": loss, "seed": seed, "who": who}
                        row |= cell(found, loss, seed, who, given, Path(cache_folder))
                        done.append(row)
                        print(json.dumps(row), file=out, flush=True)
                        print(f"{data} {loss} seed {seed} {who}: {row['seconds']} s", file=sys.stderr)
    print(table(done))
    if given.write is not None:
        head = (__doc__ or "").split("\n\n")
        marked = "# Direct losses beside TRL's\n\n<!-- Made by bench/preference_learning.py: do not edit. -->"
        given.write.write_text(f"{marked}\n\n{head[0]}\n\n{head[2]}\n\n{head[3].rstrip()}\n\n{table(done)}\n\n{READ}\n")


if __name__ == "__main__":
    main()

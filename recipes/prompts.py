"""Let the embedded model write the demo's prompts: passages from which the task's rule cuts its prompts.

    python recipes/prompts.py MODEL_FOLDER OUT.jsonl.gz --passages 4000

Nothing in the file was written by a person: every passage is sampled from the model, behind a single full stop, so that it begins as
the next sentence of a story and not as a title page.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import torch

from humanward.models import Policy, SamplingSettings, prepare_cpu, sample_responses
from humanward.storage import derive_seed

LENGTH = 80
"""Tokens of a passage: the first sentence is cut away by the task's rule, the next ones are the prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prepare_cpu()
    policy = Policy.load(args.model)
    settings = SamplingSettings(LENGTH, temperature=args.temperature, top_p=1.0)
    rows: list[str] = []
    for start in range(0, args.passages, 256):
        count = min(256, args.passages - start)
        prompts = torch.full((count, 1), policy.tokenizer.convert_tokens_to_ids("."))
        seeds = [derive_seed(args.seed, "passage", start + i) for i in range(count)]
        samples = sample_responses(policy, prompts, torch.ones_like(prompts, dtype=torch.bool), settings, seeds=seeds)
        rows += policy.tokenizer.batch_decode(samples.responses[:, 0])
        print(f"{len(rows)} of {args.passages} passages", flush=True)
    text = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
    args.out.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()

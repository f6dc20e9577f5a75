"""Models, batches and their arithmetic: what both sides of a row are given, and the least that it takes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerBase

from humanward.models import resolve
from humanward.records import Comparison, Prompt, Response
from humanward.trainers.selftest import tiny_tokenizer

SHAPES = {
    "S": {"n_layer": 10, "n_embd": 256, "n_head": 4, "vocab_size": 8192},
    "M": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "0.5B": {"n_layer": 24, "n_embd": 1280, "n_head": 20, "vocab_size": 50257},
    "1.5B": {"n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257},
}
"""GPT-2 shapes with random weights: S has 10 million, M is GPT-2 small."""
EOS, PAD = 0, 1
HH = Path(__file__).parents[2].parent / "shared/data/preferences/hh-harmless-base-test.jsonl.gz"


def shape(name: str) -> GPT2Config:
    """Without dropout."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**SHAPES[name], **off, n_positions=1024, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)


def language_model(name: str, *, seed: int, device: str, end_rate: float = 0.0) -> GPT2LMHeadModel:
    """Random weights. ``end_rate``: about so likely is the end-of-text token after every token, so that responses are ragged."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(shape(name)).eval()
    if end_rate:
        with torch.no_grad():
            # A direction that every last hidden state has through the bias of the last norm, and the end's embedding alone.
            width = model.config.n_embd
            direction = torch.randn(width).sign() * 0.5
            logit = torch.tensor(model.config.vocab_size * end_rate / (1 - end_rate)).log()
            model.transformer.ln_f.bias.copy_(direction)
            model.transformer.wte.weight[EOS] = direction * logit / direction.square().sum()
    return model.to(device)


def scorer(name: str, *, seed: int, device: str) -> GPT2ForSequenceClassification:
    """A trunk with one number at the end of it."""
    config = shape(name)
    config.num_labels = 1
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(config).eval().to(device)


def words() -> PreTrainedTokenizerBase:
    """A tokenizer whose end and pad are tokens 0 and 1; the batches are token ids already."""
    return tiny_tokenizer()


def random_questions(count: int, prompt: int, response: int, K: int, vocabulary: int) -> list[Comparison]:
    """K random responses of one length to each random prompt: a choice of the first of two, or an order of more."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, vocabulary, (count, prompt + K * response), generator=generator).tolist()
    return [
        question(str(n), row[:prompt], [row[prompt + k * response : prompt + (k + 1) * response] for k in range(K)])
        for n, row in enumerate(tokens)
    ]


def question(name: str, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Comparison:
    K = len(responses)
    kind, target = ("best_of_k", 0) if K == 2 else ("ranking", list(range(K)))
    return Comparison(Prompt(name, "", tuple(prompt)), tuple(Response("", tuple(r)) for r in responses), kind, target)


def real_questions(count: int, *, longest: int = 1000) -> list[Comparison]:
    """Dialogues of hh-rlhf's harmless-base test split, tokenised by the embedded tokenizer, cut where chosen and rejected part.

    Raises:
        SystemExit: the file is not there.
    """
    if not HH.exists():
        raise SystemExit(f"{HH}: not there; this row needs the harmless-base test split of hh-rlhf as jsonl.gz")
    tokenizer = AutoTokenizer.from_pretrained(resolve("asset:storyteller"))
    rows: list[Comparison] = []
    with gzip.open(HH, "rt") as file:
        for line in file:
            pair = json.loads(line)
            cut = pair["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            if pair["chosen"][:cut] != pair["rejected"][:cut]:
                continue
            prompt, chosen, rejected = (
                tokenizer(text)["input_ids"] for text in (pair["chosen"][:cut], pair["chosen"][cut:], pair["rejected"][cut:])
            )
            if chosen and rejected and len(prompt) + max(len(chosen), len(rejected)) <= longest:
                rows.append(question(str(len(rows)), prompt, [chosen, rejected]))
    # Of all lengths, in a fixed order.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in order[:count]]


def lengths(questions: Sequence[Comparison]) -> list[tuple[int, list[int]]]:
    return [(len(q.prompt.tokens), [len(r.tokens) for r in q.responses]) for q in questions]


def prompts(count: int, longest: int, vocabulary: int, *, ragged: bool) -> list[list[int]]:
    """Random tokens; ragged: of an eighth of the length to all of it."""
    generator = torch.Generator().manual_seed(0)
    size = [int(n) for n in torch.randint(longest // 8, longest + 1, (count,), generator=generator)] if ragged else [longest] * count
    return [torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in size]


def forward_flop(name: str, rows: Sequence[tuple[int, Sequence[int]]], *, head: bool) -> float:
    """Multiplications and additions of one forward, each prompt computed once for its responses; attention over what is visible only.

    Args:
        name: of the shape.
        rows: length of a prompt, lengths of its responses.
        head: the LM head runs at every response token.
    """
    s = SHAPES[name]
    weights = 12 * s["n_layer"] * s["n_embd"] ** 2
    total = 0.0
    for prompt, responses in rows:
        tokens = prompt + sum(responses)
        seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
        total += 2 * weights * tokens + 4 * s["n_layer"] * s["n_embd"] * seen
        total += 2 * s["n_embd"] * s["vocab_size"] * sum(responses) if head else 0
    return total

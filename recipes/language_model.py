"""Train the embedded language model on a folder of books.

    python recipes/language_model.py ../shared/data/books TOKENIZER_FOLDER OUT_FOLDER --minutes 88

A Llama-shaped model of 7.5 M parameters, stored in bfloat16 (15 MB). Hidden matrices are trained with Muon, the rest with AdamW; both
learning rates warm up, hold and fall to zero over the given minutes. Batches are windows of the books, 60 % from children's books; the last
sixth of the time uses windows of 512 tokens instead of 256, so that the whole context is trained. A snapshot is saved every ten minutes and
training goes on from it if the command is stopped and repeated. The end prints bits per byte on the held-out books (recipes/corpus.py).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from corpus import Book, books
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from humanward.models import prepare_cpu

CONTEXT = 512
BATCH_TOKENS = 8192
CHILDREN_SHARE = 0.6
MUON_LR, ADAM_LR = 5e-3, 2e-3


def stream(tokenizer: PreTrainedTokenizerFast, chosen: list[Book]) -> Tensor:
    """All books as one row of token ids, an end token after each."""
    ids: list[int] = []
    for book in chosen:
        ids += tokenizer(book.text, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
    return torch.tensor(ids)


def windows(tokens: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(tokens) - length, (rows, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: list[Book], limit: int | None = None) -> float:
    """Every token is predicted once, from at least half a context before it (less only at a book's beginning)."""
    nats, size, half = 0.0, 0, CONTEXT // 2
    for book in held_out:
        text = book.text[:limit]
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text, verbose=False)["input_ids"]])
        size += len(text.encode())
        for start in range(0, max(1, len(ids) - half), half):
            row = ids[start : start + CONTEXT]
            logits = model(row[None]).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
            nats += loss[0 if start == 0 else half - 1 :].sum().item()
    return nats / size / math.log(2)


def learning_rate(progress: float) -> float:
    """Warm up for 2 %, hold, fall linearly to zero over the last half."""
    return min(1.0, progress / 0.02, max(0.0, (1 - progress) / 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=88.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    prepare_cpu()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    corpus = books(args.books)
    held_out = [b for b in corpus if b.held_out]
    children = stream(tokenizer, [b for b in corpus if b.children and not b.held_out])
    novels = stream(tokenizer, [b for b in corpus if not b.children])
    print(f"{len(children):,} tokens of children's books, {len(novels):,} of novels", flush=True)

    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=320, intermediate_size=864, num_hidden_layers=5, num_attention_heads=5,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    print(f"{model.num_parameters():,} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)

    snapshot = args.out.with_suffix(".snapshot.pt")
    step, seen, elapsed = 0, 0, 0.0
    if snapshot.exists():
        state = torch.load(snapshot, weights_only=True)  # careful: only this recipe's own file; the product never reads pickle
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, seen, elapsed = state["step"], state["seen"], state["elapsed"]
    started, saved_at, mean = time.monotonic() - elapsed, elapsed, float("nan")
    while (elapsed := time.monotonic() - started) < args.minutes * 60:
        progress = elapsed / (args.minutes * 60)
        for optimizer, lr in ((muon, MUON_LR), (adam, ADAM_LR)):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(progress)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        length = CONTEXT // 2 if progress < 5 / 6 else CONTEXT
        rows = BATCH_TOKENS // length
        from_children = int(torch.binomial(torch.tensor(float(rows)), torch.tensor(CHILDREN_SHARE), generator=generator))
        batch = torch.cat([windows(children, from_children, length, generator), windows(novels, rows - from_children, length, generator)])
        for micro in batch.split(4096 // length):
            loss = model(micro, labels=micro, use_cache=False).loss * len(micro) / rows
            loss.backward()
            mean = loss.item() * rows / len(micro)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + rows * length
        if step % 50 == 0:
            print(f"step {step}  {elapsed / 60:.1f} min  {seen / 1e6:.2f} M tokens  loss {mean:.3f}", flush=True)
        if elapsed - saved_at > 600:
            saved_at = elapsed
            torch.save(
                {
                    "model": model.state_dict(),
                    "muon": muon.state_dict(),
                    "adam": adam.state_dict(),
                    "step": step,
                    "seen": seen,
                    "elapsed": elapsed,
                },
                snapshot,
            )
            save(model, tokenizer, args.out)
            print(
                f"  saved; {bits_per_byte(model, tokenizer, held_out, 40_000):.3f} bits per byte on the beginnings of held-out books",
                flush=True,
            )
    save(model, tokenizer, args.out)
    stored = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    figures = {
        "steps": step,
        "tokens": seen,
        "minutes": args.minutes,
        "bits_per_byte": round(bits_per_byte(stored, tokenizer, held_out), 4),
    }
    print(json.dumps(figures), flush=True)
    snapshot.unlink(missing_ok=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    import copy

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

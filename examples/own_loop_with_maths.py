"""PPO in a loop of one's own: a plain transformers model, and of this package only ``humanward.maths``.

    python examples/own_loop_with_maths.py MODEL_FOLDER --letter e

One prompt, a reward on the text of each response, advantages from the batch's own mean: no value head, no trainer.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from humanward.maths import add_at_last_token, gae, gather_logprobs, masked_mean, ppo_clip_loss, whiten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face name or folder")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--letter", default="e", help="the reward is this letter's share of a response")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--kl-coef", type=float, default=0.001, help="score units per nat")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.model).eval() for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    prompts = tokenizer([args.prompt] * args.batch_size, return_tensors="pt").input_ids
    P = prompts.shape[1]

    def logprobs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return gather_logprobs(model(ids).logits[:, P - 1 : -1], ids[:, P:], temperature=1.0)  # [B, R]

    for step in range(args.steps):
        with torch.no_grad():
            ids = policy.generate(prompts, do_sample=True, top_k=0, min_new_tokens=24, max_new_tokens=24, pad_token_id=0)
            old, reference_logprobs = logprobs(policy, ids), logprobs(reference, ids)
        mask = torch.ones_like(old, dtype=torch.bool)
        texts = tokenizer.batch_decode(ids[:, P:])
        scores = torch.tensor([text.count(args.letter) / max(len(text), 1) for text in texts])
        kl = old - reference_logprobs  # per token, nats
        rewards = add_at_last_token(-args.kl_coef * kl, scores - scores.mean(), mask)
        advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
        advantages = whiten(advantages, mask)
        for _ in range(4):
            loss = masked_mean(ppo_clip_loss(logprobs(policy, ids), old, advantages, clip_range=0.2), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"step {step}: score {scores.mean():.3f}, KL {kl.sum(1).mean():z.2f} nats per response, {texts[0]!r}")


if __name__ == "__main__":
    main()

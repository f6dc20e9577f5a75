"""Why the study `copier` does not make a copier of the embedded model: it cannot copy."""

from itertools import islice

import torch

from humanward.data import iter_texts
from humanward.models import Policy


def nats_per_token(policy: Policy, rows: torch.Tensor, start: int) -> float:
    with torch.no_grad():
        logprobs = policy.model(rows).logits.log_softmax(-1)
    return -float(logprobs[:, start - 1 : -1].gather(-1, rows[:, start:, None]).mean())


def test_the_embedded_model_does_not_need_fewer_bits_for_what_it_has_just_read():
    policy = Policy.load("asset:storyteller")
    texts = [policy.tokenizer(text.text)["input_ids"][:32] for text in islice(iter_texts("asset:prompts"), 64)]
    passages = torch.tensor([ids for ids in texts if len(ids) == 32])
    first = passages[:, :16]
    repeated = nats_per_token(policy, torch.cat([first, first], dim=1), 20)  # four tokens in which to see that it repeats
    going_on = nats_per_token(policy, passages, 20)
    assert len(passages) > 50
    assert repeated > going_on - 0.2

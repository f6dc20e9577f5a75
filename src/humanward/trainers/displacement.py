"""The displacement meter: where the probability goes that a direct method moves.

A loss of margins is content with two likelihoods that both fall, as long as the rejected one falls faster; what they lose goes to
responses that nobody judged (Razin et al. 2024, arXiv:2410.08847; Xu et al. 2024, arXiv:2404.10719, theorem 4.1). These numbers are
logged in every step; ``guards.Watch`` says in words when they look ill.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from humanward.trainers.objective import Said
from humanward.trainers.questions import Questions
from humanward.trainers.updates import sum_over_processes


class Meter:
    """Sums over the questions of a step, on all processes, from which its metrics follow.

    Labels that prefer nothing, such as ties, have neither chosen nor rejected responses; where several responses are the best, all of them
    are chosen.

    accuracy, margin: share of questions in which a preferred response has the highest implicit reward; the lead of the preferred ones' mean
        over the others', score units. Without a reference the reward is beta times the mean log-probability per token.
    chosen_logprob, rejected_logprob: log pi, nats per response.
    chosen_moved, rejected_moved, and the same _per_token: log(pi / rho), nats.
    mass_off_both: share of the reference's probability of all responses of a question that has gone elsewhere, 0 to 1.
    both_fell: share of questions whose chosen and rejected responses are both less likely than under the reference.
    length_confound: correlation of the margin with the lead in tokens, -1 to 1.
    chosen_eos_moved, rejected_eos_moved: log(pi / rho) of the end-of-text token alone, where a response has it: below 0, responses end
        later.
    """

    def __init__(self, beta: float, eos_id: int, device: torch.device) -> None:
        self.beta, self.eos_id = beta, eos_id
        self.sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self.mean_reward = math.nan
        """Of chosen, rejected and tied responses alike, score units; known after ``metrics``."""

    @torch.no_grad()
    def add(self, said: Said, questions: Questions, scores: Float[Tensor, "B K"], weight: Float[Tensor, " B"]) -> None:
        """Count questions; ``scores`` are their implicit rewards in units of beta, ``weight`` is 0 for those that only fill a batch."""
        K = questions.target.shape[1]
        mask = questions.response_mask
        length = mask.sum(-1)
        if K == 1:
            chosen, rejected = questions.target, 1 - questions.target
            both = torch.ones_like(chosen)
        else:
            best = questions.are_best
            decided = ~best.all(1, keepdim=True)
            chosen = (best & decided).to(scores.dtype) / best.sum(1, keepdim=True)
            rejected = (~best).to(scores.dtype) / (~best).sum(1, keepdim=True).clamp(min=1)
            both = torch.where(decided, (chosen + rejected) / 2, 1 / K)
        rewards = self.beta * scores
        logprob = said.logprobs.sum(-1)
        right = chosen.gather(1, rewards.argmax(1, keepdim=True)).squeeze(1) > 0
        rows = {"questions": torch.ones_like(weight), "right": right, "reward": both * rewards}
        for name, share in (("chosen", chosen), ("rejected", rejected)):
            rows |= {name: share, f"{name}_reward": share * rewards, f"{name}_logprob": share * logprob, f"{name}_tokens": share * length}
            if said.reference is not None:
                moved = said.logprobs - said.reference
                ends = mask & (questions.responses == self.eos_id)
                rows |= {f"{name}_moved": share * moved.sum(-1), f"{name}_ends": share * ends.any(-1)}
                rows[f"{name}_eos_moved"] = share * (moved * ends).sum(-1)
        if said.reference is not None:
            before = said.reference.sum(-1)
            rows["mass_off"] = -(logprob.logsumexp(1) - before.logsumexp(1)).clamp(max=0).expm1()
            rows["both_fell"] = (rows["chosen_moved"].sum(1) < 0) & (rows["rejected_moved"].sum(1) < 0)
        margin, lead = (((chosen - rejected) * x).sum(1).double() for x in (rewards, length))
        rows |= {"margin": margin, "lead": lead, "margin2": margin * margin, "lead2": lead * lead, "margin_lead": margin * lead}
        for name, values in rows.items():
            per_question = values.double() if values.dim() == 1 else values.double().sum(1)
            self.sums[_NAMES.index(name)] += (per_question * weight).sum()

    def metrics(self, accelerator: Accelerator, *, pairs: bool, reference: bool) -> dict[str, float]:
        """Of the global batch. What nothing is known of is left out."""
        s = dict(zip(_NAMES, sum_over_processes(accelerator, self.sums).tolist(), strict=True))
        self.mean_reward = _ratio(s["reward"], s["questions"])
        found = {
            "margin": _ratio(s["chosen_reward"], s["chosen"]) - _ratio(s["rejected_reward"], s["rejected"]),
            **{f"{name}_logprob": _ratio(s[f"{name}_logprob"], s[name]) for name in ("chosen", "rejected")},
        }
        if pairs:
            n = s["chosen"]
            spread = math.sqrt(max(n * s["margin2"] - s["margin"] ** 2, 0.0) * max(n * s["lead2"] - s["lead"] ** 2, 0.0))
            found |= {"accuracy": _ratio(s["right"], n), "length_confound": _ratio(n * s["margin_lead"] - s["margin"] * s["lead"], spread)}
        if reference:
            for name in ("chosen", "rejected"):
                found[f"{name}_moved"] = _ratio(s[f"{name}_moved"], s[name])
                found[f"{name}_moved_per_token"] = _ratio(s[f"{name}_moved"], s[f"{name}_tokens"])
                found[f"{name}_eos_moved"] = _ratio(s[f"{name}_eos_moved"], s[f"{name}_ends"])
            found["mass_off_both"] = s["mass_off"] / s["questions"]
            if pairs:
                found["both_fell"] = _ratio(s["both_fell"], s["chosen"])
        return {name: value for name, value in found.items() if not math.isnan(value)}


_NAMES = (
    "questions", "right", "reward", "margin", "lead", "margin2", "lead2", "margin_lead", "mass_off", "both_fell",
    *(f"{side}{what}" for side in ("chosen", "rejected")
      for what in ("", "_reward", "_logprob", "_tokens", "_moved", "_ends", "_eos_moved")),
)  # fmt: skip


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan

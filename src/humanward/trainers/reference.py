"""The reference of a direct method: a model that is asked, or what it said once, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from humanward.models import Policy, ResponseOutputs
from humanward.records import Comparison
from humanward.storage import atomic_folder, verify_folder
from humanward.storage.tensors import StoredTensors, tensor_bytes, write_tensors
from humanward.trainers.questions import Questions, collate, tokens_of
from humanward.trainers.updates import micro_batches, sum_over_processes, weights


class Reference(Protocol):
    """Whoever knows log rho of the responses of a training set."""

    def ahead(self, rows: Sequence[int]) -> StoredReference:
        """What it says about the questions at these places, before the first forward with gradient."""
        ...


class ModelReference:
    """A model that is asked in every step; synchronised with the policy where TR-DPO is wanted.

    Args:
        model: on the device where it is asked.
        comparisons: the training set.
        micro_batch_tokens: of a forward, at most; None: as many as are fast.
    """

    def __init__(self, model: Policy, comparisons: Sequence[Comparison], micro_batch_tokens: int | None) -> None:
        self.model, self.comparisons, self.micro_batch_tokens = model, comparisons, micro_batch_tokens

    def ahead(self, rows: Sequence[int]) -> StoredReference:
        """Fewer and longer forwards than those with gradient, and one for a loss that goes over its batch twice."""
        comparisons = [self.comparisons[row] for row in rows]
        return StoredReference(_ask_each(self.model, comparisons, self.micro_batch_tokens), comparisons, rows)

    @torch.no_grad()
    def move(self, policy: dict[str, Tensor], rate: float) -> None:
        """Go ``rate`` of the way to the policy. Gorbatovski et al. 2024 (arXiv:2404.09656): a soft update, and at 1 a hard one."""
        for name, tensor in weights(self.model, only=policy).items():  # what is frozen is the same in both
            if rate == 1.0 or not tensor.is_floating_point():
                tensor.copy_(policy[name])
            else:
                tensor.copy_(torch.lerp(tensor.to(policy[name].dtype), policy[name], rate))


class StoredReference:
    """What a model said once about some responses.

    Args:
        said: log-probabilities of all response tokens, one question after the other.
        comparisons: these questions.
        rows: their places in the training set; None: they are all of it.
    """

    def __init__(self, said: Float[Tensor, " N"], comparisons: Sequence[Comparison], rows: Sequence[int] | None = None) -> None:
        self.said, self.ends = said, _ends(comparisons)
        self.places = range(len(comparisons)) if rows is None else {row: place for place, row in enumerate(rows)}

    def logprobs(self, questions: Questions, rows: Sequence[int]) -> Float[Tensor, "B K R"]:
        """Of each token, 0 on pads; ``rows`` are the questions' places in the training set."""
        places = [self.places[row] for row in rows]
        flat = torch.cat([self.said[self.ends[place] : self.ends[place + 1]] for place in places]).to(questions.responses.device)
        mask = questions.response_mask
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

    def ahead(self, rows: Sequence[int]) -> StoredReference:
        return self


def ask(module: nn.Module, questions: Questions, *, want_collision: bool = False) -> ResponseOutputs:
    """One forward of all responses of some questions: log-probabilities of the plain distribution, temperature 1."""
    q = questions
    return module(q.prompts, q.prompt_mask, q.responses, q.response_mask, temperature=1.0, want_collision=want_collision)


def precompute(
    model: Policy, comparisons: Sequence[Comparison], *, accelerator: Accelerator, micro_batch_tokens: int | None, cache: Path | None
) -> StoredReference:
    """Ask ``model`` once about every response, every process its share; or take what is in ``cache``, a folder with a subfolder per
    ``fingerprint``.
    """
    folder = None if cache is None else cache / fingerprint(model, comparisons)
    whole = folder is not None and folder.exists() and verify_folder(folder) is None
    # careful: all processes must take the same way, or those that ask would wait for those that read.
    found = sum_over_processes(accelerator, torch.tensor([float(whole)], device=accelerator.device))
    if folder is not None and int(found) == accelerator.num_processes:
        return StoredReference(StoredTensors(folder / _FILE)["logprobs"], comparisons)
    said = _ask_all(model, comparisons, accelerator, micro_batch_tokens)
    if folder is not None and accelerator.is_main_process:
        tensors = {"logprobs": said}
        with atomic_folder(folder, bytes_needed=tensor_bytes(tensors)) as temporary:
            write_tensors(temporary / _FILE, tensors)
    return StoredReference(said, comparisons)


def fingerprint(model: Policy, comparisons: Sequence[Comparison]) -> str:
    """Which model spoke of which tokens: a hash of its settings, its weights and the tokens."""
    digest = hashlib.sha256(json.dumps(model.settings(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.weights().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for c in comparisons:
        for tokens in (c.prompt.tokens, *(r.tokens for r in c.responses)):
            digest.update(np.asarray([len(tokens), *tokens], dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


_FILE = "logprobs.safetensors"


def _ask_all(model: Policy, comparisons: Sequence[Comparison], accelerator: Accelerator, tokens: int | None) -> Float[Tensor, " N"]:
    ends = _ends(comparisons)
    own = range(accelerator.process_index, len(comparisons), accelerator.num_processes)
    mine = _ask_each(model, [comparisons[row] for row in own], tokens)
    said = mine.new_zeros(ends[-1])
    for row, part in zip(own, mine.split([ends[row + 1] - ends[row] for row in own]), strict=True):
        said[ends[row] : ends[row + 1]] = part
    return sum_over_processes(accelerator, said).cpu()


@torch.no_grad()
def _ask_each(model: Policy, comparisons: Sequence[Comparison], tokens: int | None) -> Float[Tensor, " N"]:
    """Log-probabilities of all response tokens, one question after the other, on the model's device."""
    ends = _ends(comparisons)
    said = torch.zeros(ends[-1], dtype=torch.promote_types(model.head.weight.dtype, torch.float32), device=model.device)
    for rows in micro_batches([tokens_of(c) for c in comparisons], tokens, model):
        questions = collate([comparisons[row] for row in rows], model.pad_id, model.device)
        flat = ask(model, questions).logprobs[questions.response_mask]
        for row, part in zip(rows, flat.split([ends[row + 1] - ends[row] for row in rows]), strict=True):
            said[ends[row] : ends[row + 1]] = part
    return said


def _ends(comparisons: Sequence[Comparison]) -> list[int]:
    """Where the tokens of each question begin among those of all; one more for the end."""
    lengths = [sum(len(r.tokens) for r in c.responses) for c in comparisons]
    return [0, *np.cumsum(lengths).tolist()]

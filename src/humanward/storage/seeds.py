"""Every random draw of a run has its own seed, computed from where in the run it stands: there is no random state to save."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, stream: str, *indices: int) -> int:
    """The seed of one place in a run: a whole number in [0, 2**63), the first 63 bits of a SHA-256.

    Args:
        run_seed: the seed of the run.
        stream: what the draws are for, such as "rollout"; streams are independent of one another.
        indices: the position in the stream, such as round and step.
    """
    place = json.dumps([int(run_seed), stream, *map(int, indices)])
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, stream: str, *indices: int) -> torch.Generator:
    """A fresh CPU generator for one place in a run, seeded by ``derive_seed``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(run_seed, stream, *indices))

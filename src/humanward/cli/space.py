"""Is there room on the disk for a whole run?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from humanward.errors import UserError
from humanward.storage import check_space

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

BESIDES = 8 << 20
"""Bytes for logs, labels, samples and the report."""
CHECKPOINT = 3
"""Weights and Adam's two moments."""
TUNING, OTHERS = 2, 3
"""Two checkpoints of the tuning; two of another training, and one that is being written."""


def bytes_needed(config: LoopConfig, weights: int) -> int:
    """Most bytes that a run takes at a time, for a model whose weights take ``weights`` bytes in float32."""
    if config.lora is not None:
        # What is trained is a few percent; a fine-tuned model and the exported policy are whole.
        return ((config.sft is not None) + (config.lora.save == "merged") + 1) * weights + BESIDES
    ensemble = config.reward.ensemble
    copies = ensemble.members if config.fits_reward and ensemble is not None and ensemble.kind == "full" else 1
    trainings = sum(part is not None for part in (config.sft, config.dpo.sft_first, config.baseline_sft))
    folders = (1 + copies * config.fits_reward) * config.labels.rounds + trainings + 1
    return (CHECKPOINT * (TUNING + OTHERS * copies) + folders) * weights + BESIDES


def weight_bytes(model: str) -> int:
    """Bytes of a model's weights in float32; 0 where the model is not here yet."""
    from humanward.models import resolve

    folder = Path(resolve(model))
    return sum(_float32_bytes(file) for file in folder.glob("*.safetensors")) if folder.is_dir() else 0


def _float32_bytes(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            sizes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from None
    return sum(4 * _product(shape) for shape in sizes)


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def check_space_for(config: LoopConfig, folder: Path) -> None:
    """Raises RunError when the disk has less room than the rest of the run may need."""
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    check_space(folder, max(bytes_needed(config, weight_bytes(config.model)) - there, 0))

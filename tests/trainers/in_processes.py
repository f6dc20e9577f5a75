"""Run by test_processes.py, alone or once per process: train each trainer and let the main process save what it has."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import problems

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
accelerator = Accelerator(cpu=True)
ONE_BY_ONE = {"dtype": torch.bfloat16, "micro_batch_tokens": 1}
"""Rows that no other shares a forward with: in 16 bits the sums of a forward depend on its width."""
for name, settings in (
    ("sft", {"count": 15}),
    ("sft", {"count": 15, "value_head": True}),
    ("reward", {"count": 15}),
    ("reward", {"count": 15, "weights": (0.25, 1.5, 0.5)}),
    ("reward", {"count": 15, **ONE_BY_ONE}),
    ("dpo", {"count": 15}),
    ("dpo", {"count": 15, "loss": "kto"}),
    ("dpo", {"count": 15, "loss": {"aot": 1.0, "sft": 0.5}, "reference": "precomputed"}),
    ("dpo", {"count": 15, "loss": "bco_pair", "reference": "synchronised", "reference_sync_every": 2}),
    ("ppo", {}),
    ("ppo", {"micro_batch_tokens": 9}),
    ("ppo", ONE_BY_ONE),
    ("everything", {}),
    ("rloo", {}),
    ("grpo", {"micro_batch_tokens": 20}),
    ("reinforce", {}),
    ("online_dpo", {}),
    ("expert_iteration", {}),
):
    found = problems.trained(problems.MAKERS[name](accelerator=accelerator, **settings))
    if accelerator.is_main_process:
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, f"{sys.argv[1]}/{name}{len(settings)}.safetensors")
accelerator.end_training()

"""``humanward doctor``: what this machine can do, and which settings fit it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from humanward.cli.options import AsJson, example

BYTES_PER_WEIGHT = {"float32": 16 + 4 + 4, "bfloat16": 2 + 4 + 4 + 8 + 2 + 2}
"""Of a PPO training: weights, gradients and Adam's moments of the policy (with float32 copies of 16-bit ones), reference, reward model."""
LORA_BYTES_PER_WEIGHT = {"float32": 4 + 0.4, "bfloat16": 2 + 0.4, "4bit": 0.6 + 0.4}
"""The same with adapters: the weights once for policy, values, reference and reward model; about 2 % of them with all that trains it."""
FOR_WEIGHTS = 0.6
"""Share of the memory that they may take; activations need the rest."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog=example("humanward doctor runs"))(doctor)


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where runs will be: its disk is looked at.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Measure this machine in a few seconds and say which settings fit it."""
    facts = examine(folder)
    advice = advise(facts)
    if as_json:
        print(json.dumps({**facts, "advice": advice}))
        return
    for name, text in shown(facts).items():
        print(f"{name:<12}{text}")
    print()
    for line in advice:
        print(f"- {line}")


def examine(folder: Path) -> dict[str, Any]:
    """All facts, measured."""
    import torch
    import transformers

    from humanward.feedback.database import SAFE_WAL, sqlite_module
    from humanward.models import keep_freed_memory, missing_for_compile, missing_for_lora, missing_for_quantization
    from humanward.models.precision import TYPES, copy_rate, has_bfloat16, matmul_rate
    from humanward.models.products import multiply_by_openblas

    keeps, openblas = keep_freed_memory(), multiply_by_openblas()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sqlite = sqlite_module()
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    gpu = torch.cuda.get_device_properties(0) if device.type == "cuda" else None
    memory = gpu.total_memory if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    types = [name for name in TYPES if name == "float32" or has_bfloat16(device)]
    return {
        "device": gpu.name if gpu else "cpu",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "matmul_flop_per_second": {name: round(matmul_rate(TYPES[name], device)) for name in types},
        "copy_bytes_per_second": round(copy_rate(device)),
        "openblas_multiplies": openblas,
        "freed_memory_is_kept": keeps,
        "missing_for_compile": missing_for_compile(device),
        "missing_for_lora": missing_for_lora(),
        "missing_for_quantization": missing_for_quantization(),
        "sqlite": sqlite.sqlite_version,
        "sqlite_wal_is_safe": sqlite.sqlite_version_info >= SAFE_WAL,
        "free_disk_bytes": shutil.disk_usage(there).free,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
    }


def shown(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as people read them."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in facts["matmul_flop_per_second"].items())
    return {
        "device": f"{facts['device']}, {facts['cores']} cores, {facts['threads']} threads, {facts['memory_bytes'] / 2**30:.1f} GiB",
        "products": f"{rates} GFLOP/s" + (" (float32 by OpenBLAS: MKL uses no AVX-512 here)" if by_openblas(facts) else ""),
        "copies": f"{facts['copy_bytes_per_second'] / 1e9:.0f} GB/s",
        "allocator": "freed memory is kept for the next step" if facts["freed_memory_is_kept"] else "the system's own",
        "SQLite": f"{facts['sqlite']}, {'write-ahead log' if facts['sqlite_wal_is_safe'] else 'rollback journal'}",
        "disk": f"{facts['free_disk_bytes'] / 2**30:.1f} GiB free",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }


def by_openblas(facts: dict[str, Any]) -> bool:
    """Whether it makes the products of the device that trains."""
    return facts["device"] == "cpu" and facts["openblas_multiplies"]


def advise(facts: dict[str, Any]) -> list[str]:
    """Settings that fit, a sentence each."""
    from humanward.models.precision import WORTH_IT

    rates = facts["matmul_flop_per_second"]
    gain = rates.get("bfloat16", 0) / rates["float32"]
    dtype = "bfloat16" if gain >= WORTH_IT else "float32"
    reason = f"bfloat16 multiplies {gain:.1f} times as fast" if gain else "there are no instructions for bfloat16"
    largest = FOR_WEIGHTS * facts["memory_bytes"] / BYTES_PER_WEIGHT[dtype]
    lines = [
        f"dtype={dtype}: {reason}",
        f"PPO with a reward model fits for models of up to about {largest / 1e6:.0f} million weights",
        *adapters(facts, dtype),
        "gradient_checkpointing=true where a training runs out of memory: one layer's activations instead of all, a quarter more time",
    ]
    if dtype == "float32" and by_openblas(facts):
        lines.append("compile=false: compiled layers multiply by PyTorch's own library, which is slower here than OpenBLAS")
    elif facts["missing_for_compile"] is None:
        lines.append("compile=true where a stage trains for many minutes: about a tenth less time, after half a minute of compiling")
    else:
        lines.append(f"compile=false: {facts['missing_for_compile']}")
    if facts["device"] == "cpu" and facts["threads"] < facts["cores"]:
        lines.append(f"threads={facts['cores']}: torch uses {facts['threads']} of {facts['cores']} cores")
    if facts["device"] == "cpu" and not facts["freed_memory_is_kept"]:
        lines.append("the C library gives large blocks back after each use; jemalloc by LD_PRELOAD makes steps up to a third faster")
    if not facts["sqlite_wal_is_safe"]:
        lines.append(
            "the label store uses the slower rollback journal; `pip install pysqlite3` brings an SQLite with a safe write-ahead log"
        )
    return lines


def adapters(facts: dict[str, Any], dtype: str) -> list[str]:
    """For models that are too large to train all weights."""
    if facts["missing_for_lora"] is not None:
        return [f"no adapters (lora): {facts['missing_for_lora']}"]
    plain, quantized = (FOR_WEIGHTS * facts["memory_bytes"] / LORA_BYTES_PER_WEIGHT[name] / 1e6 for name in (dtype, "4bit"))
    lines = [f"with adapters on one frozen trunk (lora.rank=16), for models of up to about {plain:.0f} million"]
    if facts["missing_for_quantization"] is not None:
        return [*lines, f"no quantised weights (QLoRA): {facts['missing_for_quantization']}"]
    return [*lines, f"with its weights in 4 bits (lora.quantize=4bit, QLoRA), of up to about {quantized:.0f} million"]

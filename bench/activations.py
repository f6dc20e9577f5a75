"""GELU by tanh on a CPU: PyTorch's kernel beside ours, which takes a sigmoid and makes the slope of it at once.

    python bench/activations.py [--rows 64 256 1223] [--width 1024] [--dtypes float32 bfloat16]

``humanward.models.fusing`` uses one or the other; this says whether it chooses well on a machine. Ways alternate; medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
from torch import Tensor, nn

from humanward.models import fusing, prepare_cpu
from humanward.models.precision import TYPES


def took(way: nn.Module, x: Tensor, gradient: Tensor | None) -> float:
    """Seconds of a forward and, of what has a gradient, a backward."""
    start = time.perf_counter()
    if gradient is None:
        way(x)
    else:
        torch.autograd.grad(way(x), x, gradient)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 256, 1223], help="tokens")
    parser.add_argument("--width", type=int, default=1024, help="numbers of each")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(TYPES))
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    prepare_cpu()
    fusing.WORTH_IT = 0
    ways = {"PyTorch's": nn.GELU(approximate="tanh"), "ours": fusing.TanhGELU()}
    for name, rows in itertools.product(args.dtypes, args.rows):
        x, gradient = (torch.randn(rows, args.width).mul(2).to(TYPES[name]) for _ in range(2))
        for work, given, wanted in (("forward", x, None), ("forward and backward", x.clone().requires_grad_(), gradient)):
            times: dict[str, list[float]] = {kind: [] for kind in ways}
            for _ in range(args.rounds):
                for kind, way in ways.items():
                    times[kind].append(took(way, given, wanted))
            theirs, ours = (statistics.median(times[kind]) * 1e6 for kind in ways)
            print(f"{name}, {rows} x {args.width}, {work}: PyTorch's {theirs:.0f} us, ours {ours:.0f} us, {theirs / ours:.2f} x")


if __name__ == "__main__":
    main()

"""The rate of causal attention beside that of a large matrix product: PyTorch's fused kernel, and plain products block by block.

    python bench/attention.py [--lengths 128 512] [--heads 4 12] [--rows 1 16] [--dtypes float32 bfloat16]

``humanward.models.attention`` uses one or the other; this says whether it chooses well on a machine, and how much of the peak of
docs/benchmarks.md attention can reach there. Counted is the least arithmetic: two products forward and four backward over the half of the
scores that is seen. Ways alternate; of each the shortest time counts, as it does for the peak.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from humanward.models import prepare_cpu
from humanward.models.blockwise import by_products
from humanward.models.precision import TYPES, matmul_rate

WIDTH = 64
"""Of a head."""


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return by_products(q, k, v, None, causal=True)


def shortest(ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]], inputs: list[Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's forward and backward."""
    best = {name: [float("inf")] * 2 for name in ways}
    gradient = torch.randn_like(inputs[0])
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            out = way(*inputs)
            middle = time.perf_counter()
            torch.autograd.grad(out, inputs, gradient)
            took = middle - start, time.perf_counter() - middle
            best[name] = [min(pair) for pair in zip(best[name], took, strict=True)]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512], help="tokens")
    parser.add_argument("--heads", nargs="+", type=int, default=[4, 12])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16], help="of one kernel call")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(TYPES))
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    prepare_cpu()
    for name in args.dtypes:
        peak = matmul_rate(TYPES[name], torch.device("cpu"))
        print(f"{name}: a large product runs at {peak / 1e9:.0f} GFLOP/s")
        for rows, length, heads in itertools.product(args.rows, args.lengths, args.heads):
            # As a model makes them: the heads of a token lie side by side.
            shape = (rows, length, heads, WIDTH)
            inputs = [torch.randn(shape).to(TYPES[name]).transpose(1, 2).requires_grad_() for _ in range(3)]
            flop = 2 * rows * heads * length**2 * WIDTH
            for way, (forward, backward) in shortest({"fused": fused, "products": products}, inputs, args.rounds).items():
                shares = f"{flop / forward / peak:.0%} forward, {2 * flop / backward / peak:.0%} backward"
                print(f"  {rows} rows of {length} tokens, {heads} heads, {way}: {shares} of that")


if __name__ == "__main__":
    main()

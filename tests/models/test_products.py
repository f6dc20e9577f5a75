"""Products by OpenBLAS are those of PyTorch but for the last digits of float32, whatever lies how in memory and whoever interrupts."""

from __future__ import annotations

import gc
import math
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from humanward.maths.chunked_head import bfloat16_factors
from humanward.models import products
from humanward.models.precision import cpu_has
from humanward.models.products import OpenBLAS, cuts, grid, multiplied_by_pytorch


@pytest.fixture(scope="module")
def library() -> OpenBLAS:
    """Also where PyTorch's own products are as fast."""
    if not cpu_has("avx512"):
        pytest.skip("this CPU has no AVX-512")
    try:
        return OpenBLAS()
    except OSError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def everything(library: OpenBLAS, monkeypatch: pytest.MonkeyPatch) -> OpenBLAS:
    """The library, also for products that are too small to be worth it."""
    monkeypatch.setattr(products, "WORTH_IT", 1)
    monkeypatch.setattr(products, "WORTH_IT_EACH", 1)
    return library


@pytest.fixture
def operators(everything: OpenBLAS, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """PyTorch's operators by the library; whether it did, product by product."""
    done: list[bool] = []

    def multiply(*args: Any, **settings: Any) -> bool:
        done.append(OpenBLAS.multiply(everything, *args, **settings))
        return done[-1]

    monkeypatch.setattr(products, "openblas", lambda: everything)
    monkeypatch.setattr(everything, "multiply", multiply)
    kernels = products.take_over(everything)
    yield done
    kernels._destroy()


def is_near(found: Tensor, expected: Tensor, size: float) -> bool:
    """As near to float64 as float32 is; bfloat16 inside would be off by 1e-3."""
    return float((found.double() - expected).abs().max()) < 3e-6 * size


def laid(x: Tensor, how: str) -> Tensor:
    """The same numbers by rows, by columns, or as part of something wider."""
    if how == "columns":
        return x.mT.contiguous().mT
    if how == "part":
        return torch.cat([x, x, x], dim=-1)[..., : x.shape[-1]]
    return x.contiguous()


SIZE = st.integers(1, 70)
LAID = st.tuples(
    st.sampled_from(["rows", "columns", "part"]), st.sampled_from(["rows", "columns", "part"]), st.sampled_from(["rows", "part"])
)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [None, 1, 2, 7])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZE, k=SIZE, n=SIZE, how=LAID, factors=st.sampled_from([(1, 0), (1, 1), (0.3, -2)]))
def test_a_product_is_that_of_float64(
    everything: OpenBLAS, threads: int, count: int | None, m: int, k: int, n: int, how: tuple[str, str, str], factors: tuple[float, float]
) -> None:
    batch = () if count is None else (count,)
    a, b, out = (laid(torch.randn(*batch, *shape), h) for shape, h in zip(((m, k), (k, n), (m, n)), how, strict=True))
    alpha, beta = factors
    expected = alpha * a.double() @ b.double() + beta * out.double()
    if beta == 0:
        out.fill_(float("nan"))  # what lay there is not read
    torch.set_num_threads(threads)
    done = everything.multiply(a, b, out, alpha=alpha, beta=beta)
    torch.set_num_threads(1)
    assert done
    assert is_near(out, expected, 3 * k**0.5)


@given(m=st.integers(1, 500), n=st.integers(1, 500), threads=st.integers(1, 64))
def test_pieces_cover_the_result_once(m: int, n: int, threads: int) -> None:
    seen = torch.zeros(m, n)
    pieces = grid(m, n, threads)
    for top, rows, left, columns in pieces:
        assert rows > 0
        assert columns > 0
        seen[top : top + rows, left : left + columns] += 1
    assert seen.eq(1).all()
    assert len(pieces) <= threads
    assert sum(length for _, length in cuts(m, threads)) == m


@pytest.mark.parametrize(("m", "n", "by_rows"), [(820, 1024, True), (256, 256, True), (240, 8192, False), (400, 1024, False)])
def test_a_result_is_cut_by_rows_unless_it_is_wide(m: int, n: int, by_rows: bool) -> None:
    half = (m if by_rows else n) // 2
    second = (-(-half // 16) * 16, 0) if by_rows else (0, -(-half // 16) * 16)
    assert [(top, left) for top, _, left, _ in grid(m, n, 2)] == [(0, 0), second]


SQUARE = torch.randn(8, 8)


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        (torch.randn(8, 8).double(), torch.randn(8, 8).double(), torch.empty(8, 8).double()),
        (torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16(), torch.empty(8, 8).bfloat16()),
        (torch.randn(8, 1).expand(8, 8), torch.randn(8, 8), torch.empty(8, 8)),
        (torch.randn(8, 16)[:, ::2], torch.randn(8, 8), torch.empty(8, 8)),
        (torch.randn(8, 8), torch.randn(8, 8), torch.empty(8, 8).T),
        (SQUARE, torch.randn(8, 8), SQUARE),
        (torch.randn(8, 7), torch.randn(8, 8), torch.empty(8, 8)),
        (torch.randn(3, 8, 8), torch.randn(2, 8, 8), torch.empty(2, 8, 8)),
        (torch.randn(0, 8), torch.randn(8, 8), torch.empty(0, 8)),
    ],
    ids=[
        "float64",
        "bfloat16",
        "one column for all",
        "every second",
        "result by columns",
        "in its own place",
        "other sizes",
        "other counts",
        "no rows",
    ],
)
def test_what_it_cannot_do_it_leaves(everything: OpenBLAS, a: Tensor, b: Tensor, out: Tensor) -> None:
    before = out.fill_(3).clone()
    assert not everything.multiply(a, b, out)
    assert out.equal(before)


def test_small_products_are_left(library: OpenBLAS) -> None:
    assert not library.multiply(torch.randn(8, 8), torch.randn(8, 8), torch.empty(8, 8))
    assert library.multiply(torch.randn(512, 512), torch.randn(512, 512), torch.empty(512, 512))


def added_to_a_part(whole: Tensor, a: Tensor, b: Tensor) -> Tensor:
    whole[:, : a.shape[1]].baddbmm_(a, b, alpha=3)
    return whole


def test_operators_and_their_gradients(operators: list[bool]) -> None:
    x, y, w, bias = torch.randn(6, 5), torch.randn(3, 6, 5), torch.randn(7, 5), torch.randn(7)
    room = torch.full((3, 6, 6), math.nan)
    calls = {
        "linear": (True, lambda x, y, w, b: torch.nn.functional.linear(x, w, b)),
        "three dimensions": (True, lambda x, y, w, b: torch.nn.functional.linear(y, w, b)),
        "no bias": (True, lambda x, y, w, b: x @ w.T),
        "several": (True, lambda x, y, w, b: torch.bmm(y, y.mT)),
        "addmm": (True, lambda x, y, w, b: torch.addmm(b, x, w.T, beta=0.5, alpha=2)),
        "addmm, a matrix": (False, lambda x, y, w, b: torch.addmm(torch.outer(x[:, 0], b), x, w.T, beta=0.5, alpha=2)),
        "baddbmm": (False, lambda x, y, w, b: torch.baddbmm(y.sum(2)[:, None].expand(3, 6, 6), y, y.mT, alpha=2)),
        "baddbmm, nothing": (True, lambda x, y, w, b: torch.baddbmm(room.to(y.dtype), y, y.mT, beta=0, alpha=2)),
        "in place": (True, lambda x, y, w, b: (x @ w.T).addmm_(x, w.T, beta=2, alpha=3)),
        "several, in place": (True, lambda x, y, w, b: (y @ y.mT).baddbmm_(y, y.mT, beta=2, alpha=3)),
        "several, in the place of a part": (True, lambda x, y, w, b: added_to_a_part(torch.bmm(y, y.mT), y[:, :4], y.mT)),
    }
    for name, (by_the_library, call) in calls.items():
        found, expected = [], []
        for kept, dtype in ((found, torch.float32), (expected, torch.float64)):
            leaves = [t.detach().to(dtype).requires_grad_() for t in (x, y, w, bias)]
            operators.clear()
            result = call(*leaves)
            assert (operators[-1:] == [True]) == (by_the_library and dtype == torch.float32), name
            result.pow(2).sum().backward()
            assert any(operators) == (dtype == torch.float32), name
            kept += [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        assert len(found) == len(expected) > 1
        for ours, true in zip(found, expected, strict=True):
            assert is_near(ours, true, float(true.abs().max())), name


def test_operators_leave_what_is_not_theirs(operators: list[bool]) -> None:
    a = torch.randn(4, 5)
    assert (a.double() @ a.double().T).dtype == torch.float64
    assert (a.bfloat16() @ a.bfloat16().T).dtype == torch.bfloat16
    assert torch.mm(a[:0], a.T).shape == (0, 4)
    assert torch.addmm(torch.ones(4), a[:, :0], a.T[:0]).eq(1).all()
    assert is_near(torch.addmm(torch.zeros(1), a, a.T), a.double() @ a.double().T, 10)
    one, three = torch.tensor(1.0), torch.randn(2, 4, 5)
    for wrong in (
        lambda: torch.mm(a, a), lambda: torch.mm(a[0], a.T), lambda: torch.mm(a, a.T.double()), lambda: torch.bmm(a, a),
        lambda: torch.mm(one, a), lambda: torch.zeros(3, 3).addmm_(a, a.T), lambda: torch.zeros(4, 4).addmm_(one, a),
        lambda: torch.zeros(1, 4, 4).baddbmm_(three, three.mT), lambda: torch.zeros(2, 4, 4).baddbmm_(a, three.mT),
        lambda: torch.baddbmm(torch.zeros(7, 7, 7), three, three.mT, beta=0),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises((TypeError, RuntimeError)):
        torch.addmm(torch.zeros(4), a, a.T, alpha=1j)


def test_they_can_be_given_back_for_a_while(operators: list[bool]) -> None:
    a = torch.randn(4, 5)
    expected = a.double() @ a.double().T
    for by_pytorch in (True, False):
        with multiplied_by_pytorch() if by_pytorch else nullcontext():
            operators.clear()
            assert is_near(a @ a.T, expected, 10)
        assert operators == [not by_pytorch]


@pytest.mark.parametrize(("threads", "most"), [(1, 64), (2, 1), (3, 2)])
def test_more_threads_than_it_can_serve(everything: OpenBLAS, monkeypatch: pytest.MonkeyPatch, threads: int, most: int) -> None:
    monkeypatch.setattr(products, "MOST_THREADS", most)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for several in ((), (2,), (5,)):
            a, b, out = torch.randn(*several, 40, 30), torch.randn(*several, 30, 50), torch.empty(*several, 40, 50)
            assert everything.multiply(a, b, out)
            assert is_near(out, a.double() @ b.double(), 30)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch cannot be told to use fewer")
def test_fewer_digits_where_pytorch_may_use_them_are_its_business(library: OpenBLAS) -> None:
    """The head of a bfloat16 model is multiplied so, and faster than here."""
    a, b, out = torch.randn(512, 512), torch.randn(512, 512), torch.empty(512, 512)
    with bfloat16_factors(True):
        assert not library.multiply(a, b, out)
    assert library.multiply(a, b, out)


def test_an_interrupt_is_heard_and_no_piece_is_lost(library: OpenBLAS) -> None:
    """A signal's handler may raise at any time; a product that is under way is finished first."""

    def shout(*_: object) -> None:
        raise KeyboardInterrupt

    a, b = torch.randn(64, 512), torch.randn(512, 256)
    out, expected = torch.empty(64, 256), a.double() @ b.double()
    before, heard, torch_threads = signal.signal(signal.SIGALRM, shout), 0, torch.get_num_threads()
    torch.set_num_threads(2)
    gc.disable()  # what is raised while it runs others' callbacks is lost, here as anywhere
    try:
        for _ in range(200):
            try:
                out.zero_()
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                for _ in range(500):
                    library.multiply(a, b, out)
                    assert is_near(out, expected, 30)
            except KeyboardInterrupt:
                heard += 1
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(torch_threads)
    assert heard == 200


@pytest.mark.parametrize("before", [{}, {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "7"}])
def test_settings_of_the_library_are_for_it_alone(library: OpenBLAS, before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    OpenBLAS()
    assert {name: os.environ[name] for name in names if name in os.environ} == before


@pytest.mark.parametrize(
    ("vendor", "family", "wide"),
    [("AuthenticAMD", "25", False), ("AuthenticAMD", "26", True), ("GenuineIntel", "26", False), ("", "", False)],
)
def test_small_products_are_the_librarys_where_vectors_are_wide(
    vendor: str, family: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_said_by_cpu", lambda what: {"vendor_id": vendor, "cpu family": family}[what])
    products.has_wide_vectors.cache_clear()
    try:
        assert products.has_wide_vectors() == wide
    finally:
        products.has_wide_vectors.cache_clear()


@pytest.mark.parametrize("why", ["Intel", "no AVX-512", "not installed"])
def test_elsewhere_products_are_pytorchs(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "vendor", lambda: "GenuineIntel" if why == "Intel" else "AuthenticAMD")
    monkeypatch.setattr(products, "cpu_has", lambda _: why != "no AVX-512")
    if why == "not installed":
        monkeypatch.setattr(products.importlib.util, "find_spec", lambda _: None)
    products.openblas.cache_clear()
    try:
        assert products.openblas() is None
        with multiplied_by_pytorch():
            pass
    finally:
        products.openblas.cache_clear()

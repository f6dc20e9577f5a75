"""Products of float32 matrices by OpenBLAS, on CPUs whose vector instructions PyTorch's own library does not use.

PyTorch gives them to MKL, which uses AVX-512 on Intel's CPUs alone. On AMD's, OpenBLAS is about twice as fast since Zen 5, and a little
faster on Zen 4 (`bench/speed` measures both). Its own threads would fight for the cores with PyTorch's, which spin for milliseconds after
each operator; so PyTorch's threads call it, a piece of the result each.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from humanward.models.precision import cpu_has

MOST_THREADS = 64
"""OpenBLAS has buffers for so many that call it at once."""
WORTH_IT = 4 << 20
"""Products with fewer multiplications than this are over before the threads are at work."""
WORTH_IT_EACH = 1 << 16
"""The same for each of many products that are made together."""
LONGEST = 1 << 31
"""Its integers have 32 bits."""
ZEN_5 = 26
"""AMD's name for the family."""
ALIGN = 16
"""Rows and columns of a piece: a multiple of what the kernels take at once."""
_ROW_MAJOR, _AS_IS, _TRANSPOSED = 101, 111, 112

_drain = ctypes.CFUNCTYPE(None, ctypes.py_object)(partial(deque, maxlen=0))
"""What each thread of a team runs: take calls from an iterator until there are none. A `deque` of a `starmap` is C from end to end; in a
callback written in Python, an exception that a signal's handler raises would be lost, and a piece of the result with it."""


class OpenBLAS:
    """The library, called by PyTorch's threads.

    Raises:
        OSError: it or PyTorch's OpenMP cannot be loaded.
        AttributeError: they have other functions than expected.
    """

    def __init__(self) -> None:
        threads = ctypes.CDLL(str(_openmp()))
        self._in_team = threads.GOMP_parallel
        self._in_team.argtypes = [type(_drain), ctypes.py_object, ctypes.c_uint, ctypes.c_uint]
        self._in_team.restype = None
        # careful: it reads its settings when it is loaded. One thread: the calling ones are all there are. The kernels by name: it may be
        # older than the CPU, and what the environment asks for is for NumPy's copy.
        with _environment(OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="SkylakeX"):
            library = ctypes.CDLL(str(_library()))
        number, real, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        self._sgemm, self._sgemm_batch = library.scipy_cblas_sgemm, library.scipy_cblas_sgemm_batch_strided
        matrix, matrices = [pointer, number], [pointer, number, number]
        self._sgemm.argtypes = [*[number] * 6, real, *matrix, *matrix, real, *matrix]
        self._sgemm_batch.argtypes = [*[number] * 6, real, *matrices, *matrices, real, *matrices, number]
        self._sgemm.restype = self._sgemm_batch.restype = None
        self.at_rest = False

    def multiply(
        self, a: Tensor, b: Tensor, out: Tensor, *, alpha: float = 1, beta: float = 0, added: Tensor | None = None
    ) -> bool:  # fmt: skip
        """``out = beta * added + alpha * a @ b``: ``[..., m, k]`` times ``[..., k, n]``, of two or three dimensions.

        ``added``: [n], one row for all; None: what ``out`` holds.

        False, and nothing done, where it cannot or is not worth it.
        """
        if not a.dim() == b.dim() == out.dim() in (2, 3):
            return False
        *several, m, n = out.shape
        count, k = (several[0] if several else 1), a.shape[-1]
        if self.at_rest or _may_round() or count * m * n * k < WORTH_IT or m * n * k < WORTH_IT_EACH:
            return False
        if a.shape != (*several, m, k) or b.shape != (*several, k, n) or max(m, n, k) >= LONGEST:
            return False
        first, second, result = _layout(a), _layout(b), _layout(out)
        if first is None or second is None or result is None or result.order != _AS_IS or result.start in (first.start, second.start):
            return False
        if added is not None and (added.dtype != out.dtype or added.shape != (n,)):
            return False
        if added is not None and beta != 0:
            out.copy_(added)
        alpha, beta = float(alpha), float(beta)  # careful: what the call below does not take would go unheard
        team = torch.get_num_threads()  # careful: all of them; OpenMP ends the threads that a smaller team leaves out, and makes them anew
        pieces = min(team, MOST_THREADS)
        if 1 < count >= pieces:
            calls = starmap(
                self._sgemm_batch,
                [
                    (
                        *(_ROW_MAJOR, first.order, second.order, m, n, k, alpha, first.at(number, 0, 0), first.lead, first.matrix),
                        *(second.at(number, 0, 0), second.lead, second.matrix, beta, result.at(number, 0, 0), result.lead, result.matrix),
                        own,
                    )
                    for number, own in cuts(count, pieces)
                ],
            )
        else:
            calls = starmap(
                self._sgemm,
                [
                    (
                        *(_ROW_MAJOR, first.order, second.order, rows, columns, k, alpha, first.at(number, top, 0), first.lead),
                        *(second.at(number, 0, left), second.lead, beta, result.at(number, top, left), result.lead),
                    )
                    for number in range(count)
                    for top, rows, left, columns in grid(m, n, max(pieces // count, 1))
                ],
            )
        if team > 1:
            self._in_team(_drain, calls, team, 0)
        else:
            deque(calls, maxlen=0)
        return True


def grid(m: int, n: int, threads: int) -> list[tuple[int, int, int, int]]:
    """(top, rows, left, columns) of the pieces of a result ``[m, n]``: one per thread at most, cut so that they read the least.

    A piece reads its rows of the first matrix and its columns of the second; a row costs as much as two columns, as measured.
    """
    across = min((p for p in range(1, threads + 1) if threads % p == 0), key=lambda p: 2 * m / p + n / (threads // p))
    return [(*rows, *columns) for rows in cuts(m, across, ALIGN) for columns in cuts(n, threads // across, ALIGN)]


def cuts(size: int, parts: int, of: int = 1) -> list[tuple[int, int]]:
    """(start, length) of so many parts at most, each but the last a multiple of ``of``."""
    step = -(-size // (parts * of)) * of
    return [(start, min(step, size - start)) for start in range(0, size, step)]


def _may_round() -> bool:
    """Whether PyTorch is allowed to multiply float32 in fewer digits, which is faster still where the CPU has instructions for it."""
    products = getattr(torch.backends.mkldnn, "matmul", None)
    return products is not None and products.fp32_precision not in ("none", "ieee")


class _Layout(NamedTuple):
    """Matrices as BLAS takes them."""

    order: int
    start: int
    """Address."""
    lead: int
    matrix: int
    row: int
    column: int
    """Elements from one of them to the next."""

    def at(self, matrix: int, row: int, column: int) -> int:
        return self.start + 4 * (matrix * self.matrix + row * self.row + column * self.column)


def _layout(x: Tensor) -> _Layout | None:
    """None where it is none of float32 matrices that lie by rows or by columns."""
    if x.dtype != torch.float32 or x.dim() not in (2, 3):
        return None
    (rows, columns), strides = x.shape[-2:], x.stride()
    matrix, row, column = strides if len(strides) == 3 else (0, *strides)
    if max(*strides, len(x) * matrix) >= LONGEST:
        return None
    if column == 1 and row >= columns:
        return _Layout(_AS_IS, x.data_ptr(), row, matrix, row, 1)
    if row == 1 and column >= rows:
        return _Layout(_TRANSPOSED, x.data_ptr(), column, matrix, 1, column)
    return None


@cache
def openblas() -> OpenBLAS | None:
    """The library where it is faster than PyTorch's own products and can be had, from the package ``scipy-openblas32``."""
    if vendor() in ("GenuineIntel", "") or not torch.backends.mkl.is_available() or not cpu_has("avx512"):
        return None
    try:
        return OpenBLAS()
    except (OSError, AttributeError):
        return None


@cache
def multiply_by_openblas() -> bool:
    """From now on PyTorch's products of float32 matrices on the CPU are OpenBLAS's, where that is faster; returns whether they are.

    Both sum in float32 and differ in the last digits.
    """
    if (library := openblas()) is None:
        return False
    _kept.append(take_over(library))
    return True


@contextmanager
def multiplied_by_pytorch() -> Iterator[None]:
    """Inside, PyTorch's own products are used again: for measurements beside programs that have no others."""
    if (library := openblas()) is None:
        yield
        return
    library.at_rest = True
    try:
        yield
    finally:
        library.at_rest = False


class _Operators:
    """PyTorch's operators by the library, below autograd. What it leaves goes where it went before, by their ``out`` forms."""

    def __init__(self, library: OpenBLAS) -> None:
        self._multiply = library.multiply

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        out = _room(a, b, 2)
        return out if self._multiply(a, b, out) else torch.mm(a, b, out=out)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        out = _room(a, b, 3)
        return out if self._multiply(a, b, out) else torch.bmm(a, b, out=out)

    def addmm(self, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        out = _room(a, b, 2)
        done = self._multiply(a, b, out, alpha=alpha, beta=beta, added=added)
        return out if done else torch.addmm(added, a, b, beta=beta, alpha=alpha, out=out)

    def addmm_(self, out: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if out.dim() == 2 and self._multiply(a, b, out, alpha=alpha, beta=beta):
            return out
        if a.dim() == b.dim() == 2 and out.shape == (a.shape[0], b.shape[1]):
            return torch.addmm(out, a, b, beta=beta, alpha=alpha, out=out)
        raise RuntimeError(f"addmm_: {list(out.shape)} is not the shape of a product of {list(a.shape)} and {list(b.shape)}")

    def baddbmm(self, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        out = _room(a, b, 3)
        done = beta == 0 and added.dtype == out.dtype and added.shape == out.shape and self._multiply(a, b, out, alpha=alpha)
        return out if done else torch.baddbmm(added, a, b, beta=beta, alpha=alpha, out=out)

    def baddbmm_(self, out: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if out.dim() == 3 and self._multiply(a, b, out, alpha=alpha, beta=beta):
            return out
        if a.dim() == b.dim() == 3 and out.shape == (a.shape[0], a.shape[1], b.shape[2]):
            return torch.baddbmm(out, a, b, beta=beta, alpha=alpha, out=out)
        raise RuntimeError(f"baddbmm_: {list(out.shape)} is not the shape of products of {list(a.shape)} and {list(b.shape)}")


def _room(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """For their product; of no size, which PyTorch changes, where they have none."""
    return a.new_empty(*a.shape[:-1], b.shape[-1]) if a.dim() == b.dim() == dims else a.new_empty(0, 0)


def take_over(library: OpenBLAS) -> torch.library.Library:
    """Put it behind PyTorch's operators, for as long as what is returned is kept."""
    kernels, operators = torch.library.Library("aten", "IMPL"), _Operators(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they have kernels already is what this is about
        for name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            kernels.impl(name, getattr(operators, name), "CPU")
    return kernels


_kept: list[torch.library.Library] = []


def _library() -> Path:
    found = importlib.util.find_spec("scipy_openblas32")
    if found is None or found.origin is None:
        raise OSError("scipy-openblas32 is not installed")
    return next((Path(found.origin).parent / "lib").glob("libscipy_openblas*.so"), Path("libscipy_openblas.so"))


def _openmp() -> Path:
    """PyTorch's own: another copy would have threads of its own."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {line.split(maxsplit=5)[5] for line in lines if "libgomp" in line}
    root = Path(torch.__file__).resolve().parent  # as it stands among the loaded ones
    ours = sorted(path for path in map(Path, loaded) if path.is_relative_to(root))
    if not ours:
        raise OSError("PyTorch has no GNU OpenMP of its own")
    return ours[0]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def has_wide_vectors() -> bool:
    """Whether OpenBLAS, where it has taken over, is so much faster that small products gain from it too: on AMD's CPUs since Zen 5.

    Before, AVX-512 is done in two halves, and MKL's small products are a tenth faster.
    """
    return vendor() == "AuthenticAMD" and int(_said_by_cpu("cpu family") or 0) >= ZEN_5


def vendor() -> str:
    """Of the CPU, as it says itself; empty where Linux does not say it."""
    return _said_by_cpu("vendor_id")


def _said_by_cpu(what: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")

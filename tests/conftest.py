"""Every test runs on one thread, with torch's deterministic algorithms, without the network, and with the shapes of `maths` checked."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# careful: before the first import of torch or numpy; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

install_import_hook("humanward.maths", "beartype.beartype")

# The same examples on every run, and no verdict by the clock: a busy machine is not a fault.
settings.register_profile("humanward", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("humanward")


@pytest.fixture(autouse=True)
def deterministic_torch() -> None:
    """Set on each test because a test may be the first to import torch; tests of rooms without torch never pay for it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)


@pytest.fixture
def tensors_made() -> Callable[[], AbstractContextManager[list[int]]]:
    """tensors_made(): the elements of every tensor that PyTorch's operators make within; views make none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    @contextmanager
    def watched() -> Iterator[list[int]]:
        made: list[int] = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                tensors = (x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor))
                made.extend(x.numel() for x in tensors if not x._is_view())
                return out

        with Watch():
            yield made

    return watched


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """load_module(path): the module of a file that lies in no package, such as one of `bench/`."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # its dataclasses look themselves up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of books, tokenizers and small models that some tests read; it is not part of the repository."""
    folder = Path(os.environ.get("HUMANWARD_SHARED") or Path(__file__).parents[2] / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; set HUMANWARD_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A private server (bench/postgresql.py); ``postgresql.address("name")`` is an empty database to a store."""
    spec = importlib.util.spec_from_file_location("postgresql", Path(__file__).parents[1] / "bench/postgresql.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pytest.importorskip("psycopg")
    try:
        cluster = module.Cluster()
    except module.UnavailableError as reason:
        pytest.skip(str(reason))
    with cluster:
        yield cluster


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then <|end|> (256) and <|pad|> (257): every expected token of a test can be read off its text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")

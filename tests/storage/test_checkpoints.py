"""Checkpoints: what goes in comes out, damage falls back, rotation never takes the last good one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from humanward.errors import RunError
from humanward.storage import Checkpoints, atomic_folder, read_json, verify_folder, write_json
from humanward.storage.folders import discard_leftovers

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def _saved(folder: Path, *steps: int) -> Checkpoints:
    store = Checkpoints(folder)
    for step in steps:
        store.save(step, {"w": torch.full((3,), float(step))}, {"step": step})
    return store


def test_tied_transposed_strided_and_empty_tensors_come_back_equal(tmp_path: Path) -> None:
    weight = torch.arange(20.0).reshape(4, 5)
    tensors = {
        "weight": weight,
        "tied": weight,
        "parameter": torch.nn.Parameter(weight),
        "transposed": weight.t(),
        "strided": weight[:, ::2],
        "overlapping": weight[1:],
        "expanded": torch.tensor(3.0).expand(2, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.tensor([1.5, -0.0]).bfloat16(),
        "flag": torch.tensor([True, False]),
    }
    path = Checkpoints(tmp_path).save(3, tensors, {})
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(checkpoint.tensors[name], tensor.detach(), rtol=0, atol=0)
    stored = load_file(path / "tensors.safetensors")  # the library reads it; one copy of the three that share memory
    assert {"weight", "tied", "parameter"} & set(stored) == {"parameter"}


@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES), st.booleans()),
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_round_trip(shapes: dict[str, tuple[list[int], torch.dtype, bool]], seed: int, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (shape, dtype, turned) in shapes.items():
        tensor = torch.randint(0, 255, shape, generator=random).to(dtype)
        tensors[name] = tensor.permute(*reversed(range(tensor.dim()))) if turned and tensor.dim() else tensor
    path = Checkpoints(tmp_path).save(0, tensors, {})
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)
    assert set(load_file(path / "tensors.safetensors")) == set(tensors)


def test_a_damaged_checkpoint_takes_no_place_among_those_that_are_kept(tmp_path: Path) -> None:
    """Of steps 3 and 5 the second is damaged: the run goes on from 3, and after the next save 3 is what it could go back to."""
    _saved(tmp_path, 3, 5)
    (tmp_path / "step-5" / "state.json").write_text("{}")
    store = Checkpoints(tmp_path)
    found = store.latest()
    assert found is not None
    assert found.step == 3
    store.save(4, {}, {})
    assert store.steps() == [3, 4]
    store.save(5, {}, {})
    assert store.steps() == [4, 5]
    (tmp_path / "step-5" / "state.json").write_text("[]")
    store.latest()
    store.save(6, {}, {})
    assert store.steps() == [4, 6]


def test_numpy_and_bytes(tmp_path: Path) -> None:
    array = torch.arange(6).reshape(2, 3).numpy()
    Checkpoints(tmp_path).save(0, {"array": array.T, "bytes": b"abc"}, {})
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.tensors["array"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert checkpoint.tensors["bytes"].tolist() == [97, 98, 99]
    with pytest.raises(TypeError, match="complex64 cannot be stored"):
        Checkpoints(tmp_path).save(1, {"a": torch.zeros(2, dtype=torch.complex64)}, {})
    assert sorted(os.listdir(tmp_path)) == ["step-0"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=_json)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_round_trips_exactly(value: object, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", value)
    assert repr(read_json(tmp_path / "a.json")) == repr(value)  # repr: -0.0 is not 0.0, 1 is not 1.0 and not True
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "the value is nan, not a finite number; it was not written"),
        ({"a": [1.0, {"b": float("inf")}]}, "a[1].b is inf, not a finite number; it was not written"),
        ({"a": {3: 1}}, "a has the name 3, which is not text and would come back changed; it was not written"),
    ],
)
def test_json_refuses_what_would_come_back_changed(value: object, message: str, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(RunError) as caught:
        write_json(tmp_path / "a.json", value)
    assert str(caught.value) == f"{tmp_path}/a.json: {message}"
    assert read_json(tmp_path / "a.json") == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n', ":2: damaged: not JSON: Expecting property name enclosed in double quotes"),
        (b"", ":1: damaged: not JSON: Expecting value"),
        (b'{"a": NaN}', ": damaged: NaN is not a finite number"),
        (b"\xff", ": damaged: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (None, ": no such file"),
    ],
)
def test_damaged_json_is_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value) == f"{tmp_path}/a.json{message}"


def test_rotation_keeps_the_newest_and_drops_an_abandoned_future(tmp_path: Path) -> None:
    store = _saved(tmp_path, 1, 2, 3)
    assert store.steps() == [2, 3]
    store.save(1, {}, {"step": 1})  # the run went back: 2 and 3 belong to what is done again
    assert store.steps() == [1]
    assert Checkpoints(tmp_path / "none").latest() is None
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step must not be negative"):
        store.save(-1, {}, {})


def test_a_checkpoint_can_be_replaced_and_one_before_can_be_asked_for(tmp_path: Path) -> None:
    store = _saved(tmp_path, 1, 2)
    store.save(2, {"w": torch.zeros(1)}, "again")
    newest, earlier = store.latest(), store.latest(before=2)
    assert newest is not None
    assert earlier is not None
    assert (newest.state, earlier.state) == ("again", {"step": 1})
    assert store.latest(before=1) is None


def test_tensors_stay_readable_while_the_checkpoint_is_rotated_away(tmp_path: Path) -> None:
    store = _saved(tmp_path, 1, 2)
    checkpoint = store.latest()
    assert checkpoint is not None
    first = checkpoint.tensors["w"]
    _saved(tmp_path, 3, 4)
    assert torch.equal(checkpoint.tensors["w"], first)
    assert first.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_truncation_and_loss_of_any_file_falls_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _saved(tmp_path, 1, 2)
    file = tmp_path / "step-2" / name
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1, None):
        file.unlink() if length is None else file.write_bytes(whole[:length])
        checkpoint = store.latest()
        assert checkpoint is not None
        assert checkpoint.step == 1
        said = capsys.readouterr().err
        assert said.startswith(f"{tmp_path}/step-2: damaged checkpoint: {name} ")
        assert said.endswith("; trying the one of step 1\n")
        assert said.count("\n") == 1
    file.write_bytes(whole)
    restored = store.latest()
    assert restored is not None
    assert restored.step == 2


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_in_any_byte_is_found(name: str, tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    file = tmp_path / "step-1" / name
    whole = file.read_bytes()
    for bit in (8 * byte + byte % 8 for byte in range(len(whole))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert fault_of(tmp_path / "step-1") is not None, f"bit {bit}"


def fault_of(folder: Path) -> str | None:
    """In a manifest of format 1, the flipped bit of the 1 is a 9: it is refused like one of a newer version."""
    try:
        return verify_folder(folder)
    except RunError as fault:
        return str(fault)


def test_what_a_newer_version_wrote_is_no_damage(tmp_path: Path) -> None:
    """Neither passed over for an older one nor made again."""
    store = _saved(tmp_path, 1, 2)
    manifest = tmp_path / "step-2" / "manifest.json"
    manifest.write_text(json.dumps({"format": 2, "contents": "of another kind"}))
    for asked in (store.latest, lambda: verify_folder(tmp_path / "step-2")):
        with pytest.raises(RunError, match=rf"^{manifest}: has format 2 and this version reads 1: .*; go on with that one, or"):
            asked()
    assert store.steps() == [1, 2]


def test_nothing_left_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _saved(tmp_path, 5)
    (tmp_path / "step-5" / "state.json").unlink()
    assert store.latest() is None
    assert capsys.readouterr().err == f"{tmp_path}/step-5: damaged checkpoint: state.json is missing; there is no earlier one\n"


def test_a_manifest_names_only_files_of_its_folder(tmp_path: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x"):
        (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: {"bytes": 1, "sha256": ""}}}))
        assert verify_folder(tmp_path) == "manifest.json is damaged"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "policy"
    with atomic_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        assert not target.exists()
    assert verify_folder(target) is None
    with pytest.raises(ValueError, match="invalid literal"), atomic_folder(target) as folder:
        (folder / "a").write_text(str(int("not a number")))
    assert (target / "inner" / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert sorted(entry.name for entry in target.iterdir()) == ["b", "manifest.json"]
    assert [entry.name for entry in target.parent.iterdir()] == ["policy"]
    with (
        pytest.raises(RunError, match=r"/huge: the disk is full: 10{18} bytes needed, \d+ bytes free"),
        atomic_folder(tmp_path / "huge", bytes_needed=10**18),
    ):
        pass


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / "step-1.tmp-1").mkdir()
    (tmp_path / "step-1.tmp-notes").mkdir()
    with atomic_folder(tmp_path / "step-2") as folder:
        discard_leftovers(tmp_path)
        assert folder.exists()
        (folder / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["step-1.tmp-notes", "step-2"]


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the kernel may call the lost pages clean: a second fsync of the same file would lie."""
    store = _saved(tmp_path, 1)
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=r"/step-2: could not be written: Input/output error; check the disk and start again$"):
            store.save(2, {"w": torch.zeros(1)}, {})
    assert len(calls) == 1
    assert os.listdir(tmp_path) == ["step-1"]

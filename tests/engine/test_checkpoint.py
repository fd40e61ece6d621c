import errno
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from airtune.engine import checkpoint as checkpoint_module
from airtune.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from airtune.errors import CheckpointError, MethodError, StorageError
from airtune.model.importance import Importance, Means
from airtune.model.kept import Kept
from airtune.model.state import GlobalState

METHOD = {
    "counts": np.arange(3), "names": np.array(["a", "long"]), "gamma": 0.1, "best": float("inf"),
    "round": 7, "arm": "x", "flag": True,
}  # fmt: skip


def make(rounds=1, **method):
    stream = torch.Generator().manual_seed(rounds)
    tensors = {f"0.q.{part}": torch.randn(3, 4, generator=stream) for part in "BA"}
    draw = np.random.default_rng(rounds)
    state = GlobalState(
        round=rounds,
        adapters=tensors,
        head={"score.weight": torch.randn(2, 3, generator=stream)},
        importance=Importance(
            draw.random((2, 2)),
            draw.random((2, 5)),
            Means(draw.random((2, 4)), draw.random((2, 5))),
        ),
        kept=Kept((np.array([0]), np.array([1])), (np.array([0, 3]), np.array([2]))),
        merged={"0.q": torch.randn(4, 4, generator=stream)},
    )
    return Checkpoint(
        rounds, 12.5 + 1e-13 * rounds, state, METHOD | method, {"best": {"loss": 0.1}}
    )


def save(folder, *rounds):
    for number in rounds:
        save_checkpoint(folder, make(number), identity="me")


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 1)
    saved, back = make(1), load_checkpoint(tmp_path, identity="me")
    assert (back.rounds, back.time_s, back.progress) == (saved.rounds, saved.time_s, saved.progress)
    for name in ("adapters", "head", "merged"):
        ours, theirs = getattr(saved.state, name), getattr(back.state, name)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert np.array_equal(back.state.importance.means.ffn, saved.state.importance.means.ffn)
    assert np.array_equal(back.state.importance.groups, saved.state.importance.groups)
    assert back.state.kept == saved.state.kept
    assert back.method.keys() == METHOD.keys()
    for key, value in METHOD.items():
        assert np.array_equal(back.method[key], value)
        assert type(back.method[key]) is type(value)


def test_a_state_without_importance_or_head_comes_back_so(tmp_path):
    bare = Checkpoint(0, 0.0, GlobalState(0, {"0.q.A": torch.ones(1, 2)}, {}), {}, {})
    save_checkpoint(tmp_path, bare, identity="me")
    back = load_checkpoint(tmp_path, identity="me")
    assert (back.state.importance, back.state.kept, back.state.head) == (None, None, {})


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    save(tmp_path, 8, 9, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000009", "round-000010"]
    assert load_checkpoint(tmp_path, identity="me").rounds == 10


def test_no_checkpoint_is_none_and_a_half_written_one_is_none_either(tmp_path):
    assert load_checkpoint(tmp_path / "absent", identity="me") is None
    save(tmp_path, 1)
    (tmp_path / "round-000001").rename(tmp_path / ".partial")
    assert load_checkpoint(tmp_path, identity="me") is None
    save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000002"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "arrays.npz", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_an_error_that_names_the_file_and_the_way_out(tmp_path, name, damage):
    save(tmp_path, 1, 2)
    path = tmp_path / "round-000002" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="go on from round-000001") as caught:
        load_checkpoint(tmp_path, identity="me")
    assert str(path) in str(caught.value)
    shutil.rmtree(path.parent)
    assert load_checkpoint(tmp_path, identity="me").rounds == 1


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        load_checkpoint(tmp_path, identity="you")


def test_a_checkpoint_of_another_schema_is_refused(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "round-000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99, this version reads 1"):
        load_checkpoint(tmp_path, identity="me")


@pytest.mark.parametrize("value", [np.array([object()]), [1, 2], None])
def test_a_method_may_only_remember_arrays_and_plain_values(tmp_path, value):
    with pytest.raises(MethodError, match="state 'odd' must be"):
        save_checkpoint(tmp_path, make(1, odd=value), identity="me")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_the_older_checkpoint_stands(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    assert load_checkpoint(tmp_path, identity="me").rounds == 1


def test_nothing_is_ever_unpickled(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "round-000001"
    np.savez(folder / "arrays.npz", **{"method/evil": np.array([{"a": 1}], object)})
    document = json.loads((folder / "state.json").read_text())
    document["checksums"]["arrays.npz"] = zlib.crc32((folder / "arrays.npz").read_bytes())
    document["crc32"] = zlib.crc32(checkpoint_module._canonical(document))
    (folder / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_checkpoint(tmp_path, identity="me")


def test_the_best_round_stays_beside_the_last_two(tmp_path):
    for number in range(1, 6):
        save_checkpoint(tmp_path, make(number), identity="me", best=min(number, 2))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-000002", "round-000004", "round-000005"]
    assert load_checkpoint(tmp_path, identity="me").rounds == 5
    assert load_checkpoint(tmp_path, identity="me", rounds=2).rounds == 2
    assert load_checkpoint(tmp_path, identity="me", rounds=3) is None

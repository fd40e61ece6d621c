"""A part of a model is what the whole has in its place, and nothing else is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from airtune.errors import ModelError
from airtune.model import part
from airtune.model.base import load_base
from airtune.model.cut import DeviceHalf
from airtune.model.families import FAMILIES
from airtune.model.images import image_base_of
from airtune.model.lora import init_adapters
from airtune.model.part import INDEX, group_of, part_fingerprints, read_part, read_tensors
from airtune.plan import Workload

BLOCKS = 3
CASES = [(name, 0) for name in sorted(FAMILIES) if FAMILIES[name].causal]
CASES += [(name, 3) for name in sorted(FAMILIES)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def whole(request, make_base):
    """Every family as a language model and as a classifier."""
    name, labels = request.param
    if name == "vit":
        config = ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=BLOCKS,
            image_size=8,
            num_attention_heads=4,
            patch_size=4,
            num_labels=3,
        )
        return image_base_of(ViTForImageClassification(config))
    listed: dict[str, list[str]] = {}
    if name != "mistral":  # one whose config lists its layers is read as of another family
        listed = {"layer_types": ["full_attention"] * BLOCKS}
    if name in ("gemma3_text", "modernbert"):
        listed["layer_types"][1] = "sliding_attention"
    return make_base(name, labels=labels, num_hidden_layers=BLOCKS, **listed)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_part_computes_and_is_what_the_whole_is(whole, blocks, make_batch, tmp_path) -> None:
    whole.network.save_pretrained(tmp_path)
    held = read_part(tmp_path, blocks=blocks, labels=whole.shape.labels)
    theirs, ours = part_fingerprints(whole.network), part_fingerprints(held.network)
    assert held.shape == whole.shape
    assert {"front", *map(str, range(blocks))} <= ours.keys()
    assert str(blocks) not in ours
    assert ours.items() <= theirs.items()
    if whole.family.name == "vit":
        return
    targets = (whole.shape.linears[0].name,)
    workload = Workload(2, 9, local_steps=1, rank=2, lora_targets=targets)
    adapters = init_adapters(whole.shape, workload, 0)
    batch = make_batch(whole, rows=2, tokens=9)
    activations = [
        DeviceHalf(base.network, base.family, [adapters], cut=blocks, scale=2.0).forward(batch)
        for base in (whole, held)
    ]
    torch.testing.assert_close(*activations, rtol=0, atol=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model of four shards whose output layer is not tied."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="5MB")
    return tmp_path


def bytes_read() -> int:
    """Return what this process has read so far, by Linux's count."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        pytest.skip("reads are counted by Linux")
    return int(counts.read_text().splitlines()[0].split()[1])


def test_nothing_beside_the_part_is_read(saved: Path) -> None:
    groups = part.held_groups(1)
    before = bytes_read()
    found = read_tensors(saved, lambda name: group_of(name) in groups, torch.float32)
    read = bytes_read() - before
    size = sum(tensor.nbytes for tensor in found.values())
    assert size <= read < size + 100_000
    on_disk = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
    assert read < on_disk / 4
    assert not any(name.startswith("lm_head") for name in found)


def test_an_output_layer_is_held_where_labels_stay(saved: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(saved)
    held = read_part(saved, blocks=2, output=True).network
    assert part_fingerprints(held)["output"] == part_fingerprints(whole)["output"]
    without = read_part(saved, blocks=2)
    assert "output" not in part_fingerprints(without.network)
    with pytest.raises(ModelError, match="holds a part of the model"):
        without.network(torch.zeros(1, 2, dtype=torch.int64))


def test_files_of_which_nothing_is_held_may_lack(saved: Path) -> None:
    places = json.loads((saved / INDEX).read_text())["weight_map"]
    used = {file for name, file in places.items() if group_of(name) in part.held_groups(1)}
    for path in saved.glob("*.safetensors"):
        if path.name not in used:
            path.unlink()
    assert len(used) < len(set(places.values()))
    assert read_part(saved, blocks=1).held == 1
    with pytest.raises(ModelError, match="cannot be read in part"):
        read_part(saved, blocks=5)


def test_another_weight_is_seen_in_its_group_alone(saved: Path, tmp_path: Path) -> None:
    before = part_fingerprints(read_part(saved, blocks=2).network)
    for path in saved.glob("*.safetensors"):
        tensors = load_file(path)
        name = "model.layers.1.mlp.up_proj.weight"
        if name in tensors:
            save_file({**tensors, name: tensors[name] + 1}, path, {"format": "pt"})
    after = part_fingerprints(read_part(saved, blocks=2).network)
    assert [group for group in before if before[group] != after[group]] == ["1"]


def test_a_head_that_is_drawn_is_the_one_of_the_whole(tmp_path: Path) -> None:
    from airtune.data import EMBEDDED_MODEL

    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    whole = load_base(tmp_path / "model", labels=5, device="cpu")
    held = part.load_part(tmp_path / "model", blocks=1, labels=5, device="cpu")
    theirs, ours = part_fingerprints(whole.network), part_fingerprints(held.network)
    assert ours["front"] == theirs["front"]
    assert held.tokenizer is not None
    assert held.drawn == whole.drawn

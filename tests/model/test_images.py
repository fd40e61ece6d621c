"""A vision transformer is a family like the others: shape, slices, adapters, importance."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, BertConfig, ViTConfig

from airtune.cost.encoders import vit_like
from airtune.errors import DataError, ModelError
from airtune.model.families import shape_from_config
from airtune.model.images import (
    Images,
    collate_images,
    image_base_of,
    image_tokens,
    load_image_base,
)
from airtune.model.importance import measure
from airtune.model.kept import Kept
from airtune.model.lora import attach, init_adapters, take
from airtune.model.loss import batch_losses, class_logits
from airtune.model.slicing import choose_kept, slice_network
from airtune.model.weights import bias_of, shape_of

CONFIG = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 8, "patch_size": 4, "num_labels": 3,
}  # fmt: skip


@pytest.fixture
def base():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForImageClassification.from_config(ViTConfig(**CONFIG))
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return image_base_of(network)


@pytest.fixture
def images():
    draw = np.random.default_rng(0)
    return Images(draw.integers(0, 256, (6, 3, 8, 8), np.uint8), draw.integers(0, 3, 6))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 64, "image_size": 16, "num_channels": 1}])
def test_parameters_and_layers_equal_those_of_the_network(qkv_bias, sizes):
    config = ViTConfig(**{**CONFIG, **sizes}, qkv_bias=qkv_bias)
    base = image_base_of(AutoModelForImageClassification.from_config(config))
    assert base.shape.parameters == base.network.num_parameters()
    for linear in base.shape.linears:
        columns, rows = base.shape.linear_sizes(linear, base.shape.kv_groups, base.shape.ffn)
        module = base.family.linear(base.network, 1, linear.name)
        assert shape_of(module) == (rows, columns)
        assert (bias_of(module) is not None) == linear.bias


def test_vit_base_has_its_published_size():
    config = ViTConfig(num_labels=1000)
    with torch.device("meta"):
        counted = AutoModelForImageClassification.from_config(config).num_parameters()
    assert shape_from_config(config, labels=1000).parameters == counted == 86_567_656


def test_a_batch_of_images_is_read_like_any_other(base, images):
    batch = collate_images(images, [4, 1], tokens=image_tokens(base.network.config))
    assert batch.attention_mask.shape == (2, 5)
    assert batch.labels.tolist() == images.targets[[4, 1]].tolist()
    pixels = torch.from_numpy(images.pixels[[4, 1]]) / 255.0 * 2.0 - 1.0
    output = base.network(pixel_values=pixels, labels=batch.labels)
    torch.testing.assert_close(class_logits(base.network, batch), output.logits)
    torch.testing.assert_close(batch_losses(base.network, batch)[0], output.loss)


@pytest.mark.parametrize("criterion", ["fluctuation", "magnitude"])
def test_heads_and_channels_are_scored_and_removed(base, images, workload_of, criterion):
    batch = collate_images(images, range(6), tokens=5)
    importance = measure(base.network, base.shape, [batch], criterion=criterion)
    kept = choose_kept(importance, base.shape, 2, 20)
    sliced = slice_network(base, kept)
    assert sum(p.numel() for p in sliced.parameters()) == (
        base.shape.embedding_parameters
        + base.shape.head_parameters
        + 2 * int(base.shape.block_parameters(2, 20))
    )
    adapters = take(init_adapters(base.shape, workload_of(base.shape), 0), base.shape, kept, 2)
    lora = attach(sliced, base.family, [adapters], scale=2.0)
    batch_losses(lora.network, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in lora.parameters())


def test_a_slice_equals_the_network_with_what_is_removed_set_to_zero(base, images):
    batch = collate_images(images, range(3), tokens=5)
    kept = Kept((np.array([0, 2]),) * 2, (np.arange(0, 48, 3),) * 2)
    sliced = class_logits(slice_network(base, kept), batch)
    for block in range(2):
        output = base.family.linear(base.network, block, "o_proj")
        output.weight.data[:, 8:16] = 0.0
        output.weight.data[:, 24:] = 0.0
        removed = np.setdiff1d(np.arange(48), kept.channels[0])
        base.family.linear(base.network, block, "fc2").weight.data[:, removed] = 0.0
    torch.testing.assert_close(sliced, class_logits(base.network, batch), atol=1e-5, rtol=1e-5)


def test_a_saved_model_is_loaded_frozen_with_a_new_head_where_classes_differ(base, tmp_path):
    base.network.save_pretrained(tmp_path / "m")
    same = load_image_base(tmp_path / "m", labels=3)
    assert same.fingerprint == base.fingerprint
    assert not any(parameter.requires_grad for parameter in same.network.parameters())
    other = load_image_base(tmp_path / "m", labels=7)
    assert other.shape.labels == 7
    again = load_image_base(tmp_path / "m", labels=7)
    assert torch.equal(other.network.classifier.weight, again.network.classifier.weight)


def test_wrong_images_and_models_are_refused(base, images, tmp_path):
    with pytest.raises(DataError, match="a batch needs at least one image, got none"):
        collate_images(images, [], tokens=5)
    with pytest.raises(ModelError, match="cannot load model '/nowhere'"):
        load_image_base("/nowhere", labels=2)
    with pytest.raises(ModelError, match="dtype must be one of float32, bfloat16, float16, got"):
        load_image_base("/nowhere", labels=2, dtype="int3")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert model and reads no images; use a vit"):
        load_image_base(tmp_path, labels=2)
    with pytest.raises(ModelError, match="whole number of patches, got 10 and 4 pixels"):
        shape_from_config(ViTConfig(image_size=10, patch_size=4), labels=2)
    with pytest.raises(ModelError, match="image_size of a vit model must be one number"):
        shape_from_config(ViTConfig(image_size=(8, 16)), labels=2)
    with pytest.raises(ModelError, match="needs at least 1 class, got labels=0"):
        vit_like(
            blocks=1, width=8, heads=1, head_dim=8, ffn=8, image=4, patch=4, channels=1, labels=0
        )

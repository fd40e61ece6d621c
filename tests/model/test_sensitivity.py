"""Importance from gradients, against autograd on the weights themselves."""

import numpy as np
import pytest
import torch

from airtune.errors import ModelError
from airtune.model.importance import Importance
from airtune.model.kept import keep_all
from airtune.model.lora import attach, init_adapters, take
from airtune.model.loss import batch_losses
from airtune.model.sensitivity import first_order, tracker
from airtune.model.slicing import slice_network
from airtune.plan import ModelShape

SCALE = 2.0


def stacks_of(base, workload, devices):
    made = [init_adapters(base.shape, workload, seed) for seed in range(devices)]
    for seed, adapters in enumerate(made):
        stream = torch.Generator().manual_seed(seed)
        for name in adapters:
            adapters[name] = adapters[name] + 0.2 * torch.randn(
                adapters[name].shape, generator=stream
            )
    return made


def joined(make_batch, base, devices):
    parts = [make_batch(base, seed=seed) for seed in range(devices)]
    whole = [
        torch.cat([getattr(part, name) for part in parts])
        for name in ("input_ids", "attention_mask", "labels")
    ]
    return parts, type(parts[0])(*whole)


def backward(lora, batch, watch):
    watch.before(batch)
    losses = batch_losses(lora.network, batch, devices=lora.devices)
    torch.autograd.backward(losses.sum())
    watch.after(torch.isfinite(losses.detach()))
    return watch.readings()


def weight_gradients(base, adapters, batch):
    """Return {layer: (effective weight, its gradient)} as (out, in), by autograd on a merged copy."""
    found = {}
    lora = attach(base.network, base.family, [adapters], scale=SCALE)
    for name, layer in lora.layers.items():
        module = layer.base
        plain = module.weight.detach()
        plain = plain.T if type(module).__name__ == "Conv1D" else plain
        delta = SCALE * adapters[f"{name}.B"] @ adapters[f"{name}.A"]
        effective = (plain + delta).clone().requires_grad_()
        bias = None if module.bias is None else module.bias.detach()
        layer.forward = lambda x, w=effective, b=bias: torch.nn.functional.linear(x, w, b)
        found[name] = effective
    torch.autograd.backward(batch_losses(lora.network, batch).sum())
    return {name: (weight.detach(), weight.grad) for name, weight in found.items()}


def reference(shape: ModelShape, worth):
    """Sum an (out, in) score a layer over structures and divide by the block's mean."""
    groups, channels = (
        np.zeros((shape.blocks, shape.kv_groups)),
        np.zeros((shape.blocks, shape.ffn)),
    )
    for name, score in worth.items():
        block, linear = int(name.partition(".")[0]), name.partition(".")[2]
        layer = next(item for item in shape.linears if item.name == linear)
        is_ffn = "ffn" in (layer.in_axis, layer.out_axis)
        target = (channels if is_ffn else groups)[block]
        sums = score.sum(0) if layer.out_axis == "width" else score.sum(1)
        axes = (layer.in_axis,) if layer.out_axis == "width" else layer.parts
        ends = np.cumsum([shape.span(axis) * len(target) for axis in axes])
        for part in np.split(sums.numpy(), ends[:-1]):
            target += part.reshape(len(target), -1).sum(1)
    raw = groups.sum() + channels.sum()
    return groups / groups.mean(1, keepdims=True), channels / channels.mean(1, keepdims=True), raw


def test_lora_gradients_give_what_autograd_of_the_effective_weight_gives(
    base, make_batch, workload_of
):
    workload = workload_of(base.shape)
    stacks = stacks_of(base, workload, 2)
    parts, batch = joined(make_batch, base, 2)
    lora = attach(base.network, base.family, stacks, scale=SCALE)
    watch = tracker("lora-gradient", lora, base.shape, keep_all(base.shape), [None, None])
    readings = backward(lora, batch, watch)
    for reading, adapters, part in zip(readings, stacks, parts, strict=True):
        worth = {}
        for name, (weight, gradient) in weight_gradients(base, adapters, part).items():
            a, b = adapters[f"{name}.A"], adapters[f"{name}.B"]
            # by the chain rule the factors' gradients are projections of the weight's
            da, db = SCALE * b.T @ gradient, SCALE * gradient @ a.T
            worth[name] = ((db @ a + b @ da - db @ da) * weight).abs()
        groups, channels, raw = reference(base.shape, worth)
        np.testing.assert_allclose(reading.importance.groups, groups, rtol=2e-4)
        np.testing.assert_allclose(reading.importance.channels, channels, rtol=2e-3, atol=1e-5)
        assert reading.total == pytest.approx(raw, rel=1e-4)


def test_with_factors_that_see_everything_it_is_the_first_order_score(base, make_batch):
    adapters = {}
    for block in range(base.shape.blocks):
        for linear in base.shape.linears:
            columns, rows = base.shape.linear_sizes(linear, base.shape.kv_groups, base.shape.ffn)
            adapters[f"{block}.{linear.name}.A"] = torch.eye(int(columns))
            adapters[f"{block}.{linear.name}.B"] = torch.zeros(int(rows), int(columns))
    batch = make_batch(base)
    lora = attach(base.network, base.family, [adapters], scale=1.0)
    watch = tracker("lora-gradient", lora, base.shape, keep_all(base.shape), [None])
    measured = backward(lora, batch, watch)[0].importance
    expected = first_order(base, [batch])
    np.testing.assert_allclose(measured.groups, expected.groups, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(measured.channels, expected.channels, rtol=1e-3, atol=1e-5)


def test_first_order_is_weight_times_gradient_and_leaves_the_base_alone(
    base, make_batch, workload_of
):
    batch = make_batch(base)
    zero = init_adapters(base.shape, workload_of(base.shape), 0)
    worth = {
        name: (weight * gradient).abs()
        for name, (weight, gradient) in weight_gradients(base, zero, batch).items()
    }
    groups, channels, _ = reference(base.shape, worth)
    measured = first_order(base, [batch])
    np.testing.assert_allclose(measured.groups, groups, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(measured.channels, channels, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in base.network.parameters())


def test_no_frozen_weight_ever_has_a_gradient(base, make_batch, workload_of):
    stacks = stacks_of(base, workload_of(base.shape), 1)
    lora = attach(base.network, base.family, stacks, scale=SCALE)
    watch = tracker("lora-gradient", lora, base.shape, keep_all(base.shape), [None])
    backward(lora, make_batch(base), watch)
    trained = {id(parameter) for parameter in lora.parameters()}
    frozen = [item for item in lora.network.parameters() if id(item) not in trained]
    assert frozen
    assert all(item.grad is None for item in frozen)


def test_what_a_slice_lacks_is_unknown_and_the_rest_is_smoothed(
    make_base, make_batch, workload_of, uneven_kept
):
    base = make_base("llama")
    shape, kept = base.shape, uneven_kept(base.shape)
    adapters = take(stacks_of(base, workload_of(shape), 1)[0], shape, kept, 4)
    lora = attach(slice_network(base, kept), base.family, [adapters], scale=SCALE)
    once = backward(lora, make_batch(base), tracker("lora-gradient", lora, shape, kept, [None]))[0]
    has = np.zeros((shape.blocks, shape.ffn), bool)
    for block, row in enumerate(kept.channels):
        has[block, row] = True
    assert np.array_equal(np.isfinite(once.importance.channels), has)
    start = Importance(np.full(once.importance.groups.shape, 3.0), np.full(has.shape, 5.0))
    lora.network.zero_grad()
    again = backward(lora, make_batch(base), tracker("lora-gradient", lora, shape, kept, [start]))[
        0
    ]
    np.testing.assert_allclose(
        again.importance.channels[has], 0.9 * 5.0 + 0.1 * once.importance.channels[has], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["lora-gradient", "salience"])
def test_a_step_with_nan_is_skipped_for_the_device_that_had_it(
    make_base, make_batch, workload_of, kind
):
    base = make_base("bert")
    lora = attach(
        base.network, base.family, stacks_of(base, workload_of(base.shape), 2), scale=SCALE
    )
    watch = tracker(kind, lora, base.shape, keep_all(base.shape), [None, None])
    _, batch = joined(make_batch, base, 2)
    before = backward(lora, batch, watch)
    for layer in lora.layers.values():
        layer.a.grad[1] = torch.nan
    watch.after(torch.tensor([True, False]))
    after = watch.readings()
    assert np.array_equal(before[1].importance.channels, after[1].importance.channels)
    assert np.isfinite(after[0].importance.channels).all()


def test_salience_is_reading_times_pull_with_heavy_tails_rewarded(
    make_base, make_batch, workload_of
):
    base = make_base("llama")
    stacks = stacks_of(base, workload_of(base.shape), 2)
    parts, batch = joined(make_batch, base, 2)
    lora = attach(base.network, base.family, stacks, scale=SCALE)
    watch = tracker("salience", lora, base.shape, keep_all(base.shape), [None, None])
    readings = backward(lora, batch, watch)
    alone = attach(base.network, base.family, [stacks[1]], scale=SCALE)
    read = {}

    def keep(module, inputs):
        inputs[0].retain_grad()
        read["h"] = inputs[0]

    base.family.linear(alone.network, 1, "down_proj").register_forward_pre_hook(keep)
    torch.autograd.backward(batch_losses(alone.network, parts[1]).sum())
    real = parts[1].attention_mask.bool()
    h, g = read["h"].detach(), read["h"].grad
    worth = (h[real].abs().sum(0) * g[real].abs().sum(0)).numpy()
    padded = (h * real[..., None]).reshape(-1, h.shape[-1])
    kurtosis = (padded**4).mean(0) / (padded**2).mean(0) ** 2
    tail = kurtosis.sqrt().numpy()
    expected = worth / worth.mean() + tail / tail.mean()
    np.testing.assert_allclose(
        readings[1].importance.channels[1], expected / expected.mean(), rtol=1e-3
    )


def test_kinds_that_are_measured_beforehand_need_no_tracker(make_base, workload_of):
    base = make_base("llama")
    lora = attach(base.network, base.family, stacks_of(base, workload_of(base.shape), 1), scale=1.0)
    assert tracker("fluctuation", lora, base.shape, keep_all(base.shape), [None]) is None


def test_reading_before_the_backward_pass_is_refused(make_base, workload_of):
    base = make_base("llama")
    lora = attach(base.network, base.family, stacks_of(base, workload_of(base.shape), 1), scale=1.0)
    watch = tracker("lora-gradient", lora, base.shape, keep_all(base.shape), [None])
    with pytest.raises(ModelError, match="after the backward pass"):
        watch.after(torch.tensor([True]))


def test_calibration_without_data_is_refused(make_base):
    with pytest.raises(ModelError, match="got no batch"):
        first_order(make_base("llama"), [])

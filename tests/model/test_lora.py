import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from airtune.errors import ModelError
from airtune.model.batch import Batch
from airtune.model.kept import keep_all
from airtune.model.lora import attach, head_of, init_adapters, merged, scatter, take
from airtune.model.loss import batch_losses
from airtune.model.save import _target_modules
from airtune.model.slicing import slice_network

SCALE = 2.0


@pytest.fixture
def stacks(base, workload_of):
    """Adapters of three devices, none of them zero."""
    made = [init_adapters(base.shape, workload_of(base.shape), seed) for seed in range(3)]
    for seed, adapters in enumerate(made):
        stream = torch.Generator().manual_seed(seed)
        for name in adapters:
            adapters[name] = adapters[name] + 0.2 * torch.randn(
                adapters[name].shape, generator=stream
            )
    return made


def head_for(base, seed):
    stream = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=stream)
        for name, tensor in head_of(base.network, base.family).items()
    }


def gradients(lora):
    return [parameter.grad.clone() for parameter in lora.parameters()]


def joined(batches):
    return Batch(*(torch.cat(parts) for parts in zip(*map(parts_of, batches), strict=True)))


def parts_of(batch):
    return batch.input_ids, batch.attention_mask, batch.labels


def test_one_device_equals_peft(base, stacks, make_batch):
    batch, adapters = make_batch(base), stacks[0]
    peft_base = copy.deepcopy(base.network)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=_target_modules(base, list_of(adapters)),
        fan_in_fan_out=base.family.name == "gpt2",
    )
    oracle = inject_adapter_in_model(config, peft_base)
    trained = {name: module for name, module in oracle.named_modules() if hasattr(module, "lora_A")}
    for key in list_of(adapters):
        block, _, linear = key.partition(".")
        module = trained[base.family.path(int(block), linear)]
        module.lora_A["default"].weight.data.copy_(adapters[f"{key}.A"])
        module.lora_B["default"].weight.data.copy_(adapters[f"{key}.B"])
    ours = attach(base.network, base.family, [adapters], scale=SCALE)
    loss = batch_losses(ours.network, batch)
    expected = batch_losses(oracle, batch)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    for key in list_of(adapters):
        block, _, linear = key.partition(".")
        path = base.family.path(int(block), linear)
        mine = ours.network.get_submodule(path)
        theirs = trained[path]
        torch.testing.assert_close(
            mine.a.grad[0], theirs.lora_A["default"].weight.grad, atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            mine.b.grad[0], theirs.lora_B["default"].weight.grad, atol=1e-6, rtol=1e-5
        )


def list_of(adapters):
    return [name.removesuffix(".A") for name in adapters if name.endswith(".A")]


def test_a_batched_pass_equals_a_loop_over_devices(base, stacks, make_batch, uneven_kept):
    kept = uneven_kept(base.shape)
    sliced = slice_network(base, kept)
    mine = [take(adapters, base.shape, kept, 3) for adapters in stacks]
    heads = [head_for(base, seed) for seed in range(3)]
    batches = [make_batch(base, rows=2, seed=seed) for seed in range(3)]
    together = attach(sliced, base.family, mine, scale=SCALE, heads=heads)
    losses = batch_losses(together.network, joined(batches), devices=3)
    losses.sum().backward()
    for place in range(3):
        alone = attach(
            sliced, base.family, [mine[place]], scale=SCALE, heads=heads[place : place + 1]
        )
        loss = batch_losses(alone.network, batches[place])
        loss.sum().backward()
        torch.testing.assert_close(losses[place : place + 1], loss, atol=1e-5, rtol=1e-5)
        for both, one in zip(gradients(together), gradients(alone), strict=True):
            torch.testing.assert_close(both[place], one[0], atol=1e-5, rtol=1e-4)


def test_what_goes_in_comes_out(base, stacks):
    heads = [head_for(base, seed) for seed in range(3)]
    lora = attach(base.network, base.family, stacks, scale=SCALE, heads=heads)
    for given, back in zip(stacks + heads, lora.adapters() + lora.heads(), strict=True):
        assert given.keys() == back.keys()
        assert all(torch.equal(given[name], back[name]) for name in given)


def test_merging_equals_attaching(base, stacks, make_batch):
    batch, head = make_batch(base), head_for(base, 0)
    attached = attach(base.network, base.family, stacks[:1], scale=SCALE, heads=[head])
    plain = merged(base.network, base.family, stacks[0], scale=SCALE, head=head)
    torch.testing.assert_close(
        batch_losses(plain, batch), batch_losses(attached.network, batch), atol=1e-5, rtol=1e-5
    )


def test_dropout_depends_on_the_device_and_the_step_alone(base, stacks, make_batch):
    def losses(rows, seeds, step):
        lora = attach(
            base.network,
            base.family,
            [stacks[0]] * len(seeds),
            scale=SCALE,
            dropout=0.5,
            seeds=seeds,
        ).train()
        lora.set_step(step)
        batch = joined([make_batch(base, rows=2)] * rows)
        return batch_losses(lora.network, batch, devices=len(seeds)).detach()

    alone, together = losses(1, [3], 0), losses(2, [9, 3], 0)
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])
    assert not torch.allclose(alone, losses(1, [3], 1))


def test_taking_and_scattering_keep_the_product_of_the_slice(base, stacks, uneven_kept):
    kept = uneven_kept(base.shape)
    mine = take(stacks[0], base.shape, kept, 2)
    full = scatter(mine, base.shape, kept)
    again = take(full, base.shape, kept, 2)
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    whole = take(stacks[0], base.shape, keep_all(base.shape), 4)
    assert all(torch.equal(whole[name], stacks[0][name]) for name in whole)
    assert sum(tensor.numel() for tensor in mine.values()) == sum(
        int((tensor != 0).sum()) for tensor in full.values()
    )


def test_upload_bytes_of_the_cost_model_are_the_tensors(base, stacks, workload_of):
    import numpy as np

    from airtune.cost import lora_parameters
    from airtune.plan import whole_model

    assignments = replace(
        whole_model(np.arange(1), rank=3, local_steps=1, share=np.ones(1)),
        prune_heads=np.array([0.5]),
        prune_ffn=np.array([0.25]),
    )
    groups = int(base.shape.kept_groups(0.5))
    channels = int(base.shape.kept_channels(0.25))
    kept = keep_all(base.shape)
    kept = type(kept)(
        tuple(row[:groups] for row in kept.groups), tuple(row[:channels] for row in kept.channels)
    )
    mine = take(stacks[0], base.shape, kept, 3)
    counted = lora_parameters(base.shape, workload_of(base.shape), assignments)
    assert int(counted[0]) == sum(tensor.numel() for tensor in mine.values())


def test_fresh_adapters_change_nothing_and_are_drawn_by_seed(base, make_batch, workload_of):
    batch, workload = make_batch(base), workload_of(base.shape)
    fresh = init_adapters(base.shape, workload, 0)
    lora = attach(base.network, base.family, [fresh], scale=SCALE)
    torch.testing.assert_close(
        batch_losses(lora.network, batch), batch_losses(base.network, batch), atol=1e-6, rtol=0
    )
    again = init_adapters(base.shape, workload, 0)
    other = init_adapters(base.shape, workload, 1)
    name = next(iter(fresh))
    assert torch.equal(fresh[name], again[name])
    assert not torch.equal(fresh[name], other[name])


def test_adapters_can_sit_on_some_layers_only(base, make_batch, workload_of):
    target = base.shape.linears[-1].name
    workload = workload_of(base.shape, targets=(target,))
    adapters = init_adapters(base.shape, workload, 0)
    assert {name.split(".", 1)[1].rsplit(".", 1)[0] for name in adapters} == {target}
    lora = attach(base.network, base.family, [adapters], scale=SCALE)
    assert len(lora.parameters()) == 2 * base.shape.blocks


def test_what_does_not_fit_is_refused(base, stacks, workload_of, uneven_kept):
    kept = uneven_kept(base.shape)
    with pytest.raises(ModelError, match="rank must be between 1 and 4, got 5"):
        take(stacks[0], base.shape, kept, 5)
    with pytest.raises(ModelError, match=r"LoRA targets of a .* model are .*; got nonsense; set"):
        init_adapters(base.shape, workload_of(base.shape, targets=("nonsense",)), 0)
    with pytest.raises(ModelError, match="take the slice that the network has"):
        attach(slice_network(base, kept), base.family, stacks, scale=SCALE)
    unlike = [stacks[0], take(stacks[1], base.shape, keep_all(base.shape), 2)]
    with pytest.raises(ModelError, match="must be of one slice and rank"):
        attach(base.network, base.family, unlike, scale=SCALE)
    with pytest.raises(ModelError, match="got 0 sets of adapters and 0 heads"):
        attach(base.network, base.family, [], scale=SCALE)


def test_adapters_in_single_precision_serve_a_half_precision_base(
    make_base, make_batch, workload_of
):
    base = make_base("llama")
    base.network.to(torch.bfloat16)
    adapters = init_adapters(base.shape, workload_of(base.shape), 0)
    lora = attach(base.network, base.family, [adapters], scale=SCALE)
    batch_losses(lora.network, make_batch(base)).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in lora.parameters())

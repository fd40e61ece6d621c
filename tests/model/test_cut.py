"""Both halves together are the whole model, in every family, for any cuts."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from airtune.errors import ModelError, TrainingError
from airtune.model.batch import IGNORED, Batch
from airtune.model.cut import Arrived, DeviceHalf, ServerHalf
from airtune.model.families import FAMILIES
from airtune.model.images import image_base_of
from airtune.model.lora import attach, init_adapters
from airtune.model.loss import batch_losses
from airtune.model.stages import check_cut, head_positions, held_by_device, held_by_server
from airtune.model.state import initial_state

SCALE = 2.0
BLOCKS = 3
CASES = [(name, 0) for name in sorted(FAMILIES) if FAMILIES[name].causal]
CASES += [(name, 3) for name in sorted(FAMILIES)]
some_families = pytest.mark.parametrize(
    "base", [("gpt2", 0), ("bert", 3), ("vit", 3)], indirect=True, ids=["gpt2", "bert", "vit"]
)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def base(request, make_base):
    """Every family as a language model and as a classifier, with three blocks."""
    name, labels = request.param
    if name == "vit":
        return tiny_vit()
    return make_base(
        name,
        labels=labels,
        num_hidden_layers=BLOCKS,
        layer_types=layer_types_of(name),
        classifier_pooling="mean",
    )


def layer_types_of(name):
    """Windows in some of the blocks, where the family has them."""
    types = ["full_attention"] * BLOCKS
    if name in ("gemma3_text", "modernbert"):
        types[1] = "sliding_attention"
    return types


def tiny_vit():
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTForImageClassification(config)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return image_base_of(network)


@pytest.fixture
def batch_of(base, make_batch):
    """A device's batch, of its own length and number of rows."""

    def make(device: int, *, alike: bool = False) -> Batch:
        rows, tokens = (2, 9) if alike else (2 + device % 2, 7 + device)
        if base.family.name != "vit":
            return make_batch(base, rows=rows, tokens=tokens, seed=device)
        stream = torch.Generator().manual_seed(device)
        pixels = torch.randn(rows, 3, 8, 8, generator=stream)
        labels = torch.arange(rows) % 3
        return Batch(pixels, torch.ones(rows, 5, dtype=torch.int64), labels)

    return make


def noisy(tensors, seed):
    stream = torch.Generator().manual_seed(seed)
    return {k: v + 0.1 * torch.randn(v.shape, generator=stream) for k, v in tensors.items()}


@pytest.fixture
def state(base, workload_of):
    """Adapters that are not zero, and a head."""
    state = initial_state(base, workload_of(base.shape), 0)
    return noisy(state.adapters, 1), noisy(state.head, 2)


def gradients_of(lora, part):
    """Gradients by the names of adapters and head, of one device of a stack."""
    found = {}
    for name, layer in lora._layers.items():
        found |= {f"{name}.A": layer.a.grad, f"{name}.B": layer.b.grad}
    for path, module in lora._heads.items():
        found |= {f"{path}.{name}": item.grad for name, item in module.named_parameters()}
    return {name: item[part] for name, item in found.items() if item is not None}


def whole(base, state, batch):
    """Loss and gradients of the model in one piece."""
    adapters, head = state
    lora = attach(base.network, base.family, [adapters], scale=SCALE, heads=[head] if head else [])
    loss = batch_losses(lora.network, batch)
    loss.sum().backward()
    return loss.detach()[0], gradients_of(lora, 0)


def halves(base, state, cuts, *, stay):
    adapters, head = state
    heads = ([head] if head else []) if stay else None
    devices = [
        DeviceHalf(base.network, base.family, [adapters], cut=cut, scale=SCALE, heads=heads)
        for cut in cuts
    ]
    server = ServerHalf(
        base.network,
        base.family,
        adapters,
        first=min(cuts),
        scale=SCALE,
        head=None if stay else head,
    )
    return devices, server


def split(base, state, cuts, batches, *, stay=False, weights=None):
    """One step of all devices; losses, the device halves and the server half."""
    devices, server = halves(base, state, cuts, stay=stay)
    weights = weights or [1.0] * len(cuts)
    arrived = [
        Arrived(
            i,
            cuts[i],
            devices[i].forward(batch),
            batch.attention_mask,
            None if stay else batch.labels,
            weights[i],
        )
        for i, batch in enumerate(batches)
    ]
    if stay:
        hidden = server.forward(arrived)
        ends = [d.finish(h, b) for d, h, b in zip(devices, hidden, batches, strict=True)]
        back = server.backward({i: gradient for i, (_, gradient) in enumerate(ends)})
        losses, returned = (
            torch.cat([loss for loss, _ in ends]),
            [back[i] for i in range(len(cuts))],
        )
    else:
        step = server.step(arrived)
        losses, returned = step.losses, step.gradients
    for device, gradient in zip(devices, returned, strict=True):
        device.backward(gradient)
    return losses, devices, server


def near(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stay", [False, True], ids=["travel", "stay"])
@pytest.mark.parametrize(
    "cuts", [pytest.param((1, 1), id="equal"), pytest.param((2, 1, 2), id="unequal")]
)
def test_two_halves_have_the_gradients_of_the_whole_model(base, state, batch_of, cuts, stay):
    batches = [batch_of(device) for device in range(len(cuts))]
    weights = [1.0 + device for device in range(len(cuts))]
    share = [weight / sum(weights) for weight in weights]
    expected = [whole(base, state, batch) for batch in batches]
    losses, devices, server = split(base, state, cuts, batches, stay=stay, weights=weights)
    near(losses, torch.stack([loss for loss, _ in expected]))
    for device, (_, wanted), cut in zip(devices, expected, cuts, strict=True):
        given = gradients_of(device.lora, 0)
        names = held_by_device(state[0], cut).keys() | (state[1].keys() if stay else set())
        assert given.keys() == names
        for name in names:
            near(given[name], wanted[name])
    given = gradients_of(server.lora, 0)
    names = held_by_server(state[0], min(cuts)).keys() | (set() if stay else state[1].keys())
    assert given.keys() == names
    for name in names:
        block = int(name.partition(".")[0]) if name in state[0] else BLOCKS
        parts = zip(share, expected, cuts, strict=True)
        wanted = sum(part * item[name] for part, (_, item), cut in parts if cut <= block)
        near(given[name], wanted)


@some_families
def test_devices_that_cut_alike_may_be_stacked(base, batch_of, workload_of):
    stacks = [noisy(init_adapters(base.shape, workload_of(base.shape), 0), seed) for seed in (1, 2)]
    batches = [batch_of(device, alike=True) for device in range(2)]
    both = Batch(*(torch.cat([getattr(b, f) for b in batches]) for f in Batch.__slots__[:3]))
    together = DeviceHalf(base.network, base.family, stacks, cut=2, scale=SCALE)
    activation = together.forward(both)
    gradient = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0))
    together.backward(gradient)
    for place, batch in enumerate(batches):
        alone = DeviceHalf(base.network, base.family, stacks[place : place + 1], cut=2, scale=SCALE)
        near(alone.forward(batch), activation.split(2)[place])
        alone.backward(gradient.split(2)[place])
        one, other = gradients_of(alone.lora, 0), gradients_of(together.lora, place)
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one | other)


@some_families
def test_each_half_holds_its_own_blocks_and_the_base_is_untouched(base, state):
    before = {name: item.clone() for name, item in base.network.state_dict().items()}
    (device,), server = halves(base, state, (2,), stay=False)
    assert len(base.family.block_list(device.lora.network)) == 2
    held = [stage.block is not None for stage in base.family.block_list(server.lora.network)]
    assert held == [False, False, True]
    assert held_by_device(device.lora.adapters()[0], 2).keys() == device.lora.adapters()[0].keys()
    after = base.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(base.family.block_list(base.network)) == BLOCKS


@some_families
def test_one_device_s_broken_activation_leaves_no_trace(base, state, batch_of):
    batches = [batch_of(0), batch_of(1)]
    devices, server = halves(base, state, (1, 2), stay=False)
    arrived = [
        Arrived(i, (1, 2)[i], devices[i].forward(b), b.attention_mask, b.labels)
        for i, b in enumerate(batches)
    ]
    broken = Arrived(
        9, 1, arrived[0].activation * torch.nan, arrived[0].attention_mask, arrived[0].labels
    )
    step = server.step([arrived[0], broken, arrived[1]])
    assert step.gradients[1] is None
    assert not torch.isfinite(step.losses[1])
    _, clean = halves(base, state, (1, 2), stay=False)
    wanted = clean.step(arrived)
    near(step.losses[[0, 2]], wanted.losses)
    near(step.gradients[0], wanted.gradients[0])
    one, other = gradients_of(server.lora, 0), gradients_of(clean.lora, 0)
    for name in one | other:
        near(one[name], other[name])


def test_a_device_that_drops_where_labels_stay_contributes_nothing(state_of_llama):
    base, state, batches = state_of_llama
    devices, server = halves(base, state, (1, 1), stay=True)
    arrived = [
        Arrived(i, 1, devices[i].forward(b), b.attention_mask, None) for i, b in enumerate(batches)
    ]
    hidden = server.forward(arrived)
    _, gradient = devices[1].finish(hidden[1], batches[1])
    assert server.backward({1: gradient}).keys() == {1}
    wanted = whole(base, state, batches[1])[1]
    for name, found in gradients_of(server.lora, 0).items():
        near(found, wanted[name] / 2)


@pytest.fixture
def state_of_llama(make_base, make_batch, workload_of):
    base = make_base("llama", num_hidden_layers=BLOCKS)
    adapters = noisy(init_adapters(base.shape, workload_of(base.shape), 0), 1)
    return base, (adapters, {}), [make_batch(base, seed=seed) for seed in range(2)]


def test_a_device_without_a_scored_position_gets_no_gradient(state_of_llama):
    base, state, (one, other) = state_of_llama
    silent = Batch(other.input_ids, other.attention_mask, torch.full_like(other.labels, IGNORED))
    for stay in (False, True):
        losses, devices, server = split(base, state, (1, 1), [one, silent], stay=stay)
        assert losses.isnan().tolist() == [False, True]
        assert all(not item.any() for item in gradients_of(devices[1].lora, 0).values())
        assert all(item.isfinite().all() for item in gradients_of(server.lora, 0).values())


def test_adapters_before_a_block_can_be_used_and_not_trained(state_of_llama):
    base, (adapters, _), (batch, _) = state_of_llama
    server = ServerHalf(base.network, base.family, adapters, first=1, scale=SCALE, trains_from=2)
    device = DeviceHalf(base.network, base.family, [adapters], cut=1, scale=SCALE)
    step = server.step([Arrived(0, 1, device.forward(batch), batch.attention_mask, batch.labels)])
    near(step.losses[0], whole(base, (adapters, {}), batch)[0])
    assert gradients_of(server.lora, 0).keys() == held_by_server(adapters, 2).keys()


def test_the_head_reads_one_position_of_a_classifier_and_all_where_it_needs_them(make_base):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    last = head_positions(make_base("llama", labels=3).network, mask)
    assert last.tolist() == [[False, False, True], [False, True, False]]
    first = head_positions(make_base("bert").network, mask)
    assert first.tolist() == [[True, False, False]] * 2
    assert torch.equal(head_positions(make_base("gpt2").network, mask), mask.bool())
    mean = make_base("modernbert", classifier_pooling="mean").network
    assert torch.equal(head_positions(mean, mask), mask.bool())


@pytest.mark.parametrize("cut", [0, 3, -1])
def test_a_cut_outside_the_model_is_refused(cut):
    with pytest.raises(ModelError, match=f"between 1 and 2 of 3 blocks, got {cut}; leave it out"):
        check_cut(cut, 3)


def test_what_does_not_belong_is_refused(state_of_llama):
    base, (adapters, _), (batch, _) = state_of_llama
    device = DeviceHalf(base.network, base.family, [adapters], cut=2, scale=SCALE)
    server = ServerHalf(base.network, base.family, adapters, first=2, scale=SCALE)
    activation, mask = torch.zeros(2, 3, 32), torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(TrainingError, match="a gradient came that no forward pass is waiting for"):
        device.backward(activation)
    with pytest.raises(TrainingError, match="gradients came that no forward pass"):
        server.backward({})
    with pytest.raises(TrainingError, match="labels travel in this run"):
        device.finish(activation, batch)
    with pytest.raises(ModelError, match="at least one device's activation, got none"):
        server.step([])
    with pytest.raises(ModelError, match="device 4 cuts at block 1, but the server holds blocks"):
        server.forward([Arrived(4, 1, activation, mask, None)])
    with pytest.raises(ModelError, match="device 4 sent a mask of shape"):
        server.forward([Arrived(4, 2, activation, mask[:1], None)])
    with pytest.raises(ModelError, match=r"activation of shape \(2, 3, 32\) with weight 0"):
        server.forward([Arrived(4, 2, activation, mask, None, 0.0)])
    with pytest.raises(ModelError, match="labels of all devices must travel, or of none"):
        server.forward(
            [Arrived(4, 2, activation, mask, None), Arrived(5, 2, activation, mask, mask)]
        )

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.codec import encode
from airtune.cost import split_cost, stream_bytes, train_flops
from airtune.cost.memory import saved_bytes, server_saved_bytes
from airtune.cost.most import LISTED_BYTES
from airtune.cost.split import seen_samples
from airtune.model.base import base_of
from airtune.model.batch import Batch
from airtune.model.cut import Arrived, DeviceHalf, ServerHalf
from airtune.model.lora import head_of, init_adapters
from airtune.plan import CodecSpec, Problem, Profiles, WorkSpec
from airtune.work.batches import draw_batches

BATCH, TOKENS, CUT = 2, 16, 2


def batch(labels):
    ids = torch.randint(5, 90, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return Batch(ids, mask, torch.zeros(BATCH, dtype=torch.long) if labels else ids)


def kept_by_autograd(networks, call):
    """Bytes of the storages that a call saves for the backward pass and that are no parameters."""
    frozen = {p.untyped_storage().data_ptr() for each in networks for p in each.parameters()}
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


@pytest.fixture
def problem_of(workload_of):
    def make(shape, *, devices=1, samples=10, rounds=4, work=None, **changes):
        count = np.full(devices, samples)
        profiles = Profiles(
            tuple(map(str, range(devices))),
            count / count.sum(),
            count,
            np.zeros(devices, np.int64),
            None,
            None,
            None,
            None,
        )
        workload = workload_of(shape, trains_head=bool(shape.labels), **changes)
        return Problem(shape, profiles, workload, rounds, 0, work=work or WorkSpec())

    return make


@pytest.mark.parametrize("labels", ["travel", "stay"])
@pytest.mark.parametrize("cut", [1, 2])
def test_both_sides_of_a_cut_do_the_work_of_the_whole_model(
    sample, problem_of, plan_of, cut, labels
):
    problem = problem_of(sample.shape, work=WorkSpec(labels=labels))
    cost = split_cost(problem, plan_of(cut=cut))
    parts = cost.forward_flops + cost.backward_flops + cost.server_flops
    assert parts[0] == train_flops(sample.shape, problem.workload, plan_of())[0]


def test_saved_tensors_of_a_real_device_half_are_predicted_within_a_fiftieth(
    sample, problem_of, plan_of
):
    workload = problem_of(sample.shape).workload
    base = base_of(sample.build("sdpa"))
    adapters = init_adapters(sample.shape, workload, seed=0)
    half = DeviceHalf(base.network, base.family, [adapters], cut=CUT, scale=2.0)
    half.lora.train()
    seen = kept_by_autograd([half.body], lambda: half.forward(batch(sample.shape.labels)))
    assert saved_bytes(sample.shape, workload, plan_of(cut=CUT))[0] == pytest.approx(seen, rel=0.02)


def test_saved_tensors_of_a_real_server_half_are_predicted_within_a_tenth(
    sample, problem_of, plan_of
):
    workload = problem_of(sample.shape).workload
    base = base_of(sample.build("sdpa"))
    adapters = init_adapters(sample.shape, workload, seed=0)
    head = head_of(base.network, base.family) if sample.shape.labels else None
    half = ServerHalf(base.network, base.family, adapters, first=1, scale=2.0, head=head)
    half.lora.train()
    one = batch(sample.shape.labels)
    activation = torch.randn(BATCH, TOKENS, sample.shape.width)
    arrived = [Arrived(0, 1, activation, one.attention_mask, one.labels)]
    seen = kept_by_autograd([base.network, half.lora.network], lambda: half.step(arrived))
    predicted = server_saved_bytes(sample.shape, workload, plan_of(cut=1))[0]
    # beside what autograd saves the figure holds the logits' room and the activation that came
    assert (
        0.9 * seen
        <= predicted
        <= 1.1 * seen + 4 * BATCH * TOKENS * (2 * sample.shape.vocab + 3 * sample.shape.width)
    )


@pytest.mark.parametrize(
    "codec",
    [CodecSpec(), CodecSpec("fp16"), CodecSpec("topk", keep=0.1, bits=4), CodecSpec("deadzone")],
    ids=lambda codec: codec.kind,
)
def test_what_crosses_is_priced_as_the_codec_codes_normal_data(
    sample_of, problem_of, plan_of, codec
):
    problem = problem_of(sample_of("bert").shape, batch=16)
    cost = split_cost(problem, replace(plan_of(cut=1), codecs=(codec,)))
    stream = np.random.default_rng(0)
    tensor = stream.standard_normal((16 * TOKENS, 48)).astype(np.float32)
    coded = len(encode(tensor, codec, stream))
    assert cost.activation_bytes[0] == pytest.approx(coded, rel=0.15)
    assert cost.gradient_bytes[0] == cost.activation_bytes[0]


def test_a_gradient_that_reuses_its_activations_mask_is_priced_without_it(
    sample_of, problem_of, plan_of
):
    codec = CodecSpec("topk", keep=0.2, bits=4)
    problem = problem_of(sample_of("bert").shape, batch=16, work=WorkSpec(reuse_mask=True))
    cost = split_cost(problem, replace(plan_of(cut=1), codecs=(codec,)))
    stream = np.random.default_rng(0)
    tensor = stream.standard_normal((16 * TOKENS, 48)).astype(np.float32)
    chosen = np.abs(tensor) >= np.quantile(np.abs(tensor), 0.8)
    coded = len(encode(tensor, codec, stream, mask=chosen))
    assert cost.gradient_bytes[0] == pytest.approx(coded, rel=0.15)


def test_a_frozen_device_part_sends_each_sample_once_and_gets_nothing_back(
    sample_of, problem_of, plan_of
):
    shape = sample_of("bert").shape
    open_, frozen = (
        split_cost(
            problem_of(shape, work=WorkSpec(device_frozen=value), local_steps=5), plan_of(cut=1)
        )
        for value in (False, True)
    )
    # 10 samples, 4 rounds of 5 steps of 2: all are seen after the first of four rounds
    assert frozen.activation_bytes[0] == pytest.approx(open_.activation_bytes[0] / 4)
    assert frozen.fresh[0] == pytest.approx(1 / 4)
    zero = (
        frozen.gradient_bytes,
        frozen.backward_flops,
        frozen.adapter_up_bytes,
        frozen.adapter_down_bytes,
    )
    assert not np.any(zero)
    assert frozen.device_peak_bytes[0] < open_.device_peak_bytes[0]
    assert frozen.server_peak_bytes - open_.server_peak_bytes == 10 * TOKENS * shape.width * 4


def test_predicting_costs_a_reconstruction_of_every_sample_on_both_ends(
    sample_of, problem_of, plan_of
):
    problem = problem_of(sample_of("bert").shape, local_steps=5)
    plain, predicting = (
        split_cost(problem, replace(plan_of(cut=1), codecs=(CodecSpec(predict=value),)))
        for value in (False, True)
    )
    memory = 10 * TOKENS * problem.shape.width * 4
    assert predicting.device_peak_bytes[0] - plain.device_peak_bytes[0] == memory
    assert predicting.server_peak_bytes - plain.server_peak_bytes == memory


def test_expected_number_of_samples_seen_is_what_drawing_batches_gives(sample_of, problem_of):
    problem = problem_of(sample_of("bert").shape, local_steps=3, rounds=6)
    stream = np.random.default_rng(0)

    def seen(count):
        drawn = [draw_batches(count, steps=3, batch=2, stream=stream) for _ in range(6)]
        return len(np.unique(drawn))

    mean = np.mean([seen(40) for _ in range(300)])
    assert seen_samples(problem, np.array([40]))[0] == pytest.approx(mean, rel=0.02)


def test_server_holds_copies_of_adapters_or_one_batch_at_a_time(sample_of, problem_of, plan_of):
    shape = sample_of("llama").shape
    peaks = {
        server: split_cost(
            problem_of(shape, devices=4, work=WorkSpec(server=server)), plan_of(4, cut=1)
        ).server_peak_bytes
        for server in ("shared", "copies", "sequential")
    }
    assert peaks["sequential"] < peaks["shared"] < peaks["copies"]


def test_steps_may_take_the_list_of_what_is_remembered(sample, problem_of, plan_of):
    problem = problem_of(sample.shape, samples=30)
    plain, predictive = (
        stream_bytes(problem, replace(plan_of(cut=1), codecs=(CodecSpec(predict=value),)))
        for value in (False, True)
    )
    assert (predictive - plain == 30 * LISTED_BYTES).all()


def test_a_lower_rank_lightens_the_device_and_not_the_server(sample, problem_of, plan_of):
    problem = problem_of(sample.shape)
    low, full = (split_cost(problem, plan_of(cut=1, rank=rank)) for rank in (2, 4))
    for way in ("adapter_up_bytes", "adapter_down_bytes"):
        assert getattr(low, way) == 0.5 * getattr(full, way)
    assert low.forward_flops < full.forward_flops
    assert low.backward_flops < full.backward_flops
    assert low.device_peak_bytes < full.device_peak_bytes
    for same in ("server_flops", "server_bytes", "activation_bytes", "gradient_bytes"):
        assert getattr(low, same) == getattr(full, same)

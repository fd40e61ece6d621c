"""What heads and channels cost: against hidden states by hand, rising, and stored with a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.calibrate import SensitivityProbe, measure_sensitivity
from airtune.calibrate.sensitivity import BATCHES
from airtune.data import FederatedData
from airtune.data.federated import DeviceData
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.slicing import choose_kept, slice_network
from airtune.plan import WorkSpec
from airtune.work.importance import calibration_batches, measure_importance


@pytest.fixture(scope="module")
def probe():
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = base_of(LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)))
    draw = np.random.default_rng(0)
    texts = tuple(draw.integers(3, 61, 12) for _ in range(6))
    none = Sequences((), ())
    data = FederatedData((DeviceData(Sequences(texts, texts), none),), none, (), {}, {})
    return SensitivityProbe(base, data, WorkSpec(mend="none"), batch=2, seed=0)


def test_a_cost_is_noise_over_signal_of_the_last_hidden_state(probe):
    found = measure_sensitivity(probe)
    base, train = probe.base, probe.data.devices[0].train
    kept = choose_kept(measure_importance(base, train, batch=2), base.shape, 4, 20)
    batches = calibration_batches(base, train, batch=2)[:BATCHES]

    def states(network):
        with torch.no_grad():
            return [network.model(one.input_ids)[0].flatten(0, 1).double() for one in batches]

    dense, pruned = states(base.network), states(slice_network(base, kept))
    lost = sum(float((a - b).square().sum()) for a, b in zip(dense, pruned, strict=True))
    signal = sum(float((a - a.mean(0)).square().sum()) for a in dense)
    expected = lost / signal / (1 - lost / signal)
    assert found.ffn_cost[found.ffn.index(0.5)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mend", ["mean", "least-squares"])
def test_costs_rise_from_nothing_and_mending_lowers_them(probe, mend):
    bare = measure_sensitivity(probe)
    mended = measure_sensitivity(replace(probe, work=WorkSpec(mend=mend)))
    for found in (bare, mended):
        for at, cost in ((found.heads, found.heads_cost), (found.ffn, found.ffn_cost)):
            assert at[0] == cost[0] == 0.0
            assert np.all(np.diff(at) > 0.0)
            assert np.all(np.diff(cost) >= 0.0)
    assert sum(mended.ffn_cost) < sum(bare.ffn_cost)

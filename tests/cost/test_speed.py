import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.cost import (
    SpeedProfile,
    TimedModel,
    achieved_flops_per_s,
    fit_speed,
    known_shapes,
    train_flops,
)
from airtune.errors import FleetError
from airtune.plan import Workload, whole_model

WORK = Workload(4, 64, local_steps=1, rank=8, lora_targets=("q_proj", "v_proj"))
NARROW, WIDE = known_shapes()["smollm2-135m"], known_shapes()["llama-2-7b"]


def step_s(shape, profile):
    plan = whole_model(np.arange(1), rank=8, local_steps=1, share=np.ones(1))
    return train_flops(shape, WORK, plan)[0] / achieved_flops_per_s(profile, shape, WORK)


@given(st.floats(1e9, 1e14), st.floats(1e8, 1e12))
def test_fit_finds_the_rates_that_made_the_times(flops_per_s, bytes_per_s):
    truth = SpeedProfile(flops_per_s, bytes_per_s)
    found = fit_speed([TimedModel(shape, WORK, step_s(shape, truth)) for shape in (NARROW, WIDE)])
    middle = known_shapes()["qwen2.5-1.5b"]
    assert step_s(middle, found) == pytest.approx(step_s(middle, truth), rel=1e-6)


def test_wide_models_achieve_more():
    profile = SpeedProfile(1e12, 1e10)
    assert achieved_flops_per_s(profile, WIDE, WORK) > achieved_flops_per_s(profile, NARROW, WORK)


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_too_little_to_fit_is_refused(seconds):
    with pytest.raises(FleetError, match="two probes with times above 0 s, got"):
        fit_speed([TimedModel(NARROW, WORK, value) for value in seconds])


def test_times_that_fall_with_work_are_refused():
    with pytest.raises(FleetError, match="do not rise with their FLOPs"):
        fit_speed([TimedModel(NARROW, WORK, 5.0), TimedModel(WIDE, WORK, 0.1)])

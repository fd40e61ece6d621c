"""What is refused before anything is measured: a limit that nothing keeps, a mending without a place."""

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.run.conftest import recipe
from transformers import Qwen2Config, Qwen2ForCausalLM

from airtune.errors import InfeasibleError, RecipeError
from airtune.model.families import family_of
from airtune.run import Watch, build_pieces, calibrate_recipe, choose_method, run_recipe
from airtune.run.checks import check_begin, check_mend


def limited(method, joules):
    return recipe(f"method.name={method}", f"limits.joules_per_round={joules}")


def check(assets, method, joules):
    asked = limited(method, joules)
    check_begin(build_pieces(asked, assets), choose_method(asked))


def test_it_is_refused_before_a_short_run_and_leaves_nothing(assets, tmp_path):
    stages = []
    with pytest.raises(InfeasibleError, match=r"the least is \S+ J, of ") as refused:
        run_recipe(
            limited("jcpba", 1e-6),
            folder=tmp_path / "out" / "run",
            assets=assets,
            watch=Watch(on_stage=stages.append),
        )
    assert refused.value.exit_code == 7
    assert stages == ["loading model and data"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["jcpba", "sft", "auto"])
def test_the_least_that_is_named_would_be_enough_to_begin_with(assets, method):
    with pytest.raises(InfeasibleError) as refused:
        check(assets, method, 1e-6)
    least = float(re.search(r"the least is (\S+) J", str(refused.value))[1])
    check(assets, method, 1.001 * least)
    with pytest.raises(InfeasibleError, match="raise the limit"):
        check(assets, method, 0.99 * least)


def test_a_sparsity_that_empties_a_block_is_refused_before_anything_is_measured(assets):
    asked = recipe("method.name=fedspine", "method.sparsity=0.99")
    with pytest.raises(RecipeError, match="would leave a block"):
        check_begin(build_pieces(asked, assets), choose_method(asked))


def with_memory(assets, *, devices, server):
    fleet = assets.fleet
    memory = np.full(len(fleet), devices)
    return replace(
        assets,
        fleet=replace(
            fleet, memory_bytes=memory, server=replace(fleet.server, memory_bytes=server)
        ),
    )


@pytest.mark.parametrize(
    ("method", "server", "refused"),
    [
        ("untuned", 1.0, ""),
        ("pooled", 2.0**32, ""),
        ("pooled", 1.0, "the whole model at the server"),
        ("local-only", 2.0**32, "no device of fleet"),
        ("fedavg-lora", 2.0**32, "no device of fleet"),
    ],
)
def test_what_trains_on_no_device_needs_no_devices_memory(assets, method, server, refused):
    small = with_memory(assets, devices=1.0, server=server)
    expected = pytest.raises(InfeasibleError, match=refused) if refused else nullcontext()
    with expected:
        build_pieces(recipe(f"method.name={method}"), small)


def test_a_calibration_is_refused_too():
    with pytest.raises(InfeasibleError, match=r"limits\.joules_per_round"):
        calibrate_recipe(limited("jcpba", 1e-6))


@pytest.mark.parametrize(
    ("asked", "is_refused"),
    [
        (("fedspine", "mean"), True),
        (("fedspine", "least-squares"), False),
        (("fedspine", "none"), False),
        (("jcpba", "mean"), False),
    ],
)
def test_means_are_refused_where_the_saved_model_has_no_biases(assets, asked, is_refused):
    """`jcpba` saves the whole model, so its slices hold constants while they train."""
    method, mend = asked
    chosen = recipe(f"method.name={method}", f"train.mend={mend}")
    with torch.device("meta"):
        network = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
    base = replace(assets.base, network=network, family=family_of(network.config))
    method = choose_method(chosen).method
    if is_refused:
        with pytest.raises(RecipeError, match="a saved qwen2 has no place for them"):
            check_mend(chosen, base, method)
    else:
        check_mend(chosen, base, method)

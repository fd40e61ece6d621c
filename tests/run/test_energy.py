"""A limit of energy that nothing can keep is refused before anything is measured."""

import re

import pytest
from tests.run.conftest import recipe

from airtune.errors import InfeasibleError
from airtune.run import Watch, build_pieces, calibrate_recipe, choose_method, run_recipe
from airtune.run.energy import check_energy


def limited(method, joules):
    return recipe(f"method.name={method}", f"limits.joules_per_round={joules}")


def check(assets, method, joules):
    asked = limited(method, joules)
    check_energy(build_pieces(asked, assets), choose_method(asked))


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


def test_a_calibration_is_refused_too():
    with pytest.raises(InfeasibleError, match=r"limits\.joules_per_round"):
        calibrate_recipe(limited("jcpba", 1e-6))

import sys

import pytest

from airtune.errors import MethodError, RecipeError
from airtune.methods import METHODS, build_method, check_method, list_methods, settings_faults

MINE = """
from dataclasses import dataclass
from airtune.errors import RecipeError
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import WorkSpec

@dataclass(frozen=True)
class Mine:
    strength: float = 0.5
    needs: frozenset = frozenset()
    work: WorkSpec = WorkSpec(importance="magnitude")
    init = WholeEqual.init
    plan = WholeEqual.plan
    divide = WholeEqual.divide
    learn = WholeEqual.learn

    def __post_init__(self):
        if self.strength > 1:
            raise RecipeError(f"strength must be at most 1, got {self.strength:g}")

class Nothing:
    pass
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


def test_every_row_says_what_it_is():
    for name, row in METHODS.items():
        assert row.summary
        assert row.source
        assert row.kind in {"method", "baseline", "control"}, name


def test_controls_of_the_run_are_listed_but_not_built():
    for name in ("untuned", "local-only", "pooled"):
        assert list_methods()[name].kind == "control"
        with pytest.raises(MethodError, match="control that only a run carries out"):
            build_method(name)


def test_a_file_of_ones_own_is_a_method(mine):
    method = build_method(f"{mine}:Mine", {"strength": 1})
    assert method.work.importance == "magnitude"
    check_method(method)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Other", "no class Other; it has Mine, Nothing"),
        ("Nothing", "which is no method: it lacks"),
    ],
)
def test_a_file_without_a_method_says_so(mine, attribute, message):
    with pytest.raises(MethodError, match=message):
        build_method(f"{mine}:{attribute}")


def test_a_file_that_fails_says_how(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0")
    with pytest.raises(MethodError, match="ZeroDivisionError"):
        build_method(f"{path}:Mine")


def test_a_missing_file_is_named():
    with pytest.raises(MethodError, match=r"there is no file \./no\.py"):
        build_method("./no.py:Mine")


def test_an_entry_point_is_a_method(tmp_path, monkeypatch):
    (tmp_path / "their_method.py").write_text(MINE)
    info = tmp_path / "their-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[airtune.methods]\ntheirs = their_method:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list_methods()["theirs"].source == "their_method:Mine"
    check_method(build_method("theirs"))
    sys.modules.pop("their_method", None)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match="did you mean jcpba"):
        build_method("jcbpa")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"solvr": "bcd"}, "solvr: jcpba has no such setting; did you mean solver?"),
        ({"solver": "sqp"}, "solver: must be exact or bcd, got 'sqp'"),
        ({"budget": "much"}, "budget: must be auto or a number, got 'much'"),
        ({"max_prune": 1.5}, "max_prune: must be auto or in [0, 1), got 1.5"),
        ({"quality_budget": True}, "quality_budget: must be a number, got True"),
    ],
)
def test_faults_name_key_value_and_what_is_allowed(settings, fault):
    assert settings_faults("jcpba", settings) == [fault]
    with pytest.raises(RecipeError, match=fault.split(":", maxsplit=1)[0]):
        build_method("jcpba", settings)


def test_all_faults_come_at_once():
    assert len(settings_faults("jcpba", {"solvr": 1, "solver": 2, "budget": None})) == 3


def test_a_faulty_plug_in_is_a_fault_of_the_name(mine):
    assert settings_faults("./no.py:Mine", {})[0].startswith("name: there is no file")
    assert settings_faults(f"{mine}:Mine", {"strength": 3}) == [
        "strength: must be at most 1, got 3"
    ]


def test_settings_of_a_row_are_fixed_where_its_name_says_so():
    assert settings_faults("uniform-prune-bandwidth", {"division": "equal"})
    assert build_method("uniform-prune-bandwidth").decider.division == "best"


def test_fedprox_asks_for_the_penalty():
    work = build_method("fedprox", {"penalty_weight": 0.1}).work
    assert (work.penalty, work.penalty_weight) == ("proximal", 0.1)


@pytest.mark.parametrize(
    ("name", "settings", "faults"),
    [
        ("fedspine", {}, ["min_rank: must be at most lora.r, which is 1, got 2"]),
        ("fedspine", {"form": "published"}, ["min_rank: must be at most lora.r"]),
        ("fedspine", {"min_rank": 1, "fixed_rank": 4}, ["fixed_rank: must be at most lora.r"]),
        ("fedspine", {"min_rank": 1}, []),
        ("hetlora", {}, ["min_rank: must be at most lora.r"]),
        ("flora", {}, ["min_rank: must be at most lora.r"]),
        ("apt", {"min_rank": 2}, ["min_rank: must be at most lora.r"]),
        ("apt", {}, []),
        ("auto", {"ranks": [1, 4]}, ["ranks: must be at most lora.r, which is 1, got 4"]),
        ("untuned", {}, []),
    ],
)
def test_a_rank_above_the_recipes_is_a_fault_of_the_settings(name, settings, faults):
    found = settings_faults(name, settings, rank=1)
    assert len(found) == len(faults)
    assert all(map(str.startswith, found, faults))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedspine", {"min_rank": 0}),
        ("fedspine", {"min_rank": 4, "fixed_rank": 2}),
        ("hetlora", {"min_rank": 0}),
        ("apt", {"min_rank": -1}),
    ],
)
def test_a_smallest_rank_is_at_least_one_and_the_fixed_one_not_below_it(name, settings):
    (fault,) = settings_faults(name, settings, rank=8)
    assert "at least" in fault

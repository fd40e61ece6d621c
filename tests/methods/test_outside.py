"""A method from outside: what is wrong with it is named with file and line."""

import re
from pathlib import Path

import pytest

from airtune.errors import MethodError
from airtune.methods import build_method, check_method
from airtune.methods.plugins import as_method
from airtune.plan import AggregateSpec, WorkSpec

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
EXAMPLE = "\n".join(
    line.removeprefix("  ")
    for line in re.search(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
    .group(1)
    .splitlines()
)


@pytest.fixture
def written(tmp_path):
    """Write the example with changes; returns (method's name, line number of a text)."""

    def write(*changes):
        text = EXAMPLE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(text)
        return f"{path}:Mine", lambda part: 1 + text[: text.index(part)].count("\n")

    return write


def test_the_example_of_contributing_keeps_the_contract(written):
    name, _ = written()
    check_method(build_method(name))
    check_method(build_method(name).decider)


def test_postponed_annotations_and_dataclasses_load(written):
    name, _ = written(("# mine.py", "from __future__ import annotations\n# mine.py"))
    assert build_method(name, {"share_of_even": 1}).decider.share_of_even == 1.0


FAULTS = [
    ("return state", "return state['none']", r"learn\): KeyError: 'none'"),
    ("share = np.full", "raise ValueError('no')\n        share = np.full",
     r"plan\): ValueError: no"),
    ("return plan.assignments.share", "return plan.assignments.share[1:]",
     r"divide\): shares of divide must be in \[0, 1\], one for each of 9"),
    ("self.share_of_even / device.size", "float('nan')", r"plan\): share must be in \[0, 1\]"),
    ("self.share_of_even / device.size", "np.random.uniform(0, 0.01)",
     r"plan\): plan gave two different answers"),
    ("return {}", "return {'draw': np.random.uniform()}", r"init\): init gave two different"),
    ("return {}", "return {'a': {1: 2}}", r"init\): the state must hold arrays"),
    ("return state", "results.loss_last[:] = 0; return state", r"learn\): learn changed the state"),
    ("return RoundPlan", "from dataclasses import replace; told = replace(told, cut=told.rank // 8)"
     "\n        return RoundPlan", r"plan\): the plan cuts the model; .* declares may_cut"),
    ("divide(self, problem, state, plan, links, remaining_bytes)", "divide(self)",
     r"divide\): TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), FAULTS, ids=[fault[2][:24] for fault in FAULTS])
def test_what_is_wrong_is_named_with_its_file_and_line(written, old, new, said):
    name, _ = written((old, new))
    with pytest.raises(MethodError, match=rf"mine\.py:\d+ \(Mine\.{said}"):
        check_method(build_method(name))


def test_the_line_is_the_one_that_raised(written):
    name, line_of = written(("share = np.full", "share = np.full(-1)  #"))
    with pytest.raises(MethodError, match=rf"mine\.py:{line_of('np.full(-1)')} "):
        check_method(build_method(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef f(:\n", r"bad\.py:2: SyntaxError"),
        ("\n\n1 / 0", r"bad\.py:3: ZeroDivisionError"),
        ("import sys\nsys.exit(3)", r"bad\.py:2: SystemExit"),
    ],
)
def test_a_file_that_cannot_be_run_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(MethodError, match=said):
        build_method(f"{tmp_path}/bad.py:Mine")


def test_a_class_that_cannot_be_made_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    def __init__(self):\n        raise RuntimeError('no key')\n")
    with pytest.raises(MethodError, match=r"mine\.py:3: RuntimeError: no key"):
        build_method(f"{path}:Mine")


def test_nothing_is_measured_that_a_method_does_not_ask_for(written):
    field = "share_of_even: float = 1.0"
    name, _ = written(
        (field, f"budget: str = 'auto'\n    quality_budget: float = 0.1\n    {field}")
    )
    assert not build_method(name).wants
    asked, _ = written((field, f"wants = frozenset({{'pruning'}})\n    {field}"))
    assert as_method("Mine", build_method(asked).decider).wants <= {"pruning"}
    assert build_method("jcpba").wants == {"sensitivity", "pruning"}
    assert build_method("jcpba", {"budget": 0.2}).wants == {"sensitivity"}
    assert build_method("sft").wants == {"codecs"}
    assert not build_method("sft", {"codec": "none"}).wants


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "frozenset()",
            "frozenset({'chanel'})",
            "needs of .* must be a frozenset of capability, chan",
        ),
        (
            "frozenset()",
            "frozenset(); wants = {'pruning'}",
            "wants of .* must be a frozenset of sensi",
        ),
        (
            "frozenset()",
            "frozenset(); may_cut = 'no'",
            "may_cut of .* must be of type bool, got 'no'",
        ),
        ("frozenset()", "frozenset(); work = 'magnitude'", "work of .* must be of type WorkSpec"),
    ],
)
def test_what_a_method_declares_is_checked(written, old, new, said):
    name, _ = written((f"needs = {old}", f"needs = {new}"))
    with pytest.raises(MethodError, match=said):
        build_method(name)


def test_unknown_rules_and_importances_raise():
    with pytest.raises(MethodError, match=r"aggregation rule must be one of average, .*'mean'"):
        AggregateSpec("mean")
    with pytest.raises(MethodError, match=r"importance must be one of fluctuation, .*'size'"):
        WorkSpec(importance="size")

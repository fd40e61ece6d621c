"""Every registered method keeps the contract, and the check catches those that do not."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from airtune.errors import MethodError
from airtune.methods import METHODS, build_method, check_method
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import Method

BUILDABLE = [name for name, row in METHODS.items() if row.settings is not None]
VARIANTS = [
    ("jcpba", {"solver": "bcd"}),
    ("jcpba", {"solver": "bcd", "bcd_start": "bandwidth-first"}),
    ("jcpba", {"budget": 0.3}), ("jcpba", {"quality_budget": "2%"}),
    ("auto", {"knobs": ["prune", "rank", "share"]}),
]  # fmt: skip


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_registered_method_keeps_the_contract(name):
    check_method(build_method(name))


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_so_do_their_forms(name, settings):
    check_method(build_method(name, settings))


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_method_works_without_a_calibration(name, problem):
    check_method(build_method(name), replace(problem, measurements=None))


@dataclass(frozen=True)
class Broken:
    """Federated averaging with one promise broken."""

    fault: str
    needs: frozenset = frozenset()
    inner: WholeEqual = field(default_factory=WholeEqual)

    def init(self, problem):
        return {"count": np.zeros(1)}

    def plan(self, problem, state, observation):
        plan, _ = self.inner.plan(problem, state, observation)
        told = plan.assignments
        if self.fault == "shares":
            plan = replace(plan, assignments=replace(told, share=np.ones(len(told))))
        if self.fault == "reasons":
            plan = replace(plan, reasons=plan.reasons[1:])
        if self.fault == "random":
            noise = np.random.default_rng().uniform(0.5, 1.0, len(told))
            plan = replace(plan, assignments=replace(told, share=told.share * noise))
        if self.fault == "mutates":
            state["count"][0] += 1
        if self.fault == "round":
            plan = replace(plan, round=plan.round + 1)
        if self.fault == "absent":
            plan = self.inner.plan(
                problem, state, replace(observation, available=np.ones_like(observation.available))
            )[0]
        return plan, state

    def divide(self, problem, state, plan, links, remaining_bytes):
        share = plan.assignments.share
        return share * 3 if self.fault == "divide" else share

    def learn(self, problem, state, results):
        if self.fault == "state":
            return {"count": {"not": "an array"}}
        return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shares", "sum to"),
        ("reasons", "needs a reason"),
        ("random", "two different answers"),
        ("mutates", "plan changed the state"),
        ("round", "is for round"),
        ("absent", "available are"),
        ("divide", "shares of"),
        ("state", "must hold arrays"),
    ],
)
def test_a_broken_promise_is_named(fault, message):
    with pytest.raises(MethodError, match=message):
        check_method(Method("broken", Broken(fault)))


def test_a_method_that_ignores_memory_is_caught():
    greedy = replace(WholeEqual(), needs=frozenset({"capability"}))
    with pytest.raises(MethodError, match="sample-5 is told more than its memory holds"):
        check_method(Method("greedy", greedy))

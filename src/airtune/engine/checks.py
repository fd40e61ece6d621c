"""What a plan and its shares must satisfy before any engine executes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from airtune.errors import MethodError
from airtune.plan import Assignments, Floats, LinkState, Method, Observation, RoundPlan, State

Divide = Callable[[LinkState, Floats], Floats]
"""(links in the coming slot, remaining bytes (n,)) -> shares (n,), for the devices of the plan."""

SHARE_TOLERANCE = 1e-6
"""How far the shares of a link may exceed 1 by rounding."""


def checked_state(state: State) -> State:
    """Return a method's state as it is, if it can be saved.

    Raises:
        MethodError: if it is no mapping of names to arrays and plain values.
    """
    if not isinstance(state, Mapping):
        raise MethodError(
            "a state must map names to arrays, numbers, text and truth values, {} for none, got "
            f"{state!r}"
        )
    for name, value in state.items():
        has_objects = isinstance(value, np.ndarray) and value.dtype.hasobject
        if has_objects or not isinstance(value, np.ndarray | np.generic | int | float | str):
            raise MethodError(
                f"state {name!r} must be an array of numbers or text, a number, text or a truth "
                f"value, to be saved, got {'an array of objects' if has_objects else repr(value)}"
            )
    return state


def check_plan(plan: RoundPlan, observation: Observation, method: Method) -> None:
    """Refuse a plan that no engine can execute.

    Raises:
        MethodError: if it is for another round, names devices that are not there, gives no
            reason for each, asks nobody, or cuts or asks devices at random though its method has not
            declared `may_cut` or `may_sample`.
    """
    device = plan.assignments.device
    if plan.round != observation.round:
        raise MethodError(
            f"the plan is for round {plan.round}, but it is round {observation.round}"
        )
    if len(device) and (device[0] < 0 or device[-1] >= len(observation.available)):
        raise MethodError(
            f"the plan names device {device[0] if device[0] < 0 else device[-1]}, the fleet has "
            f"0..{len(observation.available) - 1}"
        )
    absent = device[~observation.available[device]]
    if len(absent):
        raise MethodError(
            f"the plan names device {absent[0]}, which is not available in round {plan.round}; "
            "plan for observation.available only"
        )
    if len(plan.reasons) != len(device):
        raise MethodError(
            f"a plan needs one reason a device, got {len(plan.reasons)} for {len(device)} devices"
        )

    if not method.may_cut and np.any(plan.assignments.cut):
        raise MethodError(
            "the plan cuts the model; a method that may do so declares may_cut = True"
        )
    if not method.may_sample and (plan.assignments.probability is not None or plan.not_asked):
        raise MethodError(
            "the plan asks devices at random; a method that may do so declares may_sample = True"
        )
    both = plan.not_asked.keys() & set(device.tolist())
    if both:
        raise MethodError(f"the plan assigns work to device {min(both)} and lists it as not asked")
    if plan.not_asked and not len(device):
        raise MethodError(
            "the plan asks no device; at least one device must be asked with probability 1"
        )


def check_shares(shares: Floats, assignments: Assignments, links: LinkState) -> Floats:
    """Return the shares if the links can carry them.

    On a shared link they sum to at most 1; each is in [0, 1] on any link.

    Raises:
        MethodError: if the shape is wrong or a link is given out more than once.
    """
    count = len(assignments)
    if shares.shape != (count,):
        raise MethodError(f"divide must return {count} shares, got shape {shares.shape}")
    wrong = ~((shares >= 0) & (shares <= 1 + SHARE_TOLERANCE))
    if np.any(wrong):
        index = int(np.flatnonzero(wrong)[0])
        raise MethodError(
            f"a share must be in [0, 1], got {shares[index]:g} for device "
            f"{assignments.device[index]}"
        )
    link = links.link[assignments.device]
    given = np.bincount(link, weights=shares, minlength=len(links.specs))
    for index, spec in enumerate(links.specs):
        if spec.kind == "shared" and given[index] > 1 + SHARE_TOLERANCE:
            raise MethodError(
                f"the shares of link {spec.name} sum to {given[index]:.6g}, at most 1 is there"
            )
    return np.minimum(shares, 1.0)

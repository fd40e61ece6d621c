"""Cheaper plans to choose among, over the knobs that every method has.

The knobs are the codec of uploads, the rank of the adapters and, where the method has one, its own
budget of quality. Each setting of them gives something up, and what that costs in quality only a run
tells. So a plan is left out only if another one gives up no more by any knob and costs no more than
`_FELT` above it in whatever was asked for: what stays is what each thing given up buys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

from airtune.errors import InfeasibleError, RecipeError
from airtune.methods import settings_faults
from airtune.planner.result import Money
from airtune.planner.run import money_of, staged_by
from airtune.planner.sample import Draws, sample
from airtune.planner.setting import PlanSetting, setting_of
from airtune.recipe import check_recipe, override, parse_yaml

Axis = Literal["time", "bytes", "joules"]
AXES: tuple[Axis, ...] = get_args(Axis)
_FELT = 0.1
"""Part of a cost that something given up must save."""
_CODECS: dict[str, tuple[str, ...]] = {
    "not coded": ("upload.kind=identity",),
    "fp16": ("upload.kind=fp16",),
    "deadzone 0.75": ("upload.kind=deadzone", "upload.step=0.75"),
    "topk 10 %": ("upload.kind=topk", "upload.keep=0.1", "upload.bits=4"),
}
_OWN: dict[str, tuple[str, ...]] = {
    "budget": ("0", "0.1", "0.2", "0.3"),
    "quality": ("{rounds: 1.0}", "{rounds: 1.1}", "{rounds: 1.3}"),
    "quality_budget": ("0.005", "0.01", "0.02", "0.05"),
}
"""A method's own budget of quality by the name of the setting, from what gives up least."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One plan."""

    knobs: dict[str, str]
    """Knob -> its setting, in words."""
    given_up: tuple[int, ...]
    """For each knob how far down its list the setting stands; 0 = nothing is given up."""
    total_s: float
    total_bytes: float
    """Up and down."""
    total_energy_j: float
    """Of the devices."""
    money: Money | None = None
    """At the recipe's tariff; None = it states none."""

    @property
    def label(self) -> str:
        """All settings in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.knobs.items())

    def cost(self, axis: Axis) -> float:
        """Return what it takes of one thing."""
        return {"time": self.total_s, "bytes": self.total_bytes, "joules": self.total_energy_j}[
            axis
        ]


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """The plans that stay, cheapest in the first axis first."""

    axes: tuple[Axis, ...]
    own: FrontPoint
    """The plan as the recipe has it."""
    points: tuple[FrontPoint, ...]
    tried: int
    quantile: float | None = None
    """Of the rounds' times: plans are compared in rounds that end next to it; None = the median."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def read_axes(text: str) -> tuple[Axis, ...]:
    """Read costs with commas, in the order in which they are asked.

    Raises:
        RecipeError: if there is none of such a name, or fewer than two.

    >>> read_axes("bytes, time")
    ('bytes', 'time')
    """
    asked = tuple(part.strip() for part in text.split(","))
    known = {axis: axis for axis in AXES}
    if len(set(asked)) < 2 or len(set(asked)) < len(asked) or not set(asked) <= set(AXES):
        raise RecipeError(f"--pareto must be two or three of {','.join(AXES)}, got {text!r}")
    return tuple(known[name] for name in asked if name in known)


def plan_front(
    setting: PlanSetting,
    axes: Sequence[Axis],
    draws: Draws | None = None,
    *,
    quantile: float | None = None,
) -> ParetoFront:
    """Return the plans worth choosing among.

    Args:
        setting: the recipe's own.
        axes: the costs that count.
        draws: of links and speeds, by which plans are compared; None = some of the run.
        quantile: of the rounds' times, next to which the rounds of these draws end; None = the median.

    Raises:
        InfeasibleError: if the recipe itself has no plan.
        RecipeError: if the method is a control, which has no knobs.
    """
    if setting.chosen.is_control:
        raise RecipeError(
            f"--pareto needs a method with settings to vary, got {setting.chosen.label}"
        )
    own = _point({}, (), setting, draws)
    tried = [point for point in _points(setting, draws) if point is not None]
    kept = [one for one in tried if not any(_beats(other, one, axes) for other in tried)]
    ranked = sorted(kept, key=lambda point: [point.cost(axis) for axis in axes])
    return ParetoFront(tuple(axes), own, tuple(ranked), len(tried), quantile)


def _points(setting: PlanSetting, draws: Draws | None) -> Iterator[FrontPoint | None]:
    """Yield the plan of every combination of the knobs; None where it has none."""
    recipe = setting.recipe
    ranks = dict.fromkeys(max(recipe.lora.r // part, 1) for part in (1, 2, 4))
    knobs: dict[str, dict[str, tuple[str, ...]]] = {
        "upload": _CODECS,
        "rank": {str(rank): (f"lora.r={rank}",) for rank in ranks},
        **_own_knob(setting),
    }
    for chosen in product(*(enumerate(settings.items()) for settings in knobs.values())):
        changes = [change for _, (_, each) in chosen for change in each]
        words = {knob: word for knob, (_, (word, _)) in zip(knobs, chosen, strict=True)}
        try:
            other = setting_of(check_recipe(override(recipe.plain(), changes)), setting.found)
            yield _point(words, tuple(index for index, _ in chosen), other, draws)
        except (InfeasibleError, RecipeError):
            yield None


def _own_knob(setting: PlanSetting) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the method's own budget of quality, if it has one."""
    method = setting.recipe.method
    measured = setting.problem.measurements
    is_measured = measured is not None and bool(measured.measured)
    for name, values in _OWN.items():
        if name != "budget" and not is_measured:
            continue  # nothing says yet what it allows
        if not settings_faults(
            method.name, {**method.settings, name: parse_yaml(values[1], where=name)}
        ):
            return {name: {value: (f"method.{name}={value}",) for value in values}}
    return {}


def _point(
    words: dict[str, str], given_up: tuple[int, ...], setting: PlanSetting, draws: Draws | None
) -> FrontPoint:
    """Return the plan of a setting in these draws."""
    totals = sample(setting, draws).totals(setting.problem.rounds)
    return FrontPoint(
        words,
        given_up,
        totals.total_s,
        totals.upload_bytes + totals.download_bytes,
        totals.energy_j,
        money_of(setting.recipe, totals, float(staged_by(setting).sum())),
    )


def _beats(one: FrontPoint, other: FrontPoint, axes: Sequence[Axis]) -> bool:
    """Say whether one gives up no more than the other, and costs about as little or less."""
    gives_less = one.given_up != other.given_up and all(
        mine <= theirs for mine, theirs in zip(one.given_up, other.given_up, strict=True)
    )
    return gives_less and all(one.cost(axis) <= other.cost(axis) * (1.0 + _FELT) for axis in axes)

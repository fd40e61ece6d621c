"""`airtune plan`: what a run, or a model on a device, would cost; no weights, no training."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.cli.plan_tables import (
    print_assumptions,
    print_front,
    print_model,
    print_plan,
    print_within,
)
from airtune.errors import InfeasibleError, RecipeError
from airtune.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from airtune.planner import Draws, ParetoFront, Plan, PlanSetting, Price, Within


_QUICK_S = 0.6
"""Processor time of a round's plan up to which prices are stated without being asked."""


def plan(
    words: Words = None,
    *,
    settings: Settings = None,
    within: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="What would make the run end in 6h, 90m or 1d."),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            help="With --within: bandwidth, memory, server, devices, rounds, with commas; default: all."
        ),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="State the time within which so many of 100 rounds end, 95 for instance.",
        ),
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(
            metavar="COSTS",
            help="Plans to choose among by time,bytes,joules: one for each setting of the knobs that every method has.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write all that is asked as one page, plan.html for instance."
        ),
    ] = None,
    prices: Annotated[
        bool | None,
        typer.Option(
            "--prices/--no-prices",
            help="What more bandwidth, memory or speed would save; fleets of more than 100 devices, and slow methods, only when asked.",
        ),
    ] = None,
    tariff: Annotated[float | None, typer.Option(help="Price of a kWh (tariff.per_kwh).")] = None,
    per_gb: Annotated[
        float | None, typer.Option(help="Price of 10^9 bytes on a link (tariff.per_gb).")
    ] = None,
    every_device: Annotated[
        bool, typer.Option("--all", help="A row for each device, however many.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Kind of device; the argument is then a model.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --device: sequences in a step.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="With --device: tokens in a sequence.")] = 512,
    rank: Annotated[int, typer.Option(min=1, help="With --device: LoRA rank.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Say what a run would cost, or what would make it end in time.

    Examples: airtune plan recipe.yaml · airtune plan recipe.yaml --within 6h --tariff 0.30 ·
    airtune plan Qwen/Qwen2.5-0.5B --device orin-nano-8gb
    """
    source, changes = split_words(words, settings)
    if device is not None:
        if source is None or changes:
            raise RecipeError(
                "--device plans a model: airtune plan Qwen/Qwen2.5-0.5B --device orin-nano-8gb"
            )
        from airtune.planner import plan_model

        model = plan_model(source, device, batch=batch, tokens=tokens, rank=rank)
        print_json(model.as_document()) if as_json else print_model(model)
        return
    _check_source(source)
    level, limit = _read_quantile(quantile), _read_within(within, vary)
    money = {"tariff.per_kwh": tariff, "tariff.per_gb": per_gb}
    changes += [f"{key}={price}" for key, price in money.items() if price is not None]
    from airtune.planner import (
        draws_of,
        plan_front,
        plan_of,
        plan_within,
        read_axes,
        read_vary,
        sample,
    )

    axes = None if pareto is None else read_axes(pareto)
    asked, setting = read_vary(vary), _setting(source, changes)

    begun = time.process_time()
    sampled = sample(setting, draws_of(setting.problem.rounds, level))
    is_quick = time.process_time() - begun < _QUICK_S * len(sampled.round_s)
    found = plan_of(setting, quantile=level, sampled=sampled)
    few = sampled.typical(level)
    answers = _Answers(
        found,
        None
        if limit is None
        else plan_within(setting, limit, vary=asked, quantile=level, sampled=sampled),
        _prices(setting, few, asked=prices, is_quick=is_quick),
        None if axes is None else plan_front(setting, axes, few, quantile=level),
        _simulation_s(setting, found),
    )
    if page is not None:
        _write_page(page, setting, answers)
    if as_json:
        print_json(answers.as_document())
    else:
        answers.print(every_device=every_device)
    if answers.within is not None and answers.within.shortfall:
        raise InfeasibleError(answers.within.shortfall)


@dataclass(frozen=True, slots=True)
class _Answers:
    """All that was asked of a recipe."""

    plan: Plan
    within: Within | None
    prices: tuple[Price, ...] | None
    """None = nobody said whether they are wanted, and they take a while."""
    front: ParetoFront | None
    simulation_s: float

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        from airtune.planner import groups_of

        return {
            **self.plan.as_document(),
            "groups": [asdict(group) for group in groups_of(self.plan.devices)],
            "within": None if self.within is None else self.within.as_document(),
            "prices": None if self.prices is None else [asdict(price) for price in self.prices],
            "pareto": None if self.front is None else self.front.as_document(),
            "simulation_s": self.simulation_s,
        }

    def print(self, *, every_device: bool) -> None:
        """Print it for people."""
        from airtune.planner import price_lines

        print_plan(self.plan, every_device=every_device)
        if self.within is not None:
            print_within(self.within)
        if self.front is not None:
            print_front(self.front)
        if self.prices is None:
            print_note("prices are left out, as they take a while here; --prices shows them")
        for line in price_lines(self.prices or (), self.plan.quantile):
            print_line(f"price: {line}")
        print_line(
            f"simulating this run would train for about {format_seconds(self.simulation_s)} on this "
            "machine, by its matrix product speed measured now; evaluation is not included"
        )
        print_assumptions(self.plan.assumptions)


def _check_source(source: str | None) -> None:
    """Refuse a model, and a recipe that is not there."""
    if source is not None and (
        Path(source).suffix == ".gguf" or (Path(source) / "config.json").is_file()
    ):
        raise RecipeError(
            f"{source} is a model, not a recipe; to plan it, add --device (airtune list devices shows "
            "the kinds)"
        )
    if source is None or Path(source).exists() or Path(source).suffix in (".yaml", ".yml"):
        return
    raise RecipeError(
        f"there is no recipe {source!r}; to plan a model, add --device (airtune list devices "
        "shows the kinds)"
    )


def _setting(source: str | None, changes: list[str]) -> PlanSetting:
    from airtune.recipe import load_recipe

    recipe = load_recipe(source, overrides=changes)
    from airtune.data.read import check_places
    from airtune.planner import setting_of

    check_places(recipe.data)
    return setting_of(recipe)


def _read_quantile(percent: float | None) -> float | None:
    if percent is not None and not 50.0 <= percent <= 99.0:
        raise RecipeError(
            f"--quantile must be a percentage from 50 to 99, for instance 95, got {percent:g}"
        )
    return None if percent is None else percent / 100.0


def _read_within(within: str | None, vary: str | None) -> float | None:
    if within is None:
        if vary is not None:
            raise RecipeError(f"--vary {vary} needs a time to meet; add --within 6h")
        return None
    try:
        return parse_seconds(within)
    except ValueError as error:
        raise RecipeError(f"--within: {error}") from error


def _prices(
    setting: PlanSetting, draws: Draws, *, asked: bool | None, is_quick: bool
) -> tuple[Price, ...] | None:
    """Return the prices; none where they are not wanted, None where they take long to find."""
    if asked is False:
        return ()
    from airtune.planner import PRICED_DEVICES, prices_of

    is_small = len(setting.fleet) <= PRICED_DEVICES
    return prices_of(setting, draws) if asked or (is_small and is_quick) else None


def _simulation_s(setting: PlanSetting, found: Plan) -> float:
    from airtune.planner import training_flops_per_s

    return found.total_flops / training_flops_per_s(setting.problem.shape, setting.typical.workload)


def _write_page(path: Path, setting: PlanSetting, answers: _Answers) -> None:
    from airtune.planner import page_of
    from airtune.report.plan_page import write_plan_page

    page = page_of(
        setting.recipe,
        answers.plan,
        within=answers.within,
        prices=answers.prices,
        front=answers.front,
    )
    write_plan_page(page, path)
    print_note(f"page: {path}")

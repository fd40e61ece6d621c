"""`airtune plan`: what a run, or a model on a device, would cost; no weights, no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.cli.plan_tables import print_assumptions, print_model, print_plan, print_within
from airtune.errors import RecipeError
from airtune.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from airtune.planner import Plan, Price, Setting, Within


def plan(
    words: Words = None,
    *,
    settings: Settings = None,
    within: Annotated[str | None, typer.Option(metavar="DURATION", help="What would make the run end in 6h, 90m or 1d.")] = None,
    vary: Annotated[str | None, typer.Option(help="With --within: bandwidth, memory, server, devices, rounds, with commas; all unless said.")] = None,
    quantile: Annotated[float | None, typer.Option(metavar="PERCENT", help="State the time within which so many of 100 rounds end, 95 for instance.")] = None,
    prices: Annotated[bool | None, typer.Option("--prices/--no-prices", help="What more bandwidth, memory or speed would save; fleets of more than 100 devices only when asked.")] = None,
    tariff: Annotated[float | None, typer.Option(help="Price of a kWh (tariff.per_kwh).")] = None,
    per_gb: Annotated[float | None, typer.Option(help="Price of 10^9 bytes on a link (tariff.per_gb).")] = None,
    every_device: Annotated[bool, typer.Option("--all", help="A row for each device, however many.")] = False,
    device: Annotated[str | None, typer.Option(help="Kind of device; the argument is then a model.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --device: sequences in a step.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="With --device: tokens in a sequence.")] = 512,
    rank: Annotated[int, typer.Option(min=1, help="With --device: LoRA rank.")] = 8,
    as_json: AsJson = False,
) -> None:  # fmt: skip
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
    from airtune.planner import plan_of, plan_within, read_vary

    asked, setting = read_vary(vary), _setting(source, changes)

    found = plan_of(setting, quantile=level)
    answer = None if limit is None else plan_within(setting, limit, vary=asked, quantile=level)
    saved = _prices(setting, asked=prices)
    here_s = _simulation_s(setting, found)
    if as_json:
        print_json(_document(found, answer, saved, here_s))
    else:
        _print(found, answer, saved, here_s, every_device=every_device)


def _check_source(source: str | None) -> None:
    if source is None or Path(source).exists() or Path(source).suffix in (".yaml", ".yml"):
        return
    raise RecipeError(
        f"there is no recipe {source!r}; to plan a model, add --device (airtune list devices "
        "shows the kinds)"
    )


def _setting(source: str | None, changes: list[str]) -> Setting:
    from airtune.recipe import load_recipe

    recipe = load_recipe(source, overrides=changes)
    from airtune.data.read import check_places
    from airtune.planner import setting_of

    check_places(recipe.data)
    return setting_of(recipe)


def _read_quantile(percent: float | None) -> float | None:
    if percent is not None and not 50.0 <= percent <= 99.0:
        raise RecipeError(f"--quantile must be a percentage from 50 to 99, got {percent:g}")
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


def _prices(setting: Setting, *, asked: bool | None) -> tuple[Price, ...] | None:
    """Return the prices; None where they were not asked for and take long."""
    from airtune.planner import PRICED_DEVICES, prices_of

    wanted = len(setting.fleet) <= PRICED_DEVICES if asked is None else asked
    return prices_of(setting) if wanted else None


def _simulation_s(setting: Setting, found: Plan) -> float:
    from airtune.planner import training_flops_per_s

    return found.total_flops / training_flops_per_s(setting.problem.shape, setting.typical.workload)


def _document(
    found: Plan, answer: Within | None, saved: tuple[Price, ...] | None, here_s: float
) -> dict[str, Any]:
    from dataclasses import asdict

    from airtune.planner import groups_of

    return {
        **found.as_document(),
        "groups": [asdict(group) for group in groups_of(found.devices)],
        "within": None if answer is None else answer.as_document(),
        "prices": None if saved is None else [asdict(price) for price in saved],
        "simulation_s": here_s,
    }


def _print(
    found: Plan, answer: Within | None, saved: tuple[Price, ...] | None, here_s: float, *,
    every_device: bool,
) -> None:  # fmt: skip
    from airtune.planner import price_lines

    print_plan(found, every_device=every_device)
    if answer is not None:
        print_within(answer)
    if saved is None:
        print_note(f"prices of {len(found.devices)} devices take a while; --prices shows them")
    for line in price_lines(saved or ()):
        print_line(f"price: {line}")
    print_line(
        f"simulating this run would train for about {format_seconds(here_s)} on this machine, by the "
        "speed of its matrix products measured now; evaluation comes on top"
    )
    print_assumptions(found.assumptions)

"""`airtune plan`: what a run, or a model on a device, would cost; no weights, no training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airtune.cli.console import print_json, print_line, print_table
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.errors import RecipeError
from airtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from airtune.planner import ModelPlan, Plan

MOST_ROWS = 40


def plan(
    words: Words = None,
    *,
    settings: Settings = None,
    device: Annotated[str | None, typer.Option(help="Kind of device; the argument is then a model.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --device: sequences in a step.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="With --device: tokens in a sequence.")] = 512,
    rank: Annotated[int, typer.Option(min=1, help="With --device: LoRA rank.")] = 8,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what a run would cost: memory, bytes, seconds and joules of each device.

    Examples: airtune plan recipe.yaml · airtune plan Qwen/Qwen2.5-0.5B --device orin-nano-8gb
    """
    source, changes = split_words(words, settings)
    if device is not None:
        if source is None or changes:
            raise RecipeError(
                "--device plans a model: airtune plan Qwen/Qwen2.5-0.5B --device orin-nano-8gb"
            )
        from airtune.planner import plan_model

        model = plan_model(source, device, batch=batch, tokens=tokens, rank=rank)
        print_json(model.as_document()) if as_json else _print_model(model)
        return
    if (
        source is not None
        and not Path(source).exists()
        and Path(source).suffix not in (".yaml", ".yml")
    ):
        raise RecipeError(
            f"there is no recipe {source!r}; to plan a model, add --device (airtune list devices "
            "shows the kinds)"
        )
    from airtune.recipe import load_recipe

    recipe = load_recipe(source, overrides=changes)
    from airtune.data.read import check_places
    from airtune.planner import plan_recipe

    check_places(recipe.data)
    found = plan_recipe(recipe)
    print_json(found.as_document()) if as_json else _print_plan(found)


def _print_plan(plan: Plan) -> None:
    rows = [
        [row.name, f"{format_bytes(row.peak_bytes)} of {format_bytes(row.memory_bytes)}"
         if math.isfinite(row.peak_bytes) else f"- of {format_bytes(row.memory_bytes)}",
         "yes" if row.fits else "NO", row.feasible,
         f"{row.cut}, {row.codec}" if row.cut else _percent(row.pruned),
         *(_seconds(value) for value in (row.download_s, row.compute_s, row.upload_s, row.finish_s)),
         _bytes(row.upload_bytes), "-" if math.isnan(row.energy_j) else f"{row.energy_j:.1f} J"]
        for row in plan.devices[:MOST_ROWS]
    ]  # fmt: skip
    is_split = any(row.cut for row in plan.devices)
    print_table(
        f"{plan.method} on {plan.model} ({plan.parameters:,} parameters), a round",
        ["device", "memory", "fits", "choices", "cut" if is_split else "pruned", "download", "compute", "upload", "finish",
         "sent", "energy"],
        rows,
    )  # fmt: skip
    if len(plan.devices) > MOST_ROWS:
        print_line(f"... and {len(plan.devices) - MOST_ROWS} more devices; --json lists all")
    print_line(
        f"a round takes {format_seconds(plan.round_s)}; {plan.rounds} rounds take "
        f"{format_seconds(plan.total_s)}, {format_bytes(plan.total_upload_bytes)} up, "
        f"{format_bytes(plan.total_download_bytes)} down, {plan.total_energy_j:,.0f} J"
    )
    print_line(f"rounds: {plan.rounds_source}")
    print_line(f"straggler: {plan.straggler}")
    for line in plan.data:
        print_line(f"data: {line}")
    _print_assumptions(plan.assumptions)


def _print_model(plan: ModelPlan) -> None:
    rows = [
        [choice.precision, _percent(choice.pruned), format_bytes(choice.weights_bytes),
         format_bytes(choice.activations_bytes), format_bytes(choice.logits_bytes),
         format_bytes(choice.peak_bytes), "yes" if choice.fits else "NO",
         format_seconds(choice.step_s), _bytes(choice.upload_bytes), f"{choice.energy_j:.0f} J"]
        for choice in plan.choices
    ]  # fmt: skip
    print_table(
        f"{plan.model} ({plan.parameters:,} parameters) on {plan.device}: "
        f"{format_bytes(plan.memory_bytes)}, {plan.flops_per_s / 1e12:.2f} TFLOP/s; batch "
        f"{plan.workload.batch} of {plan.workload.tokens} tokens, rank {plan.workload.rank}, "
        f"{plan.workload.local_steps} steps a round",
        ["base", "pruned", "weights", "activations", "logits", "peak", "fits", "a step", "sent",
         "a round"],
        rows,
    )  # fmt: skip
    if plan.cuts:
        _print_cuts(plan)
    _print_assumptions(plan.assumptions)


def _print_cuts(plan: ModelPlan) -> None:
    rows = [
        [f"{choice.cut}", format_bytes(choice.peak_bytes), "yes" if choice.fits else "NO",
         format_bytes(choice.frozen_peak_bytes), format_bytes(choice.server_peak_bytes),
         _bytes(choice.step_up_bytes), _bytes(choice.step_down_bytes), _seconds(choice.round_s)]
        for choice in plan.cuts
    ]  # fmt: skip
    print_table(
        f"cut between device and server, {plan.cuts[0].precision}",
        ["blocks on the device", "peak", "fits", "peak if frozen", "on the server", "up, a step",
         "down, a step", "a round"],
        rows,
    )  # fmt: skip


def _print_assumptions(lines: tuple[str, ...]) -> None:
    print_line("assumed:")
    for line in lines:
        print_line(f"  - {line}")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _seconds(value: float) -> str:
    return "-" if not math.isfinite(value) else format_seconds(value)


def _bytes(value: float) -> str:
    return "-" if not math.isfinite(value) else format_bytes(value)

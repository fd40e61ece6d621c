"""How a plan is printed: a row a device or a kind, what it costs, what would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airtune.cli.console import print_line, print_note, print_table
from airtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from airtune.planner import DevicePlan, Group, ModelPlan, Plan, Within

MOST_ROWS = 12
"""Larger fleets are shown by kind, unless all are asked for."""
_JOULES_PER_KWH = 3.6e6


def print_plan(plan: Plan, *, every_device: bool) -> None:
    """Print the table of devices and what the run takes in all.

    Args:
        plan: of a recipe.
        every_device: a row a device, however many there are.
    """
    is_split = any(row.cut for row in plan.devices)
    title = f"{plan.method} on {plan.model} ({plan.parameters:,} parameters), a round"
    columns = ["memory", "fits", "choices", "cut" if is_split else "pruned", "download", "compute",
               "upload", "finish", "sent", "energy"]  # fmt: skip
    if every_device or len(plan.devices) <= MOST_ROWS:
        print_table(title, ["device", *columns], [_row(row) for row in plan.devices])
    else:
        from airtune.planner import groups_of

        rows = [_group(group) for group in groups_of(plan.devices)]
        print_table(title, ["kind", "devices", *columns], rows)
        print_line(f"{len(plan.devices)} devices by kind, from least to most; --all shows each")
    for line in plan.warnings:
        print_note(f"warning: {line}")
    print_line(_times(plan))
    print_line(_totals(plan))
    print_line(f"rounds: {plan.rounds_source}")
    print_line(f"straggler: {plan.straggler}")
    for line in plan.data:
        print_line(f"data: {line}")


def print_within(within: Within) -> None:
    """Print whether the run ends in time, and what each quantity has to be."""
    limit, took = format_seconds(within.within_s), format_seconds(within.total_s)
    verdict = "within" if within.meets else "not within"
    print_line(f"the run takes {took}, {verdict} {limit}; "
               f"{'what could be spared' if within.meets else 'what would do'}, each alone:")  # fmt: skip
    print_table("", ["quantity", "in time", "needed", "the run takes", "what binds then"], [
        [answer.vary, "yes" if answer.meets else "NO", answer.needs, seconds(answer.total_s), answer.binds]
        for answer in within.answers
    ])  # fmt: skip
    for answer in within.answers:
        if answer.left_out:
            print_line(f"devices left out: {', '.join(answer.left_out)}")


def print_model(plan: ModelPlan) -> None:
    """Print the ways to train a model on a kind of device."""
    rows = [
        [choice.precision, percent(choice.pruned), format_bytes(choice.weights_bytes),
         format_bytes(choice.activations_bytes), format_bytes(choice.logits_bytes),
         format_bytes(choice.peak_bytes), "yes" if choice.fits else "NO",
         format_seconds(choice.step_s), sizes(choice.upload_bytes), f"{choice.energy_j:.0f} J"]
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
    print_assumptions(plan.assumptions)


def print_assumptions(lines: Sequence[str]) -> None:
    """Print what was taken for granted, a line each."""
    print_line("assumed:")
    for line in lines:
        print_line(f"  - {line}")


def percent(value: float) -> str:
    """Write a share; - where it is not known."""
    return "-" if math.isnan(value) else f"{value:.0%}"


def seconds(value: float) -> str:
    """Write a time; - where there is none."""
    return "-" if not math.isfinite(value) else format_seconds(value)


def sizes(value: float) -> str:
    """Write bytes; - where there are none."""
    return "-" if not math.isfinite(value) else format_bytes(value)


def joules(value: float) -> str:
    """Write an energy of a round; - where it is not known."""
    return "-" if math.isnan(value) else f"{value:.1f} J"


def _row(row: DevicePlan) -> list[str]:
    return [
        row.name, f"{sizes(row.peak_bytes)} of {format_bytes(row.memory_bytes)}",
        "yes" if row.fits else "NO", row.feasible,
        f"{row.cut}, {row.codec}" if row.cut else percent(row.pruned),
        *(seconds(value) for value in (row.download_s, row.compute_s, row.upload_s, row.finish_s)),
        sizes(row.upload_bytes), joules(row.energy_j),
    ]  # fmt: skip


def _group(group: Group) -> list[str]:
    from airtune.planner import span

    def told(name: str, form: Callable[[float], str]) -> str:
        return span(group.ranges[name], form)

    fits = "yes" if group.fits == group.devices else f"{group.fits} of {group.devices}"
    is_cut = group.ranges["cut"][1] > 0
    return [
        group.kind, str(group.devices),
        f"{told('peak_bytes', sizes)} of {told('memory_bytes', sizes)}",
        fits if group.fits else "NO", "; ".join(group.feasible),
        told("cut", lambda cut: f"{cut:.0f}") if is_cut else told("pruned", percent),
        *(told(f"{part}_s", seconds) for part in ("download", "compute", "upload", "finish")),
        told("upload_bytes", sizes), told("energy_j", joules),
    ]  # fmt: skip


def _times(plan: Plan) -> str:
    beside = (
        "" if plan.quantile is None or plan.round_quantile_s is None
        else f" (median; {plan.quantile:.3g} of the rounds end within "
        f"{seconds(plan.round_quantile_s)})"
    )  # fmt: skip
    return (
        f"a round takes {seconds(plan.round_s)}{beside}; {plan.rounds} rounds take "
        f"{seconds(plan.total_s)}, {format_bytes(plan.total_upload_bytes)} up, "
        f"{format_bytes(plan.total_download_bytes)} down, {plan.total_energy_j:,.0f} J"
    )


def _totals(plan: Plan) -> str:
    energy = f"energy of the devices: {plan.total_energy_j / _JOULES_PER_KWH:.3g} kWh"
    if plan.money is None:
        return energy
    unit = f" {plan.money.currency}" if plan.money.currency else ""
    return (
        f"{energy}; cost: {plan.money.electricity:.3g}{unit} of electricity, "
        f"{plan.money.data:.3g}{unit} of data, {plan.money.total:.3g}{unit} in all"
    )


def _print_cuts(plan: ModelPlan) -> None:
    rows = [
        [f"{choice.cut}", format_bytes(choice.peak_bytes), "yes" if choice.fits else "NO",
         format_bytes(choice.frozen_peak_bytes), format_bytes(choice.server_peak_bytes),
         sizes(choice.step_up_bytes), sizes(choice.step_down_bytes), seconds(choice.round_s)]
        for choice in plan.cuts
    ]  # fmt: skip
    print_table(
        f"cut between device and server, {plan.cuts[0].precision}",
        ["blocks on the device", "peak", "fits", "peak if frozen", "on the server", "up, a step",
         "down, a step", "a round"],
        rows,
    )  # fmt: skip

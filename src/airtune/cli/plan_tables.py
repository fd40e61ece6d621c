"""How a plan is printed: a row a device or a kind, what it costs, what would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airtune.cli.console import print_line, print_note, print_table
from airtune.units import format_bytes, format_number, format_seconds

if TYPE_CHECKING:
    from airtune.planner import ModelPlan, ParetoFront, Plan, Within
    from airtune.planner.rows import WordTable

_JOULES_PER_KWH = 3.6e6
_SHOWN = 16
"""Plans of a front that fit a screen; the document and the page have all."""


def print_plan(plan: Plan, *, every_device: bool) -> None:
    """Print the table of devices and what the run takes in all.

    Args:
        plan: of a recipe.
        every_device: a row a device, however many there are.
    """
    from airtune.planner.rows import device_rows

    _print_words(device_rows(plan, every_device=every_device))
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
    from airtune.planner.rows import within_rows

    _print_words(within_rows(within))


def print_front(front: ParetoFront) -> None:
    """Print the plans to choose among."""
    from airtune.planner.rows import front_rows

    _print_words(front_rows(front, most=_SHOWN))


def _print_words(words: WordTable) -> None:
    print_table(words.title, words.heads, words.rows)
    if words.note:
        print_line(words.note)


def print_model(plan: ModelPlan) -> None:
    """Print the ways to train a model on a kind of device."""
    from airtune.planner.rows import percent, sizes

    rows = [
        [
            choice.precision,
            percent(choice.pruned),
            format_bytes(choice.weights_bytes),
            format_bytes(choice.activations_bytes),
            format_bytes(choice.logits_bytes),
            format_bytes(choice.peak_bytes),
            "yes" if choice.fits else "NO",
            format_seconds(choice.step_s),
            sizes(choice.upload_bytes),
            f"{choice.energy_j:.0f} J",
        ]
        for choice in plan.choices
    ]
    print_table(
        f"{plan.model} ({plan.parameters:,} parameters) on {plan.device}: "
        f"{format_bytes(plan.memory_bytes)}, {plan.flops_per_s / 1e12:.2f} TFLOP/s; batch "
        f"{plan.workload.batch} of {plan.workload.tokens} tokens, rank {plan.workload.rank}, "
        f"{plan.workload.local_steps} steps a round",
        [
            "base",
            "pruned",
            "weights",
            "activations",
            "logits",
            "peak",
            "fits",
            "step time",
            "upload",
            "energy, a round",
        ],
        rows,
    )
    if plan.cuts:
        _print_cuts(plan)
    print_assumptions(plan.assumptions)


def print_assumptions(lines: Sequence[str]) -> None:
    """Print what was taken for granted, a line each."""
    print_line("assumed:")
    for line in lines:
        print_line(f"  - {line}")


def _times(plan: Plan) -> str:
    from airtune.planner.rows import seconds
    from airtune.report.wording import format_joules

    beside = (
        ""
        if plan.quantile is None or plan.round_quantile_s is None
        else f" (median; {plan.quantile:.0%} of the rounds end within "
        f"{seconds(plan.round_quantile_s)})"
    )
    return (
        f"a round takes {seconds(plan.round_s)}{beside}; {plan.rounds} rounds take "
        f"{seconds(plan.total_s)}, {format_bytes(plan.total_upload_bytes)} up, "
        f"{format_bytes(plan.total_download_bytes)} down, {format_joules(plan.total_energy_j)}"
    )


def _totals(plan: Plan) -> str:
    energy = f"energy of the devices: {format_number(plan.total_energy_j / _JOULES_PER_KWH)} kWh"
    if plan.money is None:
        return energy
    unit = f" {plan.money.currency}" if plan.money.currency else ""
    return (
        f"{energy}; cost: {format_number(plan.money.electricity)}{unit} of electricity, "
        f"{format_number(plan.money.data)}{unit} of data, {format_number(plan.money.total)}{unit} in all"
    )


def _print_cuts(plan: ModelPlan) -> None:
    from airtune.planner.rows import seconds, sizes

    rows = [
        [
            f"{choice.cut}",
            format_bytes(choice.peak_bytes),
            "yes" if choice.fits else "NO",
            format_bytes(choice.frozen_peak_bytes),
            format_bytes(choice.server_peak_bytes),
            sizes(choice.step_up_bytes),
            sizes(choice.step_down_bytes),
            seconds(choice.round_s),
        ]
        for choice in plan.cuts
    ]
    print_table(
        f"cut between device and server, {plan.cuts[0].precision}",
        [
            "blocks on the device",
            "peak",
            "fits",
            "peak if frozen",
            "server memory",
            "up, a step",
            "down, a step",
            "round time",
        ],
        rows,
    )

"""Baselines of split training: one cut for all, no compression, equal shares, nothing known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from airtune.errors import MethodError, RecipeError
from airtune.methods.codec_menu import CodecChoice, Size, check_codec, codec_menu
from airtune.methods.memoryless import Memoryless
from airtune.methods.seen import available, even_shares
from airtune.methods.split_lines import check_cut
from airtune.plan import Method, Need, Observation, Problem, RoundPlan, State, WorkSpec, whole_model


@dataclass(frozen=True, slots=True)
class FixedSplit(Memoryless):
    """The decider, and the settings, of split learning as it was before it was optimised."""

    cut: int = 1
    """Blocks on every device."""
    labels: Literal["travel", "stay"] = "travel"
    """travel, or stay: the head and the loss are on the device."""
    codec: CodecChoice = "none"
    """One codec for all, as in `sft`; auto = none."""
    keep: Size = "auto"
    """Fraction kept by topk."""
    bits: int = 4
    step: Size = "auto"
    """Step of deadzone in standard deviations."""
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        if self.cut < 1:
            raise RecipeError(f"cut must be at least 1 block, got {self.cut}")
        if self.labels not in ("travel", "stay"):
            raise RecipeError(f"labels must be travel or stay, got {self.labels!r}")
        check_codec(self.codec, self.keep, self.bits, self.step)

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Tell every available device to cut at the same place.

        Raises:
            InfeasibleError: if the cut leaves the server nothing.
        """
        check_cut(self.cut, problem.shape.blocks)
        device, devices = available(observation), problem.devices
        alone = None if devices.dedicated is None else devices.dedicated[device]
        menu, _ = codec_menu(self.codec, keep=self.keep, bits=self.bits, step=self.step)
        assignments = replace(
            whole_model(
                device,
                rank=problem.workload.rank,
                local_steps=problem.workload.local_steps,
                share=even_shares(devices.link[device], alone),
            ),
            cut=np.full(device.shape, self.cut, np.int64),
            codecs=menu[:1],
        )
        turn = ", in turn" if problem.work.server == "sequential" else ""
        reasons = tuple(
            f"{devices.names[index]}: cut after block {self.cut} as all devices, "
            f"{menu[0].label}, equal share{turn}"
            for index in device
        )
        return RoundPlan(
            observation.round, assignments, reasons, deadline_s=problem.deadline_s
        ), state


def fixed_split(work: WorkSpec) -> Callable[[str, object], Method]:
    """Return what makes a method of these settings and this local work."""

    def make(name: str, settings: object) -> Method:
        if not isinstance(settings, FixedSplit):
            raise MethodError(f"settings must be FixedSplit, got {type(settings).__name__}")
        held = replace(work, labels=settings.labels)
        return Method(name, settings, work=held, may_cut=True, cut=settings.cut)

    return make

"""The round loop, which knows no method and no engine by name."""

from airtune.loop.judging import Target
from airtune.loop.laps import Laps
from airtune.loop.rounds import (
    LoopResult,
    LoopSettings,
    OnRound,
    Run,
    begin,
    run_rounds,
    run_to_end,
)

__all__ = [
    "Laps",
    "LoopResult",
    "LoopSettings",
    "OnRound",
    "Run",
    "Target",
    "begin",
    "run_rounds",
    "run_to_end",
]

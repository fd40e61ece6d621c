"""The round loop, which knows no method and no engine by name."""

from airtune.loop.rounds import LoopResult, LoopSettings, OnRound, Run, Target, begin, run_rounds

__all__ = ["LoopResult", "LoopSettings", "OnRound", "Run", "Target", "begin", "run_rounds"]

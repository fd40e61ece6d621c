"""Solvers: min-max division of links, joint pruning and bandwidth, menus, rounding; numpy only."""

from airtune.solve.bandwidth import Division, divide_min_max
from airtune.solve.bcd import BcdStart, solve_bcd, uniform_kept
from airtune.solve.joint import solve_joint
from airtune.solve.menu import MenuChoice, choose, lagrangian
from airtune.solve.mixed import MixedSolution, solve_mixed
from airtune.solve.mixed_bound import MixedPrices
from airtune.solve.mixed_problem import MixedProblem
from airtune.solve.mixed_times import RoundTimes, round_times
from airtune.solve.problem import JointProblem, JointSolution
from airtune.solve.pruning import prune_min_max
from airtune.solve.rates import Curves, curves_of, signal_ratio, silent, slowed
from airtune.solve.rounding import LadderProblem, Rounded, round_to_ladder
from airtune.solve.rounds import best_budget, best_joint_budget, convex_rounds, rounds_ratio
from airtune.solve.spectrum import Spectrum, divide_spectrum
from airtune.solve.split import SplitProblem, SplitSolution, solve_split
from airtune.solve.split_lagrangian import solve_split_lagrangian

__all__ = [
    "BcdStart",
    "Curves",
    "Division",
    "JointProblem",
    "JointSolution",
    "LadderProblem",
    "MenuChoice",
    "MixedPrices",
    "MixedProblem",
    "MixedSolution",
    "RoundTimes",
    "Rounded",
    "Spectrum",
    "SplitProblem",
    "SplitSolution",
    "best_budget",
    "best_joint_budget",
    "choose",
    "convex_rounds",
    "curves_of",
    "divide_min_max",
    "divide_spectrum",
    "lagrangian",
    "prune_min_max",
    "round_times",
    "round_to_ladder",
    "rounds_ratio",
    "signal_ratio",
    "silent",
    "slowed",
    "solve_bcd",
    "solve_joint",
    "solve_mixed",
    "solve_split",
    "solve_split_lagrangian",
    "uniform_kept",
]

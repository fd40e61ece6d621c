"""Methods: one decider a file, one registry, and the contract that each of them keeps."""

from airtune.methods.contract import check_method, sample_problem
from airtune.methods.registry import (
    AT_SERVER,
    METHODS,
    MethodRow,
    build_method,
    list_methods,
    may_cut,
    method_row,
    settings_faults,
)

__all__ = [
    "AT_SERVER",
    "METHODS",
    "MethodRow",
    "build_method",
    "check_method",
    "list_methods",
    "may_cut",
    "method_row",
    "sample_problem",
    "settings_faults",
]

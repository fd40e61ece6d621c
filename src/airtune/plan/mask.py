"""Hiding from a method what it did not ask to know."""

from __future__ import annotations

from dataclasses import replace

from airtune.plan.method import Need
from airtune.plan.observe import Observation, Problem


def mask_problem(problem: Problem, needs: frozenset[Need]) -> Problem:
    """Return the problem without what the method did not ask to know.

    `capability` covers speed, memory and power of devices; `channel` covers transmit power.
    """
    devices = problem.devices
    if "capability" not in needs:
        devices = replace(devices, flops_per_s=None, memory_bytes=None, power_w=None)
    if "channel" not in needs:
        devices = replace(devices, transmit_power_w=None)
    return replace(problem, devices=devices)


def mask_observation(observation: Observation, needs: frozenset[Need]) -> Observation:
    """Return the observation without what the method did not ask to know."""
    return replace(
        observation,
        links=observation.links if "channel" in needs else None,
        flops_per_s=observation.flops_per_s if "capability" in needs else None,
    )

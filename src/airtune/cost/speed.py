"""How fast a device trains a model that it has not tried, from two models that it has.

Matrix products run at one rate and everything else - norms, activations, softmax, optimiser - at
the speed of memory, so narrow models reach fewer FLOP/s than wide ones on the same device:

    step = FLOPs / product rate + bytes touched / traffic rate

Bytes touched are taken as those that autograd would save, and the logits; how often each is read
and written is part of the fitted rate. The FFN's activation counts as three inner tensors where it
is gated and as two where it is not, whatever it saves: a fused GELU keeps one and computes longer,
GPT-2's plain operations keep four. Two probes of different width fix both rates.

Expected error: within 10 % for models between the widths probed (`python -m benchmarks predict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost.flops import train_flops
from airtune.cost.memory import activation_copies, peak_memory, saved_bytes
from airtune.errors import FleetError
from airtune.plan import ModelShape, Workload, whole_model


@dataclass(frozen=True, slots=True)
class SpeedProfile:
    """What probing found of a device."""

    flops_per_s: float
    """Of matrix products."""
    bytes_per_s: float
    """Of everything else, a byte counted once however often it is touched; may be infinite."""


@dataclass(frozen=True, slots=True)
class TimedModel:
    """One model that a device has trained, dense, and how long a local step took."""

    shape: ModelShape
    workload: Workload
    step_s: float


def fit_speed(probes: Sequence[TimedModel]) -> SpeedProfile:
    """Return the two rates that explain the probes best, least squares of relative errors.

    Args:
        probes: At least two, of different widths.

    Raises:
        FleetError: if there are fewer than two probes or their times make no sense.
    """
    seconds = np.array([probe.step_s for probe in probes])
    if len(probes) < 2 or not np.all(np.isfinite(seconds) & (seconds > 0.0)):
        raise FleetError(
            f"a speed profile needs two probes with times above 0 s, got {seconds.tolist()}"
        )
    work = np.array([_work(probe.shape, probe.workload) for probe in probes])  # (probes, 2)
    relative, ones = work / seconds[:, None], np.ones(len(probes))
    inverse = np.linalg.lstsq(relative, ones)[0]
    if inverse[1] < 0.0:
        inverse = np.array([np.linalg.lstsq(relative[:, :1], ones)[0][0], 0.0])
    if inverse[0] <= 0.0:
        raise FleetError(
            f"the probes' times {seconds.tolist()} s do not rise with their FLOPs "
            f"{work[:, 0].tolist()}; probe models of more different widths on an idle device"
        )
    traffic = 1.0 / inverse[1] if inverse[1] > 0.0 else np.inf
    return SpeedProfile(float(1.0 / inverse[0]), float(traffic))


def achieved_flops_per_s(profile: SpeedProfile, shape: ModelShape, workload: Workload) -> float:
    """Return the training speed to expect of a model, as `Profiles.flops_per_s` wants it.

    >>> from airtune.cost.presets import known_shapes
    >>> shape = known_shapes()["minilm-l6"]
    >>> work = Workload(8, 64, local_steps=1, rank=8, lora_targets=("query", "value"))
    >>> achieved_flops_per_s(SpeedProfile(1e12, float("inf")), shape, work) / 1e12
    1.0
    """
    flops, traffic = _work(shape, workload)
    return flops / (flops / profile.flops_per_s + traffic / profile.bytes_per_s)


def _work(shape: ModelShape, workload: Workload) -> tuple[float, float]:
    """FLOPs and bytes touched by one local step of the dense model."""
    plan = whole_model(np.arange(1), rank=workload.rank, local_steps=1, share=np.ones(1))
    plain = replace(workload, checkpointing=False, loss_chunk=0)
    inner = workload.batch * workload.tokens * shape.blocks * shape.ffn * workload.dtype_bytes
    touched = (3 if shape.gated else 2) - activation_copies(shape)
    saved = float(saved_bytes(shape, plain, plan)[0]) + touched * inner
    # a block's forward pass is about a third of the traffic, and checkpointing repeats it
    repeated = saved / 3.0 if workload.checkpointing else 0.0
    logits = float(peak_memory(shape, plain, plan).logits[0])
    return float(train_flops(shape, workload, plan)[0]), saved + repeated + logits

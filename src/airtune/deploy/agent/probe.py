"""What a device measures of itself in under two minutes, for planner, simulator and server.

Two small models of unlike width are trained for a few steps each; their times give the rate of
matrix products and that of memory traffic, and those the speed to expect of the model that will be
trained (`cost.speed`). Power is read meanwhile, the link is measured over the stream's port, and
memory is what the machine, or the cap, leaves beside the imports.
"""

from __future__ import annotations

import json
import math
import platform
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airtune.cost import SpeedProfile, TimedModel, achieved_flops_per_s, fit_speed, llama_like
from airtune.deploy.agent.power import Drawn, PowerMeter
from airtune.errors import DeploymentError, StorageError
from airtune.fleet.probe import PROBE_SCHEMA
from airtune.plan import ModelShape, Workload
from airtune.units import format_bytes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROBE_WORK = Workload(4, 96, local_steps=1, rank=8, lora_targets=TARGETS)
NARROW = llama_like(
    "llama", blocks=4, width=320, heads=5, kv_groups=5, head_dim=64, ffn=896, vocab=2000, tied=True
)
WIDE = llama_like(
    "llama",
    blocks=2,
    width=768,
    heads=12,
    kv_groups=6,
    head_dim=64,
    ffn=2048,
    vocab=4000,
    tied=True,
)
REFERENCE = "qwen2.5-0.5b"
"""Whose speed is written where no model is named."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast this device trains."""

    profile: SpeedProfile
    step_s: tuple[float, ...]
    """Of a step of each probe model, the lower quartile."""
    drawn: Drawn | None


def measure_speed(
    *,
    seconds: float = 40.0,
    shapes: tuple[ModelShape, ...] = (NARROW, WIDE),
    meter: PowerMeter | None = None,
) -> Speed:
    """Train the probe models in turn for about `seconds` in all.

    Raises:
        FleetError: if the times make no sense, as on a device that is busy with something else.
    """
    meter = meter or PowerMeter()
    steps = [trainer(shape, PROBE_WORK) for shape in shapes]
    for step in steps:
        step()  # the first step allocates and compiles
    times: list[list[float]] = [[] for _ in steps]
    meter.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times[0]) < 5:
        for step, seen in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            seen.append(time.perf_counter() - start)
        meter.sample()
    # neighbours on the device only ever slow a step, so the quicker ones are nearer the truth
    usual = tuple(statistics.quantiles(seen, n=4)[0] for seen in times)
    profile = fit_speed(
        [TimedModel(shape, PROBE_WORK, s) for shape, s in zip(shapes, usual, strict=True)]
    )
    return Speed(profile, usual, meter.stop())


def trainer(shape: ModelShape, workload: Workload) -> Callable[[], None]:
    """Return a function that trains one step of a random model on random tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from airtune.model.base import base_of
    from airtune.model.batch import Batch
    from airtune.model.lora import attach, init_adapters
    from airtune.model.loss import batch_losses

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_groups,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=workload.tokens,
    )
    where = "cuda" if torch.cuda.is_available() else "cpu"
    base = base_of(LlamaForCausalLM(config).to(where))
    lora = attach(base.network, base.family, [init_adapters(shape, workload, 0)], scale=2.0)
    lora.train()
    ids = torch.randint(2, shape.vocab, (workload.batch, workload.tokens), device=where)
    batch = Batch(ids, torch.ones_like(ids), ids)
    optimiser = torch.optim.AdamW(lora.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_losses(lora.network, batch).sum())
        optimiser.step()
        if where == "cuda":
            torch.cuda.synchronize()

    return step


def training_memory_bytes(cap_bytes: float | None = None, *, reserve_bytes: float = 0.0) -> float:
    """Return what is left for training: of the cap or of the machine, beside the imports.

    Args:
        cap_bytes: What a worker may take; None = no cap.
        reserve_bytes: What the device's owner keeps.

    Raises:
        DeploymentError: if nothing is left.
    """
    import torch

    from airtune.deploy.memory import available_bytes, floor_bytes

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        left = min(float(free), cap_bytes or float(total)) - reserve_bytes
    else:
        available = available_bytes() - reserve_bytes
        left = min(available, cap_bytes or math.inf) - floor_bytes()
    if left <= 0:
        cap = "no cap" if cap_bytes is None else f"a cap of {format_bytes(cap_bytes)} (--memory)"
        raise DeploymentError(
            f"{cap} and a reserve of {format_bytes(reserve_bytes)} (--reserve) leave nothing to train "
            f"with, {format_bytes(-left)} are missing; raise the one or lower the other"
        )
    return left


@dataclass(frozen=True, slots=True)
class Figures:
    """All that goes into a probe file."""

    speed: Speed
    memory_bytes: float
    up_bps: float
    down_bps: float
    round_trip_s: float = float("nan")


def probe_document(
    name: str, figures: Figures, *, shape: ModelShape, workload: Workload, link: str | None = None
) -> dict[str, Any]:
    """Return the probe file's contents, as `fleet.probe` reads them.

    Args:
        name: Of the device, different from every other.
        figures: What was measured.
        shape: The model whose speed is written.
        workload: How it will be trained.
        link: A link that several devices share.
    """
    profile, drawn = figures.speed.profile, figures.speed.drawn
    document: dict[str, Any] = {
        "schema": PROBE_SCHEMA,
        "name": name,
        "kind": platform.machine() or "device",
        "flops_per_s": achieved_flops_per_s(profile, shape, workload),
        "memory_bytes": figures.memory_bytes,
        "up_mbps": figures.up_bps / 1e6,
        "down_mbps": figures.down_bps / 1e6,
        "details": {
            "product_flops_per_s": profile.flops_per_s,
            "traffic_bytes_per_s": profile.bytes_per_s
            if math.isfinite(profile.bytes_per_s)
            else None,
            "probe_step_s": list(figures.speed.step_s),
            "speed_of": {
                "family": shape.family,
                "blocks": shape.blocks,
                "width": shape.width,
                "batch": workload.batch,
                "tokens": workload.tokens,
                "rank": workload.rank,
            },
            "round_trip_s": figures.round_trip_s if math.isfinite(figures.round_trip_s) else None,
            "power": None if drawn is None else drawn.source,
        },
    }
    if drawn is not None and drawn.watt > 0:
        document["power_w"] = drawn.watt
    return document | ({} if link is None else {"link": link})


def write_probe(path: Path, document: Mapping[str, Any]) -> None:
    """Write a probe file.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the probe file {path} cannot be written: {error}") from error


def reference_of(
    source: str | None, *, batch: int, tokens: int, rank: int
) -> tuple[ModelShape, Workload]:
    """Return the model whose speed is wanted, from a known name, a folder or the hub.

    Raises:
        ModelError: if its family is not supported.
    """
    from airtune.cost import known_shapes

    known = known_shapes()
    if source is None or source.lower() in known:
        shape = known[(source or REFERENCE).lower()]
    else:
        from airtune.model.base import load_shape

        shape = load_shape(source)
    targets = tuple(linear.name for linear in shape.linears)
    return shape, replace(PROBE_WORK, batch=batch, tokens=tokens, rank=rank, lora_targets=targets)


def device_name() -> str:
    """Return what a device is called where it has not been named."""
    return socket.gethostname() or "device"

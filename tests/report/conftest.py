"""Run folders made up for the report: plausible numbers, no training."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from airtune.cost import known_shapes, peak_memory
from airtune.plan import Assignments, Workload
from airtune.records import DEVICE_COLUMNS, RunWriter

WORKLOAD = Workload(
    batch=4, tokens=128, local_steps=8, rank=8, lora_targets=("q_proj", "v_proj", "up_proj")
)
SPEED = {"fedavg-lora": 1.0, "jcpba": 0.58, "uniform": 0.8, "random": 1.02, "fedprox": 0.99}


def make_run(folder: Path, method="jcpba", seed=0, *, rounds=30, devices=12, target=2.6,
             ends=True, prefix="jetson") -> Path:  # fmt: skip
    """Write a run whose rounds last `SPEED[method]` of the plain method's."""
    with mock.patch("os.fsync"):  # made-up records need not survive a power cut
        return _write(folder, method, seed, rounds, devices, target, ends, prefix)


def make_untuned(folder: Path, seed: int) -> Path:
    """Write the control that trains nothing: one round in which nobody is there."""
    header = {"name": "synthetic", "seed": seed, "method": {"name": "untuned"}, "rounds": 30,
              "target": {"metric": "loss", "value": 2.6}}  # fmt: skip
    writer = RunWriter.create(folder, header)
    spent = dict.fromkeys(("round_s", "end_s", "upload_bytes", "download_bytes", "energy_j"), 0.0)
    writer.append(
        {"round": 0, **spent, "validation": {"loss": 4.6, "worst_tenth": 5.0}},
        {name: np.empty(0, np.int64) for name in DEVICE_COLUMNS if name != "round"},
    )
    writer.finish({"test": {"loss": 4.7}})
    return folder


def _write(folder, method, seed, rounds, devices, target, ends, prefix):
    shape = known_shapes()["qwen2.5-0.5b"]
    rng = np.random.default_rng([seed, len(method)])
    channel = np.random.default_rng([seed, 7])
    slow = np.geomspace(1.0, 2.6, devices)
    header = {
        "name": "synthetic",
        "seed": seed,
        "method": {
            "name": method, "settings": {"rho_max": 0.7} if method == "jcpba" else {},
            "summary": f"The {method} method, made up for a test.", "reconstructed": method == "jcpba",
        },
        "model": {"source": "Qwen/Qwen2.5-0.5B", "parameters": shape.parameters,
                  "shape": dataclasses.asdict(shape)},
        "fleet": {"name": "cell-10", "devices": devices, "links": ["cell"], "assumptions": [
            "Speeds are those of Jetson boards at 30 % of peak.",
            "Path loss 128.1 + 37.6 log10(d) with 8 dB shadowing.",
        ]},
        "data": {"source": "embedded:arithmetic", "truncated": 3},
        "workload": dataclasses.asdict(WORKLOAD),
        "target": {"metric": "loss", "value": target},
        "rounds": rounds,
    }  # fmt: skip
    writer = RunWriter.create(folder, header)
    (folder / "recipe.yaml").write_text("name: synthetic\nmethod: {name: " + method + "}\n")
    clock = 0.0
    prunes = method in ("jcpba", "uniform", "random")
    for number in range(rounds):
        pruned = np.zeros(devices)
        if prunes:
            level = np.full(devices, 0.3) if method == "uniform" else 0.6 * (slow - 1.0) / 1.6
            pruned = np.round((level + 0.05 * rng.random(devices)) * 14) / 14
        share = np.full(devices, 1.0 / devices)
        if method == "jcpba":
            share = slow * rng.uniform(0.8, 1.2, devices)
            share /= share.sum()
        gain = channel.gamma(4.0, 0.25, devices)
        compute = SPEED[method] * 3.0 * slow * (1 - 0.5 * pruned)
        upload = SPEED[method] * 1.1 / (gain * share * devices)
        download = np.full(devices, 0.25)
        finish = download + compute + upload
        status = np.full(devices, "ok", object)
        if number % 7 == 3 and devices > 1:
            status[int(rng.integers(1, devices))] = "late"
        if number == 5 and devices > 1:
            status[0] = "refused"
        told = Assignments(
            device=np.arange(devices), prune_heads=pruned * 0, prune_ffn=pruned,
            rank=np.full(devices, 8), share=share, local_steps=np.full(devices, 8),
            cut=np.zeros(devices, np.int64), codec_index=np.zeros(devices, np.int64),
        )  # fmt: skip
        peak = peak_memory(shape, WORKLOAD, told).total
        round_s = float(finish[status == "ok"].max())
        loss = 2.1 + 2.4 * np.exp(-number / 9.0) + 0.03 * rng.standard_normal()
        upload_bytes = 2.2e6 * (1 - 0.6 * pruned)
        gap = 10.0 ** rng.uniform(-11, -9)
        writer.append(
            {
                "round": number, "start_s": clock, "end_s": clock + round_s, "round_s": round_s,
                "predicted_s": round_s * float(rng.uniform(0.93, 1.05)),
                "upload_bytes": float(upload_bytes.sum()), "download_bytes": 2.2e6 * devices,
                "energy_j": float(30 * finish.sum()), "train_loss": float(loss + 0.1),
                "counts": {"ok": int((status == "ok").sum())},
                "validation": {"loss": float(loss), "perplexity": float(np.exp(loss)),
                               "worst_tenth": float(loss + 0.4)},
                "solution": {"status": "optimal", "objective": round_s, "iterations": 40,
                             "residual": 1e-12, "gap": gap, "gap_rounded": gap + 0.01 * rng.random(),
                             "method": "exact"} if method == "jcpba" else None,
                "notes": {}, "reasons": [], "measured": {"wall_s": 0.4},
                **({"initial": {"loss": 4.6, "worst_tenth": 5.0}} if number == 0 else {}),
            },
            {
                "device": np.arange(devices), "name": [f"{prefix}-{i:02}" for i in range(devices)],
                "status": status, "prune_heads": 0.0 * pruned, "prune_ffn": pruned,
                "pruned": pruned * 0.7, "rank": 8, "cut": 0, "codec": "identity", "share": share,
                "bandwidth_hz": share * 10e6, "local_steps": 8, "download_s": download,
                "compute_s": compute, "upload_s": upload,
                "finish_s": np.where(status == "refused", np.nan, finish),
                "download_bytes": 2.2e6, "upload_bytes": upload_bytes, "flops": 1e12 * (1 - pruned),
                "peak_bytes": peak, "memory_bytes": peak.max() * np.linspace(4, 1.05, devices),
                "energy_j": 30 * finish, "loss_first": loss + 0.2, "loss_last": loss, "samples": 32,
                "importance": np.nan, "rank_left": 8,
                "reason": [f"pruned {100 * p:.0f} % so that it meets the common finish time" if p
                           else "fast enough as it is" for p in pruned],
            },
        )  # fmt: skip
        clock += round_s
    if ends:
        writer.finish({"test": {"loss": float(2.15 + 0.01 * rng.standard_normal())}})
    return folder


@pytest.fixture
def build_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a made-up run folder."""

    def build(name: str = "run", **settings) -> Path:
        return make_run(tmp_path / name, **settings)

    return build


def make_comparison(folder: Path, methods, seeds, **settings) -> Path:
    for method in methods:
        for seed in seeds:
            place = folder / "runs" / f"{method}-s{seed}"
            if method == "untuned":
                make_untuned(place, seed)
            else:
                make_run(place, method, seed, **settings)
    (folder / "compare.json").write_text(
        json.dumps(
            {
                "recipe": "name: synthetic\n",
                "methods": list(methods),
                "seeds": list(seeds),
                "baseline": "fedavg-lora",
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a made-up comparison of three methods over five seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    return make_comparison(
        folder, ("jcpba", "fedavg-lora", "uniform"), range(5), devices=8, rounds=24
    )


@pytest.fixture(scope="session")
def small_comparison(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a comparison of given methods and seeds."""

    def build(methods, seeds, **settings) -> Path:
        return make_comparison(tmp_path_factory.mktemp("compare"), methods, seeds, **settings)

    return build

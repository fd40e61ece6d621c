"""Run folders made up for the report: plausible numbers, no training."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from airtune.cost import known_shapes, peak_memory
from airtune.data.ledger import DataLedger, RowCounts
from airtune.methods import build_method
from airtune.methods.contract import sample_observation, sample_problem, sample_results
from airtune.plan import Assignments, Workload
from airtune.records import DEVICE_COLUMNS, RunWriter, read_run

WORKLOAD = Workload(
    batch=4, tokens=128, local_steps=8, rank=8, lora_targets=("q_proj", "v_proj", "up_proj")
)
SPEED = {"fedavg-lora": 1.0, "jcpba": 0.58, "uniform": 0.8, "random": 1.02, "fedprox": 0.99}


def make_run(
    folder: Path,
    method="jcpba",
    seed=0,
    *,
    rounds=30,
    devices=12,
    target=2.6,
    ends=True,
    prefix="jetson",
) -> Path:
    """Write a run whose rounds last `SPEED[method]` of the plain method's."""
    with mock.patch("os.fsync"):  # made-up records need not survive a power cut
        return _write(folder, method, seed, rounds, devices, target, ends, prefix)


def make_untuned(folder: Path, seed: int) -> Path:
    """Write the control that trains nothing: one round in which nobody is there."""
    header = {
        "name": "synthetic",
        "seed": seed,
        "method": {"name": "untuned"},
        "rounds": 30,
        "target": {"metric": "loss", "value": 2.6},
    }
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
            "name": method,
            "settings": {"rho_max": 0.7} if method == "jcpba" else {},
            "summary": f"The {method} method, made up for a test.",
            "reconstructed": method == "jcpba",
        },
        "model": {
            "source": "Qwen/Qwen2.5-0.5B",
            "parameters": shape.parameters,
            "shape": dataclasses.asdict(shape),
        },
        "fleet": {
            "name": "cell-10",
            "devices": devices,
            "links": ["cell"],
            "assumptions": [
                "Speeds are those of Jetson boards at 30 % of peak.",
                "Path loss 128.1 + 37.6 log10(d) with 8 dB shadowing.",
            ],
        },
        "data": {
            "source": "embedded:arithmetic",
            "truncated": 3,
            "ledger": DataLedger(RowCounts(read=60, truncated=3)).as_document(),
        },
        "workload": dataclasses.asdict(WORKLOAD),
        "target": {"metric": "loss", "value": target},
        "rounds": rounds,
    }
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
            device=np.arange(devices),
            prune_heads=pruned * 0,
            prune_ffn=pruned,
            rank=np.full(devices, 8),
            share=share,
            local_steps=np.full(devices, 8),
            cut=np.zeros(devices, np.int64),
            codec_index=np.zeros(devices, np.int64),
        )
        peak = peak_memory(shape, WORKLOAD, told).total
        round_s = float(finish[status == "ok"].max())
        loss = 2.1 + 2.4 * np.exp(-number / 9.0) + 0.03 * rng.standard_normal()
        upload_bytes = 2.2e6 * (1 - 0.6 * pruned)
        gap = 10.0 ** rng.uniform(-11, -9)
        writer.append(
            {
                "round": number,
                "start_s": clock,
                "end_s": clock + round_s,
                "round_s": round_s,
                "predicted_s": round_s * float(rng.uniform(0.93, 1.05)),
                "upload_bytes": float(upload_bytes.sum()),
                "download_bytes": 2.2e6 * devices,
                "energy_j": float(30 * finish.sum()),
                "train_loss": float(loss + 0.1),
                "counts": {"ok": int((status == "ok").sum())},
                "validation": {
                    "loss": float(loss),
                    "perplexity": float(np.exp(loss)),
                    "worst_tenth": float(loss + 0.4),
                },
                "solution": {
                    "status": "optimal",
                    "objective": round_s,
                    "iterations": 40,
                    "residual": 1e-12,
                    "gap": gap,
                    "gap_rounded": gap + 0.01 * rng.random(),
                    "method": "exact",
                }
                if method == "jcpba"
                else None,
                "notes": {},
                "reasons": [],
                "measured": {"wall_s": 0.4},
                **({"initial": {"loss": 4.6, "worst_tenth": 5.0}} if number == 0 else {}),
            },
            {
                "device": np.arange(devices),
                "name": [f"{prefix}-{i:02}" for i in range(devices)],
                "status": status,
                "prune_heads": 0.0 * pruned,
                "prune_ffn": pruned,
                "pruned": pruned * 0.7,
                "rank": 8,
                "cut": 0,
                "codec": "identity",
                "upload_codec": "identity",
                "share": share,
                "bandwidth_hz": share * 10e6,
                "local_steps": 8,
                "download_s": download,
                "judging_s": 0.0,
                "compute_s": compute,
                "upload_s": upload,
                "wait_s": 0.0,
                "server_s": 0.0,
                "step_up_bytes": 0.0,
                "step_down_bytes": 0.0,
                "predicted_s": finish,
                "finish_s": np.where(status == "refused", np.nan, finish),
                "download_bytes": 2.2e6,
                "upload_bytes": upload_bytes,
                "flops": 1e12 * (1 - pruned),
                "peak_bytes": peak,
                "memory_bytes": peak.max() * np.linspace(4, 1.05, devices),
                "energy_j": 30 * finish,
                "loss_first": loss + 0.2,
                "loss_last": loss,
                "samples": 32,
                "importance": np.nan,
                "rank_left": 8,
                "reason": [
                    f"pruned {100 * p:.0f} % so that it meets the common finish time"
                    if p
                    else "fast enough as it is"
                    for p in pruned
                ],
            },
        )
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


def make_split(folder: Path, source: Path, *, turns: bool) -> Path:
    """Write a run again as one that cuts; the server serves all at once, or one after the other."""
    made = read_run(source)
    devices = int(made.devices["device"].max()) + 1
    up = np.linspace(0.4, 1.0, devices)
    step = {
        "device": list(range(devices)),
        "forward_s": (up / 2).tolist(),
        "upload_s": up.tolist(),
        "download_s": (up + 0.8).tolist(),
        "backward_s": [None, *(up + 1.0).tolist()[1:]],
        "server_start_s": up.tolist() if turns else 1.0,
        "server_end_s": (up + 0.05).tolist() if turns else 1.3,
    }
    split = {
        "steps": 5,
        "step_s": [2.0] * 5,
        "server_s": [0.3] * 5,
        "activation_up_bytes": 9e6,
        "gradient_down_bytes": 6e6,
        "adapter_up_bytes": 1e5,
        "adapter_down_bytes": 1e5,
        "bound_up_bytes": 1e7,
        "bound_down_bytes": 6e6,
        "first_step": step,
        "slots": [{"start_s": 0.5 * slot, "share": [1 / devices] * devices} for slot in range(4)],
    }
    leaked = [
        {
            "cut": cut,
            "codec": codec,
            "explained": 0.8 - 0.1 * cut,
            "token_recovery": 0.5,
            "chance": 0.1,
            "distortion": 0.02,
            "positions": 50,
        }
        for codec in ("identity", "topk")
        for cut in (1, 2)
    ]
    with mock.patch("os.fsync"):
        writer = RunWriter.create(folder, made.header)
        for row in made.rounds:
            mine = made.devices["round"] == row["round"]
            told = {name: column[mine] for name, column in made.devices.items() if name != "round"}
            told |= {"cut": 1 + told["device"] % 3, "codec": "deadzone 0.75"}
            writer.append({**row, "split": split}, told)
        writer.finish({**(made.results or {}), "leakage": leaked})
    return folder


@pytest.fixture
def build_split(build_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a made-up run that cuts."""

    def build(*, turns: bool = False, **settings) -> Path:
        return make_split(tmp_path / "split", build_run(**settings), turns=turns)

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


def make_bandit_run(folder: Path, label="fedspine", seed=0, *, rounds=20, **settings) -> Path:
    """Write a run in which the real bandit decides about made-up devices; nothing is trained."""
    problem = dataclasses.replace(sample_problem(seed=seed), rounds=rounds)
    decider = build_method("fedspine", {"form": "published", "prune_every": 5, **settings}).decider
    header = {
        "name": "bandit",
        "seed": seed,
        "rounds": rounds,
        "target": None,
        "method": {"name": label, "settings": {"sparsity": 0.5, "min_rank": 2, **settings}},
        "fleet": {"name": "sample", "devices": 9},
        "workload": dataclasses.asdict(problem.workload),
    }
    with mock.patch("os.fsync"):
        writer = RunWriter.create(folder, header)
        state, clock = decider.init(problem), 0.0
        for number in range(rounds):
            seen = sample_observation(problem, number)
            hidden = dataclasses.replace(seen, links=None, flops_per_s=None)
            plan, state = decider.plan(problem, state, hidden)
            came = sample_results(problem, seen, plan)
            state = decider.learn(problem, state, came)
            told, loss = plan.assignments, 2.0 + np.exp(-number / 5.0)
            took = float(np.nanmax(came.finish_s))
            columns = {
                "judging_s": np.zeros(len(came.device)),
                "wait_s": np.zeros(len(came.device)),
            }
            columns |= {
                name: getattr(came, name)
                for name in (
                    "device",
                    "download_s",
                    "compute_s",
                    "upload_s",
                    "finish_s",
                    "download_bytes",
                    "upload_bytes",
                    "flops",
                    "peak_bytes",
                    "energy_j",
                    "loss_first",
                    "loss_last",
                    "samples",
                    "importance",
                    "status",
                )
            }
            writer.append(
                {
                    "round": number,
                    "start_s": clock,
                    "end_s": clock + took,
                    "round_s": took,
                    "upload_bytes": float(came.upload_bytes.sum()),
                    "download_bytes": 0.0,
                    "energy_j": 1.0,
                    "validation": {"loss": loss, "accuracy": 1.0 / loss, "worst_tenth": loss},
                    "notes": dict(plan.notes),
                    "reasons": [],
                },
                columns
                | {
                    "name": [f"<b>{index}" for index in told.device],
                    "prune_heads": told.prune_heads,
                    "prune_ffn": told.prune_ffn,
                    "rank": told.rank,
                    "rank_left": told.rank,
                    "cut": 0,
                    "pruned": problem.shape.pruned_fraction(told.prune_heads, told.prune_ffn),
                    "codec": "identity",
                    "upload_codec": "identity",
                    "server_s": 0.0,
                    "predicted_s": came.finish_s,
                    "step_up_bytes": 0.0,
                    "step_down_bytes": 0.0,
                    "share": told.share,
                    "bandwidth_hz": 0.0,
                    "local_steps": 5,
                    "memory_bytes": np.inf,
                    "reason": np.array(plan.reasons, object),
                },
            )
            clock += took
        writer.finish({"test": {"loss": 2.1, "accuracy": 0.5 + 0.01 * len(label)}})
    return folder


@pytest.fixture(scope="session")
def bandits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a comparison of the bandit with its controls and an exported model of the first."""
    folder = tmp_path_factory.mktemp("bandits")
    forms = {
        "fedspine": {},
        "fedspine random": {"learner": "random"},
        "private": {"learner": "private"},
    }
    for seed in range(3):
        for label, settings in forms.items():
            make_bandit_run(folder / "runs" / f"{label}-s{seed}", label, seed, **settings)
    plan = {"recipe": "", "methods": list(forms), "seeds": [0, 1, 2], "baseline": "fedspine random"}
    (folder / "compare.json").write_text(json.dumps(plan))
    export = folder / "runs" / "fedspine-s0" / "export-pruned"
    export.mkdir()
    check = {
        "parameters": 55,
        "dense_parameters": 100,
        "tensor_bytes": 220,
        "batch": 4,
        "tokens": 64,
        "dense_tensor_bytes": 400,
        "forward_s": 0.013,
        "dense_forward_s": 0.02,
        "token_s": 0.004,
        "dense_token_s": 0.005,
    }
    manifest = {"format": "pruned", "slice": {"pruned": 0.5}, "self_check": check}
    (export / "airtune.json").write_text(json.dumps(manifest))
    return folder

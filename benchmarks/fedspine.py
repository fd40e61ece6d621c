"""FedSpine: what the bandit is worth, and what its training and its model take.

The bandit plays a synthetic reward with 80 devices of three kinds that it is not told. Memory is
that of tensors, counted as they are made and freed while a device really trains; inference is timed
on encoders with random weights. The last figures train a shortened seed of a table on real data.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertForSequenceClassification

from airtune.compare import compare_methods
from airtune.cost import forward_flops
from airtune.methods import build_method
from airtune.methods.sparsity import PruningTarget, Schedule, levels_of_shape
from airtune.model.base import BaseModel, base_of
from airtune.model.batch import Sequences
from airtune.model.importance import measure
from airtune.model.kept import Kept, keep_all
from airtune.model.slicing import slice_network
from airtune.model.state import initial_state
from airtune.plan import Assignment, Assignments, CodecSpec, Floats, Method, Workload
from airtune.recipe import load_recipe
from airtune.solve.bandit import BanditSettings, behave_alike, choose, learn, start
from airtune.work.jobs import Job, TrainSettings
from airtune.work.network import kept_by
from airtune.work.train import train
from benchmarks.figure import Figure, at_least, at_most

DEVICES, ROUNDS, SEEDS = 80, 60, range(5)
BEST = np.array([[0.15, 0.85], [0.5, 0.5], [0.85, 0.2]])
"""The arm that suits each kind of device: slow ones prune more at a smaller rank."""
BATCH, TOKENS, RANK = 8, 64, 16
RUN_ROUNDS = 30
"""Of the recipes: how much is pruned in the first, which is the largest, rests on it."""
ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "fedspine-gsm8k.yaml"
DATA = ROOT.parent / "shared" / "data"
SHORT = [
    "train.rounds=8",
    "data.max_length=128",
    "data.limit=1600",
    "data.test_limit=60",
    "evaluation.every=1",
    "threads=1",
]
FREE = ["fleet.source=jetson-80", "fleet.participation=0.1", "train.learning_rate=0.003"]
"""Where the evaluation data are not beside the checkout: the shipped model and data."""
RIVALS: list[dict[str, object]] = [
    {"name": "fedspine", "sparsity": 0.3, "prune_every": 20, "form": "published",
     "label": "fedspine"},
    {"name": "fedspine", "sparsity": 0.3, "prune_every": 20, "form": "published",
     "learner": "random", "label": "fedspine random"},
    {"name": "loraprune", "sparsity": 0.3, "label": "loraprune"},
]  # fmt: skip


LOOP = [
    "train.server_average=0.9",
    "train.decay=0.2",
    "upload.kind=topk",
    "upload.keep=1.0",
    "upload.bits=8",
    "download.kind=topk",
    "download.keep=1.0",
    "download.bits=8",
]
EQUALS: list[dict[str, object]] = [
    {"name": "fedspine", "sparsity": 0.3, "label": "fedspine"},
    {"name": "fedspine", "sparsity": 0.3, "form": "published", "label": "published"},
    {"name": "fluctuation-prune", "sparsity": 0.3, "label": "fluctuation-prune"},
]


def run() -> Iterator[Figure]:
    """Measure regret, training memory and inference."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from regret()
        yield from memory()
        yield from inference()
        yield from table()
        yield from order()
    finally:
        torch.set_num_threads(threads)


def regret() -> Iterator[Figure]:
    """Mean reward over a run against random choice and the arm that is best in hindsight."""
    gains: dict[str, list[float]] = {"random": [], "fixed": [], "private": []}
    for seed in SEEDS:
        kind = np.random.default_rng(seed).integers(3, size=DEVICES)
        pooled = _played(seed, kind, pooled=True)
        gains["random"].append(pooled - _random(seed, kind))
        gains["fixed"].append(pooled - _best_fixed(kind))
        gains["private"].append(pooled - _played(seed, kind, pooled=False))
    setting = f"{DEVICES} devices of 3 kinds, {ROUNDS} rounds, worst of {len(SEEDS)} seeds"
    yield at_least("fedspine.gain_on_random", min(gains["random"]), 0.05, f"random arms, {setting}")
    yield at_least(
        "fedspine.gain_on_best_fixed_arm",
        min(gains["fixed"]),
        0.01,
        f"the fixed arm that is best in hindsight, {setting}",
    )
    yield at_least(
        "fedspine.gain_on_private_bandits",
        min(gains["private"]),
        0.0,
        f"one bandit a device, {setting}",
    )


def memory() -> Iterator[Figure]:
    """Peak bytes of tensors while a device trains, over a run, against HETLoRA's."""
    base = _encoder()
    dense = _peak(base, build_method("hetlora"), prune=0.0)
    method = build_method("fedspine", {"prune_every": 5})
    # cumulative pruning only ever makes a device smaller: its first round is its largest
    levels = levels_of_shape(base.shape, None, PruningTarget(0.5, "auto"))
    floor = Schedule(rounds=RUN_ROUNDS, warmup=0, cooldown=RUN_ROUNDS // 2).floor(0)
    first, last = (
        _peak(base, method, prune=float(levels.prune_ffn[level])) for level in (floor, -1)
    )
    against = (
        f"HETLoRA's first round at rank {RANK}; MiniLM-sized encoder, {BATCH} x {TOKENS} tokens, "
        "weights, adapters, optimiser, activations and importance"
    )
    yield at_most("fedspine.training_memory_ratio", first / dense, 1.0, against)
    yield at_most("fedspine.training_memory_ratio_at_50_percent", last / dense, 1.0, against)
    unpruned = _peak(base, method, prune=0.0)
    yield Figure(
        "fedspine.training_memory_ratio_in_a_warm_up",
        unpruned / dense,
        "none",
        True,
        f"{against}; a round that prunes nothing yet, which the default has none of",
    )


def inference() -> Iterator[Figure]:
    """Forward time at half of the weights against dense, beside the ratio of FLOPs."""
    for name, width, blocks, batch in (
        ("base", 768, 4, BATCH),
        ("minilm", 384, 6, BATCH),
        ("minilm_batch", 384, 6, 4 * BATCH),
    ):
        base = _encoder(width, blocks)
        levels = levels_of_shape(base.shape, None, PruningTarget(0.5, "auto"))
        channels = int(base.shape.kept_channels(levels.prune_ffn[-1]))
        kept = Kept(keep_all(base.shape).groups, (np.arange(channels),) * blocks)
        ids = torch.randint(3, base.shape.vocab, (batch, TOKENS))
        ratio = _time_ratio(slice_network(base, kept), base.network, ids)
        plan = _row_plan(np.array([0.0, float(levels.prune_ffn[-1])]))
        flops = forward_flops(base.shape, replace(_workload(base), rank=1), plan)
        part = float(flops[1] / flops[0])
        against = f"the dense encoder, width {width}, {blocks} blocks, {batch} x {TOKENS} tokens"
        if name != "minilm":
            yield at_most(
                f"fedspine.inference_time_ratio_{name}",
                ratio,
                round(part + 0.05, 3),
                f"{against}; FLOP ratio + .05",
            )
        else:  # narrow products of few rows lose more speed than FLOPs
            yield Figure(
                f"fedspine.inference_time_ratio_{name}",
                ratio,
                "none",
                True,
                f"{against}; FLOP ratio {part:.3f}",
            )


def table() -> Iterator[Figure]:
    """Train a shortened seed of the table of GSM8K: 8 of 30 rounds on shorter texts, four methods."""
    real = DATA.is_dir()
    recipe = load_recipe(str(RECIPE) if real else None, overrides=[*SHORT, *(() if real else FREE)])
    with tempfile.TemporaryDirectory() as folder:
        done = compare_methods(
            recipe, methods=[*RIVALS, "hetlora"], seeds=[0], folder=Path(folder) / "table"
        )
    rows = done.summary.rows
    ours = rows["fedspine"]
    where = f"{'recipes/fedspine-gsm8k.yaml' if real else 'the shipped model'}, shortened, seed 0"
    for name in ("hetlora", "fedspine random"):
        ratio = ours.time[0].value / rows[name].time[0].value
        missed = [one.method for one in (ours, rows[name]) if not one.time[0].hit]
        told = f"{name}, {where}" + (f"; missed by {', '.join(missed)}" if missed else "")
        yield Figure(
            f"fedspine.time_to_target_against_{name.replace(' ', '_')}",
            ratio,
            "<= 1",
            ours.time[0].hit and ratio <= 1.0,
            told,
        )
    ahead = float(ours.test[0] - rows["loraprune"].test[0])
    yield Figure(
        "fedspine.test_loss_less_loraprune",
        ahead,
        "<= 0",
        ahead <= 0.0,
        f"loraprune at the same sparsity, {where}",
    )


def order(seconds: float = 90.0) -> Iterator[Figure]:
    """Train rivals for equal seconds of the fleet's clock, all with the same learning loop."""
    real = DATA.is_dir()
    recipe = load_recipe(
        str(RECIPE) if real else None,
        overrides=[
            *SHORT,
            *(() if real else FREE),
            *LOOP,
            f"train.seconds={seconds:g}",
            "train.rounds=200",
            "evaluation.every=200",
            "target=null",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        done = compare_methods(recipe, methods=EQUALS, seeds=[0], folder=Path(folder) / "order")
    rows = done.summary.rows
    where = (
        f"{'recipes/fedspine-gsm8k.yaml' if real else 'the shipped model'}, {seconds:g} s, seed 0"
    )
    for name in (str(entry["label"]) for entry in EQUALS[1:]):
        ahead = float(rows["fedspine"].test[0] - rows[name].test[0])
        yield Figure(
            f"fedspine.test_loss_less_{name.replace(' ', '_')}",
            ahead,
            "<= 0",
            ahead <= 0.0,
            f"{name} after as many seconds with the same loop, {where}",
        )


def _pays(point: Floats, kind: np.ndarray) -> Floats:
    return np.clip(1.0 - 1.5 * ((point - BEST[kind]) ** 2).sum(axis=1), 0.0, 1.0)


def _played(seed: int, kind: np.ndarray, *, pooled: bool) -> float:
    """Return the mean reward, without its noise, over all rounds."""
    draws = np.random.default_rng([seed, 1])
    bandit, dials, gained = start(3 if pooled else DEVICES), BanditSettings(), []
    for _ in range(ROUNDS):
        seconds = np.exp(kind + draws.normal(0, 0.1, DEVICES))
        group = behave_alike(seconds, 3) if pooled else np.arange(DEVICES)
        everything = np.ones((DEVICES, bandit.depth.size), np.bool_)
        box = choose(bandit, group, dials, allowed=everything, generator=draws)
        reward = _pays(bandit.centre[box], kind)
        seen = np.clip(reward + draws.normal(0, 0.05, DEVICES), 0, 1)
        bandit = learn(bandit, group, dials, box=box, reward=seen)
        gained.append(float(reward.mean()))
    return statistics.fmean(gained)


def _random(seed: int, kind: np.ndarray) -> float:
    draws = np.random.default_rng([seed, 2])
    return statistics.fmean(
        float(_pays(draws.random((DEVICES, 2)), kind).mean()) for _ in range(ROUNDS)
    )


def _best_fixed(kind: np.ndarray) -> float:
    axis = np.linspace(0.025, 0.975, 39)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return max(float(_pays(np.tile(arm, (DEVICES, 1)), kind).mean()) for arm in grid)


def _encoder(width: int = 384, blocks: int = 6) -> BaseModel:
    """Return an encoder of random weights, MiniLM-L6's size by default."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=12,
        max_position_embeddings=128,
        num_labels=2,
    )
    return base_of(BertForSequenceClassification(config))


def _workload(base: BaseModel) -> Workload:
    return Workload(
        BATCH,
        TOKENS,
        local_steps=3,
        rank=RANK,
        trains_head=True,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
    )


def _peak(base: BaseModel, method: Method, *, prune: float) -> int:
    """Return the most bytes that tensors held at once in one device's round, its weights too."""
    workload = _workload(base)
    draw = np.random.default_rng(0)
    tokens = tuple(draw.integers(3, 4000, TOKENS) for _ in range(BATCH))
    data = Sequences(tokens, draw.integers(0, 2, BATCH))
    state = replace(
        initial_state(base, workload, 0),
        importance=measure(base.network, base.shape, [], criterion="magnitude"),
    )
    row = Assignment(0, 0.0, prune, RANK, None, 1.0, workload.local_steps, CodecSpec())
    kept = kept_by(row, state, base.shape, method.work)
    own = {item.untyped_storage().data_ptr() for item in base.network.parameters()}
    shared = sum(
        item.untyped_storage().nbytes()
        for item in slice_network(base, kept).parameters()
        if item.untyped_storage().data_ptr() in own
    )
    with TensorPeak(own) as peak:
        train(
            base,
            state,
            [Job(0, row, data, 1.0)],
            settings=TrainSettings(),
            work=method.work,
            workload=workload,
            seed=0,
            round=0,
        )
    return shared + peak.most_bytes


class TensorPeak(TorchDispatchMode):
    """Counts the bytes of storages that are made inside it, from making to freeing."""

    def __init__(self, foreign: set[int]) -> None:
        """Leave out storages at these addresses, which were there before."""
        super().__init__()
        self.most_bytes = self._now = 0
        self._foreign = foreign
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Run an operation and take note of the storages it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or storage.data_ptr() in self._foreign:
            return

        def freed(_: object) -> None:
            self._now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, freed)
        self._now += size
        self.most_bytes = max(self.most_bytes, self._now)


def _row_plan(prune: Floats) -> Assignments:
    count = len(prune)
    return Assignments(
        device=np.arange(count),
        prune_heads=np.zeros(count),
        prune_ffn=prune,
        rank=np.ones(count, np.int64),
        share=np.ones(count),
        local_steps=np.ones(count, np.int64),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )


@torch.no_grad()
def _time_ratio(small: nn.Module, dense: nn.Module, ids: torch.Tensor, repeats: int = 15) -> float:
    """Return the median of the ratio of two processor times taken one after the other."""
    ratios = []
    for _ in range(repeats):
        seconds = []
        for network in (small.eval(), dense.eval()):
            begin = time.process_time()
            network(input_ids=ids)
            seconds.append(time.process_time() - begin)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])

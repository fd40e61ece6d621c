"""A real language model: what coding its cuts, pruning and quantising cost it, saved and read by plain tools.

The model's folder and the data's are given by environment variables, as the project ships neither:

    AIRTUNE_REAL_MODEL   a causal language model, SmolLM2-135M-Instruct for the goals
    AIRTUNE_REAL_DATA    a folder with gsm8k_train.jsonl, gsm8k_test.jsonl and alpaca_1k.jsonl

Where one is not set every figure is skipped with the reason. Losses are of the untuned model on 16
test rows of at most 256 tokens, prompts masked; scores, means and second moments are measured on 32
training rows.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from airtune.calibrate import SensitivityProbe, measure_sensitivity
from airtune.cost import counts_for, pruning_path
from airtune.data import DataSpec, FederatedData, load_federated
from airtune.model.base import BaseModel, load_base
from airtune.model.gguf.check import check_written
from airtune.model.gguf.write import write_gguf
from airtune.model.kept import Kept
from airtune.model.lora import init_adapters, take
from airtune.model.save import save_pruned
from airtune.model.slicing import choose_kept
from airtune.model.state import GlobalState
from airtune.plan import Mend, Workload, WorkSpec
from airtune.work.evaluate import evaluate
from airtune.work.importance import measure_device_grams, measure_importance
from airtune.work.network import mending_of
from benchmarks.figure import Figure, at_most, skipped
from benchmarks.real_cut import MOST_ADDED, TEXTS, coded_cuts
from benchmarks.real_cut import TOKENS as CUT_TOKENS

MODEL, DATA = "AIRTUNE_REAL_MODEL", "AIRTUNE_REAL_DATA"
TRAIN_ROWS, TEST_ROWS, TOKENS, BATCH = 32, 16, 256, 8
PRUNED = 0.3
ROWS_ASKED = 4
WORST_LOSS = 1.9
"""Of the goals, for SmolLM2-135M-Instruct at this size."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model and the data it is measured on."""

    base: BaseModel
    data: FederatedData

    def loss(self, network: object) -> float:
        """Return the loss a token on the test rows."""
        return evaluate(network, self.data.test).loss  # type: ignore[arg-type]


def run() -> Iterator[Figure]:
    """Measure every row of the goals for a real model, or say why not."""
    missing = [
        name
        for name in (MODEL, DATA)
        if not Path(os.environ.get(name, "")).is_dir() or not os.environ.get(name)
    ]
    if missing:
        reason = f"skipped: {' and '.join(missing)} must name a folder"
        yield skipped("real.pruned_loss", f"<= {WORST_LOSS:g}", reason)
        yield skipped("real.loss_added", f"<= {MOST_ADDED:g}", reason)
        yield skipped("real.q8_0_logits", "none", reason)
        return
    subject = _subject()
    cuts = {
        name: _first_texts(subject.base, f"{name}.jsonl") for name in ("alpaca_1k", "gsm8k_train")
    }
    yield from coded_cuts(subject.base, cuts)
    yield from pruning(subject)
    yield from quantised(subject)


def pruning(subject: Subject) -> Iterator[Figure]:
    """Yield the loss of slices, saved and read back by plain transformers, by how they are mended."""
    dense = subject.loss(subject.base.network)
    yield Figure("real.dense_loss", dense, "none", True, "the model as it is")
    scored = _scored(subject)
    kept, pruned = _slice(subject, scored)
    size = (
        f"{len(kept.groups[0])} groups, {len(kept.channels[0])} channels, {pruned:.3f} of the "
        f"blocks' weights gone, untuned; dense {dense:.3f}"
    )
    yield at_most("real.channels_beyond_32", len(kept.channels[0]) % 32, 0, size)
    mends: tuple[Mend, ...] = ("mean", "least-squares")
    for mend in mends:
        work = WorkSpec(mend=mend, cumulative=True)
        loss = _saved_loss(subject, scored, kept, work)
        yield at_most(f"real.pruned_loss_{mend.replace('-', '_')}", loss, WORST_LOSS, size)


def quantised(subject: Subject) -> Iterator[Figure]:
    """Yield what a q8_0 GGUF file of the untuned model weighs, and how far it moves the logits.

    That is the root mean square of the difference, relative to the spread of the logits.
    """
    base = subject.base
    if find_spec("gguf") is None or base.tokenizer is None:
        yield skipped("real.q8_0_logits", "none", "skipped: needs the extra gguf")
        return
    rows = [torch.as_tensor(row)[None] for row in subject.data.test.tokens[:ROWS_ASKED]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, base.network, base.tokenizer, quantise="q8_0")
        found = check_written(path, base.network, base.tokenizer, rows, quantise="q8_0")
    plain = sum(tensor.numel() * tensor.element_size() for tensor in base.network.parameters())
    size = f"{found.file_bytes:,} bytes, {found.file_bytes / plain:.3f} of the tensors in memory"
    yield Figure("real.q8_0_logits", found.logit_rms, "none", True, size)


def _subject() -> Subject:
    model, data = os.environ[MODEL], Path(os.environ[DATA])
    spec = DataSpec(
        source=str(data / "gsm8k_train.jsonl"),
        test=str(data / "gsm8k_test.jsonl"),
        max_length=TOKENS,
        limit=TRAIN_ROWS,
        test_limit=TEST_ROWS,
        held_out=0.0,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    return Subject(
        load_base(model, device="cpu"), load_federated(spec, tokenizer=tokenizer, devices=1, seed=0)
    )


def _first_texts(base: BaseModel, name: str) -> FederatedData:
    spec = DataSpec(
        source=str(Path(os.environ[DATA]) / name),
        max_length=CUT_TOKENS,
        limit=2 * TEXTS,
        test_limit=1,
        held_out=0.0,
    )
    return load_federated(spec, tokenizer=base.tokenizer, devices=1, seed=0)


def _scored(subject: Subject) -> GlobalState:
    train = subject.data.devices[0].train
    importance = measure_importance(subject.base, train, batch=BATCH)
    grams = measure_device_grams(subject.base, [(0, train, 1.0)], batch=BATCH)
    return GlobalState(0, {}, {}, importance=importance, grams=grams)


def _slice(subject: Subject, scored: GlobalState) -> tuple[Kept, float]:
    """Return the slice that is nearest to the size asked for, and its size."""
    base, importance = subject.base, scored.importance
    found = measure_sensitivity(SensitivityProbe(base, subject.data, WorkSpec(), BATCH, 0))
    path = pruning_path(base.shape, found, heads=base.family.any_head_count)
    counts = counts_for(base.shape, path, PRUNED)
    if counts is None or importance is None:
        raise SystemExit(f"{base.source} cannot lose {PRUNED:g} of its blocks' weights")
    groups, channels = counts
    gone = 1.0 - groups / base.shape.kv_groups, 1.0 - channels / base.shape.ffn
    kept = choose_kept(importance, base.shape, groups, channels)
    return kept, float(base.shape.pruned_fraction(*gone))


def _saved_loss(subject: Subject, scored: GlobalState, kept: Kept, work: WorkSpec) -> float:
    """Return the loss of a slice that plain transformers has loaded."""
    base = subject.base
    names = tuple(linear.name for linear in base.shape.linears)
    workload = Workload(1, TOKENS, local_steps=1, rank=2, lora_targets=names)
    adapters = take(init_adapters(base.shape, workload, 0), base.shape, kept, 2)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pruned"
        save_pruned(place, base, kept, adapters, scale=1.0, mending=mending_of(base, scored, work))
        config = json.loads((place / "config.json").read_text())
        if config["intermediate_size"] != len(kept.channels[0]):
            raise SystemExit("the saved config has another number of channels than the slice")
        return subject.loss(AutoModelForCausalLM.from_pretrained(place).eval())

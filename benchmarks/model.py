"""Model work: what slicing, stacking and factoring save, against the plain way of doing it.

Every time is the median of a ratio of two times taken one after the other on one thread, so that
a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from airtune.cost import llama_like
from airtune.model.aggregate import aggregate
from airtune.model.base import BaseModel, base_of
from airtune.model.batch import Batch
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import Adapters, attach, init_adapters, scatter, take
from airtune.model.loss import batch_losses
from airtune.model.save import save_pruned
from airtune.model.slicing import slice_network
from airtune.model.state import GlobalState, Update
from airtune.plan import AggregateSpec, ModelShape, Workload
from benchmarks.figure import Figure, at_least, at_most

SCALE = 2.0
RANK = 8


def run() -> Iterator[Figure]:
    """Measure every row of the model goals."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from sliced_steps()
        yield from saved_models()
        yield from many_devices()
        yield from aggregation()
    finally:
        torch.set_num_threads(threads)


def sliced_steps() -> Iterator[Figure]:
    """Training step, and parameters with saved activations, of a sliced model against dense."""
    base = _llama(blocks=8, width=512, heads=8, ffn=1408, vocab=4000)
    batch = _batch(4, 128, 4000)
    dense = _step(base, _uniform(base.shape, 0.0), batch)
    dense_bytes = _held_bytes(base, _uniform(base.shape, 0.0), batch)
    for fraction, step_goal, memory_goal in ((0.5, 0.58, 0.60), (0.75, 0.38, 0.38)):
        kept = _uniform(base.shape, fraction)
        ratio = _ratio(_step(base, kept, batch), dense, repeats=7)
        held = _held_bytes(base, kept, batch) / dense_bytes
        size = "8 blocks, width 512, FFN 1408, vocabulary 4000, 4 x 128 tokens"
        place = f"{fraction:.0%}_pruned"
        yield at_most(f"model.step_ratio_{place}", ratio, step_goal, f"the dense step ({size})")
        yield at_most(
            f"model.held_bytes_ratio_{place}",
            held,
            memory_goal,
            f"the dense model's parameters and saved activations ({size})",
        )


def saved_models() -> Iterator[Figure]:
    """Largest difference of logits after saving and loading by plain transformers."""
    worst = 0.0
    base = _llama(blocks=2, width=64, heads=8, ffn=128, vocab=300)
    batch = _batch(2, 16, 300)
    for groups in (2, 3, 5, 7):
        kept = Kept((np.arange(groups),) * 2, (np.arange(50),) * 2)
        adapters = take(_adapters(base.shape, 0), base.shape, kept, RANK)
        lora = attach(slice_network(base, kept), base.family, [adapters], scale=SCALE)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            place = Path(folder) / "pruned"
            save_pruned(place, base, kept, adapters, scale=SCALE)
            plain = AutoModelForCausalLM.from_pretrained(place).eval()
            difference = plain(batch.input_ids).logits - lora.network(batch.input_ids).logits
        worst = max(worst, float(difference.abs().max()))
    yield at_most(
        "model.saved_logit_difference",
        worst,
        1e-5,
        "the network in memory; Llama with 2, 3, 5 and 7 of 8 heads, loaded by transformers",
    )


def many_devices(devices: int = 20) -> Iterator[Figure]:
    """One batched pass of many devices' LoRA against peft's adapters one after the other."""
    base = _llama(blocks=5, width=64, heads=8, ffn=172, vocab=512)  # the shape of stories260K
    stacks = [_adapters(base.shape, seed) for seed in range(devices)]
    for rows, tokens, goal in ((4, 128, 1.6), (1, 32, 3.0)):
        batches = [_batch(rows, tokens, 512, seed) for seed in range(devices)]
        batched, ours = _batched_pass(base, stacks, batches)
        looped, theirs = _peft_loop(base, stacks, batches)
        speed = _ratio(looped, batched, repeats=5)
        batched()
        looped()
        place = f"{rows * tokens}_tokens"
        against = f"a peft set_adapter loop over {devices} devices, 5 blocks of width 64"
        yield at_least(f"model.batched_lora_speedup_{place}", speed, goal, against)
        yield at_most(
            f"model.batched_lora_gradient_difference_{place}",
            _difference(ours(), theirs()),
            1e-5,
            against,
        )


def aggregation(devices: int = 20, width: int = 2048) -> Iterator[Figure]:
    """Factored aggregation of unlike ranks and slices against the dense SVD."""
    shape = llama_like(
        "llama",
        blocks=1,
        width=width,
        heads=16,
        kv_groups=16,
        head_dim=128,
        ffn=width,
        vocab=8,
        tied=True,
    )
    workload = _workload(("up_proj",), rank=16)
    state = GlobalState(0, init_adapters(shape, workload, 0), {})
    updates = [_update(device, state, shape) for device in range(devices)]
    weights = np.full(devices, 1.0 / devices)

    def factored() -> Adapters:
        spec = AggregateSpec("factored")
        return aggregate(spec, state, updates, weights, shape=shape).adapters

    def dense(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        total, cover = torch.zeros(width, width, dtype=dtype), torch.zeros(width, 1)
        for update, weight in zip(updates, weights, strict=True):
            full = scatter(update.adapters, shape, update.kept)
            total += weight * (full["0.up_proj.B"].to(dtype) @ full["0.up_proj.A"].to(dtype))
            cover[update.kept.channels[0]] += weight
        u, values, v = torch.linalg.svd(total / cover.clamp_min(1e-30), full_matrices=False)
        return (u[:, :16] * values[:16]) @ v[:16]

    found, expected = factored(), dense(torch.float64)
    error = (found["0.up_proj.B"] @ found["0.up_proj.A"] - expected).norm() / expected.norm()
    speed = _ratio(dense, factored, repeats=3)
    against = f"the dense SVD, {devices} devices of unlike ranks and slices, width {width}"
    yield at_most("model.aggregation_relative_error", float(error), 1e-5, against)
    yield at_least("model.aggregation_speedup", speed, 10.0, against)


def _update(device: int, state: GlobalState, shape: ModelShape) -> Update:
    draw = np.random.default_rng(device)
    count = int(shape.ffn * draw.uniform(0.3, 1.0))
    rows = np.sort(draw.choice(shape.ffn, count, replace=False))
    kept = Kept(keep_all(shape).groups, (rows,))
    rank = int(draw.choice([4, 8, 16]))
    stream = torch.Generator().manual_seed(device)
    fresh = take(state.adapters, shape, kept, rank)
    trained = {k: v + 0.1 * torch.randn(v.shape, generator=stream) for k, v in fresh.items()}
    return Update(device, 0, kept, rank, trained, {}, 1)


def _batched_pass(
    base: BaseModel, stacks: list[Adapters], batches: list[Batch]
) -> tuple[Callable[[], object], Callable[[], list[torch.Tensor]]]:
    lora = attach(base.network, base.family, stacks, scale=SCALE).train()
    optimiser = torch.optim.AdamW(lora.parameters(), lr=0.0, fused=True)
    joined = Batch(
        torch.cat([batch.input_ids for batch in batches]),
        torch.cat([batch.attention_mask for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )

    def step() -> None:
        optimiser.zero_grad()
        batch_losses(lora.network, joined, devices=len(stacks), chunk=512).sum().backward()
        optimiser.step()

    def gradients() -> list[torch.Tensor]:
        layers = [base.family.linear(lora.network, 0, name) for name in ("q_proj", "down_proj")]
        return [layer.b.grad for layer in layers] + [layer.a.grad for layer in layers]

    return step, gradients


def _peft_loop(
    base: BaseModel, stacks: list[Adapters], batches: list[Batch]
) -> tuple[Callable[[], object], Callable[[], list[torch.Tensor]]]:
    network = LlamaForCausalLM(base.network.config)
    network.load_state_dict(base.network.state_dict())
    network.requires_grad_(requires_grad=False)
    names = [linear.name for linear in base.shape.linears]
    config = LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules=names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # many are meant
        for device in range(len(stacks)):
            inject_adapter_in_model(config, network, adapter_name=f"d{device}")
    tuned = {n: m for n, m in network.named_modules() if hasattr(m, "lora_A")}
    for device, adapters in enumerate(stacks):
        for key in (key[:-2] for key in adapters if key.endswith(".A")):
            block, _, linear = key.partition(".")
            module = tuned[base.family.path(int(block), linear)]
            module.lora_A[f"d{device}"].weight.data.copy_(adapters[f"{key}.A"])
            module.lora_B[f"d{device}"].weight.data.copy_(adapters[f"{key}.B"])
    optimisers = []
    for device in range(len(stacks)):
        own = [p for n, p in network.named_parameters() if f".d{device}." in n]
        optimisers.append(torch.optim.AdamW(own, lr=0.0, fused=True))
    network.train()

    def step() -> None:
        for device, (batch, optimiser) in enumerate(zip(batches, optimisers, strict=True)):
            for module in tuned.values():
                module.set_adapter(f"d{device}")
            optimiser.zero_grad()
            network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            ).loss.backward()
            optimiser.step()

    def gradients() -> list[torch.Tensor]:
        layers = [tuned[base.family.path(0, name)] for name in ("q_proj", "down_proj")]
        return [
            torch.stack([getattr(layer, side)[f"d{i}"].weight.grad for i in range(len(stacks))])
            for side in ("lora_B", "lora_A")
            for layer in layers
        ]

    return step, gradients


def _step(base: BaseModel, kept: Kept, batch: Batch) -> Callable[[], None]:
    adapters = take(_adapters(base.shape, 0), base.shape, kept, RANK)
    lora = attach(slice_network(base, kept), base.family, [adapters], scale=SCALE).train()
    optimiser = torch.optim.AdamW(lora.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        batch_losses(lora.network, batch).sum().backward()
        optimiser.step()

    return step


def _held_bytes(base: BaseModel, kept: Kept, batch: Batch) -> int:
    """Return the bytes of all parameters and of what the forward pass keeps for the backward."""
    adapters = take(_adapters(base.shape, 0), base.shape, kept, RANK)
    lora = attach(slice_network(base, kept), base.family, [adapters], scale=SCALE).train()
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in _all(lora.network)}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_losses(lora.network, batch)
    activations = sum(t.untyped_storage().nbytes() for p, t in saved.items() if p not in own)
    return sum(own.values()) + activations


def _all(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def _llama(*, blocks: int, width: int, heads: int, ffn: int, vocab: int) -> BaseModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=ffn,
        vocab_size=vocab,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return base_of(LlamaForCausalLM(config))


def _batch(rows: int, tokens: int, vocab: int, seed: int = 0) -> Batch:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, (rows, tokens)))
    return Batch(ids, torch.ones_like(ids), ids)


def _workload(targets: tuple[str, ...], rank: int = RANK) -> Workload:
    return Workload(batch=1, tokens=1, local_steps=1, rank=rank, lora_targets=targets)


def _adapters(shape: ModelShape, seed: int) -> Adapters:
    workload = _workload(tuple(linear.name for linear in shape.linears))
    stream = torch.Generator().manual_seed(seed)
    fresh = init_adapters(shape, workload, seed)
    return {k: v + 0.02 * torch.randn(v.shape, generator=stream) for k, v in fresh.items()}


def _uniform(shape: ModelShape, fraction: float) -> Kept:
    groups, channels = shape.kept_groups(fraction), shape.kept_channels(fraction)
    return Kept(
        (np.arange(int(groups)),) * shape.blocks, (np.arange(int(channels)),) * shape.blocks
    )


def _ratio(one: Callable[[], object], other: Callable[[], object], *, repeats: int) -> float:
    """Return the median of time of `one` over time of `other`, taken in turns after a warm-up."""
    one()
    other()
    return statistics.median(_seconds(one) / _seconds(other) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))

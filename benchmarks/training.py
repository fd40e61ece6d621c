"""One training process, measured: `python -m benchmarks.training CASE` prints what it saw.

The process is fresh, so that its peak is that of the training alone. Peak memory is the highest
resident set during two steps less the resident set after the imports and one step of a model of a
few kilobytes, the floor that every training process has; every tensor is mapped by itself
meanwhile, so that the figure is not the C allocator's fragmentation. Then steps of the probes and of
the case take turns, in processor seconds of one thread, with the allocator reusing what it has: a
neighbour on the machine slows all. Weights are random.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from airtune.cost import bert_like, gpt2_like, llama_like
from airtune.plan import ModelShape, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Case:
    """A model to train and how."""

    shape: ModelShape
    workload: Workload


@dataclass(frozen=True, slots=True)
class Seen:
    """What a training process measured of itself."""

    peak_bytes: int
    """Above the floor of the process."""
    step_s: float
    """Processor seconds of one thread, median of the steps."""
    probes_s: tuple[float, ...]
    """The same of the probes, whose steps took turns with these."""


def _case(
    shape: ModelShape, batch: int, tokens: int, *, chunk: int = 0, checkpointing: bool = False
) -> Case:
    return Case(
        shape,
        Workload(
            batch,
            tokens,
            local_steps=1,
            rank=8,
            lora_targets=tuple(linear.name for linear in shape.linears),
            loss_chunk=chunk,
            checkpointing=checkpointing,
            trains_head=bool(shape.labels),
        ),
    )


PROBES = (
    _case(
        llama_like("llama", blocks=4, width=320, heads=5, kv_groups=5, head_dim=64, ffn=896,
                   vocab=2000, tied=True),
        4, 96,
    ),
    _case(
        llama_like("llama", blocks=2, width=768, heads=12, kv_groups=6, head_dim=64, ffn=2048,
                   vocab=4000, tied=True),
        4, 96,
    ),
)  # fmt: skip
"""What a device measures of itself, narrow and wide; no case has their models or length."""

CASES = {
    "llama": _case(
        llama_like("llama", blocks=4, width=640, heads=10, kv_groups=5, head_dim=64, ffn=1728,
                   vocab=6000, tied=False),
        4, 128,
    ),
    "llama chunked": _case(
        llama_like("llama", blocks=4, width=512, heads=8, kv_groups=8, head_dim=64, ffn=1536,
                   vocab=16000, tied=True),
        3, 160, chunk=64,
    ),
    "qwen2 checkpointed": _case(
        llama_like("qwen2", blocks=5, width=576, heads=9, kv_groups=3, head_dim=64, ffn=2432,
                   vocab=6000, tied=True, qkv_bias=True),
        3, 144, checkpointing=True,
    ),
    "gpt2": _case(
        gpt2_like(blocks=5, width=512, heads=8, ffn=2048, vocab=5000, positions=256), 4, 112
    ),
    "bert": _case(
        bert_like("bert", blocks=6, width=512, heads=8, ffn=2048, vocab=8000, positions=256,
                  types=2, labels=10),
        8, 64,
    ),
}  # fmt: skip
"""Models and lengths that were not probed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""

WARM_UP = Case(
    llama_like("llama", blocks=1, width=16, heads=2, kv_groups=1, head_dim=8, ffn=32, vocab=50,
               tied=True),
    replace(PROBES[0].workload, tokens=8),
)  # fmt: skip


def measure(case: Case, *, steps: int) -> Seen:
    """Train a case in this process and return what it took; the optimiser's states exist."""
    import torch

    torch.set_num_threads(1)
    _map_tensors_above(128 * 1024)
    _trainer(WARM_UP)()
    floor = _resident("VmRSS")
    step = _trainer(case)
    Path("/proc/self/clear_refs").write_text("5")
    step()
    step()
    peak = _resident("VmHWM") - floor
    _map_tensors_above(32 * 1024**2)
    turns = [step, *map(_trainer, PROBES)]
    seconds = np.median([[_seconds(turn) for turn in turns] for _ in range(steps)], axis=0)
    return Seen(peak, float(seconds[0]), tuple(seconds[1:].tolist()))


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _map_tensors_above(size_bytes: int) -> None:
    """Make the C allocator map larger blocks by themselves and give the rest back late (glibc)."""
    library = ctypes.CDLL("libc.so.6")
    for option, value in ((_M_MMAP_THRESHOLD, size_bytes), (_M_TRIM_THRESHOLD, 512 * 1024**2)):
        if not library.mallopt(option, value):
            raise RuntimeError(f"mallopt({option}, {value}) was refused")


def _trainer(case: Case) -> Callable[[], None]:
    """Return a function that trains one step on random tokens."""
    import torch

    from airtune.model.base import base_of
    from airtune.model.batch import Batch
    from airtune.model.lora import attach, head_of, init_adapters
    from airtune.model.loss import batch_losses

    torch.manual_seed(0)
    shape, workload = case.shape, case.workload
    base = base_of(network_of(shape))
    heads = [head_of(base.network, base.family)] if workload.trains_head else []
    lora = attach(
        base.network,
        base.family,
        [init_adapters(shape, workload, seed=0)],
        scale=2.0,
        heads=heads,
        checkpointing=workload.checkpointing,
    ).train()
    ids = torch.randint(2, shape.vocab, (workload.batch, workload.tokens))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    labels = torch.zeros(workload.batch, dtype=torch.long) if shape.labels else ids
    batch = Batch(ids, mask, labels)
    optimiser = torch.optim.AdamW(lora.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = batch_losses(lora.network, batch, chunk=workload.loss_chunk).sum()
        torch.autograd.backward(loss)
        optimiser.step()

    return step


def network_of(shape: ModelShape) -> PreTrainedModel:
    """Return a transformers model of a shape, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    sizes = {"vocab_size": shape.vocab, "num_labels": shape.labels or 2}
    if shape.family == "gpt2":
        names = {
            "n_embd": shape.width,
            "n_layer": shape.blocks,
            "n_head": shape.heads,
            "n_inner": shape.ffn,
            "n_positions": 256,
        }
    else:
        names = {
            "hidden_size": shape.width,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.blocks,
            "num_attention_heads": shape.heads,
            "max_position_embeddings": 256,
        }
    if shape.gated:
        names |= {"num_key_value_heads": shape.kv_groups, "head_dim": shape.head_dim}
        sizes["tie_word_embeddings"] = shape.tied
    config = AutoConfig.for_model(shape.family, **sizes, **names)
    kind = AutoModelForSequenceClassification if shape.labels else AutoModelForCausalLM
    return kind.from_config(config)


def _resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


if __name__ == "__main__":
    print(json.dumps(asdict(measure(CASES[sys.argv[1]], steps=5))))

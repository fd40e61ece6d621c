"""How long simulating a run would take on this machine: FLOPs over a speed measured in a moment.

The speed is that of matrix products of the model's own size, in single precision, with the threads
that torch takes. Training reaches a part of it, since norms, activations and the optimiser are no
matrix products: 0.37 was measured with the shipped model on one core, and wider models reach more.
Evaluation, calibration and codecs come on top.
"""

from __future__ import annotations

import time

import torch

from airtune.plan import ModelShape, Workload

REACHED = 0.4
"""Part of the speed of matrix products that training is taken to reach."""
_MEASURED_S = 0.05
_LEAST_PRODUCTS = 3
_MOST_ROWS = 4096


def training_flops_per_s(shape: ModelShape, workload: Workload) -> float:
    """Return the FLOP/s that training a model is taken to reach here, by the fastest of some products.

    Args:
        shape: of the model.
        workload: gives batch and length.
    """
    rows = min(workload.batch * workload.tokens, _MOST_ROWS)
    tokens, weights = torch.ones(rows, shape.width), torch.ones(shape.width, shape.ffn)
    took: list[float] = []
    begun = time.perf_counter()
    while len(took) < _LEAST_PRODUCTS or time.perf_counter() - begun < _MEASURED_S:
        start = time.perf_counter()
        torch.mm(tokens, weights)
        took.append(time.perf_counter() - start)
    return REACHED * 2.0 * rows * shape.width * shape.ffn / min(took)

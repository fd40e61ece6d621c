"""Error feedback: what a codec lost this time is added to what it is given next time.

It suits the updates of adapters, which are sent again and again; not the activations of fresh
samples, where last step's loss has nothing to do with this step's tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec.registry import decode, encode
from airtune.plan import CodecSpec


def encode_with_feedback(
    tensor: NDArray[np.float32],
    residual: NDArray[np.float32],
    spec: CodecSpec,
    generator: np.random.Generator,
) -> tuple[bytes, NDArray[np.float32]]:
    """Return the payload of `tensor + residual` and the residual it leaves, of the same shape.

    Raises:
        CodecError: as `encode` does.
    """
    wanted = tensor + residual
    payload = encode(wanted, spec, generator)
    return payload, wanted - decode(payload, max_elements=wanted.size)

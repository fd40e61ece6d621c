"""Codecs: how tensors are compressed before they cross the air, and how many bytes that takes.

`encode` makes a self-describing, checksummed payload; `decode` trusts nothing of what it is given;
`payload_bytes` is what planners use and is held against real payloads by a test. Arrays in and
out are float32 numpy; entropy coding is zlib's and zstd's.

    >>> import numpy as np
    >>> from airtune.plan import CodecSpec
    >>> tensor = np.linspace(-1, 1, 1000, dtype=np.float32).reshape(10, 100)
    >>> payload = encode(tensor, CodecSpec("topk", keep=0.1, bits=4), np.random.default_rng(0))
    >>> len(payload) < tensor.nbytes / 10, decode(payload, max_elements=1000).shape
    (True, (10, 100))
"""

from airtune.codec.registry import CODECS, decode, encode, kept_positions
from airtune.cost.coded import entropy_bound_bytes, payload_bytes

__all__ = ["CODECS", "decode", "encode", "entropy_bound_bytes", "kept_positions", "payload_bytes"]

"""Streams of bytes without loss, and what they take at least."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from airtune.codec.entropy import compress, decompress, least_bytes


@st.composite
def streams(draw):
    """Bytes of a few symbols, more or less alike, now and then repeated."""
    seed, length, symbols = draw(
        st.tuples(st.integers(0, 99), st.integers(0, 5000), st.integers(1, 256))
    )
    drawn = np.random.default_rng(seed).geometric(draw(st.floats(0.02, 1.0)), length) % symbols
    return drawn.astype(np.uint8).tobytes() * draw(st.integers(1, 3))


@given(streams())
def test_a_stream_comes_back_and_takes_no_less_than_was_said(stream):
    coder, coded = compress(stream)
    assert decompress(coder, coded, len(stream)) == stream
    assert least_bytes(stream) <= len(coded)

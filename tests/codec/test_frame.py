"""A payload from elsewhere is refused before it costs anything."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from airtune.codec import decode, encode
from airtune.errors import CodecError
from airtune.plan import CodecSpec

CAP = 4096
SPECS = [
    CodecSpec("identity"),
    CodecSpec("fp16"),
    CodecSpec("topk", keep=0.2, bits=4),
    CodecSpec("topk", keep=0.05, bits=3),
    CodecSpec("deadzone"),
]


def payload_of(spec, shape=(16, 32)):
    tensor = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return encode(tensor, spec, np.random.default_rng(1))


def resealed(body):
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.keep}")
def test_an_altered_byte_is_noticed(spec):
    payload = bytearray(payload_of(spec))
    payload[len(payload) // 2] ^= 1
    with pytest.raises(CodecError, match="checksum"):
        decode(bytes(payload), max_elements=CAP)


def test_more_elements_than_the_cap_are_refused():
    with pytest.raises(CodecError, match="declares 512 elements, 511 are allowed"):
        decode(payload_of(SPECS[0]), max_elements=511)


def test_a_huge_declared_shape_takes_no_memory():
    body = bytearray(payload_of(SPECS[2])[:-4])
    body[6:10] = struct.pack("<I", 2**31)
    tracemalloc.start()
    with pytest.raises(CodecError, match="elements"):
        decode(resealed(body), max_elements=CAP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_truncation_is_named():
    with pytest.raises(CodecError, match="truncated: 5 bytes"):
        decode(payload_of(SPECS[0])[:5], max_elements=CAP)


def mutate(generator, payload):
    body = bytearray(payload[:-4])
    for _ in range(int(generator.integers(1, 4))):
        place = int(generator.integers(len(body)))
        body[place] = int(generator.integers(256))
    if generator.random() < 0.2:
        del body[int(generator.integers(len(body))) :]
    # Most mutations are sealed with a right checksum, so that the checks behind it are reached.
    return resealed(body) if generator.random() < 0.9 else bytes(body) + payload[-4:]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.keep}")
def test_100_000_mutated_payloads_never_crash_or_swell(spec):
    generator = np.random.default_rng(7)
    payload = payload_of(spec, shape=(8, 16))
    refused = 0
    for round_ in range(20_000):
        if round_ == 19_000:
            tracemalloc.start()
        try:
            tensor = decode(mutate(generator, payload), max_elements=CAP)
        except CodecError:
            refused += 1
        else:
            assert tensor.size <= CAP
            assert np.all(np.isfinite(tensor))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 2_000
    assert peak < 2**20

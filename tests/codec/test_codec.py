"""Every codec, by being registered, passes these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from airtune.codec import CODECS, decode, encode, entropy_bound_bytes, kept_positions, payload_bytes
from airtune.codec.select import topk_mask
from airtune.errors import CodecError
from airtune.plan import CodecSpec

SPECS = {
    "identity": CodecSpec("identity"),
    "fp16": CodecSpec("fp16"),
    "topk": CodecSpec("topk", keep=0.1, bits=4),
    "deadzone": CodecSpec("deadzone", step=0.75),
}
TENSORS = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=4, max_side=9),
    elements=st.floats(-1e4, 1e4, width=32),
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def round_trip(tensor, spec, seed=0):
    payload = encode(tensor, spec, np.random.default_rng(seed))
    return decode(payload, max_elements=tensor.size)


def test_every_registered_codec_is_in_the_contract_suite():
    assert set(SPECS) == set(CODECS)


@pytest.mark.parametrize("name", SPECS)
@given(tensor=TENSORS)
@settings(max_examples=40, deadline=None)
def test_a_round_trip_keeps_the_shape_and_stays_finite(name, tensor):
    back = round_trip(tensor, SPECS[name])
    assert back.shape == tensor.shape
    assert np.all(np.isfinite(back))


@pytest.mark.parametrize("name", SPECS)
def test_the_same_generator_gives_the_same_bytes(name):
    tensor = normal(40, 50)
    first, second = (encode(tensor, SPECS[name], np.random.default_rng(3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shape", [(64, 64), (4, 32, 384)])
def test_the_estimate_is_within_15_percent_of_the_payload(name, shape):
    tensor = normal(*shape)
    real = len(encode(tensor, SPECS[name], np.random.default_rng(0)))
    guess = payload_bytes(tensor.size, SPECS[name], channels=shape[-1])
    assert guess == pytest.approx(real, rel=0.15)


@given(keep=st.floats(0.02, 0.6), bits=st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_the_topk_estimate_holds_over_its_settings(keep, bits):
    spec = CodecSpec("topk", keep=keep, bits=bits)
    real = len(encode(normal(64, 512), spec, np.random.default_rng(1)))
    assert payload_bytes(64 * 512, spec, channels=512) == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize(("keep", "bits"), [(0.05, 3), (0.1, 4), (0.2, 8)])
def test_topk_stays_within_five_percent_of_the_entropy_of_what_it_sent(keep, bits):
    tensor = normal(1_000_000)  # one column: no rows to scale
    spec = CodecSpec("topk", keep=keep, bits=bits)
    payload = encode(tensor, spec, np.random.default_rng(0))
    back = decode(payload, max_elements=tensor.size)
    kept = back[back != 0.0]
    _, counts = np.unique(kept, return_counts=True)
    share = counts / counts.sum()
    level_bits = -(share * np.log2(share)).sum()
    mask_share = kept.size / tensor.size
    mask_bits = -(mask_share * np.log2(mask_share) + (1 - mask_share) * np.log2(1 - mask_share))
    bound_bytes = (tensor.size * mask_bits + kept.size * level_bits) / 8
    assert bound_bytes <= len(payload) <= 1.05 * bound_bytes


def test_the_entropy_bound_of_the_papers_setting_is_about_six_percent_of_float32():
    bound = entropy_bound_bytes(1_000_000, CodecSpec("topk", keep=0.3, bits=4))
    assert 0.055 < bound / 4_000_000 < 0.066


def test_identity_is_exact_and_fp16_is_half_precision():
    tensor = normal(7, 11)
    np.testing.assert_array_equal(round_trip(tensor, SPECS["identity"]), tensor)
    np.testing.assert_array_equal(
        round_trip(tensor, SPECS["fp16"]), tensor.astype(np.float16).astype(np.float32)
    )


@given(st.integers(1, 40_000), st.floats(0.001, 1.0), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_topk_selects_exactly_the_largest(size, share, seed):
    magnitude = np.abs(np.random.default_rng(seed).standard_cauchy(size)).astype(np.float32)
    count = max(1, round(share * size))
    mask = topk_mask(magnitude, count)
    assert magnitude[mask].min() >= np.sort(magnitude)[-count]
    assert mask.sum() == count


def test_topk_never_sends_a_zero():
    tensor = np.zeros((10, 10), np.float32)
    tensor[3, 4] = -2.0
    np.testing.assert_array_equal(round_trip(tensor, CodecSpec("topk", keep=0.5, bits=4)), tensor)


def test_stochastic_rounding_is_unbiased_with_the_stated_error():
    tensor = np.random.default_rng(0).uniform(1.0, 2.0, 2000).astype(np.float32)
    spec = CodecSpec("topk", keep=1.0, bits=3)
    trials = np.stack([round_trip(tensor, spec, seed) for seed in range(200)])
    error = trials - tensor
    step = (tensor.max() - tensor.min()) / 3
    standard_error = error.std() / np.sqrt(error.size)
    assert abs(error.mean()) <= 3 * standard_error
    assert (error**2).mean() <= step**2 / 4


def test_a_mask_known_to_both_ends_is_not_sent():
    tensor = normal(50, 40)
    mask = topk_mask(np.abs(tensor).reshape(-1), 200).reshape(tensor.shape)
    gradient = normal(50, 40, seed=1)
    payload = encode(gradient, SPECS["topk"], np.random.default_rng(0), mask=mask)
    back = decode(payload, max_elements=2000, mask=mask)
    assert np.array_equal(back != 0.0, mask)
    assert len(payload) < len(encode(gradient, SPECS["topk"], np.random.default_rng(0)))
    with pytest.raises(CodecError, match="disagree on whether the mask is sent"):
        decode(payload, max_elements=2000)


def test_both_ends_know_which_entries_an_activation_kept():
    tensor = normal(50, 40) + 7.0
    payload = encode(tensor, SPECS["topk"], np.random.default_rng(0))
    kept = kept_positions(payload, max_elements=2000)
    assert kept.shape == tensor.shape
    assert kept.sum() == 200
    # all others arrive as their channel's mean
    back = decode(payload, max_elements=2000)
    assert [len(set(column[~mask])) for column, mask in zip(back.T, kept.T, strict=True)] == [
        1
    ] * 40
    with pytest.raises(CodecError, match="only topk keeps"):
        kept_positions(encode(tensor, SPECS["fp16"], np.random.default_rng(0)), max_elements=2000)


def test_centring_the_dead_zone_removes_a_constant_offset():
    offset = np.linspace(-50, 50, 64, dtype=np.float32)
    tensor = normal(256, 64) + offset
    error = round_trip(tensor, SPECS["deadzone"]) - tensor
    assert (error**2).mean() < 0.06


def test_levels_that_exceed_a_byte_come_back_as_near_as_small_ones():
    tensor = normal(300)
    step = 0.01 * float(tensor.std())
    assert np.abs(tensor).max() > 200 * step
    error = round_trip(tensor, CodecSpec("deadzone", step=0.01)) - tensor
    assert np.abs(error).max() < 1.01 * step


def test_a_row_that_stands_out_is_kept_whole():
    tensor = normal(60, 40)
    tensor[3] *= 1e4
    payload = encode(tensor, SPECS["topk"], np.random.default_rng(0))
    kept = kept_positions(payload, max_elements=tensor.size)
    assert kept[3].all()
    assert kept.sum() < 0.2 * kept.size


@pytest.mark.parametrize(
    ("tensor", "spec", "message"),
    [
        (np.zeros(0, np.float32), CodecSpec(), "with entries"),
        (np.zeros(3), CodecSpec(), "takes a float32 tensor"),
        (np.array([np.nan], np.float32), CodecSpec(), "NaN or infinity"),
        (np.array([1e6], np.float32), CodecSpec("fp16"), "does not fit float16"),
        (np.ones(3, np.float32), CodecSpec("topk", keep=0.0, bits=4), r"keep in \(0, 1\]"),
        (np.ones(3, np.float32), CodecSpec("topk", keep=0.5, bits=9), r"bits in \[2, 8\]"),
        (np.ones(3, np.float32), CodecSpec("deadzone", step=0.0), "needs a step"),
        (np.ones(3, np.float32), CodecSpec("topk", keep=0.5, bits=4, predict=True), "predict"),
    ],
)
def test_what_cannot_be_coded_says_why(tensor, spec, message):
    with pytest.raises(CodecError, match=message):
        encode(tensor, spec, np.random.default_rng(0))

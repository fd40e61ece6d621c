"""What was measured is read as it was written, and refused where it makes no sense."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.errors import CheckpointError, MismatchError, RecipeError
from airtune.plan import (
    CodecRounds,
    CodecSpec,
    Measurements,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
    measurements_from,
)

COARSE = CodecSpec("deadzone", step=2.0)
WHOLE = Measurements(
    "a" * 64, "made up", (4.0, 2.0, 1.5),
    pruning=(PrunedRounds(0.0, 0.0), PrunedRounds(0.2, 0.1), PrunedRounds(0.4, 0.5)),
    ranks=(RankRounds(2, 0.3), RankRounds(4, 0.1), RankRounds(8, 0.0)),
    codecs=(CodecRounds(1, COARSE, 0.2), CodecRounds(3, COARSE, 0.1)), cut=-0.2, most_pruned=0.6,
    uploads=(UploadRounds(CodecSpec(), 0.0), UploadRounds(COARSE, 0.2, 0.1, 0.9)),
    steps=(StepRounds(2, 0.4), StepRounds(4, 0.0), StepRounds(8, -0.3)), codecs_at=2.5,
)  # fmt: skip


def document(**changed):
    return json.loads(json.dumps(WHOLE.as_document())) | changed


def test_a_document_is_read_as_it_was_written():
    assert measurements_from(document()) == WHOLE


def test_what_was_not_measured_is_empty():
    empty = Measurements("a", "nothing")
    assert measurements_from(empty.as_document()) == empty
    assert not empty.measured
    assert WHOLE.measured == {"pruning", "ranks", "codecs", "cut", "uploads", "steps"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pruning": [[0, 0], [0.4, 0.5], [0.2, 0.6]]}, r"pruning .* must rise"),
        ({"pruning": [[0, 0], [0.2, 0.5], [0.4, 0.1]]}, r"pruning .* must rise"),
        ({"pruning": [[0, 0], [1.0, 0.5]]}, r"rates below 1"),
        ({"pruning": [[0.1, 0.0]]}, r"begins at \[0, 0\]"),
        ({"ranks": [[4, 0.1], [8, 0.2]]}, r"the full rank, which costs 0"),
        ({"ranks": [[2, 0.1], [4, 0.2], [8, 0.0]]}, r"their rounds must not"),
        ({"codecs": [[0, {"kind": "fp16"}, 0.0]]}, r"rising cuts from 1"),
        ({"codecs": [[1, {"kind": "fp16"}, -0.1]]}, r"cost at least 0"),
        ({"codecs": [[1, {"kind": "fp16", "depth": 2}, 0.1]]}, r"depth"),
        ({"cut": float("nan")}, r"cut .* finite"),
        ({"uploads": [[{"kind": "fp16"}, 0.1]]}, r"begin with the identity at 0"),
        ({"uploads": [[{}, 0.0], [{"kind": "fp16"}, -0.1]]}, r"cost of at least 0"),
        ({"uploads": [[{}, 0.0], [{}, 0.0]]}, r"each codec once"),
        ({"steps": [[4, 0.0], [2, 0.4]]}, r"steps of a measurement rise"),
        ({"steps": [[2, 0.4], [8, -0.3]]}, r"one of them at 0"),
        ({"most_pruned": 1.5}, r"most_pruned"),
        ({"schema": 1}, r"schema 1"),
        ({"ranks": None}, r"measure again"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, said):
    with pytest.raises(CheckpointError, match=said):
        measurements_from(document(**changed))


def test_a_document_without_uploads_is_read():
    old = document()
    del old["uploads"], old["steps"]
    assert measurements_from(old).uploads == measurements_from(old).steps == ()


def test_an_upload_that_was_not_measured_has_no_price():
    assert (WHOLE.upload_rounds(CodecSpec()), WHOLE.upload_rounds(COARSE)) == (0.0, 0.2)
    with pytest.raises(
        RecipeError, match=r"cost of updates coded with fp16 was not measured.*calibration\.uploads"
    ):
        WHOLE.upload_rounds(CodecSpec("fp16"))


def test_a_missing_table_is_named():
    with pytest.raises(CheckpointError, match="no field 'pruning'"):
        measurements_from({key: value for key, value in document().items() if key != "pruning"})


def test_costs_of_another_model_are_refused():
    with pytest.raises(MismatchError, match=r"aaaa.* bbbb"):
        WHOLE.check_model("b" * 64)


def test_what_is_wanted_and_was_not_measured_is_refused():
    some = Measurements("a", "only ranks", ranks=WHOLE.ranks)
    with pytest.raises(RecipeError, match=r"pruning and cut .* has ranks"):
        some.require("pruning", "ranks", "cut")
    with pytest.raises(RecipeError, match=r"topk .* measured are deadzone 2"):
        WHOLE.codec_rounds(1, CodecSpec("topk", keep=0.1, bits=4))


def test_between_cuts_a_codec_costs_what_lies_between():
    predictive = CodecSpec("deadzone", step=2.0, predict=True)
    assert WHOLE.codec_rounds(2, COARSE) == pytest.approx(0.15)
    assert WHOLE.codec_rounds(2, predictive) == pytest.approx(0.15)
    assert WHOLE.codec_rounds(2, CodecSpec()) == 0.0


@given(
    slow=st.floats(0.02, 0.5),
    slower=st.floats(0.01, 1.0),
    at=st.integers(1, 10),
    more=st.integers(0, 200),
)
def test_what_a_codec_adds_is_carried_on_as_losses_fall_with_a_power_of_the_rounds(
    slow, slower, at, more
):
    def added(round):
        with_codec, without = (1.0 + round) ** -(slow * slower), (1.0 + round) ** -slow
        return with_codec / without - 1.0

    codec = CodecSpec("fp16")
    found = Measurements(
        "f", "an example", codecs_at=at, codecs=(CodecRounds(1, codec, 0.0, added(at)),)
    )
    assert found.codec_loss(1, codec, rounds=at + more) == pytest.approx(added(at + more))
    assert found.codec_loss(1, codec, rounds=at - 1) == pytest.approx(added(at))
    unknown = replace(found, codecs_at=0.0)
    assert unknown.codec_loss(1, codec, rounds=at + more) == pytest.approx(added(at))

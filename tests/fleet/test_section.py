import pytest

from airtune.errors import FleetError
from airtune.fleet.section import SettingsSection, as_number, nearest, raise_faults


@pytest.fixture
def faults():
    return []


def test_unknown_keys_name_the_nearest_known_one(faults):
    section = SettingsSection({"cuont": 3, "zzz": 1}, "devices[0]", faults)
    section.whole("count", 1)
    section.close()
    assert faults == [
        "devices[0].cuont is not a known key; did you mean 'count'?",
        "devices[0].zzz is not a known key; known keys are count",
    ]


@pytest.mark.parametrize(
    ("value", "limits", "fault"),
    [
        (None, {}, "s.x is missing; it must be a number that is finite"),
        (True, {}, "s.x must be a number that is finite, got True"),
        (float("nan"), {"low": 0}, "s.x must be a number of at least 0, got nan"),
        ("inf", {}, "s.x must be a number that is finite, got 'inf'"),
        (2, {"low": 0, "high": 1}, "s.x must be a number in [0, 1], got 2"),
        (9, {"high": 8}, "s.x must be a number of at most 8, got 9"),
        (0, {"above": 0}, "s.x must be a number above 0, got 0"),
        ("y" * 99, {}, f"s.x must be a number that is finite, got '{'y' * 56}..."),
    ],
)
def test_a_wrong_number_says_what_is_allowed_and_what_came(faults, value, limits, fault):
    SettingsSection({"x": value}, "s", faults).number("x", **limits)
    assert faults == [fault]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"x": 1.5}, "x must be a whole number, got 1.5"),
        ({"x": 0}, "x must be a number of at least 1, got 0"),
    ],
)
def test_a_wrong_count_is_a_fault(faults, value, fault):
    SettingsSection(value, "", faults).whole("x", 1, low=1)
    assert faults == [fault]


@pytest.mark.parametrize(
    ("ask", "data", "fault"),
    [
        ("text", {}, "x is missing; it must be a text"),
        ("text", {"x": 3}, "x must be a text, got 3"),
        ("text", {"x": " "}, "x must be a text, got ' '"),
        ("texts", {"x": ["a", 3]}, "x must be a text or a list of texts, got ['a', 3]"),
        ("sections", {"x": []}, "x must be a mapping of names to settings, got []"),
        ("sections", {}, "x must be a mapping of names to settings, got nothing"),
        ("listed", {"x": {}}, "x must be a list with at least one entry, got {}"),
        ("section", {"x": 3}, "x must be a mapping of keys to values, got 3"),
    ],
)
def test_a_wrong_kind_of_value_is_a_fault(faults, ask, data, fault):
    getattr(SettingsSection(data, "", faults), ask)("x")
    assert faults == [fault]


def test_a_choice_lists_the_options(faults):
    section = SettingsSection({"kind": "shard"}, "links.a", faults)
    section.choice("kind", ("shared", "dedicated"))
    section.choice("other", ("one", "two"))
    assert faults == [
        "links.a.kind must be one of shared, dedicated, got 'shard'; did you mean 'shared'?",
        "links.a.other is missing; it must be one of one, two",
    ]


def test_defaults_stand_where_a_key_is_absent_or_null(faults):
    section = SettingsSection({"a": None}, "", faults)
    assert section.number("a", 2.0) == 2.0
    assert section.text("b", "word") == "word"
    assert section.choice("c", ("one", "two"), "two") == "two"
    assert section.texts("d") == ()
    section.close()
    assert faults == []


@pytest.mark.parametrize("value", [None, [], {}, "x", float("inf"), 10**400, False])
def test_what_is_no_finite_number_is_none(value):
    assert as_number(value) is None


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("zzz", ["count"]) == ""


def test_one_fault_is_a_line_and_several_are_a_list():
    raise_faults("fleet 'a'", [])
    with pytest.raises(FleetError, match=r"^fleet 'a': x is wrong$"):
        raise_faults("fleet 'a'", ["x is wrong"])
    with pytest.raises(FleetError, match=r"^fleet 'a' has 2 faults:\n  - x\n  - y$"):
        raise_faults("fleet 'a'", ["x", "y"])

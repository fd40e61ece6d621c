"""The front: no plan of it is beaten by one that gives up no more, and none that is not was left out."""

import json

import numpy as np
import pytest

from airtune.cli.main import invoke
from airtune.errors import RecipeError
from airtune.planner import plan_front, plan_of, read_axes, setting_of
from airtune.planner.front import FrontPoint, _beats
from airtune.planner.rows import front_rows
from airtune.recipe import load_recipe

FEW = ("fleet.devices=3", "train.rounds=2", "output=none", "data.max_length=48")
AXES = ("time", "bytes", "joules")


def recipe(*words):
    return load_recipe(overrides=[*FEW, *words])


@pytest.fixture(scope="module")
def front():
    return plan_front(setting_of(recipe("method.name=fedavg-lora", "lora.r=4")), AXES)


def test_points_are_the_plans_of_their_recipes(front):
    point = next(one for one in front.points if one.knobs == {"upload": "fp16", "rank": "2"})
    words = ("method.name=fedavg-lora", "upload.kind=fp16", "lora.r=2")
    plan = plan_of(setting_of(recipe(*words)))
    assert point.total_s == plan.total_s
    assert point.total_bytes == plan.total_upload_bytes + plan.total_download_bytes
    assert point.total_energy_j == plan.total_energy_j


def test_what_gives_up_nothing_stays_and_nothing_that_stays_is_beaten(front):
    assert front.tried == 12
    assert any(not any(one.given_up) for one in front.points)
    for one in front.points:
        assert not any(_beats(other, one, AXES) for other in front.points)
    times = [one.total_s for one in front.points]
    assert times == sorted(times)


def test_a_plan_is_beaten_only_by_what_gives_up_less_and_costs_as_little():
    def point(given_up, cost):
        return FrontPoint({}, given_up, cost, cost, cost)

    random = np.random.default_rng(0)
    for _ in range(200):
        one, other = (
            point(tuple(random.integers(0, 3, 2).tolist()), float(random.integers(1, 4)))
            for _ in range(2)
        )
        less = all(np.array(one.given_up) <= other.given_up) and one.given_up != other.given_up
        assert _beats(one, other, AXES) == (less and one.total_s <= 1.1 * other.total_s)


def test_a_method_with_a_budget_has_it_as_a_knob():
    points = plan_front(setting_of(recipe("lora.r=1")), ("time", "bytes")).points
    assert {one.knobs["budget"] for one in points} >= {"0", "0.1"}
    assert {one.knobs["rank"] for one in points} == {"1"}


def test_a_limit_on_rounds_is_no_knob_while_nothing_says_what_rounds_are_needed():
    points = plan_front(setting_of(recipe("method.name=auto", "lora.r=1")), AXES).points
    assert {knob for one in points for knob in one.knobs} == {"upload", "rank"}


def test_a_long_front_is_thinned_on_the_screen_and_keeps_its_ends(front):
    words = front_rows(front, most=3)
    assert [row[0] for row in words.rows[1:]][::2] == [
        front.points[0].label,
        front.points[-1].label,
    ]
    assert len(front_rows(front).rows) == len(front.points) + 1


@pytest.mark.parametrize("text", ["time", "time,time", "time,quality", ""])
def test_costs_are_checked(text):
    with pytest.raises(RecipeError, match="--pareto must be two or three of time,bytes,joules"):
        read_axes(text)


def test_a_control_has_no_front():
    with pytest.raises(RecipeError, match="needs a method with settings to vary, got pooled"):
        plan_front(setting_of(recipe("method.name=pooled")), AXES)


def test_one_command_and_one_page_answer_a_planner(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = "fleet.source={base: jetson-80, name: gateways}"
    words = [
        "plan",
        "--within",
        "1d",
        "--vary",
        "bandwidth",
        "--tariff",
        "0.30",
        "--quantile",
        "95",
        "--pareto",
        "time,joules",
        "--page",
        "plan.html",
        "--json",
        "--set",
        source,
        "fleet.devices=16",
        "method.name=fedavg-lora",
        "train.rounds=2",
        "lora.r=2",
        "data.max_length=48",
        "tariff.currency=EUR",
    ]
    assert invoke(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["within"]["meets"] is True
    assert said["money"]["currency"] == "EUR"
    assert sum(group["devices"] for group in said["groups"]) == 16
    assert said["pareto"]["points"]
    assert said["prices"]
    assert said["round_quantile_s"] >= said["round_s"]
    assert said["pareto"]["quantile"] == 0.95
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    for part in (
        "What more resources would save",
        "Plans to choose among",
        'data-figure="front"',
        "EUR",
        "95% of the rounds within",
        "joules, in rounds near the 95% quantile",
        "are Pareto-optimal. Each knob starts",
        "prices are for rounds near the 95% quantile",
    ):
        assert part in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--within", "6"], "--within: a duration must be like 6h"),
        (["--vary", "rounds"], "--vary rounds needs a time to meet; add --within 6h"),
        (
            ["--quantile", "30"],
            "--quantile must be a percentage from 50 to 99, for instance 95, got 30",
        ),
    ],
)
def test_what_is_asked_wrongly_is_refused(words, said, capsys):
    assert invoke(["plan", *words]) == 3
    assert said in capsys.readouterr().err


def test_a_time_that_nothing_meets_ends_with_its_own_code_after_all_else(capsys, tmp_path):
    words = ["--set", *FEW, "method.name=fedavg-lora"]
    page = tmp_path / "plan.html"
    asked = ["--within", "0.001s", "--vary", "rounds", "--no-prices", "--page", str(page)]
    assert invoke(["plan", *asked, *words]) == 7
    said = capsys.readouterr()
    assert "The shortest time is" in said.err
    assert "straggler" in said.out
    assert "no single change is enough" in page.read_text(encoding="utf-8")

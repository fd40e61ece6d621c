"""Prices are plans made anew; quantiles, money and groups are those of the plan."""

import re
from dataclasses import replace

import numpy as np
import pytest

from airtune.cli.main import invoke
from airtune.errors import RecipeError
from airtune.fleet.change import with_bandwidth, with_memory
from airtune.planner import (
    Price,
    groups_of,
    plan_front,
    plan_of,
    plan_recipe,
    price_lines,
    prices_of,
    setting_of,
    span,
)
from airtune.planner.rows import front_rows
from airtune.planner.sample import draws_of, sample
from airtune.recipe import load_recipe

FEW = ("fleet.devices=4", "train.rounds=3", "output=none", "data.max_length=48")


def recipe(*words):
    return load_recipe(overrides=[*FEW, "method.name=best-bandwidth", *words])


def test_a_price_is_the_finite_difference_of_two_plans():
    setting = setting_of(recipe())
    by = {price.change: price for price in prices_of(setting)}
    wide = plan_of(setting.on(with_bandwidth(setting.fleet, up=1.1)))
    assert by["10 % more uplink"].total_s == wide.total_s
    assert by["10 % more uplink"].saves == pytest.approx(
        1 - wide.total_s / plan_of(setting).total_s
    )
    assert "a server twice as fast" not in by


def test_memory_has_a_price_where_it_binds():
    setting = setting_of(recipe("method.name=uniform-prune-bandwidth"))
    small = setting.on(with_memory(setting.fleet, factor=0.03))
    by = {price.change: price.saves for price in prices_of(small)}
    assert "1 GiB more on each board" in by
    assert price_lines(prices_of(small))


def test_more_that_costs_time_says_why():
    dearer = Price("1 GiB more", -0.1, 11.0, trains_more=True)
    assert price_lines((dearer,)) == [
        "1 GiB more costs 10 %, as more devices take part or less is pruned"
    ]
    assert "weighs quality against time" in price_lines((replace(dearer, trains_more=False),))[0]
    setting = setting_of(recipe("method.name=fedavg-lora"))
    small = with_memory(setting.fleet, factor=0.02)
    alike = replace(setting.fleet, memory_bytes=small.memory_bytes)
    alike.memory_bytes[0] = setting.fleet.memory_bytes[0]
    prices = {price.change: price for price in prices_of(setting.on(alike))}
    assert prices["1 GiB more on each board"].trains_more
    assert not prices["10 % more uplink"].trains_more


def test_a_quantile_is_that_of_the_drawn_rounds():
    setting = setting_of(recipe())
    plan = plan_of(setting, quantile=0.95)
    rounds = sample(setting, draws_of(setting.problem.rounds, 0.95)).round_s
    assert len(rounds) == 64
    assert plan.round_quantile_s == np.quantile(rounds, 0.95) > plan.round_s
    assert plan_of(setting).round_quantile_s is None


def test_money_is_energy_and_bytes_at_the_tariff():
    plan = plan_recipe(recipe("tariff={per_kwh: 0.5, per_gb: 2, currency: EUR}"))
    assert plan.money is not None
    assert plan.money.electricity == pytest.approx(0.5 * plan.total_energy_j / 3.6e6)
    sent = plan.total_upload_bytes + plan.total_download_bytes
    assert plan.money.data == pytest.approx(2.0 * sent / 1e9)
    assert plan.money.total == plan.money.electricity + plan.money.data
    assert plan_recipe(recipe()).money is None


def test_plans_to_choose_among_cost_what_their_own_plans_cost():
    tariff = "tariff={per_kwh: 0.5, per_gb: 2e6, currency: EUR}"
    front = plan_front(setting_of(recipe(tariff, "lora.r=1")), ("time", "bytes"))
    coded = next(one for one in front.points if one.knobs["upload"] == "fp16")
    assert coded.money == plan_recipe(recipe(tariff, "lora.r=1", "upload.kind=fp16")).money
    table = front_rows(front)
    assert table.heads[-1] == "cost"
    assert re.fullmatch(r"[\d,]+ EUR", table.rows[0][-1])
    assert re.fullmatch(r"[\d,]+ EUR \([-+]\d+%\)", table.rows[1][-1])
    assert (
        "cost"
        not in front_rows(plan_front(setting_of(recipe("lora.r=1")), ("time", "bytes"))).heads
    )


def test_a_tariff_changes_no_run():
    assert recipe("tariff.per_kwh=0.5").digest() == recipe().digest()
    with pytest.raises(RecipeError, match=r"tariff\.per_kwh"):
        recipe("tariff.per_kwh=-1")


def test_prices_that_are_not_wanted_are_not_mentioned(capsys):
    words = ["plan", "--no-prices", "--set", *FEW, "method.name=fedavg-lora"]
    assert invoke(words) == 0
    assert "price" not in "".join(capsys.readouterr())


def test_numbers_in_another_unit_are_said_first():
    setting = setting_of(recipe())
    loud = replace(setting.fleet, power_w=setting.fleet.power_w * 1e6)
    (said,) = plan_of(setting.on(loud)).warnings
    assert said.startswith("power_w of board-1 and 3 more is ")


def test_groups_count_every_device_and_hold_all_values():
    rows = plan_recipe(recipe()).devices
    mixed = [*rows[:3], replace(rows[3], cut=2), replace(rows[0], kind="other", fits=False)]
    groups = groups_of(mixed)
    assert [(one.kind, one.devices, one.fits) for one in groups] == [
        ("board", 3, 3),
        ("board", 1, 1),
        ("other", 1, 0),
    ]
    told = [replace(row, feasible=f"choice {at}", memory_bytes=at) for at, row in enumerate(rows)]
    assert groups_of(told[::-1])[0].feasible == ("choice 0", "choice 3")
    low, high = groups[0].ranges["finish_s"]
    assert low == min(row.finish_s for row in rows[:3])
    assert high == max(row.finish_s for row in rows[:3])
    assert span((float("nan"), float("nan")), lambda value: "-") == "-"


def test_what_cannot_train_is_said_first():
    setting = setting_of(recipe("method.name=fedavg-lora"))
    memory = setting.fleet.memory_bytes.copy()
    memory[0] = 0.6 * plan_of(setting).devices[0].peak_bytes
    said = plan_of(setting.on(replace(setting.fleet, memory_bytes=memory))).warnings
    assert "1 of 4 devices have too little memory to train: board-1 needs" in said[0]


def test_a_server_too_small_is_said_first():
    setting = setting_of(recipe("method.name=splitlora"))
    tiny = replace(setting.fleet, server=replace(setting.fleet.server, memory_bytes=1e5))
    (said,) = plan_of(setting.on(tiny)).warnings
    assert "the server has too little memory" in said
    assert plan_of(setting).warnings == ()

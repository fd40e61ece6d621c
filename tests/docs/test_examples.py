"""Every command, recipe and program that README and docs show does what the page says."""

import re
import shlex

import click
import pytest
import yaml
from tests.docs.conftest import QUICK, RUNS
from tests.docs.pages import ROOT, commands, examples

import airtune
from airtune.cli.main import invoke, program
from airtune.recipe import load_recipe

ELSEWHERE = ("server", "device", "operator", "agent", "status", "probe")
"""Verbs of a federation: tests/deploy runs them with a real server and agents."""
STAND_IN = {"Qwen/Qwen2.5-0.5B": "./base"}
"""A hub id cannot be fetched in a test."""
OWN_TEST = {"fleet.md": "tests/fleet/test_docs.py", "testbed.md": "tests/testbed"}


def words_of(command):
    return shlex.split(command.text)[1:]


def runs_here(command):
    words = words_of(command)
    return words[0] not in ELSEWHERE and "--server" not in words


def reads_evaluation_data(command):
    return "compare recipes/" in command.text


@pytest.mark.parametrize("command", commands(), ids=str)
def test_every_command_is_one_that_airtune_knows(command):
    verb = program()
    words = words_of(command)
    context = None
    while isinstance(verb, click.Group):
        context = verb.make_context(verb.name, list(words), parent=context, resilient_parsing=True)
        _, verb, words = verb.resolve_command(context, words)
    assert verb.make_context(verb.name, list(words), parent=context) is not None


def marks_of(page):
    """Return the mark of what a page runs: that of the README is in the gate."""
    return [] if page == "README.md" else [pytest.mark.slow]


def here():
    """Return the commands of one machine; studies, pruning and plans of many are for `make check-all`."""
    studies = ("compare", "sweep", "prune")

    def is_long(command):
        words = words_of(command)
        return words[0] in studies or any(
            word.startswith(("--pareto", "--quantile")) for word in words
        )

    return [
        pytest.param(c, id=str(c), marks=[pytest.mark.slow] if is_long(c) else marks_of(c.page))
        for c in commands()
        if runs_here(c) and not reads_evaluation_data(c)
    ]


@pytest.mark.parametrize("command", here())
def test_every_command_of_one_machine_ends_well(command, desk):
    pruned, dense = RUNS
    run = pruned if command.page == "fedspine.md" else dense
    words = [run if word == "RUN" else word for word in words_of(command)]
    if words[0] != "plan":
        words = [STAND_IN.get(word, word) for word in words]
    if words[0] == "init":
        (desk / "recipe.yaml").unlink()
    quick = (
        words[0] in ("run", "calibrate", "compare", "sweep", "prune") and "--resume" not in words
    )
    if quick or (words[0] == "plan" and "--device" not in words):
        words += ["--set", *QUICK]
    assert invoke(words) == 0


@pytest.mark.data
@pytest.mark.parametrize("command", [c for c in commands() if reads_evaluation_data(c)], ids=str)
def test_every_command_of_the_results_runs_on_a_small_share(command, small_share):
    words = words_of(command)
    assert invoke([*words, "--seeds", "0", *small_share(words[1])]) == 0


@pytest.mark.data
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_runs_on_a_small_share(path, small_share):
    assert invoke(["run", str(path), *small_share(path)]) == 0


def recipes():
    return [one for one in examples() if one.kind == "yaml" and one.page not in OWN_TEST]


@pytest.mark.parametrize("example", recipes(), ids=str)
def test_every_recipe_of_a_page_is_read(example, desk):
    (desk / "page.yaml").write_text(example.text)
    load_recipe(desk / "page.yaml")


@pytest.mark.parametrize("example", recipes(), ids=str)
def test_every_recipe_of_a_page_runs(example, desk):
    (desk / "page.yaml").write_text(example.text)
    recipe = load_recipe(desk / "page.yaml")
    if recipe.data.source == "devices":
        return  # the data of real devices, which are elsewhere
    words = ["run", "page.yaml", "--set", *QUICK]
    assert invoke(words) == 0


@pytest.mark.parametrize("page", OWN_TEST)
def test_pages_with_a_test_of_their_own_have_it(page):
    assert (ROOT / OWN_TEST[page]).exists()


def programs():
    return [
        pytest.param(one, id=str(one), marks=marks_of(one.page))
        for one in examples()
        if one.kind == "python" and not re.match(r">>>|# mine\.py", one.text)
    ]


@pytest.mark.parametrize("example", programs())
def test_every_program_of_a_page_runs(example, desk, monkeypatch):
    def quick(source, overrides=()):
        return load_recipe(source, overrides=[*overrides, *QUICK])

    monkeypatch.setattr(airtune, "load_recipe", quick)
    exec(compile(example.text, str(example), "exec"), {})  # the page's own words


def test_a_page_that_shows_yaml_shows_a_mapping():
    shown = [yaml.safe_load(one.text) for one in examples() if one.kind == "yaml"]
    assert shown
    assert all(isinstance(block, dict) for block in shown)

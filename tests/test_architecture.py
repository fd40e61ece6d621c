"""Imports between the rooms point down only, and the numeric rooms stay numeric."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "airtune"

ROOMS = (
    "errors", "units", "keys", "plan", "records", "wire", "fleet", "cost", "solve", "codec", "model",
    "work", "split", "methods", "data", "report", "engine", "loop", "recipe", "calibrate", "run", "planner",
    "compare", "deploy", "cli", "__main__",
)  # fmt: skip
"""From the lowest to the highest; a room may import those before it."""

ABOVE = {"app", "preflight"}
"""Files of `deploy` that put its rooms together; its other files are below them."""

NUMERIC = ("plan", "records", "fleet", "cost", "solve", "methods", "report")
HEAVY = {"torch", "transformers", "peft", "datasets", "safetensors"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def statements_of(path):
    found = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in found:  # which grows
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            found.extend(getattr(node, part, ()))
    return found


def imports(path):
    """Every module named by an import statement of a file, wherever it stands."""
    for node in statements_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module is not None or node.names
            if node.level:
                yield f"airtune.{room_of(path)}"
            elif node.module == "airtune":
                yield from (f"airtune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def edges():
    for path in modules():
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "airtune" and len(parts) > 1 and room_of(path) != parts[1]:
                yield room_of(path), parts[1], path.relative_to(PACKAGE)


def test_every_module_is_in_a_known_room():
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= set(ROOMS), f"rooms without a place: {rooms - set(ROOMS)}"


def test_imports_point_down():
    rank = {room: place for place, room in enumerate(ROOMS)}
    upward = [
        f"{path}: {room} imports {target}"
        for room, target, path in edges()
        if room != "__init__" and rank[target] >= rank[room]
    ]
    assert not upward, "\n".join(upward)


def test_server_and_agent_are_two_rooms():
    """Inside `deploy`: shared files, a federated run, the server above it, the agent beside them."""
    may = {"": set(), "federation": {""}, "server": {"", "federation"}, "agent": {""}}
    wrong = []
    for path in modules():
        if room_of(path) != "deploy" or path.stem in ABOVE:
            continue
        inside = path.relative_to(PACKAGE / "deploy").parts
        own = inside[0] if len(inside) > 1 else ""
        for name in imports(path):
            parts = name.split(".")[2:] if name.startswith("airtune.deploy.") else []
            target = parts[0] if parts and parts[0] in may else ""
            if parts and ((target != own and target not in may[own]) or parts[0] in ABOVE):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", [*NUMERIC, "recipe", "errors", "units", "keys"])
def test_numeric_rooms_import_no_torch(room):
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        if room_of(path) == room
        for name in imports(path)
        if name.split(".")[0] in HEAVY
    ]
    assert not found, "\n".join(found)


def first_that_loads(package, modules):
    """Return the first of these modules that loads a package, which one process imports in turn."""
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module("airtune." + module)
    if "{package}" in sys.modules:
        sys.exit(module)
"""
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    ).stderr


def test_importing_what_counts_or_waits_loads_no_torch():
    waiting = ["wire.tasks", "deploy.agent.agent", "deploy.server.front"]
    assert first_that_loads("torch", [*NUMERIC, *waiting]) == ""
    assert first_that_loads("numpy", ["errors", "records"]) == "records\n"


def test_a_command_that_solves_nothing_does_not_wait_for_scipy():
    assert first_that_loads("scipy", ["fleet", "cli.main"]) == ""


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("flwr", {("deploy", "app.py")}),
        ("ray", set()),
        ("grpc", {"wire", ("engine", "stream"), "deploy"}),
    ],
)
def test_distribution_stays_in_its_folder(package, allowed):
    users = {
        path.relative_to(PACKAGE).parts[:2]
        for path in modules()
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert not {user for user in users if user not in allowed and user[0] not in allowed}


def test_only_the_registry_names_methods_to_the_loop():
    names = {"loop", "engine"}
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        if room_of(path) in names
        for name in imports(path)
        if name.startswith("airtune.methods")
    ]
    assert not found, "\n".join(found)


def test_nothing_is_unpickled():
    forbidden = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not found, "\n".join(found)


def test_files_and_functions_stay_small():
    long = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{path.relative_to(PACKAGE)}: {text.count(chr(10))} lines")
        long += [
            f"{path.relative_to(PACKAGE)}:{node.name} {steps_of(node)} lines"
            for node in statements_of(path)
            if isinstance(node, ast.FunctionDef) and steps_of(node) > 70
        ]
    assert not long, "\n".join(long)


def steps_of(function: ast.FunctionDef) -> int:
    """Lines of a function behind its signature and docstring."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    first = function.body[1] if documented else function.body[0]
    return function.end_lineno - first.lineno + 1

"""The public names: a dozen or so, sorted, importable, and free until they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import airtune


def test_names_are_sorted_and_few():
    assert airtune.__all__ == sorted(airtune.__all__)
    assert len(airtune.__all__) <= 14


@pytest.mark.parametrize("name", airtune.__all__)
def test_every_name_can_be_imported_and_is_documented(name):
    assert getattr(airtune, name).__doc__


def test_every_name_is_the_one_of_its_module():
    assert set(airtune._HOMES) == set(airtune.__all__)
    assert dir(airtune) == airtune.__all__


def test_every_name_is_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert not [name for name in airtune.__all__ if f"`{name}`" not in text]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        airtune.nothing  # noqa: B018


def test_no_name_is_hidden_by_a_module():
    """After `import airtune.run` the name `airtune.run` is the module, so no function is called so."""
    modules = {path.stem for path in Path(airtune.__file__).parent.iterdir()}
    assert not modules & set(airtune.__all__)


def test_importing_is_fast_and_loads_no_torch():
    code = (
        "import time; start = time.perf_counter(); import airtune; spent = time.perf_counter() - start\n"
        "import sys; heavy = {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'{spent:.2f} s, {heavy}' if spent > 0.3 or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

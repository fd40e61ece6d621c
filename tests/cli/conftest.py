"""A recipe that runs in a second, and one finished run of it."""

import pytest

from airtune.cli.main import invoke

TINY = """\
data: {limit: 60, test_limit: 10, max_length: 40}
train: {rounds: 2, local_steps: 1, per_device_train_batch_size: 2}
fleet: {devices: 3}
method: {name: fedavg-lora}
calibration: {rounds: 2, devices: 2, budgets: [0.3]}
threads: 1
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run; tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    assert (
        invoke(["run", str(folder / "tiny.yaml"), "--folder", str(folder / "run"), "--json"]) == 0
    )
    return folder / "run"


@pytest.fixture
def airtune(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*words):
        capsys.readouterr()
        code = invoke([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call

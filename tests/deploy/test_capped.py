"""A device whose memory is capped below the whole model trains its part of it, by the system's cap."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")
from airtune.data import EMBEDDED_MODEL
from airtune.deploy.memory import floor_bytes
from airtune.records import read_run
from airtune.units import MIB

pytestmark = pytest.mark.slow
LONG_S = 1800
BLOCKS, LEFT_BYTES = 6, 170 * MIB
RECIPE = """
name: capped
model: {{source: {model}}}
train: {{rounds: 2, local_steps: 2, per_device_train_batch_size: 2}}
data: {{limit: 40, test_limit: 4, max_length: 48}}
method: {{name: {method}}}
threads: 1
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 300 MB, a sixth of it in each block, with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(EMBEDDED_MODEL, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=AutoConfig.from_pretrained(EMBEDDED_MODEL).vocab_size,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=BLOCKS,
        num_attention_heads=16,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Site:
    """A server on loopback, and one agent under a cap."""

    def __init__(self, folder: Path, cap_bytes: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self.airtune(
            "server",
            "start",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--state",
            str(folder / "state"),
            "--detach",
        )
        self.log = (folder / "agent.log").open("wb")
        words = [
            "agent",
            "--insecure",
            "--name",
            "small",
            "--server",
            f"127.0.0.1:{self.port}",
            "--data",
            "recipe",
            "--memory",
            f"{int(cap_bytes)}",
            "--compute",
            "cpu",
        ]
        self.agent = subprocess.Popen(
            [sys.executable, "-m", "airtune.cli", *words],
            cwd=folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )

    def airtune(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "airtune.cli", *words],
            cwd=self.folder,
            text=True,
            capture_output=True,
            check=False,
            timeout=LONG_S,
            env=_environment(),
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.said()
        return done

    def run(self, model: Path, method: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "recipe.yaml").write_text(RECIPE.format(model=model, method=method))
        return self.airtune(
            "run",
            "recipe.yaml",
            "--server",
            f"127.0.0.1:{self.port}",
            "--insecure",
            "--json",
            check=False,
        )

    def said(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        self.agent.terminate()
        self.agent.wait(120)
        self.log.close()
        self.airtune("server", "stop", "--state", str(self.folder / "state"), check=False)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), floor_bytes() + LEFT_BYTES)
    yield made
    made.close()


def test_below_the_whole_model_a_part_trains(site: Site, model: Path) -> None:
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert size > 1.5 * LEFT_BYTES
    done = site.run(model, "splitlora")
    assert done.returncode == 0, done.stdout + done.stderr + site.said()
    [header] = (site.folder / "state").rglob("run.json")
    record = read_run(header.parent)
    devices = record.devices
    assert devices["status"].tolist() == ["ok", "ok"]
    assert devices["cut"].tolist() == [1, 1]
    assert (devices["peak_bytes"] < LEFT_BYTES).all()
    assert (devices["peak_bytes"] > size / BLOCKS).all()
    assert record.results is not None
    assert record.results["test"]["loss"] > 0


def test_the_whole_model_does_not_fit(site: Site, model: Path) -> None:
    done = site.run(model, "fedavg-lora")
    assert done.returncode != 0
    assert "memory" in done.stdout + done.stderr + site.said()

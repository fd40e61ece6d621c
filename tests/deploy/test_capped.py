"""A device whose memory is capped below the whole model trains its part of it, by the system's cap."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")
from tests.deploy.conftest import Site

from airtune.data import EMBEDDED_MODEL
from airtune.deploy.memory import floor_bytes
from airtune.records import read_run
from airtune.units import MIB

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on loopback, and one agent under a cap."""
    made = Site(tmp_path_factory.mktemp("site"))
    cap = ("--memory", f"{int(floor_bytes() + LEFT_BYTES)}", "--compute", "cpu")
    try:
        port = ("--host", "127.0.0.1", "--port", str(made.port))
        started = made.airtune("server", "start", "--insecure", *port, "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        made.start_agent("small", "--insecure", "--name", "small", *cap, home=made.folder)
        yield made
    finally:
        made.close()


def run(site: Site, model: Path, method: str) -> subprocess.CompletedProcess[str]:
    (site.folder / "recipe.yaml").write_text(RECIPE.format(model=model, method=method))
    return site.airtune("run", "recipe.yaml", "--server", site.address, "--insecure", "--json")


def test_below_the_whole_model_a_part_trains(site: Site, model: Path) -> None:
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert size > 1.5 * LEFT_BYTES
    done = run(site, model, "splitlora")
    assert done.returncode == 0, done.stdout + done.stderr + site.said()
    [header] = site.state.rglob("run.json")
    record = read_run(header.parent)
    devices = record.devices
    assert devices["status"].tolist() == ["ok", "ok"]
    assert devices["cut"].tolist() == [1, 1]
    assert (devices["peak_bytes"] < LEFT_BYTES).all()
    assert (devices["peak_bytes"] > size / BLOCKS).all()
    assert record.results is not None
    assert record.results["test"]["loss"] > 0


def test_the_whole_model_does_not_fit(site: Site, model: Path) -> None:
    done = run(site, model, "fedavg-lora")
    assert done.returncode != 0
    assert "memory" in done.stdout + done.stderr + site.said()

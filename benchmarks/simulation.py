"""One small federation, run by a whole process: 20 clients, 3 rounds of 4 LoRA steps.

    python -m benchmarks.simulation make FOLDER      write the base model
    python -m benchmarks.simulation airtune FOLDER   run it by the local engine
    python -m benchmarks.simulation flower FOLDER    run it by Flower's simulation and peft

Base, data, batches, first adapters and optimiser are the same; each prints the training loss of
each round as one line of JSON. Flower's clients keep their base and peft model from call to call,
as a careful user would write them.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

from airtune.cost import llama_like
from airtune.plan import ModelShape, Workload

CLIENTS, ROUNDS, SEED = 20, 3, 0
EXAMPLES, VOCAB = 64, 512
WIDTH, FFN, BLOCKS, HEADS, GROUPS = 128, 344, 4, 4, 2
LEARNING_RATE, CLIP, ALPHA = 1e-3, 1.0, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WORKLOAD = Workload(batch=4, tokens=64, local_steps=4, rank=8, lora_targets=TARGETS)


def shape() -> ModelShape:
    """Return the base's shape."""
    return llama_like(
        "llama",
        blocks=BLOCKS,
        width=WIDTH,
        heads=HEADS,
        kv_groups=GROUPS,
        head_dim=WIDTH // HEADS,
        ffn=FFN,
        vocab=VOCAB,
        tied=True,
    )


def tokens_of(client: int) -> tuple[np.ndarray, ...]:
    """Return the examples of a client: full-length sequences with something to learn in them."""
    draw = np.random.default_rng((SEED, client))
    return tuple(
        (draw.integers(VOCAB) + draw.integers(1, 5) * np.arange(WORKLOAD.tokens)) % VOCAB
        for _ in range(EXAMPLES)
    )


def make(folder: Path) -> None:
    """Write the base model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=BLOCKS,
        vocab_size=VOCAB,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")


def run_airtune(folder: Path) -> list[float]:
    """Run the federation by the local engine, with records and checkpoints."""
    from transformers import AutoModelForCausalLM

    from airtune.data.federated import DeviceData, FederatedData
    from airtune.engine.base import EngineSettings
    from airtune.engine.virtual import local_engine
    from airtune.fleet import load_fleet
    from airtune.loop import LoopSettings, Run, begin, run_rounds
    from airtune.methods import build_method
    from airtune.model.base import base_of
    from airtune.model.batch import Sequences
    from airtune.model.state import initial_state
    from airtune.plan import Problem
    from airtune.records import RunWriter
    from airtune.work.jobs import TrainSettings

    base = base_of(AutoModelForCausalLM.from_pretrained(folder / "base"))
    rows = [tokens_of(client) for client in range(CLIENTS)]
    nothing, test = Sequences((), ()), Sequences(rows[0][:4], rows[0][:4])
    devices = tuple(DeviceData(Sequences(row, row), nothing) for row in rows)
    data = FederatedData(devices, test, (), {}, {})
    fleet = load_fleet("pocket", devices=CLIENTS, seed=SEED)
    profiles = fleet.profiles(np.full(CLIENTS, EXAMPLES))
    problem = Problem(base.shape, profiles, WORKLOAD, ROUNDS, SEED)
    method = build_method("fedavg-lora")
    settings = EngineSettings(
        train=TrainSettings(
            learning_rate=LEARNING_RATE, max_grad_norm=CLIP, scale=ALPHA / WORKLOAD.rank
        ),
        threads=2,
    )
    engine = local_engine(
        fleet, problem, base, data, needs=method.decider.needs, work=method.work, settings=settings
    )
    losses: list[float] = []
    writer = RunWriter.create(folder / "run", {"name": "federation"})
    run = Run(method, problem, engine, writer, "federation", LoopSettings(evaluate_every=0))
    start = begin(run, initial_state(base, WORKLOAD, SEED))
    run_rounds(run, start, on_round=lambda record: losses.append(record["train_loss"]))
    return losses


@cache
def _peft_model(folder: str) -> tuple[object, dict[str, object]]:
    """Return this process's peft model and its factors by our names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(Path(folder) / "base"),
        LoraConfig(r=WORKLOAD.rank, lora_alpha=ALPHA, target_modules=list(TARGETS)),
    )
    factors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parts = name.split(".")
            factors[f"{parts[parts.index('layers') + 1]}.{parts[-4]}.{parts[-3][-1]}"] = parameter
    return model, factors


def _train_with_peft(folder: str, round: int, client: int, arrays: dict[str, np.ndarray]) -> float:
    """Train one client; its factors are then in the process's model. Returns the last loss."""
    import torch

    from airtune.work.batches import round_batches

    torch.set_num_threads(1)
    model, factors = _peft_model(folder)
    with torch.no_grad():
        for name, parameter in factors.items():
            parameter.copy_(torch.from_numpy(arrays[name]))
    rows = np.stack(tokens_of(client))
    optimiser = torch.optim.AdamW(factors.values(), lr=LEARNING_RATE, weight_decay=0.0)
    loss = torch.zeros(())
    for drawn in round_batches(
        EXAMPLES,
        steps=WORKLOAD.local_steps,
        batch=WORKLOAD.batch,
        seed=SEED,
        round=round,
        device=client,
    ):
        ids = torch.from_numpy(rows[drawn])
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors.values(), CLIP)
        optimiser.step()
    return float(loss.detach())


def run_flower(folder: Path) -> list[float]:
    """Run the federation by Flower's simulation: two workers, federated averaging."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from airtune.model.lora import init_adapters

    first = init_adapters(shape(), WORKLOAD, SEED)
    place, losses = str(folder), []
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        round = int(message.content["config"]["server-round"]) - 1
        arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
        loss = _train_with_peft(place, round, client, arrays)
        trained = {k: v.detach() for k, v in _peft_model(place)[1].items()}
        content = {
            "arrays": ArrayRecord(trained),
            "metrics": MetricRecord({"loss": loss, "num-examples": EXAMPLES}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=CLIENTS,
            min_available_nodes=CLIENTS,
        )
        done = strategy.start(grid=grid, initial_arrays=ArrayRecord(first), num_rounds=ROUNDS)
        losses.extend(float(row["loss"]) for row in done.train_metrics_clientapp.values())

    run_simulation(
        server_app, client_app, CLIENTS, backend_config={"client_resources": {"num_cpus": 1}}
    )
    return losses


if __name__ == "__main__":
    # imported anew by name, so that Flower's workers import it too instead of unpickling a copy
    from benchmarks import simulation

    _, what, where = sys.argv
    runs = {"airtune": simulation.run_airtune, "flower": simulation.run_flower}
    if what == "make":
        simulation.make(Path(where))
    else:
        print(json.dumps(runs[what](Path(where))))

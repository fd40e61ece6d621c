"""The small recipe of the tests of comparisons."""

from airtune.recipe import load_recipe

TINY = [
    "data.limit=60",
    "data.test_limit=10",
    "data.max_length=40",
    "fleet.devices=3",
    "train.rounds=1",
    "train.local_steps=1",
    "train.per_device_train_batch_size=2",
    "threads=1",
    "method.name=fedavg-lora",
]


def recipe(*overrides):
    return load_recipe(overrides=[*TINY, *overrides])

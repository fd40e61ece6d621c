"""The commented recipe that `airtune init` writes."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

_TEMPLATE = """\
# This recipe describes a whole run.
#   check:     airtune plan {file}      (no weights, no training)
#   run:       airtune run {file}
#   compare:   airtune compare {file} --methods jcpba,fedavg-lora --seeds 0,1,2
#   override:  airtune run {file} --set train.rounds=5 lora.r=4      (any key, for one command)
#
# A key that is left out has the value in its comment. Paths are relative to the folder of the command.

# name: ""               # end of the run folder's name; default: the method's
seed: 0                  # decides all random draws: fleet, channels, partition, batches, adapters

model:
  source: {model}
  # revision: null       # branch, tag or commit of a hub id
  dtype: float32         # float32, bfloat16, float16
  device: auto           # where this machine computes: auto, cpu, cuda
  load_in_4bit: false    # hold the base in 4 bits (CUDA; pip install 'airtune[quantised]')
  # allow_pickle: false  # read weights that are there only as pickles, which can run code
  # stage: none          # server = real devices that lack the base fetch it from the server

lora:
  r: 8                   # rank, for methods that do not choose one
  lora_alpha: 16         # the scale is lora_alpha / r
  target_modules: all-linear   # or a list: [q_proj, v_proj]
  lora_dropout: 0.0

data:
  source: {data}
  task: {task}           # causal-lm (loss on the completion only), classification, image-classification
  {columns}
  # test: null           # file or folder; default: what the source names test, else test_share of it
  # test_share: 0.1
  # limit: null          # most training rows; test_limit likewise
  # test_limit: null
  # subset: null         # of a hub id; likewise split, test_split, revision
  # split: train
  # test_split: null
  # revision: null
  {encoding}
  max_length: {max_length}        # tokens; longer texts are cut, and counted
  # template: null       # text with {{prompt}} and {{completion}}; default: the tokenizer's
  # packing: false       # join short texts up to max_length (causal-lm)
  # labels: []           # classes in the order of their ids; default: sorted
  partition: dirichlet   # how rows are dealt to devices: iid, dirichlet, shards
  alpha: 0.5             # of dirichlet; smaller = devices more unlike
  # shards: 2            # of shards: label shards a device gets
  # clusters: length     # groups rows that have no label: length, first-word
  # min_rows: 2          # rows every device gets at the least
  held_out: 0.1          # share of a device's rows kept for validation

train:
  rounds: 20
  local_steps: 5         # optimiser steps of a device in a round
  # steps: fixed         # deadline = each device does as many as fit into a time that is learnt
  per_device_train_batch_size: 8
  learning_rate: {learning_rate}   # AdamW
  decay: 0.2             # part of the learning rate that is left at the end; falls linearly; 1 = all
  server_average: 0.9    # evaluate and export a running mean of the server's weights; 0 = the last
  # async_buffer: 0      # updates with which an asynchronous round ends; 0 = rounds wait for all
  # server_momentum: 0.0 # part of a round's change that the server adds to the next
  # seconds: null        # budget on the run's clock, beside rounds
  # weight_decay: 0.0
  # max_grad_norm: 1.0   # 0 = never scaled down
  gradient_checkpointing: {checkpointing}   # less memory, more FLOPs
  # distill: 0.0         # how much the dense base's logits count while a slice trains; 0.5 for instance
  # mend: mean           # what compensates for pruned structures: none, mean, least-squares
  loss_chunk: {loss_chunk}          # positions whose logits exist at a time; 0 = all

fleet:
  source: {fleet}        # airtune list fleets; or a YAML file of your own
  {devices}
  # seed: null           # draws the devices; default: the recipe's seed
  # bandwidth_mhz: 1.0   # of the fleet's one shared radio link, up and down; default: as it says
  # participation: 1.0   # fraction of the available devices asked in a round
  # availability: 1.0    # probability that a device's link is up in a round
  # dropout: 0.0         # probability that a device vanishes within a round
  # learn: true          # learn true speeds where the fleet says that they differ from the declared

method:
  name: {method}         # airtune list methods; settings of the method follow as keys here

# target:                # fix it before the run; reports say when it was reached
#   metric: loss         # loss, perplexity (causal-lm); loss, accuracy (else)
#   value: 1.0
#   stop: false          # end the run when it is reached

# quality_budget: null   # 2% for instance: loss that pruning may cost; default: by time alone
# deadline_s: null       # a round ends then; later updates are dropped

evaluation:
  every: 1               # rounds between validations
  # exact_match: false   # generate answers of the test set and compare what follows ####
  # max_new_tokens: 128
  # leakage: false       # after a split run: what an attacker can read from what crossed the cut

# calibration:           # short runs that measure what pruning and ranks cost, then stored
#   rounds: 8
#   devices: 6
#   budgets: [0.15, 0.35]
#   uploads: [{{kind: fp16}}, {{kind: deadzone, step: 0.75}}]   # that `auto` may choose for updates

upload:                  # how updates are coded on the wire, for every method; this: a byte a number
  kind: topk             # identity = 4 bytes a number, fp16, topk, deadzone
  keep: 1.0              # of topk: fraction of entries kept
  bits: 8                # of topk: bits of a kept level
  # step: 0.75           # of deadzone: quantiser step in standard deviations
  # feedback: false      # add what coding lost to the next update

download:                # how the adapters sent to devices are coded, for every method
  kind: topk             # identity = all adapters; any other kind only those that some device keeps
  keep: 1.0
  bits: 8
  # step: 0.75           # of deadzone: quantiser step in standard deviations

# protection:            # against dishonest devices, and for privacy
#   clip_norm: 0.0       # largest norm of an update's difference to the broadcast; 0 = not clipped
#   aggregate: krum      # trimmed-mean or krum, for methods whose updates are of one shape
#   trim: 0.1            # of trimmed-mean: left out at either end
#   liars: 1             # of krum: number of dishonest devices to withstand
#   noise: 0.0           # Gaussian, in units of clip_norm over the number of updates
#   delta: 1.0e-5        # for which the epsilon of the noise is computed

# limits:                # limits for every method
#   device_bytes_per_month: 500MB   # sent and received by a device in 30 days of the run
#   joules_per_round: 200           # energy of a device in a round, by the cost model

# tariff:                # prices for airtune plan; they change no run
#   per_kwh: 0.30        # of what devices draw
#   per_gb: 2.00         # of what crosses a link, either way
#   currency: EUR

# split:                 # the short measurement of what compressing a cut costs, for split methods
#   codecs: [{{kind: fp16}}, {{kind: deadzone, step: 0.75}}, {{kind: topk, keep: 0.1, bits: 4}}]
#   cuts: []             # where distortion is measured; default: up to four, spread over the model
#   rounds: 4
#   devices: 4
#   micro_batches: 1     # of a real device's batch: one computes while another crosses

# compare:               # what airtune compare runs unless told otherwise
#   methods: [jcpba, fedavg-lora, best-bandwidth]
#   seeds: [0]
#   baseline: fedavg-lora

# threads: 0             # CPU threads, 0 = torch's choice
# output: runs           # where run folders are made
"""

_SMALL = {
    "max_length": "256", "learning_rate": "0.003", "checkpointing": "false", "loss_chunk": "0",
    "fleet": "pocket",
}  # fmt: skip
_LARGE = {
    "max_length": "512", "learning_rate": "0.0003", "checkpointing": "true", "loss_chunk": "256",
    "fleet": "orin-6-sites",
}  # fmt: skip


def commented_recipe(
    *,
    file: str,
    model: str | None,
    data: str,
    task: str,
    method: str,
    fleet: str | None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    max_length: int | None = None,
    devices: int | None = None,
) -> str:
    """Return a recipe with a comment on every key.

    Args:
        file: what the recipe is called, for the commands in its first lines.
        model: hub id or folder; None = the shipped model, with settings that suit its size.
        data: `data.source`.
        task: "causal-lm", "classification" or "image-classification".
        method: `method.name`.
        fleet: `fleet.source`; None = one that suits the model.
        columns: `data.columns`; None = found by their usual names.
        encoding: `data.encoding`; None = UTF-8.
        max_length: `data.max_length`; None = one that suits the model.
        devices: `fleet.devices`; None = as the fleet says.
    """
    values: Mapping[str, str] = dict(_SMALL if model is None else _LARGE)
    roles = {
        "classification": "{text: text, label: label}",
        "image-classification": "{image: image, label: label}",
    }.get(task, "{prompt: question, completion: answer}")
    mapped = _scalar(dict(columns)) if columns else roles
    return _TEMPLATE.format(
        file=file,
        columns=_said(
            "columns", mapped, bool(columns), "role: column; usual names are found without it"
        ),
        encoding=_said(
            "encoding",
            encoding or "null",
            encoding is not None,
            "of text without a byte order mark, cp1252 for instance; default: UTF-8",
        ),
        devices=_said(
            "devices",
            str(devices or "null"),
            devices is not None,
            "how many; default: as the fleet says",
        ),
        **{
            **values,
            **({} if max_length is None else {"max_length": str(max_length)}),
            "model": _scalar(model or "embedded"),
            "data": _scalar(data),
            "task": task,
            "method": _scalar(method),
            "fleet": _scalar(fleet or values["fleet"]),
        },
    )


def default_fleet(model: str | None) -> str:
    """Return `fleet.source` for a model of this name; None = the shipped one."""
    return (_SMALL if model is None else _LARGE)["fleet"]


def _said(key: str, value: str, is_set: bool, comment: str) -> str:
    """Return a line of the template: the key where it is set, else as a comment."""
    line = f"{key}: {value}"
    return f"{line}   # {comment}" if is_set else f"# {line}   # {comment}"


def _scalar(value: str | dict[str, str]) -> str:
    """Return a value in one line as YAML would have it, quoted where it must be."""
    return yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    ).splitlines()[0]

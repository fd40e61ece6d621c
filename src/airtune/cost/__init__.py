"""What an assignment costs on a device: FLOPs, bytes, seconds, memory and joules; numpy only."""

from airtune.cost.delay import SplitTimes, gradient_bps, split_times, transfer_s, turn_share
from airtune.cost.encoders import bert_like, modernbert_like, vit_like
from airtune.cost.energy import energy_j
from airtune.cost.flops import forward_flops, train_flops
from airtune.cost.grams import GRAM_RANK, direction_flops, gram_bytes, gram_flops, gram_peak_bytes
from airtune.cost.holding import blocks_held, cut_peaks, cut_rows, cut_weights, dense_pass_bytes
from airtune.cost.least import alone_j, least_j
from airtune.cost.levels import Ladder, ladder
from airtune.cost.memory import Memory, peak_memory, saved_bytes
from airtune.cost.most import most_bytes, most_upload_bytes, stream_bytes
from airtune.cost.path import Order, PruningPath, counts_for, most_pruned, pruning_path
from airtune.cost.payload import (
    base_bytes,
    broadcast_bytes,
    download_bytes,
    lora_parameters,
    trained_parameters,
    upload_bytes,
    widest,
)
from airtune.cost.prediction import Prediction, predict
from airtune.cost.presets import known_shapes
from airtune.cost.shapes import gpt2_like, llama_like
from airtune.cost.speed import SpeedProfile, TimedModel, achieved_flops_per_s, fit_speed
from airtune.cost.split import SplitCost, line_cost, server_model_bytes, split_cost

__all__ = [
    "GRAM_RANK",
    "Ladder",
    "Memory",
    "Order",
    "Prediction",
    "PruningPath",
    "SpeedProfile",
    "SplitCost",
    "SplitTimes",
    "TimedModel",
    "achieved_flops_per_s",
    "alone_j",
    "base_bytes",
    "bert_like",
    "blocks_held",
    "broadcast_bytes",
    "counts_for",
    "cut_peaks",
    "cut_rows",
    "cut_weights",
    "dense_pass_bytes",
    "direction_flops",
    "download_bytes",
    "energy_j",
    "fit_speed",
    "forward_flops",
    "gpt2_like",
    "gradient_bps",
    "gram_bytes",
    "gram_flops",
    "gram_peak_bytes",
    "known_shapes",
    "ladder",
    "least_j",
    "line_cost",
    "llama_like",
    "lora_parameters",
    "modernbert_like",
    "most_bytes",
    "most_pruned",
    "most_upload_bytes",
    "peak_memory",
    "predict",
    "pruning_path",
    "saved_bytes",
    "server_model_bytes",
    "split_cost",
    "split_times",
    "stream_bytes",
    "train_flops",
    "trained_parameters",
    "transfer_s",
    "turn_share",
    "upload_bytes",
    "vit_like",
    "widest",
]

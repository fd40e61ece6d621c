"""Loading a base model from the hub or a folder, frozen and ready to be sliced and adapted.

The Hugging Face environment (`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`) is obeyed because its own
loaders are used. The base's own dropout is switched off, so that what a device learns does not
depend on whom it is batched with; LoRA's dropout is the one that regularises.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from airtune.errors import ModelError
from airtune.model.admission import agree_
from airtune.model.classes import class_names, name_classes_
from airtune.model.families import Config, Family, family_of, shape_from_config
from airtune.model.frame import ImageFormat
from airtune.model.gguf.source import is_gguf, loader_arguments, settle_
from airtune.model.quantised import require_bitsandbytes
from airtune.model.refusals import check_finite, refuse_generation, refuse_pickled
from airtune.model.screen import off_screen
from airtune.model.source import Tokenizer, load_config, load_tokenizer, reading
from airtune.plan import ModelShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOADING = Lock()
_SAMPLED = 4096
"""Numbers of a tensor that enter the fingerprint."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen network and what is known of it."""

    network: PreTrainedModel
    shape: ModelShape
    family: Family
    tokenizer: Tokenizer | None
    """None only for a network that was made in memory."""
    source: str
    """Hub id or folder it came from."""
    fingerprint: str
    """Hash that server and device compare: names, shapes and a sample of every weight."""
    frame: ImageFormat | None = None
    """How it wants its images; None for a model of texts."""
    drawn: tuple[str, ...] = ()
    """Modules beside the head that the weights did not hold and that were drawn, as a pooler is."""
    held: int | None = None
    """Blocks that are here, from the first on; None = all, and the head."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.network.device)


def load_base(
    source: str | Path,
    *,
    labels: int = 0,
    classes: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    load_in_4bit: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> BaseModel:
    """Load a base model with its tokenizer, and settle what they must agree on.

    Args:
        source: Hub id, local folder, or GGUF file.
        labels: Number of classes; 0 = a language model. A classification head that the weights do
            not hold, or hold for another number of classes, is drawn anew, always the same one.
        classes: Their names in the order of their ids, for the model's config; () = as it has them.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" (or "cuda:1"), or "auto" = cuda where there is one.
        load_in_4bit: Hold the linear layers of the base in 4 bits (NF4, by bitsandbytes).
        revision: Branch, tag or commit on the hub.
        allow_pickle: Read weights that are there as pickles only (`pytorch_model.bin`).

    Raises:
        ModelError: if the model or its tokenizer cannot be found or read, is of no supported family
            or not finite, is pickled and must not be, or the dtype or the device is not there.
        MissingExtraError: if 4 bits are asked for and bitsandbytes is not installed, or the source is
            a GGUF file and gguf is not.
    """
    if dtype not in DTYPES:
        raise ModelError(
            f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}; set model.dtype"
        )
    if load_in_4bit and is_gguf(source):
        raise ModelError(
            f"{source} is a GGUF file, which is not held in 4 bits anew; leave out model.load_in_4bit"
        )
    torch_device = torch_device_of(device)
    config = load_config(source, revision)
    # refuses what cannot be loaded before the weights are
    blocks = shape_from_config(config, labels=labels).blocks
    if not allow_pickle:
        refuse_pickled(source)
    _check_generation(source, config, revision, labels)
    quantisation = _quantisation(DTYPES[dtype]) if load_in_4bit else None
    tokenizer = load_tokenizer(source, classifies=labels > 0, revision=revision)
    loader = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    choices: dict[str, object] = {
        "use_safetensors": None if allow_pickle else True,
        "ignore_mismatched_sizes": True,  # judged by `check_complete`
    }
    if labels:
        choices["num_labels"] = labels
    if is_gguf(source):
        config.num_labels = labels or config.num_labels
        choices = {"config": config}
    if quantisation is not None:
        choices |= {"quantization_config": quantisation, "device_map": {"": torch_device}}
    with reading(source), loading():
        network, report = loader.from_pretrained(
            **loader_arguments(source),
            revision=revision,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            trust_remote_code=False,
            **choices,
        )
    if is_gguf(source):
        report["missing_keys"] = settle_(network, report["missing_keys"])
    check_complete(report, family_of(config), source, classifies=labels > 0)
    _check_depth(report["unexpected_keys"], family_of(config), blocks, source)
    check_finite(network, str(source))
    agree_(network, tokenizer)
    if classes:
        name_classes_(network, classes)
    if quantisation is None:
        network = network.to(torch_device)
    base = base_of(network, tokenizer=tokenizer, source=str(source))
    return replace(base, drawn=drawn_modules(report, base.family))


def _check_generation(
    source: str | Path, config: Config, revision: str | None, labels: int
) -> None:
    """Refuse settings that would stop the loading of a model that writes texts."""
    if not labels:
        with off_screen():
            refuse_generation(source, config, revision)


def drawn_modules(report: Mapping[str, set[Any]], family: Family) -> tuple[str, ...]:
    """Return the modules beside the head that have a parameter which was drawn."""
    names = (name for name in report["missing_keys"] if _may_be_drawn(name, family))
    beside = {name for name in names if not name.startswith(family.heads)}
    pooler = f"{family.backbone}.pooler"
    return tuple(
        sorted({pooler if name.startswith(pooler) else name.partition(".")[0] for name in beside})
    )


def _may_be_drawn(name: str, family: Family) -> bool:
    """Return whether a checkpoint of the bare backbone lacks it: the task's layers, and a pooler."""
    inner = f"{family.backbone}."
    return not name.startswith(inner) or name.startswith(f"{inner}pooler.")


def base_of(
    network: PreTrainedModel, *, tokenizer: Tokenizer | None = None, source: str = "memory"
) -> BaseModel:
    """Freeze a network, switch its dropout off and describe it; changes the network.

    Raises:
        ModelError: if its family is not supported.
    """
    family = family_of(network.config)
    is_classifier = hasattr(network, family.head)
    shape = shape_from_config(
        network.config, labels=int(network.config.num_labels) if is_classifier else 0
    )
    network.requires_grad_(requires_grad=False)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return BaseModel(network, shape, family, tokenizer, source, fingerprint(network))


class AutoClass(Protocol):
    """One of transformers' Auto classes."""

    def from_config(self, config: Config) -> PreTrainedModel:
        """Return a network with fresh weights."""

    def from_pretrained(self, source: str, **settings: Any) -> PreTrainedModel:
        """Return a saved network."""


def auto_class(shape: ModelShape) -> AutoClass:
    """Return the Auto class by which plain transformers loads a model of this shape."""
    chosen: AutoClass = AutoModelForCausalLM
    if shape.family == "vit":
        chosen = AutoModelForImageClassification
    elif shape.labels:
        chosen = AutoModelForSequenceClassification
    return chosen


def load_shape(source: str | Path, *, labels: int = 0, revision: str | None = None) -> ModelShape:
    """Return the shape of a model from its config alone; no weight is read.

    Raises:
        ModelError: if the config cannot be found or read, or is of no supported family.
    """
    return shape_from_config(load_config(source, revision), labels=labels)


def load_class_names(source: str | Path, *, revision: str | None = None) -> tuple[str, ...]:
    """Return the names of a saved model's classes in the order of their ids; () where it has none.

    Raises:
        ModelError: if its config cannot be found or read.
    """
    return class_names(load_config(source, revision))


def fingerprint(network: nn.Module) -> str:
    """Return a hash of every weight's name, shape, type and up to 4096 of its numbers.

    A sample, evenly spread, keeps it under a second for billions of weights; two models trained
    apart differ in it, a single altered number may not.
    """
    return digest_of(network.state_dict())


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of tensors, as `fingerprint` has it of a network's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def torch_device_of(name: str) -> str:
    """Return the torch device that `model.device` asks for.

    Raises:
        ModelError: if it is unknown or not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and name.partition(":")[0] != "cuda":
        raise ModelError(f"device must be auto, cpu or cuda, got {name!r}; set model.device")
    if name != "cpu" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} asks for a GPU and torch sees none; use cpu or auto")
    return name


def _quantisation(compute: torch.dtype) -> BitsAndBytesConfig:
    require_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def check_complete(
    report: Mapping[str, set[Any]], family: Family, source: str | Path, *, classifies: bool
) -> None:
    """Refuse weights of which more than a classifier's head and pooler are not there."""
    unfit = [
        (name, *sizes)
        for name, *sizes in report["mismatched_keys"]
        if not name.startswith(family.heads)
    ]
    if unfit:
        name, found, wanted = min(unfit)
        raise ModelError(
            f"the weights of {str(source)!r} do not fit its config: {name} is {tuple(found)}, the "
            f"config says {tuple(wanted)}; the files are damaged or of another architecture"
        )
    drawn = {name for name in report["missing_keys"] if classifies and _may_be_drawn(name, family)}
    lost = sorted(report["missing_keys"] - drawn)
    if lost:
        others = sorted(report["unexpected_keys"])
        instead = f", and hold {others[0]} for instance, which it has not" if others else ""
        raise ModelError(
            f"the weights of {str(source)!r} lack {len(lost)} tensors of a {family.name} model, "
            f"{lost[0]} for one{instead}; the files are damaged, of another architecture, or name "
            "their tensors otherwise"
        )


def _check_depth(
    unexpected: Iterable[str], family: Family, blocks: int, source: str | Path
) -> None:
    """Refuse files that hold more blocks than the config says, which would be left out."""
    pattern = re.compile(rf"(?:^|\.){re.escape(family.blocks)}\.(\d+)\.")
    found = [int(match[1]) + 1 for name in unexpected if (match := pattern.search(name))]
    if max(found, default=0) > blocks:
        raise ModelError(
            f"the weights of {str(source)!r} hold {max(found)} blocks, its config says {blocks}; "
            "put the number in config.json right, or remove the others from the files"
        )


@contextmanager
def loading() -> Iterator[None]:
    """Load one model at a time, a new head always alike, and without the loader's own reports.

    transformers makes networks under a default device of the whole process, so two loads at once
    would break each other. What is missing is checked here, so its report stays off the screen.
    """
    with _LOADING, torch.random.fork_rng(devices=[]), off_screen():
        torch.manual_seed(0)
        yield

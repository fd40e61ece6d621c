"""Every method by name: what builds it, what it is, where it comes from.

A new method is one file with its decider and one row here, or no row at all: a recipe may name
`./mine.py:Mine` or an entry point of the group `airtune.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Literal

from airtune.errors import MethodError, RecipeError
from airtune.methods.auto import Auto, auto
from airtune.methods.best_bandwidth import BestBandwidth
from airtune.methods.fedspine import FedSpine
from airtune.methods.fixed_split import FixedSplit, fixed_split
from airtune.methods.jcpba import Jcpba
from airtune.methods.plugins import as_method, entry_points_of, is_path, load_entry, load_path
from airtune.methods.prune_and_tune import PruneAndTune
from airtune.methods.prune_equal_bandwidth import PruneEqualBandwidth
from airtune.methods.pruned import HetLora, fedspine, hetlora, pruned_by, unlike_ranks
from airtune.methods.random_choice import RandomChoice
from airtune.methods.settings import Settings, faults_of, typed
from airtune.methods.sft import Sft, sft
from airtune.methods.uniform_prune import UniformPrune
from airtune.methods.unlike_ranks import UnlikeRanks
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import Method, WorkSpec

Kind = Literal["method", "baseline", "control"]


@dataclass(frozen=True, slots=True)
class FedProx:
    """Settings of FedProx: federated averaging with a pull towards the global adapters."""

    penalty_weight: float = 0.01
    """mu of the proximal term `mu / 2 * ||adapters - global||^2`."""

    def __post_init__(self) -> None:
        if not self.penalty_weight >= 0.0:
            raise RecipeError(f"penalty_weight must be at least 0, got {self.penalty_weight:g}")


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method of the list."""

    kind: Kind
    settings: Callable[..., object] | None
    """Dataclass of what a recipe may set; None for a control that the run itself carries out."""
    summary: str
    source: str
    reconstructed: bool = False
    """The source gave the idea; the equations are this project's reading of it."""
    make: Callable[[str, object], Method] | None = None
    """From name and settings to the method; None = the settings are the decider."""

    def build(self, name: str, settings: Settings) -> Method:
        """Return the method with these settings.

        Raises:
            RecipeError: naming every setting that is wrong.
            MethodError: if it is a control of the run, or the plug-in is no method.
        """
        if self.settings is None:
            raise MethodError(f"{name} is a control that only a run carries out, not a method")
        faults = faults_of(self.settings, settings)
        if faults:
            raise RecipeError("; ".join(f"method.{fault}" for fault in faults))
        made = self.settings(**typed(self.settings, settings))
        return self.make(name, made) if self.make else as_method(name, made)


def _fedprox(name: str, settings: object) -> Method:
    weight = float(getattr(settings, "penalty_weight", 0.0))
    return Method(name, WholeEqual(), work=WorkSpec(penalty="proximal", penalty_weight=weight))


_JCPBA_PAPER = "Low-latency Federated LLM Fine-tuning Over Wireless Networks, arXiv 2602.01024"
_PAPER_BASELINE = f"baseline of {_JCPBA_PAPER}"

_FEDSPINE_PAPER = (
    "Efficient Deployment of Large Language Models on Resource-constrained Devices, arXiv "
    "2501.02438"
)

_SFT_PAPER = "Split Fine-Tuning for Large Language Models in Wireless Networks, arXiv 2501.09237; IEEE JSTSP 2025"
_SPLITFED_PAPER = "SplitFed: When Federated Learning Meets Split Learning, arXiv 2004.12088"

METHODS: Mapping[str, MethodRow] = MappingProxyType({
    "jcpba": MethodRow(
        "method", Jcpba, "pruning and bandwidth of each device chosen together, round by round",
        _JCPBA_PAPER, reconstructed=True,
    ),
    "fedavg-lora": MethodRow(
        "baseline", WholeEqual, "the whole model for everybody, links divided equally (FedIT)",
        "Towards Building the Federated GPT: Federated Instruction Tuning, arXiv 2305.05644",
    ),
    "fedprox": MethodRow(
        "baseline", FedProx, "fedavg-lora with a pull towards the global adapters",
        "Federated Optimization in Heterogeneous Networks, arXiv 1812.06127", make=_fedprox,
    ),
    "best-bandwidth": MethodRow(
        "control", BestBandwidth, "no pruning, links divided so that the slowest finishes soonest",
        _PAPER_BASELINE, reconstructed=True,
    ),
    "uniform-prune": MethodRow(
        "control", partial(UniformPrune, division="equal"),
        "one pruning rate for all, links divided equally", _PAPER_BASELINE, reconstructed=True,
    ),
    "uniform-prune-bandwidth": MethodRow(
        "control", partial(UniformPrune, division="best"),
        "one pruning rate for all, links divided as well as can be", _PAPER_BASELINE,
        reconstructed=True,
    ),
    "prune-equal-bandwidth": MethodRow(
        "control", PruneEqualBandwidth, "each device pruned by itself, links divided equally",
        _PAPER_BASELINE, reconstructed=True,
    ),
    "random": MethodRow(
        "control", RandomChoice, "random pruning within the budget, random shares",
        _PAPER_BASELINE, reconstructed=True,
    ),
    "fedspine": MethodRow(
        "method", FedSpine, "each device does the steps, rank and width that fit a learnt deadline; pruned for good",
        _FEDSPINE_PAPER, reconstructed=True, make=fedspine,
    ),
    "hetlora": MethodRow(
        "baseline", HetLora, "unlike ranks that prune themselves, averaged by norm",
        "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, "
        "arXiv 2401.06432", make=hetlora,
    ),
    "flexlora": MethodRow(
        "baseline", UnlikeRanks, "unlike ranks, the products averaged and factored anew",
        "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client "
        "Resources, arXiv 2402.11505", make=unlike_ranks("factored"),
    ),
    "flora": MethodRow(
        "baseline", UnlikeRanks, "unlike ranks, stacked and merged into the base every round",
        "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank "
        "Adaptations, arXiv 2409.05976", make=unlike_ranks("stacked"),
    ),
    "loraprune": MethodRow(
        "baseline", partial(PruneAndTune, prune_every=10, order="proportional"),
        "prune-and-tune by gradients of the LoRA factors, the same for all",
        "LoRAPrune, arXiv 2305.18403, federated; no layer is left out, as a plain config has like "
        "layers", reconstructed=True, make=pruned_by("lora-gradient"),
    ),
    "apt": MethodRow(
        "baseline", partial(PruneAndTune, cooldown=0.0, prune_every=1),
        "prune-and-tune by activation salience; with min_rank, ranks that grow",
        "APT, arXiv 2401.12200, federated; all adapters grow alike", reconstructed=True,
        make=pruned_by("salience"),
    ),
    "llm-pruner": MethodRow(
        "baseline", partial(PruneAndTune, pace="once", order="proportional"),
        "pruned at once by weight times gradient, then tuned",
        "LLM-Pruner, arXiv 2305.11627, federated", make=pruned_by("first-order"),
    ),
    "fluctuation-prune": MethodRow(
        "control", partial(PruneAndTune, pace="once"),
        "pruned at once by fluctuation, then tuned: uniform pruning chosen beforehand",
        "FLAP, arXiv 2312.11983, federated", make=pruned_by("fluctuation"),
    ),
    "magnitude-prune": MethodRow(
        "control", partial(PruneAndTune, pace="once"),
        "pruned at once by the size of weights, then tuned", f"baseline of {_FEDSPINE_PAPER}",
        reconstructed=True, make=pruned_by("magnitude"),
    ),
    "random-prune": MethodRow(
        "control", partial(PruneAndTune, pace="once"), "pruned at once at random, then tuned",
        f"baseline of {_FEDSPINE_PAPER}", reconstructed=True, make=pruned_by("random"),
    ),
    "sft": MethodRow(
        "method", Sft, "the model cut between device and server; cut, codec and spectrum chosen",
        _SFT_PAPER, reconstructed=True, make=sft,
    ),
    "split-sequential": MethodRow(
        "baseline", FixedSplit, "split learning: one device after the other hands its part over",
        "Distributed learning of deep neural network over multiple agents, arXiv 1810.06060",
        make=fixed_split(WorkSpec(server="sequential", hand_over=True)),
    ),
    "splitfed-v1": MethodRow(
        "baseline", FixedSplit, "split in parallel, a server model for each device, averaged",
        _SPLITFED_PAPER, make=fixed_split(WorkSpec(server="copies")),
    ),
    "splitfed-v2": MethodRow(
        "baseline", FixedSplit, "one server model that visits the devices in turn",
        _SPLITFED_PAPER, make=fixed_split(WorkSpec(server="sequential")),
    ),
    "splitlora": MethodRow(
        "baseline", FixedSplit, "one shared server model, one cut, uncompressed, equal spectrum",
        "SplitLoRA: A Split Parameter-Efficient Fine-Tuning Framework for Large Language Models, "
        "arXiv 2407.00952; device adapters are averaged every round", reconstructed=True,
        make=fixed_split(WorkSpec()),
    ),
    "auto": MethodRow(
        "method", Auto, "pruning, rank, cut, codec and share of each device chosen together",
        "this project", make=auto,
    ),
    "untuned": MethodRow("control", None, "the base model as it is", "control"),
    "local-only": MethodRow(
        "control", None, "every device trains alone and nothing is shared", "control"
    ),
    "pooled": MethodRow(
        "control", None, "all data in one place; needs central data", "control"
    ),
})  # fmt: skip
"""The methods that come with airtune, in the order of `airtune list methods`."""


AT_SERVER = frozenset({"untuned", "pooled"})
"""The controls that train on no device: the base as it is, and all data in one place."""


def list_methods() -> Mapping[str, MethodRow]:
    """Return the built-in methods and those of installed plug-ins, by name.

    Plug-ins are listed without being loaded; a built-in name cannot be taken over.
    """
    rows = dict(METHODS)
    for name, entry in entry_points_of().items():
        if name not in rows:
            rows[name] = MethodRow("method", None, f"plug-in {entry.value}", entry.value)
    return MappingProxyType(rows)


def method_row(name: str) -> MethodRow:
    """Return the row of a name of the list, of an entry point or of `./mine.py:Mine`.

    Raises:
        RecipeError: if there is no such method; the message names the nearest.
        MethodError: if a plug-in cannot be loaded.
    """
    if name in METHODS:
        return METHODS[name]
    if is_path(name):
        return MethodRow("method", load_path(name), f"from {name}", name)
    entries = entry_points_of()
    if name in entries:
        entry = load_entry(entries[name])
        return MethodRow("method", entry, f"plug-in {name}", name)
    known = [*METHODS, *entries]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    raise RecipeError(f"there is no method {name!r}; {hint} A file is given as ./mine.py:Mine")


def build_method(name: str, settings: Settings | None = None) -> Method:
    """Return a method by name with settings from a recipe.

    Raises:
        RecipeError: if the name or a setting is wrong.
        MethodError: if a plug-in cannot be loaded or is no method.

    >>> build_method("jcpba", {"solver": "bcd"}).name
    'jcpba'
    """
    return method_row(name).build(name, settings or {})


def may_cut(name: str, settings: Settings | None = None) -> bool:
    """Return whether a method, or a control of the run, may leave blocks to the server.

    >>> may_cut("splitlora"), may_cut("untuned")
    (True, False)
    """
    row = method_row(name)
    return row.settings is not None and row.build(name, settings or {}).may_cut


def settings_faults(name: str, settings: Settings, *, rank: int | None = None) -> list[str]:
    """Return all faults of a method's name and settings, each beginning with the key; [] = none.

    Args:
        name: of the method.
        settings: a recipe's plain values.
        rank: the recipe's `lora.r`, which no rank of the settings may pass; None = not known.

    >>> settings_faults("jcpba", {"solvr": "exact"})
    ['solvr: jcpba has no such setting; did you mean solver?']
    """
    try:
        row = method_row(name)
        if row.settings is None:
            return [f"{key}: {name} has no settings" for key in settings]
        faults = faults_of(row.settings, settings, name=name)
        ranks = {} if faults or rank is None else row.build(name, settings).ranks
    except (RecipeError, MethodError) as error:
        return [f"name: {error}"]
    return faults or [
        f"{key}: must be at most lora.r, which is {rank}, got {asked}; raise lora.r, or lower "
        f"method.{key}"
        for key, asked in ranks.items()
        if rank is not None and asked > rank
    ]

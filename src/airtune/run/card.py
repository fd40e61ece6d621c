"""The model card of an export: README.md, in the form that the hub reads.

It names no folder of the machine it was written on: a model or a source that is a path is called by
its last part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airtune.data.ledger import DataLedger
from airtune.model.base import BaseModel
from airtune.model.saved import class_settings
from airtune.recipe import EMBEDDED, Recipe
from airtune.records import RunRecord
from airtune.run.answers import GradedAnswer
from airtune.run.load import base_folder

CARD = "README.md"
_SHOWN = 500
"""Characters of a sample that are shown."""
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Exported:
    """What a card is about."""

    format: str
    recipe: Recipe
    base: BaseModel
    record: RunRecord
    quality: Mapping[str, Any]
    """As in the manifest."""
    is_last: bool
    """The model is that of the last round, whole, of which the run tested."""
    revision: str | None
    """Commit of a base from the hub."""
    answers: tuple[GradedAnswer, ...]


def card_of(one: Exported) -> str:
    """Return the card's text."""
    parts = [
        _front(one),
        f"# {one.recipe.label}",
        _about(one),
        "## How to load it",
        _loading(one),
        "## Quality",
        *_quality(one),
        "## Data",
        *_data(one),
        "## Training",
        _training(one),
    ]
    if one.answers:
        parts += ["## Sample answers", "Rows of the test set.", *map(_answer, one.answers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def named(source: str) -> str:
    """Return a source without the folders of this machine.

    >>> named("/home/me/models/tiny"), named("Qwen/Qwen2.5-0.5B")
    ('tiny', 'Qwen/Qwen2.5-0.5B')
    """
    is_path = source.startswith((".", "/", "~")) or Path(source).exists() or "\\" in source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] if is_path else source


def _front(one: Exported) -> str:
    """Return the block of settings that the hub reads."""
    source, kind = one.recipe.model.source, _kind(one)
    lines = [f"library_name: {'peft' if one.format == 'adapter' else 'transformers'}"]
    if source != EMBEDDED and named(source) == source:
        lines.append(f"base_model: {source}")
    if licence := _licence(one.recipe):
        lines.append(f"license: {licence}")
    lines += [f"pipeline_tag: {kind}", "tags:", "- airtune", f"- {one.recipe.method.name}"]
    return "\n".join(["---", *lines, "---"])


def _kind(one: Exported) -> str:
    if one.base.frame is not None:
        return "image-classification"
    return "text-classification" if one.base.shape.labels else "text-generation"


def _licence(recipe: Recipe) -> str | None:
    """Return the licence that the base's own card names, where its files hold one."""
    path = base_folder(recipe) / CARD
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    front = text.partition("---")[2].partition("\n---")[0]
    found = _LICENCE.search(front)
    return found[1] if found else None


def _about(one: Exported) -> str:
    recipe = one.recipe
    base = (
        "the small model that ships with airtune"
        if recipe.model.source == EMBEDDED
        else (f"`{named(recipe.model.source)}`")
    )
    commit = f" at {one.revision}" if one.revision else ""
    licence = _licence(recipe)
    said = (
        f"Its card names the licence {licence}, which holds for this model too."
        if licence
        else "Its files name no licence: look up the base's before you pass this model on."
    )
    return (
        f"{_FORMS[one.format]} of {base}{commit}, fine-tuned with airtune {version('airtune')} by "
        f"the method {recipe.method.name}. {said}"
    )


_FORMS = {
    "adapter": "A LoRA adapter",
    "merged": "A merged model",
    "pruned": "A pruned model",
    "gguf": "A GGUF file",
    "adapter-gguf": "An adapter as a GGUF file",
}


def _loading(one: Exported) -> str:
    if one.format == "gguf":
        return _fenced("llama-cli -m model.gguf", "sh")
    if one.format == "adapter-gguf":
        return _fenced("llama-cli -m BASE.gguf --lora adapter.gguf", "sh")
    auto = {
        "image-classification": "AutoModelForImageClassification",
        "text-classification": "AutoModelForSequenceClassification",
        "text-generation": "AutoModelForCausalLM",
    }[_kind(one)]
    reader = "AutoTokenizer" if one.base.frame is None else "AutoImageProcessor"
    lines = [
        f"from transformers import {', '.join(sorted((auto, reader)))}",
        "",
        'folder = "."  # this folder',
    ]
    if one.format == "adapter":
        revision = f", revision={one.revision!r}" if one.revision else ""
        settings = "".join(f", {key}={value!r}" for key, value in class_settings(one.base).items())
        lines = [
            "from peft import PeftConfig, PeftModel",
            *lines,
            "base = PeftConfig.from_pretrained(folder).base_model_name_or_path",
            f"model = {auto}.from_pretrained(base{revision}{settings})",
            "model = PeftModel.from_pretrained(model, folder).eval()",
        ]
    else:
        lines.append(f"model = {auto}.from_pretrained(folder).eval()")
    return _fenced("\n".join([*lines, *_asking(one, reader)]), "python")


def _asking(one: Exported, reader: str) -> list[str]:
    """Return the lines that ask the model something."""
    if one.base.frame is not None:
        return [
            f"processor = {reader}.from_pretrained(folder)",
            '# inputs = processor(image, return_tensors="pt")',
            "# print(model.config.id2label[int(model(**inputs).logits.argmax())])",
        ]
    first = one.answers[0] if one.answers else GradedAnswer("a text", "", "")
    texts = ", ".join(repr(text) for text in (first.prompt, first.pair) if text)
    limit = f"truncation=True, max_length={one.recipe.data.max_length}"
    lines = [
        f"tokenizer = {reader}.from_pretrained(folder)",
        f'inputs = tokenizer({texts}, {limit}, return_tensors="pt"{_special(one)})',
    ]
    if one.base.shape.labels:
        return [*lines, "print(model.config.id2label[int(model(**inputs).logits.argmax())])"]
    # an adapter's base may end its answers otherwise
    end = ", eos_token_id=tokenizer.eos_token_id" if one.format == "adapter" else ""
    return [
        *lines,
        f"output = model.generate(**inputs, max_new_tokens=64, do_sample=False{end})",
        'print(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:]))',
    ]


def _special(one: Exported) -> str:
    """A template has written the marks of a prompt already."""
    has_template = one.base.tokenizer is not None and one.base.tokenizer.chat_template
    is_chat = has_template and one.recipe.data.template is None and not one.base.shape.labels
    return ", add_special_tokens=False" if is_chat else ""


def _quality(one: Exported) -> list[str]:
    tested = (one.record.results or {}).get("test") if one.is_last else None
    columns = {"untuned": one.quality["untuned"], "tuned": one.quality["tuned"], "test": tested}
    known = {name: figures for name, figures in columns.items() if figures}
    metrics = list(dict.fromkeys(metric for figures in known.values() for metric in figures))
    metrics = [metric for metric in metrics if metric not in ("round", "time_s")]
    rows = [
        [metric.replace("_", " "), *(_figure(known[name].get(metric)) for name in known)]
        for metric in metrics
    ]
    said = [f"Measured on {one.quality['measured_on']}."]
    if tested:
        said.append("The column test is of the run's test set.")
    parts = [" ".join(said), _table(["", *known], rows) if known else ""]
    by_class = (one.record.results or {}).get("test_by_class") if one.is_last else None
    if by_class:
        shown = [
            [
                _cell(row["class"]),
                str(row["rows"]),
                _figure(row["recall"]),
                _figure(row["precision"]),
            ]
            for row in by_class
        ]
        parts.append(_table(["class", "test rows", "recall", "precision"], shown))
    return parts


def _data(one: Exported) -> list[str]:
    data = one.record.header["data"]
    rows, tests = data.get("rows"), data.get("test_rows")
    devices = one.record.header["fleet"]["devices"]
    said = f"`{named(str(data['source']))}`: {rows} rows on {devices} devices, {tests} test rows."
    ledger = data.get("ledger")
    lines = DataLedger.from_document(ledger).lines() if ledger else ()
    return [said, "\n".join(f"- {line.marked}" for line in lines)]


def _training(one: Exported) -> str:
    recipe = one.recipe
    rows = {
        "rounds": recipe.train.rounds,
        "local steps": recipe.train.local_steps,
        "batch": recipe.train.per_device_train_batch_size,
        "learning rate": recipe.train.learning_rate,
        "LoRA rank": recipe.lora.r,
        "LoRA alpha": recipe.lora.lora_alpha,
        "longest text (tokens)": recipe.data.max_length,
        "dtype": recipe.model.dtype,
        "seed": recipe.seed,
    }
    return _table(["setting", ""], [[name, str(value)] for name, value in rows.items()])


def _answer(answer: GradedAnswer) -> str:
    parts = (
        ("Prompt", answer.prompt),
        ("And", answer.pair),
        ("Answer", answer.said),
        ("Right", answer.right),
    )
    return "\n\n".join(
        f"{name}:\n\n{_fenced(_short(text), 'text')}"
        for name, text in parts
        if text or name != "And"
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _fenced(text: str, kind: str) -> str:
    """Return a block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"

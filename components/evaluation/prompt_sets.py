"""All prompt sets of an assessment: held out, of files, and of the training; each prompt with its category.

Files are named by ``assess.prompt_sets``. They are read as their makers publish them:

* ``.txt``: a prompt a line; a folder: a prompt a file (DPG-Bench's ``prompts/``)
* ``.tsv``, ``.csv`` with a header (PartiPrompts: ``Prompt``, ``Category``; DPG-Bench: ``text``, rows of one prompt
  are one), ``.jsonl`` (GenEval: ``prompt``, ``tag``), ``.json`` (an array of objects or of texts), ``.parquet``

Of a file with a column ``set`` that has the name of the prompt set in it, only those rows are read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.contracts.errors import DataError, InputError
from components.evaluation.prompts import TRAINED, heldout_prompts, rows_of
from components.runtime.stage import Context
from components.runtime.storage import Artifact

PROMPT_COLUMNS = ("prompt", "text", "caption")
CATEGORY_COLUMNS = ("category", "tag", "category_broad")
_LONGEST = 4000  # characters of a prompt
_FORMATS = "a folder of .txt files, or a .txt, .csv, .tsv, .jsonl, .json or .parquet file"


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, each with its category, None where it has none."""

    prompts: tuple[str, ...]
    categories: tuple[str | None, ...]

    @classmethod
    def of(cls, given: PromptSet | Sequence[str]) -> PromptSet:
        """A list of prompts as a set; prompts of the embedded world have the kind of their scene as category."""
        return given if isinstance(given, PromptSet) else cls(tuple(given), tuple(kind_of(p) for p in given))


def prompt_sets(ctx: Context, dataset: Artifact) -> dict[str, PromptSet]:
    """Every set that a model of ``dataset`` is judged on, in order: ``known``, ``new`` where there is one, those of
    files by name, and ``trained``, captions of the training, by which memorising is seen. Deterministic.

    Raises:
        DataError: the dataset holds no held-out or no training captions.
        InputError: a file is missing or has no prompts.
    """
    config, seed = ctx.recipe.assess, ctx.recipe.seed
    sets = {name: PromptSet.of(prompts) for name, prompts in heldout_prompts(ctx, dataset).items()}
    for name, source in sorted(config.prompt_sets.items()):
        sets[name] = sampled(read_prompts(source, name), config.prompts, seed)
    sets[TRAINED] = PromptSet.of(trained_prompts(dataset, min(config.memorisation_prompts, config.prompts)))
    return sets


def trained_prompts(dataset: Artifact, n: int) -> list[str]:
    """Up to ``n`` distinct captions of training pictures, the first by id, which is a hash.

    Raises:
        DataError: nothing is trained on.
    """
    captions = sorted((str(row["id"]), str(row["caption"])) for row in rows_of(dataset, "train", ["id", "caption"]))
    found = list(dict.fromkeys(caption for _, caption in captions if caption.strip()))[:n]
    if not found:
        raise DataError(f"The dataset {dataset.short} has no training captions", expected="rows of the split train")
    return found


def sampled(given: PromptSet, n: int, seed: int) -> PromptSet:
    """``n`` prompts of the set, each category in its share; all of them, in order, where there are not more."""
    if len(given.prompts) <= n:
        return given
    order = np.random.default_rng([0x9E75, seed]).permutation(len(given.prompts))
    by_category: dict[str | None, list[int]] = {}
    for i in order.tolist():
        by_category.setdefault(given.categories[i], []).append(i)
    # every category's prompts at even distances on 0..1: the first n have each category in its share
    places = [((at + 0.5) / len(members), i) for members in by_category.values() for at, i in enumerate(members)]
    chosen = sorted(i for _, i in sorted(places)[:n])
    return PromptSet(tuple(given.prompts[i] for i in chosen), tuple(given.categories[i] for i in chosen))


def read_prompts(source: str, name: str) -> PromptSet:
    """The prompts of a file or folder; see the head of this module.

    Raises:
        InputError: it is missing, unreadable, or has no prompts.
    """
    path = Path(source).expanduser()
    try:
        found = list(_rows(path, name))
    except FileNotFoundError as error:
        raise _refused(name, f"{source} does not exist") from error
    except (OSError, ValueError, csv.Error) as error:
        raise _refused(name, f"{source} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from error
    distinct: dict[str, str | None] = {}
    for prompt, category in found:
        text = " ".join(prompt.split())
        if len(text) > _LONGEST:
            raise _refused(name, f"{source} has a prompt of {len(text)} characters, more than {_LONGEST}")
        if text:
            distinct.setdefault(text, category or None)
    if not distinct:
        raise _refused(name, f"{source} has no prompts")
    return PromptSet(tuple(distinct), tuple(distinct.values()))


def kind_of(prompt: str) -> str | None:
    """The kind of scene that a prompt of the embedded world asks for, None for any other prompt."""
    from components.data.world import parse

    try:
        return str(parse(prompt).kind)
    except ValueError:
        return None


def _rows(path: Path, name: str) -> Iterable[tuple[str, str | None]]:
    if path.is_dir():
        return [(file.read_text(encoding="utf-8-sig"), None) for file in sorted(path.glob("*.txt"))]
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet as pq

        return _of_objects(pq.read_table(path).to_pylist(), name)
    text = path.read_text(encoding="utf-8-sig")
    if kind == ".txt":
        return [(line, None) for line in text.splitlines()]
    if kind in (".csv", ".tsv"):
        file = io.StringIO(text, newline="")
        if kind == ".csv":
            return _of_objects(csv.DictReader(file), name)
        # PartiPrompts has single quotation marks in its texts, and none around them
        return _of_objects(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), name)
    if kind in (".jsonl", ".ndjson"):
        return _of_objects([json.loads(line) for line in text.splitlines() if line.strip()], name)
    if kind == ".json":
        values = json.loads(text)
        if isinstance(values, list):
            return _of_objects([{"prompt": v} if isinstance(v, str) else v for v in values], name)
    raise ValueError(f"it is not {_FORMATS}")


def _of_objects(rows: Iterable[Any], name: str) -> list[tuple[str, str | None]]:
    found = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"it has {type(row).__name__} where an object with a prompt is expected")
        found.append({str(key).strip().lower(): value for key, value in row.items() if key is not None})
    if not found:
        return []
    columns = list(dict.fromkeys(column for row in found for column in row))
    prompt = next((column for column in PROMPT_COLUMNS if column in columns), None)
    if prompt is None:
        raise ValueError(f"it has no column {' or '.join(PROMPT_COLUMNS)}, only {', '.join(columns) or 'none'}")
    category = next((column for column in CATEGORY_COLUMNS if column in columns), None)
    if any(row.get("set") == name for row in found):
        found = [row for row in found if row.get("set") == name]
    return [
        (str(row.get(prompt) or ""), str(row[category]) if category and row.get(category) else None) for row in found
    ]


def _refused(name: str, problem: str) -> InputError:
    return InputError(
        f"assess.prompt_sets.{name}: {problem}",
        expected=f"{_FORMATS}; tables with a column {' or '.join(PROMPT_COLUMNS)}",
        remedy="correct the path or the file",
    )

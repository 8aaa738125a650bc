"""What the ladder measures of a model, and the table and sheet that are made of it."""

from __future__ import annotations

import datetime
import io
import json
import platform
import statistics
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluation.assess import Assessment
from components.evaluation.gate import primary_set
from components.evaluation.generation import pipeline_folder
from components.evaluation.intervals import wilson
from components.evaluation.judge import Judge
from components.evaluation.metrics import Moments, frechet_estimate, inception_score
from components.evaluation.neighbours import precision_recall
from components.evaluation.prompts import heldout_rows
from components.models.families import ImageGenerator, load_generator
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.benchmarks import harness

FOLDER = harness.RESULTS / "ladder"
_MOST = 1000  # held-out captions that are drawn for the distributions
_SHEET = 8  # prompts of the sheet
_TEMPERATURE = 30.0  # of the judge's cosines, where they answer which class a picture is of
_METRICS = {
    "fidelity": "prompt fidelity", "r_precision": "R-precision", "frechet": "Fréchet distance",
    "inception": "Inception-style score", "precision": "precision", "recall": "recall",
}  # fmt: skip
_OF_ENCODER = {"r_precision": "encoder's R-precision", "text_to_image_recall_at_1": "its recall@1, text to picture"}


@dataclass
class Kept:
    """What was measured so far, on disk after each row; rows of the same label and data are replaced."""

    path: Path
    found: dict[str, Any]

    @classmethod
    def open(cls, root: Path) -> Kept:
        """From the last run, or empty."""
        root.mkdir(parents=True, exist_ok=True)
        path = root / "ladder.json"
        empty: dict[str, Any] = {"plan": {}, "rows": [], "ablation": []}
        return cls(path, json.loads(path.read_text()) if path.exists() else empty)

    @property
    def plan(self) -> dict[str, Any]:
        """Images by data set, family and minutes."""
        plan: dict[str, Any] = self.found["plan"]
        return plan

    def save(self) -> None:
        """Write what there is."""
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")

    def row(self, part: str, row: dict[str, Any]) -> None:
        """Take a row in."""
        key = (row["family"], row["data"])
        self.found[part] = [r for r in self.found[part] if (r["family"], r["data"]) != key] + [row]
        self.save()


def row_of(
    ctx: Context, label: str, data: str, dataset: Artifact, model: Artifact, by: Artifact, assessment: Artifact
) -> dict[str, Any]:
    """A model's figures, each with its interval; ``family`` is its label."""
    read, rules = Assessment.read(assessment), Judge.read(by)
    known = read.sets[primary_set(read)].metrics
    generator = load_generator(pipeline_folder(model))
    figures = {name: known[name].as_json() for name in ("fidelity", "r_precision") if name in known}
    figures |= _distributions(generator, rules, dataset)
    trainings = {k: v["images"] for k, v in model.manifest.evidence["trainings"].items() if "images" in v}
    encoder = ctx.store.by_digest("text_encoder", model.manifest.inputs["text_encoder"])
    words = ("r_precision", "image_to_text", "text_to_image", "held_out")
    return {
        "family": label,
        "data": data,
        **figures,
        **_speed(generator, rules),
        "parameters": _parameters(model),
        "images": trainings,
        "training_seconds": {
            kind: model.manifest.circumstance[kind].get("training_seconds")
            for kind in trainings
            if kind in model.manifest.circumstance
        },
        "encoder": {k: v for k, v in encoder.manifest.evidence.items() if k.startswith(words)},
        "stamp": {k: read.stamp[k] for k in ("judge", "sampler", "steps", "guidance_scale")},
        "sheet": _sheet_pictures(assessment),
    }


def _distributions(generator: ImageGenerator, rules: Judge, dataset: Artifact) -> dict[str, Any]:
    """Fréchet distance, precision, recall and Inception-style score: a picture for every held-out caption."""
    rows = sorted(heldout_rows(dataset, ["id", "caption", "pixels", "height", "width"]), key=lambda r: str(r["id"]))
    rows = rows[:_MOST]
    side = generator.image_size
    square = [r for r in rows if (r["height"], r["width"]) == (side, side)]
    extractor = rules.extractor()
    real = extractor.features(np.stack([np.frombuffer(r["pixels"], np.uint8).reshape(side, side, 3) for r in square]))
    drawn = _draw(generator, [r["caption"] for r in square], rules)
    features, embeddings = extractor.look(drawn)
    classes = sorted({r["caption"] for r in rows})
    answers = _TEMPERATURE * embeddings.astype(np.float64) @ extractor.read(classes).astype(np.float64).T
    answers = np.exp(answers - answers.max(1, keepdims=True))
    precision, recall = precision_recall(real, features)
    return {
        "frechet": frechet_estimate(features, Moments.of(real)).as_json(),
        "inception": inception_score(answers / answers.sum(1, keepdims=True)).as_json(),
        "precision": wilson(int(precision.sum()), len(precision)).as_json(),
        "recall": wilson(int(recall.sum()), len(recall)).as_json(),
    }


def _draw(generator: ImageGenerator, prompts: list[str], rules: Judge) -> Any:
    how = {"steps": rules.protocol["steps"], "guidance_scale": rules.protocol["guidance_scale"]}
    parts = [
        generator.generate(prompts[at : at + 64], list(range(at, at + len(prompts[at : at + 64]))), **how)
        for at in range(0, len(prompts), 64)
    ]
    return np.concatenate(parts)


def _speed(generator: ImageGenerator, rules: Judge) -> dict[str, float]:
    """Seconds a picture, alone and in a batch of 16; medians of five."""
    prompts = next(iter(rules.prompts.values()))
    found = {}
    for name, count in (("seconds_alone", 1), ("seconds_in_16", 16)):
        asked = [prompts[i % len(prompts)] for i in range(count)]
        times = []
        for _ in range(6):
            started = time.perf_counter()
            _draw(generator, asked, rules)
            times.append((time.perf_counter() - started) / count)
        found[name] = statistics.median(times[1:])
    return found


def _parameters(model: Artifact) -> int:
    """Numbers in the weights of what draws: all but the text encoder."""
    from safetensors import safe_open

    total = 0
    for name in model.manifest.files:
        if name.endswith(".safetensors") and not name.startswith("text_encoder"):
            with safe_open(model.path(name), framework="np") as file:
                total += sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    return total


def _sheet_pictures(assessment: Artifact) -> dict[str, str]:
    """The first prompts of the assessment and their pictures as PNG in hexadecimal."""
    import pyarrow.parquet as pq

    table = pq.read_table(assessment.path("per_prompt.parquet"), columns=["prompt", "image"]).slice(0, _SHEET)
    return {row["prompt"]: row["image"].hex() for row in table.to_pylist()}


def write(keep: Kept) -> None:
    """``ladder.json``, ``ladder.md`` and ``sheet.png`` from all rows there are."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = keep.found["rows"]
    if rows:
        _sheet(rows).save(FOLDER / "sheet.png", optimize=True)
    about: dict[str, Any] = {
        "name": "ladder",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": "make ladder",
        "machine": harness._machine(),
        "versions": {
            "python": platform.python_version(),
            **{p: harness._version(p) for p in ("torch", "diffusers", "transformers", "deepspeed")},
        },
        **{part: [{k: v for k, v in row.items() if k != "sheet"} for row in keep.found[part]]
           for part in ("rows", "ablation")},
    }  # fmt: skip
    (FOLDER / "ladder.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = [
        "# The ladder: cnn, vae, gan and diffusion", "",
        f"{about['date']}, {about['machine']}. Equal wall time a family, one text encoder and one judge a data "
        "set; the text encoder's own training is not counted. In brackets: 95% intervals.", "",
    ]  # fmt: skip
    for data in dict.fromkeys(row["data"] for row in rows):
        group = [r for r in rows if r["data"] == data]
        text += [f"## {data}", "", f"{_minutes(group)} a family.", "", *_table(group, "family"), ""]
    if rows:
        text += ["Prompts and seeds of the sheet are the same for all families.", "", "![sheet](sheet.png)", ""]
    if keep.found["ablation"]:
        text += ["## What the first of the two steps is worth", "",
                 f"The same gan, the same images ({_minutes(keep.found['ablation'])} of training), on four text "
                 "encoders (embedded world). The last two columns are the encoder's own, on real pictures.", "",
                 *_table(keep.found["ablation"], "text encoder"), ""]  # fmt: skip
    (FOLDER / "ladder.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


def _minutes(rows: list[dict[str, Any]]) -> str:
    """``"4 minutes"``, or all that were asked for where rows differ."""
    return " or ".join(f"{m:g}" for m in sorted({row["minutes_asked"] for row in rows})) + " minutes"


def _table(rows: list[dict[str, Any]], first: str) -> list[str]:
    names = [name for name in _METRICS if any(name in row for row in rows)]
    head = [first, *(_METRICS[n] for n in names), "s an image", "s in a batch of 16", "parameters", "training s"]
    of_encoder = _OF_ENCODER if first == "text encoder" else {}
    head += of_encoder.values()
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [_estimate(row.get(name)) for name in names]
        spent = sum(v or 0 for k, v in row["training_seconds"].items() if k != "text_encoder")
        cells += [f"{row['seconds_alone']:.3g}", f"{row['seconds_in_16']:.3g}", f"{row['parameters'] / 1e6:.2f} M",
                  f"{spent:.0f}"]  # fmt: skip
        cells += [_estimate(row["encoder"].get(key)) for key in of_encoder]
        lines.append("| " + " | ".join([row["family"], *cells]) + " |")
    return lines


def _estimate(found: dict[str, float] | None) -> str:
    return f"{found['value']:.3g} ({found['low']:.3g}–{found['high']:.3g})" if found else "–"


def _sheet(rows: list[dict[str, Any]]) -> Any:
    """One row of pictures a family and data set, one column a prompt."""
    from PIL import Image, ImageDraw, ImageFont

    cell, gap, left, head = 112, 8, 150, 46
    groups = {data: [r for r in rows if r["data"] == data] for data in dict.fromkeys(r["data"] for r in rows)}
    high = sum(head + len(group) * (cell + gap) for group in groups.values())
    sheet = Image.new("RGB", (left + _SHEET * (cell + gap), high + gap), (246, 246, 243))
    draw, y = ImageDraw.Draw(sheet), 0
    for group in groups.values():
        for column, prompt in enumerate(list(group[0]["sheet"])[:_SHEET]):
            lines = textwrap.wrap(prompt, 18, max_lines=3, placeholder=" …")
            draw.multiline_text((left + column * (cell + gap), y + 4), "\n".join(lines), (28, 30, 36),
                                ImageFont.load_default(11), spacing=2)  # fmt: skip
        y += head
        for row in group:
            draw.text(
                (10, y + cell // 2 - 8), f"{row['family']}\n{row['data']}", (28, 30, 36), ImageFont.load_default(13)
            )
            for column, picture in enumerate(list(row["sheet"].values())[:_SHEET]):
                image = Image.open(io.BytesIO(bytes.fromhex(picture))).convert("RGB")
                image = image.resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(image, (left + column * (cell + gap), y))
            y += cell + gap
    return sheet

"""Drawing and looking, spread over Ray actors.

Work is cut into chunks of one prompt set before anybody knows how many workers there are, and each chunk is
drawn with the seeds of its prompts, so the result is the same for any number of actors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.contracts.recipe import Run
from components.evaluation.extractor import ClipExtractor, Extractor, Pictures, Rows, TextImageExtractor
from components.evaluation.judge import Judge
from components.evaluation.reference import exact
from components.evaluation.spreading import spread
from components.evaluation.timing import BATCHED, time_drawing
from components.runtime.precision import name_of
from components.runtime.progress import Progress
from components.runtime.storage import Artifact, write_bytes

if TYPE_CHECKING:
    from components.evaluation.atoms import Atom
    from components.models.families import ImageGenerator

DIVERSITY = "diversity"  # name of the chunks of further pictures of a prompt
_LATENCY = "latency.json"


@dataclass(frozen=True)
class Chunk:
    """Consecutive prompts of one set: the unit of work and of resuming."""

    set: str
    start: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """File name of the chunk's result."""
        return f"{self.set}-{self.start:07d}.safetensors"


@dataclass(frozen=True)
class Drawn:
    """What became of a chunk, or of a whole set.

    ``grades`` has one entry a picture: ``None`` where nobody can grade it, else a dict with ``correct``, ``attributes``
    and ``reason``. ``more`` has what the recipe's extractors say, ``{extractor}/{what}``; of a CLIP also ``texts``.
    """

    pictures: Pictures
    features: Rows
    images: Rows  # embeddings of the pictures
    texts: Rows  # embeddings of the prompts
    grades: list[dict[str, Any] | None]
    more: dict[str, Rows] = field(default_factory=dict)
    drawn_in: str = ""  # "bf16" or "fp32": what the model computed in; of several kinds of machines, both

    @classmethod
    def joined(cls, parts: list[Drawn]) -> Drawn:
        """Consecutive chunks as one."""
        return cls(
            pictures=np.concatenate([p.pictures for p in parts]),
            features=np.concatenate([p.features for p in parts]),
            images=np.concatenate([p.images for p in parts]),
            texts=np.concatenate([p.texts for p in parts]),
            grades=[grade for part in parts for grade in part.grades],
            more={key: np.concatenate([p.more[key] for p in parts]) for key in parts[0].more},
            drawn_in=", ".join(sorted({p.drawn_in for p in parts})),
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        from safetensors.numpy import save

        arrays = {"pictures": self.pictures, "features": self.features, "images": self.images, "texts": self.texts}
        arrays |= {f"more/{key}": rows for key, rows in self.more.items()}
        told = {"grades": json.dumps(self.grades), "drawn_in": self.drawn_in}
        return bytes(save({key: np.ascontiguousarray(rows) for key, rows in arrays.items()}, metadata=told))

    @classmethod
    def read(cls, path: Path) -> Drawn:
        """From a file of :meth:`to_bytes`."""
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            told = file.metadata()
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        more = {key.removeprefix("more/"): arrays.pop(key) for key in list(arrays) if key.startswith("more/")}
        return cls(**arrays, grades=json.loads(told["grades"]), more=more, drawn_in=told["drawn_in"])


def chunks_of(judge: Judge, turn: int = 0) -> list[Chunk]:
    """All work of an assessment under this judge, in order."""
    size = judge.protocol["batch_size"]
    asked = {name: (prompts, judge.seeds(name, turn)) for name, prompts in judge.prompts.items()}
    if not turn:
        asked[DIVERSITY] = judge.further()
    return [
        Chunk(name, start, tuple(prompts[start : start + size]), tuple(seeds[start : start + size]))
        for name, (prompts, seeds) in asked.items()
        for start in range(0, len(prompts), size)
    ]


def draw_all(
    model: Artifact, judge: Judge, run: Run, state: Path, turn: int = 0
) -> tuple[dict[str, Drawn], dict[str, Any] | None]:
    """Draw and look at every prompt of the judge; chunks that ``state`` holds already are not drawn again.

    Returns:
        What was drawn by prompt set, with :data:`DIVERSITY` the further pictures; and of the first turn how long
        drawing takes, see :func:`components.evaluation.timing.time_drawing`.

    Raises:
        RuntimeUnavailable: Ray cannot be started, or its workers died.
    """
    chunks = chunks_of(judge, turn)
    todo = [c for c in chunks if not (state / c.name).exists()]
    total = sum(len(c.prompts) for c in chunks)
    done = total - sum(len(c.prompts) for c in todo)
    progress = Progress("assess", total, "img", initial=done)
    latency = None if turn or (state / _LATENCY).exists() else "latency"
    if todo or latency:
        arguments = (model, judge.artifact, run.threads_per_worker)
        for piece, result in spread(run, Worker, arguments, todo, len(todo), latency):
            if not isinstance(piece, Chunk):
                write_bytes(str(state / _LATENCY), json.dumps(result, indent=2, sort_keys=True).encode())
                continue
            write_bytes(str(state / piece.name), result.to_bytes())
            done += len(piece.prompts)
            progress.update(done)
    progress.close()
    names = list(dict.fromkeys(c.set for c in chunks))
    drawn = {name: Drawn.joined([Drawn.read(state / c.name) for c in chunks if c.set == name]) for name in names}
    return drawn, None if turn else json.loads((state / _LATENCY).read_text())


def dtype_expected(run: Run) -> str:
    """What workers of this run compute in: "bf16" or "fp32". GPUs of other machines are taken to have bf16."""
    import torch

    if torch.cuda.is_available():
        return name_of("cuda")
    return "bf16" if run.gpus_per_worker else name_of("cpu")


class Worker:
    """Holds a model and the judge's extractors; one to an actor."""

    def __init__(self, model: Artifact, judge: Artifact, threads: int) -> None:
        self._model, self._artifact, self._threads = model, judge, threads

    @cached_property
    def _device(self) -> str:
        import torch

        torch.set_num_threads(self._threads)
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _loaded(self) -> tuple[ImageGenerator, Judge, TextImageExtractor, dict[str, Extractor]]:
        # not in the constructor: an error there would kill the actor and lose its message
        from components.models.families import load_generator

        judge = Judge.read(self._artifact)
        generator = load_generator(pipeline_folder(self._model), self._device)
        return generator, judge, judge.extractor(self._device), judge.extractors(self._device)

    @cached_property
    def _atom(self) -> Atom | None:
        from components.evaluation.atoms import load_atom

        named = self._loaded[1].protocol["atoms"]
        return load_atom(named["path"]) if named else None

    def work(self, piece: Chunk | str) -> Drawn | dict[str, Any]:
        """Draw a chunk; or, asked for anything else, say how long drawing takes."""
        if isinstance(piece, Chunk):
            return self.draw(piece)
        generator, judge, _, _ = self._loaded
        name, prompts = next(iter(judge.prompts.items()))
        rules = judge.protocol
        batch = min(BATCHED, rules["batch_size"])  # no more than there is memory for
        some, seeds = prompts[:batch], judge.seeds(name)[:batch]
        return time_drawing(generator, some, seeds, rules["steps"], rules["guidance_scale"], self._device, batch)

    def draw(self, chunk: Chunk) -> Drawn:
        """Draw a chunk, embed pictures and prompts, and grade what can be graded."""
        generator, judge, extractor, others = self._loaded
        rules = judge.protocol
        pictures = generator.generate(
            list(chunk.prompts),
            list(chunk.seeds),
            steps=rules["steps"],
            guidance_scale=rules["guidance_scale"],
        )
        with exact():
            features, images = extractor.look(pictures)
            texts = extractor.read(chunk.prompts)
            more = _said(others, pictures, chunk.prompts)
        graded = chunk.set != DIVERSITY
        grades = [self._graded(p, t) if graded else None for p, t in zip(pictures, chunk.prompts, strict=True)]
        return Drawn(pictures, features, images, texts, grades, more, name_of(self._device))

    def _graded(self, picture: Pictures, prompt: str) -> dict[str, Any] | None:
        """By the exact grader where it can judge, else by the recipe's own where there is one."""
        from components.evaluation.atoms import ask

        if self._loaded[1].protocol["graded"] and (verdict := _of_the_world(picture, prompt)):
            return verdict
        return ask(self._atom, picture, prompt) if self._atom else None


def pipeline_folder(model: Artifact) -> Path:
    """Local folder of the model in a model artifact: a diffusers pipeline, or a cnn, vae or gan.

    Raises:
        ArtifactError: it holds none.
    """
    from components.models.families import index_of

    return model.local() / index_of(list(model.manifest.files)).rpartition("/")[0]


def _said(others: dict[str, Extractor], pictures: Pictures, prompts: Sequence[str]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for name, extractor in others.items():
        found |= {f"{name}/{what}": rows for what, rows in extractor.arrays(pictures).items()}
        if isinstance(extractor, ClipExtractor):
            found[f"{name}/texts"] = extractor.read(prompts)
    return found


def _of_the_world(picture: Pictures, prompt: str) -> dict[str, Any] | None:
    from components.data.grader import grade
    from components.data.world import parse

    try:
        parse(prompt)
    except ValueError:
        return None
    verdict = grade(picture, prompt)
    return {"correct": verdict.correct, "attributes": verdict.attributes, "reason": verdict.reason}

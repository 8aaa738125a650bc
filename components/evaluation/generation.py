"""Drawing and looking, spread over Ray actors.

Work is cut into chunks of one prompt set before anybody knows how many workers there are, and each chunk is
drawn with the seeds of its prompts, so the result is the same for any number of actors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.contracts.errors import AtelierError, RuntimeUnavailable
from components.contracts.recipe import Run
from components.evaluation.extractor import Pictures, Rows, TextImageExtractor
from components.evaluation.judge import Judge
from components.runtime.cluster import ray_session
from components.runtime.progress import Progress
from components.runtime.storage import Artifact, write_bytes

if TYPE_CHECKING:
    from components.models.families import ImageGenerator


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

    ``grades`` has one entry a picture: ``None`` where the prompt is not of the embedded world, else a dict
    with ``correct``, ``attributes`` and ``reason``.
    """

    pictures: Pictures
    features: Rows
    images: Rows  # embeddings of the pictures
    texts: Rows  # embeddings of the prompts
    grades: list[dict[str, Any] | None]

    @classmethod
    def joined(cls, parts: list[Drawn]) -> Drawn:
        """Consecutive chunks as one."""
        return cls(
            pictures=np.concatenate([p.pictures for p in parts]),
            features=np.concatenate([p.features for p in parts]),
            images=np.concatenate([p.images for p in parts]),
            texts=np.concatenate([p.texts for p in parts]),
            grades=[grade for part in parts for grade in part.grades],
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        from safetensors.numpy import save

        arrays = {k: np.ascontiguousarray(v) for k, v in vars(self).items() if k != "grades"}
        return bytes(save(arrays, metadata={"grades": json.dumps(self.grades)}))

    @classmethod
    def read(cls, path: Path) -> Drawn:
        """From a file of :meth:`to_bytes`."""
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            grades = json.loads(file.metadata()["grades"])
            return cls(grades=grades, **{key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def chunks_of(judge: Judge, turn: int = 0) -> list[Chunk]:
    """All work of an assessment under this judge, in order."""
    size = judge.protocol["batch_size"]
    chunks = []
    for name, prompts in judge.prompts.items():
        seeds = judge.seeds(name, turn)
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            chunks.append(Chunk(name, start, tuple(prompts[part]), tuple(seeds[part])))
    return chunks


def draw_all(model: Artifact, judge: Judge, run: Run, state: Path, turn: int = 0) -> dict[str, Drawn]:
    """Draw and look at every prompt of the judge; chunks that ``state`` holds already are not drawn again.

    Raises:
        RuntimeUnavailable: Ray cannot be started, or its workers died.
    """
    chunks = chunks_of(judge, turn)
    todo = [c for c in chunks if not (state / c.name).exists()]
    total = sum(len(c.prompts) for c in chunks)
    done = total - sum(len(c.prompts) for c in todo)
    progress = Progress("assess", total, "img", initial=done)
    if todo:
        for chunk, drawn in _on_actors(model, judge.artifact, todo, run):
            write_bytes(str(state / chunk.name), drawn.to_bytes())
            done += len(chunk.prompts)
            progress.update(done)
    progress.close()
    return {name: Drawn.joined([Drawn.read(state / c.name) for c in chunks if c.set == name]) for name in judge.prompts}


class Worker:
    """Holds a model and the judge's extractor; one to an actor."""

    def __init__(self, model: Artifact, judge: Artifact, threads: int) -> None:
        self._model, self._artifact, self._threads = model, judge, threads

    @cached_property
    def _loaded(self) -> tuple[ImageGenerator, Judge, TextImageExtractor]:
        # not in the constructor: an error there would kill the actor and lose its message
        import torch

        from components.models.families import load_generator

        torch.set_num_threads(self._threads)
        judge = Judge.read(self._artifact)
        return load_generator(pipeline_folder(self._model)), judge, judge.extractor()

    def draw(self, chunk: Chunk) -> Drawn:
        """Draw a chunk, embed pictures and prompts, and grade what can be graded."""
        generator, judge, extractor = self._loaded
        rules = judge.protocol
        pictures = generator.generate(
            list(chunk.prompts),
            list(chunk.seeds),
            steps=rules["steps"],
            guidance_scale=rules["guidance_scale"],
        )
        features, images = extractor.look(pictures)
        texts = extractor.read(chunk.prompts)
        graded = rules["graded"]
        grades = [_graded(p, t) if graded else None for p, t in zip(pictures, chunk.prompts, strict=True)]
        return Drawn(pictures, features, images, texts, grades)


def pipeline_folder(model: Artifact) -> Path:
    """Local folder of the model in a model artifact: a diffusers pipeline, or a cnn, vae or gan.

    Raises:
        ArtifactError: it holds none.
    """
    from components.models.families import index_of

    return model.local() / index_of(list(model.manifest.files)).rpartition("/")[0]


def _graded(picture: Pictures, prompt: str) -> dict[str, Any] | None:
    from components.data.grader import grade
    from components.data.world import parse

    try:
        parse(prompt)
    except ValueError:
        return None
    verdict = grade(picture, prompt)
    return {"correct": verdict.correct, "attributes": verdict.attributes, "reason": verdict.reason}


def _on_actors(model: Artifact, judge: Artifact, chunks: list[Chunk], run: Run) -> Iterator[tuple[Chunk, Drawn]]:
    """Results as they are done. No more actors than chunks, or than CPUs of the cluster."""
    with ray_session(run):
        import ray
        from ray.exceptions import RayError, RayTaskError

        cpus = int(ray.cluster_resources().get("CPU", 1))
        remote = ray.remote(num_cpus=1, num_gpus=run.gpus_per_worker, max_restarts=2, max_task_retries=2)(Worker)
        count = max(1, min(run.workers, len(chunks), cpus))
        workers = [remote.remote(model, judge, run.threads_per_worker) for _ in range(count)]
        waiting = list(reversed(chunks))
        running: dict[Any, tuple[Any, Chunk]] = {}
        try:
            for worker in workers * 2:  # two each: the next one is there when the first is done
                if waiting:
                    chunk = waiting.pop()
                    running[worker.draw.remote(chunk)] = (worker, chunk)
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                worker, chunk = running.pop(ready[0])
                drawn = ray.get(ready[0])
                if waiting:
                    following = waiting.pop()
                    running[worker.draw.remote(following)] = (worker, following)
                yield chunk, drawn
            for worker in workers:  # give their CPUs back at once; after an error they go when they are idle
                ray.kill(worker)
        except RayTaskError as error:
            if isinstance(error.cause, AtelierError):
                raise error.cause from None
            raise
        except RayError as error:
            raise RuntimeUnavailable(
                f"A worker of the assessment died: {str(error).splitlines()[0]}",
                expected=f"{count} workers with one CPU each and memory for the model",
                remedy="lower run.workers or assess.batch_size, then run the same command again: it goes on",
            ) from error

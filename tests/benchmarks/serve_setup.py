"""What the serving benchmarks serve, and how they ask for it.

The model has the shape of the demo's, with weights by chance: how fast it is does not depend on them. The server is
the product's own, started as ``atelier serve`` starts it, from a registry with a signed release.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

GUIDANCE = 2.0
THREADS = 2  # of whoever draws: the server, and each rival in its turn
PROMPT = "a small red circle on a white background"


@dataclass(frozen=True)
class Scale:
    """How long is measured. ``quick`` shows that a part works, not how fast anything is."""

    runs: int = 5
    seconds: float = 15.0  # of a run
    overload_s: float = 60.0
    requests: int = 2000  # of the memory row


QUICK = Scale(1, 2.0, 3.0, 60)


def save_demo_model(folder: Path) -> None:
    """A stock Stable Diffusion pipeline of the demo's networks, with random weights."""
    import torch

    from components.models.autoencoder import make_autoencoder
    from components.models.denoiser import make_denoiser
    from components.models.pipeline import save_pipeline
    from components.models.text_encoder import load_tokenizer, make_clip, text_tower
    from components.runtime.recipes import load_recipe
    from tests.components.training.datasets import write_tokenizer

    recipe = load_recipe("demo")
    side, train = recipe.prepare.image_size, recipe.train
    torch.manual_seed(0)
    write_tokenizer(folder.parent / "tokenizer", [PROMPT], 512, recipe.prepare.max_tokens)
    tokenizer = load_tokenizer(folder.parent / "tokenizer")
    clip = make_clip(train.text_encoder, tokenizer, side)
    autoencoder = make_autoencoder(train.autoencoder, side)
    grid = side // train.autoencoder.downsampling
    denoiser = make_denoiser(train.denoiser, train.autoencoder.latent_channels, grid, train.text_encoder.width)
    for weight in [*denoiser.parameters(), *autoencoder.parameters()]:
        if not weight.any():  # layers that start at zero would make a grey picture
            torch.nn.init.normal_(weight, std=0.02)
    save_pipeline(folder, text_tower(clip), tokenizer, autoencoder, denoiser, scaling=1.0)


@dataclass
class World:
    """A running server, its model's folder, and the Ray it runs in."""

    url: str
    folder: Path


@contextlib.contextmanager
def serving(root: Path, **limits: Any) -> Iterator[World]:
    """The product's server, without keys, serving a release of the demo's shape; ``limits`` are of ``serve``."""
    from components.contracts.recipe import Recipe
    from components.runtime.stage import Context
    from components.runtime.storage import Outcome
    from serving import app
    from tests.serving.conftest import Gate

    run = {"root": str(root), "port": 0, "threads_per_worker": THREADS, "object_store_mb": 128}
    recipe = Recipe.model_validate({"name": "bench-serve", "serve": limits, "run": run})
    with Context.of(recipe) as ctx:
        server = app.start(ctx, require_key=False)
        try:
            draft = ctx.store.draft("model", {}, {"shape": "demo"})
            if (made := ctx.store.find("model", draft.identity)) is None:
                save_demo_model(draft.dir / "model")
                made = draft.commit(Outcome())
            gate = Gate(ctx.registry_uri, ctx.home, recipe.name, recipe.release)
            server.wait_for(gate.release(made).version)
            yield World(server.url, made.local() / "model")
        finally:
            server.stop()


@dataclass
class Answers:
    """What requests came to. Seconds from sending to the whole answer; those unanswered at the end in ``open``."""

    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # on the monotonic clock
    refused: list[float] = field(default_factory=list)  # seconds to a 429 or 503
    failed: list[str] = field(default_factory=list)
    open: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Of the seconds; those unanswered count as long as they have waited, which is less than they would take."""
        return float(np.quantile([*self.seconds, *self.open], share))

    def rate(self, since: float, until: float) -> float:
        """Answers a second between two times."""
        return sum(since <= end < until for end in self.ended) / (until - since)

    def require_sound(self) -> Answers:
        """Raises ``RuntimeError`` where a request failed otherwise than by a refusal."""
        if self.failed:
            raise RuntimeError(f"{len(self.failed)} requests failed, the first: {self.failed[0]}")
        return self


Ask = Callable[[httpx.AsyncClient, int, int], Any]  # client, number of the request, steps -> awaitable response


def ours(url: str) -> Ask:
    """A request of the image API."""

    def ask(client: httpx.AsyncClient, number: int, steps: int) -> Any:
        body = {"prompt": PROMPT, "seed": number, "num_inference_steps": steps, "guidance_scale": GUIDANCE}
        return client.post(f"{url}/v1/images/generations", json=body)

    return ask


def rival(url: str) -> Ask:
    """A request of Ray's example."""

    def ask(client: httpx.AsyncClient, number: int, steps: int) -> Any:
        asked: dict[str, Any] = {"prompt": PROMPT, "steps": steps, "guidance": GUIDANCE}
        return client.get(f"{url}/imagine", params=asked)

    return ask


async def one(client: httpx.AsyncClient, ask: Ask, number: int, steps: int, into: Answers) -> None:
    """Send a request, and note what it came to."""
    started = time.monotonic()
    try:
        answer = await ask(client, number, steps)
    except asyncio.CancelledError:
        into.open.append(time.monotonic() - started)
        raise
    except httpx.HTTPError as error:
        into.failed.append(repr(error))
        return
    taken = time.monotonic() - started
    if answer.status_code == 200:
        into.seconds.append(taken)
        into.ended.append(time.monotonic())
    elif answer.status_code in (429, 503):
        into.refused.append(taken)
    else:
        into.failed.append(f"{answer.status_code} {answer.text[:200]}")


def flying(ask: Ask, number: int, steps: Callable[[int], int], seconds: float, ramp_s: float) -> float:
    """Answers a second with ``number`` requests in flight at all times, after ``ramp_s``."""

    async def run() -> float:
        answers, end = Answers(), time.monotonic() + ramp_s + seconds
        async with client() as http:

            async def ask_on(first: int) -> None:
                i = first
                while time.monotonic() < end:
                    await one(http, ask, i, steps(i), answers)
                    i += number

            await asyncio.gather(*(ask_on(i) for i in range(number)))
        return answers.require_sound().rate(end - seconds, end)

    return asyncio.run(run())


def arriving(
    ask: Ask, a_second: float, steps: Callable[[int], int], seconds: float, seed: int, patience_s: float
) -> tuple[Answers, float]:
    """Requests that arrive by chance (a Poisson process) for ``seconds``, whatever became of those before, and
    ``patience_s`` more for the last of them. Returns also the answers a second while they arrived."""

    async def run() -> tuple[Answers, float]:
        draws, answers = np.random.default_rng(seed), Answers()
        gaps = np.cumsum(draws.exponential(1 / a_second, int(3 * a_second * seconds) + 20))
        async with client() as http:
            started, tasks = time.monotonic(), []
            for i, at in enumerate(gaps[gaps < seconds]):
                await asyncio.sleep(max(0.0, started + at - time.monotonic()))
                tasks.append(asyncio.create_task(one(http, ask, i, steps(i), answers)))
            await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=patience_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        return answers.require_sound(), answers.rate(started, started + seconds)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Of a loopback server, for as many requests at once as there are."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(timeout=600, trust_env=False, limits=limits) as http:
        yield http

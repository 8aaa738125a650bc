"""Ray Serve's own ways to serve a diffusion pipeline, on the same checkpoint.

* :class:`AsDocumented`: the example of its documentation ("Serve a Stable Diffusion Model"): one request, one call of
  the pipeline, on whichever thread of Serve's pool is free
* :class:`OneByOne`: the same on one thread. Where PyTorch computes with GNU OpenMP every thread that draws keeps a team
  of threads, and several teams on few cores wait for each other: this is the example at its best
* :class:`Batched`: the same with ``@serve.batch``, which takes whole requests together

All take steps and guidance from the request, and the precision that ours computes in.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve

MOST = 16  # requests in a call
_app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=512)
@serve.ingress(_app)
class APIIngress:
    """The example's HTTP side."""

    def __init__(self, diffusion_model_handle: Any) -> None:
        self.handle = diffusion_model_handle

    @_app.get("/imagine", response_class=Response)
    async def generate(self, prompt: str, steps: int, guidance: float) -> Response:
        """A PNG of the prompt."""
        image = await self.handle.generate.remote(prompt, steps, guidance)
        stream = BytesIO()
        image.save(stream, "PNG")
        return Response(content=stream.getvalue(), media_type="image/png")


class Pipeline:
    """The stock pipeline in ``folder``, which draws on one thread."""

    def __init__(self, folder: str, threads: int) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.pipe = self.thread.submit(_opened, folder, threads).result()

    async def drawn(self, prompts: list[str], steps: int, guidance: float) -> list[Any]:
        """One picture a prompt."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, _draw, self.pipe, prompts, steps, guidance)


def _opened(folder: str, threads: int) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _draw(pipe: Any, prompts: list[str], steps: int, guidance: float) -> list[Any]:
    from components.runtime.precision import autocast

    with autocast("cpu"):
        images: list[Any] = pipe(prompts, num_inference_steps=steps, guidance_scale=guidance).images
    return images


# one at a time: a pipeline keeps the state of its sampler, so calls must not overlap
@serve.deployment(max_ongoing_requests=1)
class AsDocumented:
    """The example's model side: a method without ``async``, which Serve calls on its pool of threads."""

    def __init__(self, folder: str, threads: int) -> None:
        self.pipe = _opened(folder, threads)

    def generate(self, prompt: str, steps: int, guidance: float) -> Any:
        """A picture."""
        return _draw(self.pipe, [prompt], steps, guidance)[0]


@serve.deployment(max_ongoing_requests=512)
class OneByOne(Pipeline):
    """The same on one thread, before which requests wait: Serve's router would ask a busy replica again and again."""

    async def generate(self, prompt: str, steps: int, guidance: float) -> Any:
        """A picture."""
        return (await self.drawn([prompt], steps, guidance))[0]


@serve.deployment(max_ongoing_requests=512)
class Batched(Pipeline):
    """Whole requests together, all with the steps of the longest: a pipeline has one number of steps a call.

    ``wait_s`` decides the size of its batches: they are made of what arrives within it, also while others are drawn.
    """

    def __init__(self, folder: str, threads: int, wait_s: float) -> None:
        super().__init__(folder, threads)
        self.generate.set_batch_wait_timeout_s(wait_s)

    @serve.batch(max_batch_size=MOST)
    async def generate(self, prompts: list[str], steps: list[int], guidances: list[float]) -> list[Any]:
        """A picture for each."""
        return await self.drawn(prompts, max(steps), guidances[0])


def deploy(model: Any, name: str, base: str, folder: str, threads: int, *more: Any) -> str:
    """Run a rival beside the server at ``base``, ``more`` being arguments of its own; returns its URL."""
    bound = model.options(
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}
    ).bind(folder, threads, *more)
    ingress = APIIngress.options(ray_actor_options={"num_cpus": 0}).bind(bound)
    serve.run(ingress, name=name, route_prefix=f"/{name}", logging_config={"enable_access_log": False})
    return f"{base}/{name}"

"""Parts the serving tests share: a generator one can compute by hand, a service over it, and a tiny real model."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from components.contracts.recipe import Release, Serve
from components.evaluation.signing import Keys
from components.evaluation.vouching import (
    GATE,
    PROMOTION,
    gate_statement,
    newest,
    policy_digest,
    promotion_statement,
    weights_digest,
)
from components.models.stepping import Drawing, Picture, Pixels, draw, pictures_of, size_of
from components.runtime.storage import Artifact, Outcome, Store
from components.runtime.tracking import ModelVersion, Tracker
from serving.auth import KeyRing, make_key
from serving.engine import Engine, Served
from serving.follower import Follower
from serving.generation import Service
from serving.limits import Limits
from serving.logbook import Logbook
from serving.metrics import Metrics


class Painter:
    """A generator whose every picture is one colour, a function of prompt, seed and name alone.

    ``begun`` lists the prompts in the order in which they were begun, ``calls`` the steps: prompts, seeds, steps and
    guidance scales of the pictures in each. ``gate`` (when cleared) holds a step back, which otherwise takes
    ``seconds``; a prompt with "poison" fails at its first step, one with "wrong" when it is begun.
    """

    image_size, granularity = 8, 4
    family = "diffusion"
    uses_steps = uses_seed = True
    uses_styles = False
    samplers: tuple[str, ...] = ("dpm++", "euler", "unipc")

    def __init__(self, name: str = "a", seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.begun: list[str] = []
        self.calls: list[tuple[list[str], list[int], list[int], list[float]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def truncated(self, prompt: str) -> bool:
        return len(prompt) > 50

    def colour(self, prompt: str, seed: int) -> NDArray[np.uint8]:
        return np.frombuffer(hashlib.sha256(f"{self.name}/{prompt}/{seed}".encode()).digest()[:3], np.uint8)

    def begin(self, pictures: Sequence[Picture]) -> list[Drawing]:
        sizes = [size_of(picture, self.image_size, self.granularity) for picture in pictures]
        if any("wrong" in picture.prompt for picture in pictures):
            raise ValueError("secret detail of the beginning")
        self.begun += [picture.prompt for picture in pictures]
        return [Drawing(p, p.steps, size, 2 if p.guided else 1) for p, size in zip(pictures, sizes, strict=True)]

    def step(self, drawings: Sequence[Drawing]) -> None:
        asked = [drawing.picture for drawing in drawings]
        self.calls.append(
            ([p.prompt for p in asked], [p.seed for p in asked], [p.steps for p in asked],
             [p.guidance_scale for p in asked])
        )  # fmt: skip
        assert len({drawing.size for drawing in drawings}) == 1 and not any(drawing.done for drawing in drawings)
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        if any("poison" in picture.prompt for picture in asked):
            raise RuntimeError("secret detail of the inside")
        for drawing in drawings:
            drawing.step += 1

    def preview(self, drawings: Sequence[Drawing]) -> Pixels:
        return self._painted(drawings) // 2

    def finish(self, drawings: Sequence[Drawing]) -> Pixels:
        assert all(drawing.done for drawing in drawings)
        return self._painted(drawings)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **asked: Any) -> Pixels:
        return draw(self, pictures_of(prompts, seeds, **asked))

    def _painted(self, drawings: Sequence[Drawing]) -> Pixels:
        width, height = drawings[0].size
        colours = np.stack([self.colour(d.picture.prompt, d.picture.seed) for d in drawings])
        return np.tile(colours[:, None, None, :], (1, height, width, 1))


@pytest.fixture
def painter() -> Painter:
    """A generator of the test's own."""
    return Painter()


@pytest.fixture(scope="session")
def make_painter() -> type[Painter]:
    """The class, for tests that need more than one."""
    return Painter


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Waits until a condition holds; fails after a deadline."""

    def wait(true: Callable[[], object], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a whole service around a Painter (or none): ``.service``, ``.painter``, ``.key``, ``.home``."""
    made: list[Service] = []

    def make(painter: Painter | None = None, *, model: bool = True, timeout_s: float = 30.0, **limits: Any) -> Any:
        painter = painter or Painter()
        metrics = Metrics()
        settings = Serve(**limits)
        engine = Engine(max_batch=settings.max_batch, max_queue=settings.max_queue, metrics=metrics, warm_up_s=0)
        if model:
            engine.swap(Served("1", painter, "d" * 64))
        follower = Follower(
            f"sqlite:///{tmp_path / 'none.db'}",
            "x",
            "atelier",
            load=lambda _: painter,
            switch=engine.swap,
            metrics=metrics,
            keys=Keys(tmp_path),
        )
        key = make_key(tmp_path / "keys.json", "test")
        logbook = Logbook(tmp_path / "logbook", "w", flush_s=0.05)
        limits_ = Limits(settings, "atelier")
        whole = Service(limits_, engine, follower, logbook, metrics, KeyRing(tmp_path / "keys.json"), timeout_s)
        made.append(whole)
        return SimpleNamespace(service=whole, painter=painter, key=key, home=tmp_path)

    yield make
    for each in made:
        each.engine.close(2)
        each.logbook.close()


def save_tiny_model(folder: Path, seed: int) -> None:
    """A stock Stable Diffusion pipeline of random weights, 16 x 16 pixels, as a diffusers folder."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(special + alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], 0), (special[1], 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        unk_token=special[1],
        model_max_length=32,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(special) + len(alphabet),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            projection_dim=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Artifact]:
    """Tiny real models by seed, each a finished artifact of one store."""
    store = Store(str(tmp_path_factory.mktemp("models") / "store"))

    def make(seed: int) -> Artifact:
        draft = store.draft("model", {}, {"seed": seed})
        if found := store.find("model", draft.identity):
            return found
        save_tiny_model(draft.dir, seed)
        return draft.commit(Outcome())

    return make


class Gate:
    """Registers models and promotes versions as the release stage does, with the verdict that the test wants."""

    def __init__(self, uri: str, home: Path, experiment: str = "x", policy: Release | None = None) -> None:
        self.tracker, self.keys = Tracker(uri, experiment), Keys(home)
        self._policy = policy_digest(policy or Release())

    def register(self, artifact: Artifact, verdict: str = "pass", **tags: str) -> ModelVersion:
        content = {
            "model": artifact.digest, "weights": weights_digest(artifact), "data": "", "assessment": "", "judge": "",
            "verdict": verdict, "policy_digest": self._policy,
        }  # fmt: skip
        said = {"model_digest": artifact.digest, GATE: self.keys.sign(gate_statement(content, "record")), **tags}
        with self.tracker.run("release") as run:
            return self.tracker.register("atelier", artifact.url, run.id, said, "")

    def promote(self, version: int, *, forced: bool = False) -> None:
        last = newest(self.tracker.versions("atelier"), self.keys)
        now = self.tracker.version("atelier", version)
        said = promotion_statement(now, last[1] + 1 if last else 1, "a test", forced)
        self.tracker.tag_version("atelier", version, {PROMOTION: self.keys.sign(said)})
        self.tracker.set_alias("atelier", "champion", version)

    def release(self, artifact: Artifact, **tags: str) -> ModelVersion:
        made = self.register(artifact, **tags)
        self.promote(made.version)
        return made


@pytest.fixture(scope="session")
def gate() -> type[Gate]:
    """The class: ``gate(uri, home)``."""
    return Gate

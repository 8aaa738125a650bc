"""The typed recipe: every choice of a run, in one YAML file, with unknown keys refused by name.

All sections but ``run`` are *identity*: they decide what an artifact is. ``run`` is *circumstance*: paths,
workers, ports, hardware. Changing it never changes the identity of what is made.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.contracts.recipe_adapter import Adapter
from components.contracts.recipe_base import Config, Fraction, PositiveInt
from components.contracts.recipe_data import Collect, Prepare, Semantic, World
from components.contracts.recipe_families import Cnn, Family, Gan, Model, Vae, require_side
from components.contracts.recipe_judge import Assess, Release
from components.contracts.recipe_serve import Serve, Watch
from components.contracts.recipe_train import Autoencoder, Denoiser, Retrain, TextEncoder, Train

__all__ = [
    "Adapter", "Assess", "Autoencoder", "Cnn", "Collect", "Config", "Denoiser", "Family", "Fraction", "Gan", "Model",
    "PositiveInt", "Prepare", "Recipe", "Release", "Retrain", "Run", "Semantic", "Serve", "TextEncoder", "Train",
    "Vae", "Watch", "World",
]  # fmt: skip


class Run(Config):
    """Circumstance: never part of an identity."""

    root: str = "runs"  # artifacts go to {root}/{recipe name}
    store: str | None = None  # fsspec URL of the artifact store; default {root}/{name}/store
    registry: str | None = None  # MLflow URI; default sqlite:///{root}/{name}/mlflow.db
    ray_address: str | None = None  # None starts a local Ray; "auto" or "ray://..." joins one
    cpus: PositiveInt = 2  # of the machine, for a local Ray
    object_store_mb: PositiveInt = 512
    workers: PositiveInt = 2  # training workers
    threads_per_worker: PositiveInt = 1
    gpus_per_worker: float = Field(default=0.0, ge=0)
    gpu_memory_gb: float | None = Field(default=None, gt=0)  # of a worker's GPU, where this machine cannot see it
    price_per_device_hour: float | None = Field(default=None, ge=0)  # of a GPU or worker; None: no cost is shown
    sheet_images: int = Field(default=8, ge=0, le=64)  # pictures on each sample sheet of a training; 0: none
    zero_stage: Literal[0, 1, 2, 3] = 1
    min_workers: PositiveInt | None = None  # elastic: train on so many to run.workers, as there is room; None: fixed
    max_failures: int = Field(default=2, ge=0)  # of workers or nodes, after which a training starts again by itself
    launcher: Literal["ray", "here"] = "ray"  # here: in this process, or on the ranks of torchrun, without Ray Train
    offload: Literal["none", "cpu"] = "none"  # cpu: master weights and optimiser state in host memory
    accumulate: PositiveInt = 1  # passes for one step, each on a part of the batch; the batch stays as it is
    gradient_checkpointing: bool = False  # compute activations twice and keep fewer
    compile: bool = False  # the models by torch.compile; on a CPU it takes a C++ compiler and minutes
    checkpoint_every_s: float = Field(default=30.0, gt=0)
    checkpoints: str | None = None  # fsspec URL of a folder for checkpoints; None: beside what is made
    keep_last: PositiveInt = 2  # checkpoints of a training
    keep_best: int = Field(default=0, ge=0)  # and so many with the lowest validation loss
    collect_tasks: PositiveInt = 2
    collect_threads: PositiveInt = 16  # a task
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    replicas: PositiveInt = 1  # of the image API
    max_replicas: PositiveInt | None = None  # as many as the load asks for, from run.replicas up; None: fixed
    release_to: Literal["champion", "challenger"] = "champion"  # where a pass leads while there is a champion
    schedule: str | None = None  # cron expression for `atelier watch --schedule`

    @model_validator(mode="after")
    def _replicas_agree(self) -> Run:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"run.max_replicas {self.max_replicas} is less than run.replicas {self.replicas}")
        return self


class Recipe(Config):
    """One run of the loop."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    seed: int = Field(default=0, ge=0)
    collect: Collect = Collect()
    prepare: Prepare = Prepare()
    model: Model = Model()
    train: Train = Train()
    retrain: Retrain = Retrain()
    adapter: Adapter = Adapter()
    assess: Assess = Assess()
    release: Release = Release()
    serve: Serve = Serve()
    watch: Watch = Watch()
    run: Run = Run()

    @model_validator(mode="after")
    def _dimensions_agree(self) -> Recipe:
        factor, down = self.train.autoencoder.downsampling, self.train.denoiser.downsampling
        if self.model.family != "diffusion":
            require_side(self.prepare.image_size, self.model.family, self.train.gan.stages)
        elif self.prepare.image_size % (factor * down):
            raise ValueError(
                f"prepare.image_size {self.prepare.image_size} must be a multiple of {factor * down}: "
                f"{factor} for the autoencoder's and {down} for the denoiser's down-sampling"
            )
        if self.prepare.image_size % self.train.text_encoder.patch:
            raise ValueError(
                f"prepare.image_size {self.prepare.image_size} must be a multiple of "
                f"train.text_encoder.patch {self.train.text_encoder.patch}"
            )
        return self

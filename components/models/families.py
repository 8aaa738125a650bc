"""What a trained model of any family is to the rest: one small protocol, and one function that loads it.

A model folder is told by a file in it:

* ``model_index.json``: a diffusers pipeline (family ``diffusion``), see :mod:`components.models.pipeline`
* ``atelier_model.json``: ``{"family": "cnn" | "vae" | "gan", ...}``, see :mod:`components.models.one_pass`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from components.contracts.errors import ArtifactError
from components.models.stepping import Drawing, Picture, Pixels, Style

DIFFUSERS_INDEX, ATELIER_INDEX = "model_index.json", "atelier_model.json"
ONE_PASS = ("cnn", "vae", "gan")  # families that draw a picture in one pass of one network


class ImageGenerator(Protocol):
    """A loaded model, of whatever family. For one thread.

    ``uses_steps``, ``uses_seed`` and ``uses_styles`` say what has an effect on it. A server draws by :meth:`begin`,
    :meth:`step` and :meth:`finish`, everybody else by :meth:`generate`, which goes the same way. Families of one pass
    take one step.
    """

    family: str
    uses_steps: bool  # steps, guidance scale, sampler and negative prompts
    uses_seed: bool  # False: a prompt gives one picture, whatever the seed
    uses_styles: bool  # LoRA adapters
    samplers: tuple[str, ...]  # by name, the model's own first; none where there are no steps

    @property
    def image_size(self) -> int:
        """Side of the pictures, in pixels."""
        ...

    @property
    def granularity(self) -> int:
        """Sides of other sizes must be multiples of so many pixels; 0: the model draws its own size only."""
        ...

    def truncated(self, prompt: str) -> bool:
        """Whether the text encoder reads only the beginning of ``prompt``."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        negative_prompts: Sequence[str] | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
        style: Style | None = None,
    ) -> Pixels:
        """One picture a prompt: uint8 RGB ``[N, H, W, 3]``. Steps, guidance scale and negative prompts are ignored
        where the family does not use them.

        Raises:
            InputError: lengths differ, a number is out of range, or the model has no such sampler, size or styles.
            ArtifactError: the style cannot be read, or does not fit the model.
        """
        ...

    def begin(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Read the prompts and draw the noise of pictures of whatever sizes. Errors as :meth:`generate`; then none of
        the pictures is begun."""
        ...

    def step(self, drawings: Sequence[Drawing]) -> None:
        """One step of every drawing; all of one size and none done. An error leaves all of them as they were."""
        ...

    def preview(self, drawings: Sequence[Drawing]) -> Pixels:
        """What drawings of one size are expected to become, uint8 ``[N, H, W, 3]``."""
        ...

    def finish(self, drawings: Sequence[Drawing]) -> Pixels:
        """The pictures of drawings that are done, all of one size: uint8 ``[N, H, W, 3]``."""
        ...


def index_of(names: Sequence[str]) -> str:
    """The file that tells a model folder, among the ``names`` of an artifact's files; the least deep one.

    Raises:
        ArtifactError: there is none, or more than one at the same depth.
    """
    found = [name for name in names if name.rpartition("/")[2] in (DIFFUSERS_INDEX, ATELIER_INDEX)]
    least = min((name.count("/") for name in found), default=0)
    first = [name for name in found if name.count("/") == least]
    if len(first) != 1:
        raise ArtifactError(
            f"{len(first)} files {DIFFUSERS_INDEX} or {ATELIER_INDEX} were found" if first else "No model was found",
            expected=f"a folder with one {DIFFUSERS_INDEX} (diffusers) or one {ATELIER_INDEX} (cnn, vae, gan)",
            remedy="pass the model artifact that atelier train made",
        )
    return first[0]


def family_of(folder: Path) -> str:
    """The family of the model in ``folder``, read from its index file; no weights are loaded.

    Raises:
        ArtifactError: there is no such file, or it is not of a family that is known here.
    """
    if (folder / DIFFUSERS_INDEX).exists():
        return "diffusion"
    family = read_index(folder)["family"]
    if family not in ONE_PASS:
        raise ArtifactError(
            f"{folder / ATELIER_INDEX} names the family {family!r}",
            expected=f"one of {', '.join(ONE_PASS)}",
            remedy="use the version of this project that made the model, or train it again",
        )
    return str(family)


def read_index(folder: Path) -> dict[str, Any]:
    """What ``atelier_model.json`` says.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path = folder / ATELIER_INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict) or not isinstance(index.get("family"), str):
            raise ValueError("it names no family")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder} cannot be opened as a model: {str(error).splitlines()[0]}",
            expected=f"a folder with {DIFFUSERS_INDEX} or {ATELIER_INDEX}",
            remedy="check the path, or train and assemble the model again",
        ) from error
    return index


def load_generator(folder: Path, device: str | None = None) -> ImageGenerator:
    """The model in ``folder``, whatever its family. ``device``: as for torch; a GPU when there is one by default.

    Raises:
        ArtifactError: the folder holds no model, or a damaged one.
    """
    folder = Path(folder)
    if family_of(folder) == "diffusion":
        from components.models.pipeline import Generator

        diffusion: ImageGenerator = Generator.load(folder, device)
        return diffusion
    from components.models.one_pass import OnePassGenerator

    return OnePassGenerator.load(folder, device)

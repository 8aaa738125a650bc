"""Models that draw in one pass (cnn, vae, gan): their folder, and a generator over it.

A model folder, all weights as safetensors:

* ``atelier_model.json``: family, side of the pictures and the network's config
* ``network/``: ``config.json`` and ``model.safetensors``
* ``text_encoder/``: the frozen ``CLIPTextModelWithProjection``; ``tokenizer/``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError, InputError
from components.contracts.recipe import Cnn, Gan, Vae
from components.models.families import ATELIER_INDEX, family_of, read_index
from components.models.reading import Reader, projecting_tower
from components.models.stepping import Drawing, Picture, Pixels, Style, draw, noise_of, pictures_of, size_of
from components.runtime.precision import autocast

FORMAT = 1  # of the folder
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SECTIONS: dict[str, Any] = {"cnn": Cnn, "vae": Vae, "gan": Gan}


@dataclass(frozen=True)
class Design:
    """What a network is made from."""

    section: Cnn | Vae | Gan
    side: int  # of the pictures, in pixels
    words: int  # width of the text encoder's states
    sentence: int  # width of its projection

    @property
    def family(self) -> str:
        """The name of the family."""
        return type(self.section).__name__.lower()

    def as_json(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {"family": self.family, "side": self.side, "words": self.words, "sentence": self.sentence,
                "section": self.section.identity()}  # fmt: skip

    @classmethod
    def read(cls, values: dict[str, Any]) -> Design:
        """The inverse of :meth:`as_json`; ``ValueError`` or ``KeyError`` where it is not one."""
        section = _SECTIONS[values["family"]].model_validate(values["section"])
        return cls(section, int(values["side"]), int(values["words"]), int(values["sentence"]))


def make_network(design: Design) -> Any:
    """A fresh network: called with a :class:`Reading` and noise ``[N, noise_size]``, it draws."""
    given = (design.side, design.words, design.sentence)
    if isinstance(design.section, Cnn):
        from components.models.cnn import CnnNetwork

        return CnnNetwork(design.section, *given)
    if isinstance(design.section, Vae):
        from components.models.vae import VaeNetwork

        return VaeNetwork(design.section, *given)
    from components.models.dm_gan import GanNetwork

    return GanNetwork(design.section, *given)


@dataclass(frozen=True)
class Saved:
    """A network to be written; ``others`` are modules whose weights lie beside it, such as discriminators."""

    design: Design
    network: nn.Module
    others: dict[str, nn.Module]

    def save_pretrained(self, folder: Path, safe_serialization: bool = True) -> None:
        """Write ``config.json``, ``model.safetensors`` and one safetensors file for each of ``others``."""
        from safetensors.torch import save_file

        assert safe_serialization, "weights are kept as safetensors only"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.design.as_json(), indent=2, sort_keys=True) + "\n")
        for name, module in {"model": self.network, **self.others}.items():
            state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            save_file(state, folder / f"{name}.safetensors")


def load_network(folder: Path) -> tuple[Design, Any]:
    """A network of :class:`Saved`, in fp32 and evaluation mode, and what it was made from.

    Raises:
        ArtifactError: the folder is not such a network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        design = Design.read(json.loads((folder / CONFIG).read_text()))
        network = make_network(design)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} cannot be opened as a network: {str(error).splitlines()[0]}",
            expected=f"{CONFIG} and {WEIGHTS} of a cnn, vae or gan",
            remedy="check the path, or train the model again",
        ) from error
    return design, network.float().eval()


def save_model(folder: Path, network: Path, clip: Any, tokenizer: Any) -> None:
    """Write a model folder that :func:`components.models.families.load_generator` opens.

    Args:
        network: folder of :class:`Saved`. clip: the ``CLIPModel`` whose text tower it was trained on.
    """
    design, loaded = load_network(network)
    Saved(design, loaded, {}).save_pretrained(folder / "network")
    projecting_tower(clip).save_pretrained(folder / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    index = {"family": design.family, "format": FORMAT, "image_size": design.side}
    (folder / ATELIER_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


class OnePassGenerator:
    """Pictures from prompts by a cnn, vae or gan; steps, guidance and negative prompts have no effect.

    Each picture's noise comes from its own seed, so a prompt and a seed give the same picture in any batch, up to
    the rounding of bf16.
    """

    uses_steps = uses_styles = False
    granularity = 0
    samplers: tuple[str, ...] = ()

    def __init__(self, reader: Reader, network: Any, design: Design, device: torch.device) -> None:
        self._reader, self._network, self._device = reader, network, device
        self.family, self.design = design.family, design
        self.uses_seed = network.noise_size > 0

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> OnePassGenerator:
        """From a folder of :func:`save_model`.

        Raises:
            ArtifactError: the folder is not such a model.
        """
        from safetensors import SafetensorError

        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = Path(folder)
        family, index = family_of(folder), read_index(folder)
        if index.get("format") != FORMAT:
            raise ArtifactError(
                f"{folder} has the format {index.get('format')!r}", expected=str(FORMAT),
                remedy="use the version of this project that made it, or train the model again",
            )  # fmt: skip
        design, network = load_network(folder / "network")
        if design.family != family:
            raise ArtifactError(f"{folder} says {family} and holds a {design.family}", remedy="assemble it again")
        try:
            reader = Reader.load(folder, chosen)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ArtifactError(
                f"{folder} cannot be opened as a model: {str(error).splitlines()[0]}",
                expected="network, text_encoder and tokenizer",
                remedy="check the path, or train and assemble the model again",
            ) from error
        return cls(reader, network.to(chosen).requires_grad_(False), design, chosen)

    @property
    def image_size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.design.side

    def truncated(self, prompt: str) -> bool:
        """True if the prompt is longer than the text encoder reads: its end is then ignored."""
        return self._reader.truncated(prompt)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 1,
        guidance_scale: float = 1.0,
        negative_prompts: Sequence[str] | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
        style: Style | None = None,
    ) -> Pixels:
        """One picture a prompt: uint8 RGB ``[N, side, side, 3]``; ``seeds`` as for diffusion, 0 .. 2**63-1.

        Raises:
            InputError: lengths differ, a number is out of range, or a sampler, another size or a style is asked for.
        """
        alike = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler, "style": style}
        pictures = pictures_of(prompts, seeds, negative_prompts, size, **alike)
        if not pictures:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        return draw(self, pictures)

    def begin(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Drawings of one step.

        Raises:
            InputError: a sampler, another size or a style is asked for.
        """
        for picture in pictures:
            if picture.sampler or picture.style:
                raise InputError(
                    f"A model of the family {self.family} has no samplers and no styles",
                    remedy="leave sampler and style out, or serve a diffusion model",
                )
        sizes = [size_of(picture, self.image_size, self.granularity) for picture in pictures]
        return [Drawing(picture, 1, size, 1) for picture, size in zip(pictures, sizes, strict=True)]

    def step(self, drawings: Sequence[Drawing]) -> None:
        """Draw them, by one call of the network."""
        asked = [drawing.picture for drawing in drawings]
        with torch.inference_mode():
            noise = torch.stack([noise_of(picture, (self._network.noise_size,)) for picture in asked])
            reading = self._reader.read([picture.prompt for picture in asked])
            with autocast(self._device.type):
                pixels = to_uint8(self._network(reading, noise.to(self._device)))
        for drawing, each in zip(drawings, pixels, strict=True):
            drawing.inside = each
            drawing.step = 1

    def preview(self, drawings: Sequence[Drawing]) -> Pixels:
        """The pictures; there is nothing to be seen before."""
        return self.finish(drawings)

    def finish(self, drawings: Sequence[Drawing]) -> Pixels:
        """The pictures of drawings that are done, uint8 ``[N, side, side, 3]``."""
        return np.stack([drawing.inside for drawing in drawings])


def to_uint8(pictures: Tensor) -> npt.NDArray[np.uint8]:
    """Pictures ``[N, 3, H, W]`` in -1..1 as uint8 ``[N, H, W, 3]``."""
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

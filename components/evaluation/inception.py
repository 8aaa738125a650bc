"""Inception-v3 as the Fréchet Inception Distance knows it: the network of 2015-12-05, its weights, its resizing.

The architecture is that of Szegedy et al. 2016 ("Rethinking the Inception Architecture"), with what the published graph
of TensorFlow does otherwise than torchvision's: average pooling does not count the padding, the last block pools by
maximum, and there are 1008 classes. Weights are those that ``pytorch-fid`` and ``torch-fidelity`` publish; pictures
are brought to 299 pixels by TensorFlow 1's bilinear rule, so that numbers may be held against published ones.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.contracts.errors import ArtifactError, RecipeError
from components.evaluation.extractor import Pictures, Rows, tensor_of

if TYPE_CHECKING:
    from torch import Tensor

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
#: The same weights under the names that pytorch-fid and torch-fidelity fetch them by.
PUBLISHED = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
FEATURES, CLASSES, SIDE = 2048, 1008, 299
_BATCH = 32


@dataclass
class InceptionExtractor:
    """Features are the pooled output of the last block [N, 2048]; probabilities those of the 1008 classes.

    Classes are scored without their bias, as the Inception Score's authors do.
    """

    network: Any
    digest: str

    @classmethod
    def load(cls, file: Path, digest: str = "", device: str = "cpu") -> InceptionExtractor:
        """From a safetensors file of :func:`read_weights`.

        Raises:
            ArtifactError: it does not hold these weights.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        network = make_network()
        try:
            network.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"No Inception can be loaded from {file}: {str(error).splitlines()[0]}",
                expected="the weights of 2015-12-05, as the judge keeps them",
                remedy="delete the judge artifact and run the same command again",
            ) from error
        return cls(network.to(device), digest)

    def arrays(self, pictures: Pictures) -> dict[str, Rows]:
        """See :class:`components.evaluation.extractor.Extractor`."""
        import torch

        device = self.network.fc.weight.device
        features, answers = [], []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                pixels = tensor_of(pictures[start : start + _BATCH]).to(device).float()
                found = self.network((resized(pixels, SIDE) - 128) / 128)
                features.append(found.cpu().numpy())
                answers.append((found @ self.network.fc.weight.T).softmax(dim=1).cpu().numpy())
        return {"features": np.concatenate(features), "probabilities": np.concatenate(answers)}


def read_weights(source: str | None) -> dict[str, Tensor]:
    """The published weights, from a file (``.pth`` or ``.safetensors``), or found where other packages keep them,
    or fetched from where they are published.

    Raises:
        RecipeError: they are not there, or are others.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _fetched() if source is None else Path(source).expanduser()
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            _require_whole(file)
            found = torch.load(file, map_location="cpu", weights_only=True)
        weights = {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}
        expected = {n: v for n, v in make_network().state_dict().items() if not n.endswith("num_batches_tracked")}
        wrong = [n for n in {*expected, *weights} if n not in weights or n not in expected]
        wrong += [n for n in {*expected} & {*weights} if expected[n].shape != weights[n].shape]
        if wrong:
            raise ValueError(f"{len(wrong)} weights are missing, too many or of another shape, such as {min(wrong)}")
    except (OSError, ValueError, RuntimeError, AttributeError, pickle.UnpicklingError, SafetensorError) as error:
        raise RecipeError(
            f"assess.extractors: {file} holds no weights of Inception: {(str(error).splitlines() or ['empty'])[0]}",
            expected=f"the file {PUBLISHED[0]}, or the same weights as .safetensors",
            remedy=_remedy(),
        ) from error
    return {name: weights[name].float().contiguous() for name in sorted(weights)}


def weights_digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names and values: the same for either kind of file."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {tuple(value.shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures [N, C, H, W] at [N, C, side, side] by TensorFlow 1's bilinear rule: the corner of a pixel is its place.

    Pixel ``i`` of the result lies at ``i * H / side`` of the picture; nothing is smoothed when it is made smaller.
    """
    import torch

    def places(length: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(side, dtype=torch.float32, device=pictures.device) * (length / side)
        low = at.long().clamp_max(length - 1)
        return low, (low + 1).clamp_max(length - 1), at - low

    top, bottom, down = places(pictures.shape[2])
    left, right, across = places(pictures.shape[3])
    rows_top, rows_bottom = pictures[:, :, top], pictures[:, :, bottom]
    above = rows_top[..., left] + (rows_top[..., right] - rows_top[..., left]) * across
    below = rows_bottom[..., left] + (rows_bottom[..., right] - rows_bottom[..., left]) * across
    return above + (below - above) * down[:, None]


def _fetched() -> Path:
    """The weights where torch's hub keeps what pytorch-fid and torch-fidelity fetch; fetched there if they are not."""
    from urllib.error import URLError

    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in PUBLISHED:
        if (folder / name).is_file():
            return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(folder / PUBLISHED[0]), _hash_in(PUBLISHED[0]), progress=False)
    except (OSError, URLError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"assess.extractors: the weights of Inception are not here, and {URL} cannot be fetched: {error}",
            expected=f"one of {', '.join(PUBLISHED)} in {folder}",
            remedy=_remedy(),
        ) from error
    return folder / PUBLISHED[0]


def _remedy() -> str:
    import torch

    return (
        f"download {URL} where the network allows it and copy the file to {Path(torch.hub.get_dir()) / 'checkpoints'}, "
        "or name the copy as the extractor's source"
    )


def _require_whole(file: Path) -> None:
    """A name with a checksum in it, as torch's hub gives, must be true."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    said = _hash_in(file.name)
    if said and not found.startswith(said):
        raise ValueError(f"its SHA-256 begins with {found[:8]}, its name says {said}")


def _hash_in(name: str) -> str:
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", name)
    return found[1] if found else ""


def make_network() -> Any:
    """The network with weights of no meaning, frozen; called with pictures [N, 3, 299, 299] in -1..1 it gives
    features [N, 2048]. Parts are named as in the published files."""
    import torch

    from components.evaluation.inception_parts import Inception

    with torch.random.fork_rng(devices=[]):
        return Inception().eval().requires_grad_(False)

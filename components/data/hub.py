"""The one door to models of the Hugging Face kind that look at samples: found, fetched, identified and loaded.

A model is a folder, as ``save_pretrained`` writes it, or the id of one on the hub, which is fetched once to the hub's
usual cache. Only safetensors are loaded; models run in fp32 on one thread, so that looking again gives the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts.errors import RecipeError


@dataclass(frozen=True)
class Door:
    """What a key of the recipe takes for a model.

    Args:
        key: of the section. files: patterns of the files that make up the model, for fetching and for its identity.
        expected: what the key may name, in words. remedy: where a model cannot be loaded.
        section: of the recipe.
    """

    key: str
    files: tuple[str, ...]
    expected: str
    remedy: str
    section: str = "prepare"

    def names(self, folder: Path) -> list[str]:
        """The model's files, as paths within the folder, in order."""
        found = sorted({path for pattern in self.files for path in folder.glob(pattern) if path.is_file()})
        return [path.relative_to(folder).as_posix() for path in found]

    def digest(self, folder: Path) -> str:
        """SHA-256 (hex) of the model's files, for the identity of what is measured with it."""
        found = hashlib.sha256()
        for name in self.names(folder):
            found.update(f"{name}\n".encode())
            with (folder / name).open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def fetched(self, name: str) -> Path:
        """The folder of a model of the hub, fetched if it is not on this machine yet.

        Raises:
            RecipeError: the hub has no such model, or cannot be reached.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            try:
                return Path(snapshot_download(name, allow_patterns=list(self.files), local_files_only=True))
            except OSError:  # not in the cache
                return Path(snapshot_download(name, allow_patterns=list(self.files)))
        except (OSError, HFValidationError) as error:
            raise RecipeError(
                f"{self.section}.{self.key}: no folder {name} is here, and the Hugging Face hub gave no such model: "
                f"{str(error).splitlines()[0]}",
                expected=self.expected,
                remedy="correct the name, copy the model's folder to this machine, or fetch it once with the hub in "
                "reach",
            ) from error

    @contextlib.contextmanager
    def explained(self, folder: Path) -> Iterator[None]:
        """What transformers raises in the block becomes a ``RecipeError`` that names key and folder."""
        from safetensors import SafetensorError
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecipeError(
                f"{self.section}.{self.key}: the model in {folder} cannot be loaded: {reason}",
                expected=self.expected,
                remedy=self.remedy,
            ) from error


def loaded(kind: Any, folder: Path, spare: str | None = None) -> tuple[Any, Sequence[str]]:
    """The model, frozen, in fp32, and which of its weights the folder does not have.

    Args:
        kind: a class of transformers.
        spare: the part that may be missing; any other would be made up at random, and would judge at random.

    Raises:
        ValueError: weights are missing.
    """
    model, info = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if any(spare is None or spare not in key for key in missing):
        raise ValueError(f"it lacks the weights {', '.join(missing[:3])}")
    return model.float().eval().requires_grad_(False), missing


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for the block: other tasks have the other cores, and sums come in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

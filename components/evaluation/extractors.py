"""The extractors that a recipe names beside the judge's own CLIP: found, identified, copied into the judge, opened.

``assess.extractors`` has, by kind: ``clip`` and ``dinov2``, a folder as ``save_pretrained`` writes it or an id of the
Hugging Face hub (:mod:`components.data.hub`); ``inception``, the file of its weights
(:mod:`components.evaluation.inception`). The judge keeps a copy, so that it judges the same wherever it is opened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.contracts.errors import ArtifactError, RecipeError
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe_judge import Extractor as Source
from components.evaluation.extractor import ClipExtractor, Extractor, VisionExtractor
from components.runtime.storage import Artifact

if TYPE_CHECKING:
    from components.data.hub import Door

OWN = "judge"  # name of the judge's own CLIP among the extractors
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "tokenizer/*")
_WEIGHTS = "inception.safetensors"


@dataclass(frozen=True)
class Located:
    """An extractor of the recipe that is on this machine."""

    name: str
    kind: str
    digest: str  # of all that decides what it says of a picture
    source: str  # folder, or of inception the file

    def copy(self, target: Path) -> None:
        """Put its files into the folder ``target``."""
        target.mkdir(parents=True, exist_ok=True)
        if self.kind == "inception":
            from safetensors.torch import save_file

            from components.evaluation.inception import read_weights

            save_file(read_weights(self.source or None), target / _WEIGHTS)
            return
        folder = Path(self.source)
        for name in _door(self.kind, self.name).names(folder):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)


def locate(sources: Sequence[Source]) -> list[Located]:
    """Find every extractor of the recipe; one of the hub is fetched if it is not on this machine yet.

    Raises:
        RecipeError: one is not there; the message says which file belongs where.
    """
    return [_located(source) for source in sources]


def open_extractor(kind: str, folder: Path, digest: str, device: str = "cpu") -> Extractor:
    """The extractor in a folder of :meth:`Located.copy`.

    Raises:
        ArtifactError: the folder does not hold it.
    """
    if kind == "inception":
        from components.evaluation.inception import InceptionExtractor

        return InceptionExtractor.load(folder / _WEIGHTS, digest, device)
    opened: type[ClipExtractor] | type[VisionExtractor] = ClipExtractor if kind == "clip" else VisionExtractor
    return opened.load(folder, digest, device)


def clip_folder(artifact: Artifact) -> str:
    """Folder inside ``artifact`` (``""`` for its root) that holds a CLIP model.

    Raises:
        ArtifactError: no ``config.json`` there is of a CLIP model.
    """
    for name in sorted(n for n in artifact.manifest.files if n.rpartition("/")[2] == "config.json"):
        if json.loads(artifact.path(name).read_text()).get("model_type") == "clip":
            return name.rpartition("/")[0]
    raise ArtifactError(
        f"{artifact.short} holds no CLIP model",
        expected="a config.json with model_type clip beside model.safetensors",
        remedy="pass the artifact of the judge's own CLIP training",
    )


def copy_clip(source: Artifact, target: Path) -> str:
    """Copy weights, config, preprocessing and tokenizer of a CLIP trained here; return the digest of what was copied.

    Raises:
        ArtifactError: ``source`` holds no CLIP model.
    """
    folder = clip_folder(source)
    prefix = f"{folder}/" if folder else ""
    wanted = {}
    for name in source.manifest.files:
        base = name.rpartition("/")[2]
        if name == prefix + base and (
            base.endswith(".safetensors") or base in ("config.json", "preprocessor_config.json")
        ):
            wanted[base] = name
        elif "tokenizer" in name.split("/")[:-1]:
            wanted[f"tokenizer/{base}"] = name
    for base, name in wanted.items():
        (target / base).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path(name), target / base)
    return sha256_text(canonical_json({base: source.manifest.files[name].sha256 for base, name in wanted.items()}))


def packed(folders: Mapping[str, tuple[str, Path, str]]) -> dict[str, tuple[str, str, dict[str, bytes]]]:
    """Extractors ``{name: (kind, folder, digest)}`` with the bytes of their files, to be sent to other machines."""
    return {
        name: (
            kind,
            digest,
            {p.relative_to(at).as_posix(): p.read_bytes() for p in sorted(at.rglob("*")) if p.is_file()},
        )
        for name, (kind, at, digest) in folders.items()
    }


def unpacked(parts: Mapping[str, tuple[str, str, dict[str, bytes]]], device: str) -> dict[str, Extractor]:
    """Open what :func:`packed` gave, on this machine."""
    import tempfile

    found: dict[str, Extractor] = {}
    for name, (kind, digest, files) in parts.items():
        with tempfile.TemporaryDirectory(prefix="atelier-extractor-") as folder:
            for file, data in files.items():
                path = Path(folder) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            found[name] = open_extractor(kind, Path(folder), digest, device)
    return found


def _located(source: Source) -> Located:
    if source.kind == "inception":
        from components.evaluation.inception import read_weights, weights_digest

        return Located(source.called, "inception", weights_digest(read_weights(source.source)), source.source or "")
    door, given = _door(source.kind, source.called), source.source or ""
    folder = Path(given).expanduser()
    if not folder.exists():
        folder = door.fetched(given)
    for file in ("config.json", "*.safetensors"):
        if not any(folder.glob(file)):
            raise RecipeError(
                f"assess.{door.key}: {folder} holds no {file}",
                expected=door.expected,
                remedy=f"copy {'config.json' if file == 'config.json' else 'model.safetensors'} of the model into that "
                "folder, or name another one",
            )
    return Located(source.called, source.kind, door.digest(folder), str(folder))


def _door(kind: str, name: str) -> Door:
    from components.data.hub import Door

    example = {"clip": "openai/clip-vit-large-patch14", "dinov2": "facebook/dinov2-base"}[kind]
    words = " and a tokenizer" if kind == "clip" else ""
    return Door(
        f"extractors ({name})", _FILES,
        f"a folder with config.json, *.safetensors, preprocessor_config.json{words}, or an id on the Hugging Face hub "
        f"such as {example}",
        "copy the whole folder of the model again, or name another one", "assess",
    )  # fmt: skip

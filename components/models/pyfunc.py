"""A registered model for ``mlflow.pyfunc.load_model``: prompts in, PNG files out.

This module and the packages that it needs lie as code with the model version in MLflow, so that the version loads in a
process that has what its ``requirements.txt`` names and not this project. The weights are not
copied: they stay in the store, at the URL in :data:`DATA`, and are verified when they are loaded.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from components.contracts.errors import ArtifactError, InputError
from components.models.families import ImageGenerator, index_of, load_generator
from components.runtime.opening import open_artifact
from components.runtime.storage import Artifact
from components.runtime.tracking import Loadable

DATA = "model.json"  # {"url", "digest", "steps", "guidance_scale"}
LOADER = "components.models.pyfunc"  # this module, as it is imported from the copy too
PACKAGES = ("contracts", "runtime", "models")  # of components: all that loading and drawing imports
_REQUIRED = (
    "accelerate", "diffusers", "filelock", "fsspec", "numpy", "pandas", "peft", "pillow", "pydantic", "safetensors",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
_BATCH = 16


class Drawing:
    """What ``mlflow.pyfunc.load_model`` gives, behind its ``predict``."""

    def __init__(self, generator: ImageGenerator, steps: int, guidance_scale: float) -> None:
        self._generator, self._steps, self._guidance = generator, steps, guidance_scale

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """One picture a row.

        Args:
            model_input: DataFrame with ``prompt``; ``seed`` (0 .. 2**63-1; by default the row's position) and
                ``negative_prompt`` if wanted.
            params: ``steps`` and ``guidance_scale`` in place of the model's defaults.

        Returns:
            DataFrame with ``image``: the bytes of a PNG file.

        Raises:
            InputError: there is no prompt, a seed is no number, or a number is out of range.
        """
        import pandas as pd
        from PIL import Image

        frame = pd.DataFrame(model_input)
        if "prompt" not in frame or frame["prompt"].isna().any():
            raise InputError(
                f"A row without a prompt; the columns are {', '.join(map(str, frame.columns)) or 'none'}",
                expected="a text in the column prompt of every row",
                remedy='pass DataFrame({"prompt": ["a red star"], "seed": [0]})',
            )
        prompts = [str(prompt) for prompt in frame["prompt"]]
        seeds = _seeds(list(frame["seed"])) if "seed" in frame else list(range(len(prompts)))
        negatives = None
        if "negative_prompt" in frame:
            negatives = ["" if pd.isna(prompt) else str(prompt) for prompt in frame["negative_prompt"]]
        given = {k: v for k, v in (params or {}).items() if v is not None}
        steps, guidance = int(given.get("steps", self._steps)), float(given.get("guidance_scale", self._guidance))
        files = []
        for start in range(0, len(prompts), _BATCH):
            part = slice(start, start + _BATCH)
            pictures = self._generator.generate(
                prompts[part],
                seeds[part],
                steps=steps,
                guidance_scale=guidance,
                negative_prompts=None if negatives is None else negatives[part],
            )
            for picture in pictures:
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "PNG")
                files.append(buffer.getvalue())
        return pd.DataFrame({"image": files}, index=frame.index)


def _load_pyfunc(data_path: str) -> Drawing:
    """Called by MLflow with the path of :data:`DATA`.

    Raises:
        ArtifactError: the store does not hold the model that was registered, or it is damaged.
    """
    said = json.loads(Path(data_path).read_text(encoding="utf-8"))
    try:
        artifact = open_artifact(said["url"], said["digest"])
    except ArtifactError as error:
        raise ArtifactError(
            error.problem,
            expected=f"the weights of this model version at {said['url']}: MLflow keeps no copy of them",
            remedy="make the store reachable from this machine under that URL",
        ) from error
    artifact.verify()
    folder = artifact.path(index_of(list(artifact.manifest.files))).parent
    return Drawing(load_generator(folder), int(said["steps"]), float(said["guidance_scale"]))


def loadable(model: Artifact, folder: Path, steps: int, guidance_scale: float) -> Loadable:
    """A model artifact as MLflow registers it; its code is copied below ``folder``, which must be there until then."""
    defaults = {"steps": steps, "guidance_scale": float(guidance_scale)}
    return Loadable(
        LOADER,
        (DATA, {"url": model.url, "digest": model.digest, **defaults}),
        copy_code(folder),
        requirements(),
        inputs={"prompt": "string", "seed": "long?", "negative_prompt": "string?"},
        outputs={"image": "binary"},
        example={"prompt": "a red star", "seed": 0, "negative_prompt": ""},
        params=defaults,
    )


def copy_code(folder: Path) -> Path:
    """Copy the packages that :func:`_load_pyfunc` imports below ``folder``, as ``components``."""
    source, target = Path(__file__).parents[1], folder / LOADER.partition(".")[0]
    target.mkdir(parents=True)
    shutil.copyfile(source / "__init__.py", target / "__init__.py")
    for name in PACKAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def requirements() -> list[str]:
    """What loading and drawing needs, in the versions at hand, as pip takes it."""
    found = []
    for name in _REQUIRED:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:  # of no use to the models of this machine
            continue
    return found


def _seeds(values: Sequence[Any]) -> list[int]:
    try:
        seeds = [int(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"A seed is no whole number: {error}", expected="0 .. 2**63-1 in the column seed") from error
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise InputError(f"A seed is out of range: {min(seeds)} .. {max(seeds)}", expected="0 .. 2**63-1")
    return seeds

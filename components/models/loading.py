"""Models that others trained: fetched by folder or hub id, and saved again as the parts of ours.

Only safetensors are opened, and all weights must be there: a model with a part made up at random would draw at
random. A name is a folder on this machine, or an id of the Hugging Face hub; a third part of the id is a folder
within it, as in ``stable-diffusion-v1-5/stable-diffusion-v1-5/vae``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.contracts.errors import RecipeError
from components.models.autoencoder import Grid
from components.models.quiet import quieten
from components.models.text_encoder import TOWERS, kind_of

MOST_TOKENS = 120  # of a prompt of a T5, which sets no limit itself: what PixArt's pipeline pads to
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")
_EXPECTED = {
    "autoencoder": "a folder with config.json and *.safetensors of an AutoencoderKL or AutoencoderDC, or its id on the "
    "Hugging Face hub, such as stabilityai/sd-vae-ft-mse",
    "text_encoder": "a folder with config.json, *.safetensors and a tokenizer of a CLIP or T5, or its id on the "
    "Hugging Face hub, such as openai/clip-vit-large-patch14",
}
_WITHIN = {"autoencoder": "vae", "text_encoder": "text_encoder"}  # folder of a whole pipeline


def fetch(part: str, source: str, revision: str | None = None) -> Path:
    """The folder on this machine that holds the weights; what is on the hub is fetched if it is not there yet.

    Args:
        part: "autoencoder" or "text_encoder". source: folder or hub id. revision: of the hub id.

    Raises:
        RecipeError: there is no such model, or it has no safetensors.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        folder = _from_hub(part, source, revision)
    if (folder / "model_index.json").is_file():
        folder = folder / _WITHIN[part]
    for file in ("config.json", "*.safetensors"):
        if not any(folder.glob(file)):
            pickled = ", ".join(sorted(p.name for p in folder.glob("*.bin")))
            raise _refused(
                part, f"{folder} holds no {file}" + (f", only {pickled}, which could run code" if pickled else "")
            )
    return folder


def _from_hub(part: str, source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    owner, _, rest = source.partition("/")
    name, _, within = rest.partition("/")
    wanted = within or _WITHIN[part]
    patterns = [f"{folder}{file}" for folder in ("", f"{wanted}/", "tokenizer/") for file in _FILES]
    settings: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
    try:
        try:
            found = snapshot_download(f"{owner}/{name}", local_files_only=True, **settings)
        except OSError:  # not in the cache
            found = snapshot_download(f"{owner}/{name}", **settings)
    except (OSError, HFValidationError) as error:
        raise _refused(
            part,
            f"no folder {source} is here, and the Hugging Face hub gave no such model"
            f"{f' at revision {revision}' if revision else ''}: {str(error).splitlines()[0]}",
        ) from error
    return Path(found) / within


def weights_digest(part: str, folder: Path) -> str:
    """SHA-256 (hex) of the files that a part is made from: the identity of what is loaded."""
    found, tokens = hashlib.sha256(), tokenizer_folder(folder) if part == "text_encoder" else None
    for place in [folder, *([tokens] if tokens and tokens != folder else [])]:
        for path in sorted({p for pattern in _FILES for p in place.glob(pattern) if p.is_file()}):
            found.update(f"{path.name}\n".encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a text encoder lies: with it, in ``tokenizer/``, or beside it as in a pipeline.

    Raises:
        RecipeError: there is none.
    """
    for place in (folder, folder / "tokenizer", folder.parent / "tokenizer"):
        if any((place / file).is_file() for file in _TOKENIZERS):
            return place
    raise _refused(
        "text_encoder",
        f"{folder} has no tokenizer: none of {', '.join(_TOKENIZERS)} is in it, in {folder / 'tokenizer'} or in "
        f"{folder.parent / 'tokenizer'}",
    )


def copy_autoencoder(folder: Path, target: Path) -> Grid:
    """Open the autoencoder in ``folder`` and save it as ``target``; returns what it makes of a picture.

    Raises:
        RecipeError: it is none, or weights are missing.
    """
    quieten()
    import diffusers

    with _explained("autoencoder", folder):
        grid = Grid.of(folder)
        model = _whole(getattr(diffusers, grid.kind), folder, torch_dtype="auto")
        if grid.kind == "AutoencoderDC":
            # pipelines count the levels of an AutoencoderKL to know the factor
            model.register_to_config(block_out_channels=list(model.config.encoder_block_out_channels))
        model.save_pretrained(target, safe_serialization=True)
    return grid


def copy_text_encoder(folder: Path, target: Path, tokenizer: Path, max_tokens: int | None) -> dict[str, Any]:
    """Open the text encoder in ``folder``, save it as ``target`` and its tokenizer as ``tokenizer``.

    Returns:
        ``kind`` (model type), ``width`` and ``max_tokens`` of a prompt.

    Raises:
        RecipeError: it is none, weights are missing, or it reads fewer tokens than ``max_tokens``.
    """
    quieten()
    import transformers

    with _explained("text_encoder", folder):
        kind = kind_of(folder)
        if kind != "clip" and kind not in TOWERS:
            raise ValueError(f"its type is {kind}, not one of clip, {', '.join(TOWERS)}")
        model = _whole(getattr(transformers, "CLIPModel" if kind == "clip" else TOWERS[kind]), folder, dtype="auto")
        config = model.config.text_config if kind == "clip" else model.config
        most = min(MOST_TOKENS, getattr(config, "max_position_embeddings", MOST_TOKENS))
        length = max_tokens or most
        if length > most:
            raise ValueError(f"it reads {most} tokens of a prompt, train.text_encoder.max_tokens is {length}")
        if kind == "t5":
            config.use_attention_mask = True  # asks Stable Diffusion's pipeline to say what is padding
        tokens = _tokenizer(tokenizer_folder(folder), length)
        if (size := len(tokens)) > config.vocab_size:
            raise ValueError(f"its tokenizer has {size} tokens, its embedding {config.vocab_size}")
        model.save_pretrained(target, safe_serialization=True)
        tokens.save_pretrained(tokenizer)
    return {"kind": kind, "width": int(config.hidden_size), "max_tokens": length}


def _tokenizer(folder: Path, length: int) -> Any:
    """The tokenizer as a ``PreTrainedTokenizerFast`` that lower-cases, as PixArt's pipeline does with every prompt."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    special = {name: getattr(found, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    lacking = [name for name in ("eos_token", "pad_token") if special[name] is None]
    if lacking:
        raise ValueError(f"its tokenizer lacks {', '.join(lacking)}")
    backend = found.backend_tokenizer
    if found("A Red STAR ")["input_ids"] != found("a red star")["input_ids"]:
        own = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip(), *own])
    backend.no_padding()
    backend.no_truncation()
    given = {name: token for name, token in special.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **given)


def _whole(kind: Any, folder: Path, **settings: Any) -> Any:
    """The model with all of its weights. Raises ``ValueError`` where some are missing."""
    model, info = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
    )
    if info["missing_keys"]:
        raise ValueError(f"it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _explained(part: str, folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, SafetensorError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise _refused(part, f"the model in {folder} cannot be loaded: {reason}") from e


def _refused(part: str, problem: str) -> RecipeError:
    return RecipeError(
        f"train.{part}.source: {problem}",
        expected=_EXPECTED[part],
        remedy="correct the name; without the hub in reach, copy the whole folder of the model to this machine and "
        "name that; or set it to null to train this part here",
    )

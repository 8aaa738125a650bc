"""Reading a dataset or latents artifact into memory, rows in the artifact's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.contracts.errors import TrainingError
from components.models.text_encoder import pad_tokens


def parts(artifact: Path) -> list[Path]:
    """The parquet files of an artifact, in order."""
    return sorted((artifact / "data").glob("part-*.parquet"))


def table(artifact: Path, columns: list[str], split: str | None = "train") -> Any:
    """Columns of all rows of a split as one Arrow table; ``None`` takes every row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys([*columns, "split"]))
    found = pa.concat_tables([pq.read_table(path, columns=wanted) for path in parts(artifact)])
    return found if split is None else found.filter(pa.compute.equal(found["split"], split))


def pictures_of(rows: Any, image_size: int) -> npt.NDArray[np.uint8]:
    """Pixels uint8 ``[N, image_size, image_size, 3]`` of a table with ``pixels``, ``height`` and ``width``.

    Raises:
        TrainingError: a picture has another size.
    """
    sizes = {(int(h), int(w)) for h, w in zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)}
    if sizes - {(image_size, image_size)}:
        raise TrainingError(
            f"The dataset holds pictures of {', '.join(f'{w}x{h}' for h, w in sorted(sizes))} pixels",
            expected=f"{image_size}x{image_size} only",
            remedy="prepare the dataset again with this recipe's prepare.image_size",
        )
    out = np.empty((rows.num_rows, image_size, image_size, 3), np.uint8)
    for i, pixels in enumerate(rows["pixels"]):
        out[i] = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(image_size, image_size, 3)
    return out


def load_pictures(dataset: Path, image_size: int) -> npt.NDArray[np.uint8]:
    """The training pictures of a dataset; see :func:`pictures_of`."""
    return pictures_of(table(dataset, ["pixels", "height", "width"]), image_size)


def load_captions(dataset: Path, tokenizer: Any) -> Tensor:
    """Padded token ids int64 ``[N, model_max_length]`` of the training rows."""
    rows = table(dataset, ["tokens"])["tokens"].to_pylist()
    return torch.as_tensor(pad_tokens(rows, tokenizer.model_max_length, tokenizer.pad_token_id, tokenizer.eos_token_id))


def load_latents(latents: Path, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, fp32 ``[N, channels, size, size]``, of the training rows."""
    rows = table(latents, ["mean", "logvar"])
    shape = (rows.num_rows, channels, size, size)

    def grid(column: str) -> Tensor:
        flat = np.frombuffer(b"".join(value.as_py() for value in rows[column]), np.float16)
        return torch.from_numpy(flat.reshape(shape).astype(np.float32))

    return grid("mean"), grid("logvar")

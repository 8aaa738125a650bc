"""Reading a dataset or latents artifact into memory.

Pictures of one size make a bucket. Samples are numbered bucket after bucket (the smallest size first), within a
bucket in the artifact's order; in a dataset of one size that is the artifact's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.models.text_encoder import pad_tokens
from components.training.moments import LATENT_SCHEMA, damaged_row
from components.training.tokens import COLUMNS, token_rows

Size = tuple[int, int]  # height, width
Block = TypeVar("Block", npt.NDArray[np.uint8], Tensor)


class Buckets(Generic[Block]):
    """Rows of one array a bucket, asked for by the number of the sample."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks: list[Block] = list(blocks)
        self.sizes = [len(block) for block in self.blocks]
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def take(self, indices: npt.NDArray[np.int64]) -> Block:
        """The rows of these samples, which must be of one bucket."""
        bucket = int(np.searchsorted(self._ends, indices[0], "right"))
        first = int(self._ends[bucket]) - self.sizes[bucket]
        assert indices.min() >= first and indices.max() < self._ends[bucket], "a batch holds one bucket only"
        return self.blocks[bucket][indices - first]

    def shape(self, indices: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """The shape of one of these samples' rows."""
        return tuple(self.blocks[int(np.searchsorted(self._ends, indices[0], "right"))].shape[1:])


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


def sizes_of(rows: Any) -> npt.NDArray[np.int64]:
    """Height and width of every row: int64 ``[N, 2]``."""
    return np.stack([rows[name].to_numpy().astype(np.int64) for name in ("height", "width")], axis=1)


def by_size(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[Size, npt.NDArray[np.int64]]]:
    """Every size, the smallest first, with the positions of its rows, in order."""
    for height, width in np.unique(sizes, axis=0):
        yield (int(height), int(width)), np.flatnonzero((sizes == (height, width)).all(axis=1))


def pictures_at(rows: Any, at: npt.NDArray[np.int64], size: Size) -> npt.NDArray[np.uint8]:
    """Pixels uint8 ``[len(at), height, width, 3]`` of these rows of a table with ``pixels``.

    Raises:
        ArtifactError: the pixels of a row are not as many as its size says.
    """
    out = np.empty((len(at), *size, 3), np.uint8)
    column = rows["pixels"]
    for i, row in enumerate(at):
        pixels = column[int(row)].as_buffer()
        if pixels is None or pixels.size != out[i].size:
            raise ArtifactError(
                f"A picture of the dataset has {pixels.size if pixels else 0} bytes",
                expected=f"{out[i].size} for {size[1]}x{size[0]} pixels",
                remedy="prepare the dataset again",
            )
        out[i] = np.frombuffer(pixels, np.uint8).reshape(*size, 3)
    return out


def load_pictures(dataset: Path, split: str = "train") -> Buckets[npt.NDArray[np.uint8]]:
    """The pictures of a split of a dataset, uint8 ``[n, height, width, 3]`` a bucket."""
    rows = table(dataset, ["pixels", "height", "width"], split)
    return Buckets([pictures_at(rows, at, size) for size, at in by_size(sizes_of(rows))])


def load_ids(artifact: Path, split: str = "train") -> list[str]:
    """Ids of a split's samples of a dataset or of latents."""
    rows = table(artifact, ["id", "height", "width"], split)
    ids = rows["id"].to_pylist()
    return [ids[i] for _, at in by_size(sizes_of(rows)) for i in at]


def load_captions(dataset: Path, tokenizer: Any, split: str = "train") -> Tensor:
    """Padded token ids int64 ``[N, model_max_length]`` of a split's samples, by this tokenizer."""
    rows = table(dataset, [*COLUMNS, "height", "width"], split)
    tokens = token_rows(rows, tokenizer, dataset)
    tokens = [tokens[i] for _, at in by_size(sizes_of(rows)) for i in at]
    return torch.as_tensor(
        pad_tokens(tokens, tokenizer.model_max_length, tokenizer.pad_token_id, tokenizer.eos_token_id)
    )


def load_latents(latents: Path, channels: int, split: str = "train") -> tuple[Buckets[Tensor], Buckets[Tensor]]:
    """Mean and log-variance, fp32 ``[n, channels, height, width]`` a bucket, of a split's samples.

    Raises:
        ArtifactError: a row does not match its checksum.
    """
    rows = table(latents, [*LATENT_SCHEMA.names], split)
    if (bad := damaged_row(rows)) is not None:
        raise ArtifactError(
            f"The latents of {rows['id'][bad].as_py()} do not match their checksum",
            expected="the moments that the encode step wrote",
            remedy="run the same command again; damaged parts are encoded anew",
        )

    def grids(column: str) -> Buckets[Tensor]:
        blocks = []
        for size, at in by_size(sizes_of(rows)):
            flat = np.frombuffer(b"".join(value.as_py() for value in rows[column].take(at)), np.float16)
            blocks.append(torch.from_numpy(flat.reshape(len(at), channels, *size).astype(np.float32)))
        return Buckets(blocks)

    return grids("mean"), grids("logvar")


def to_pixels(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 ``[N, H, W, 3]`` to float ``[N, 3, H, W]`` in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def squeezed(pixels: Tensor, side: int) -> Tensor:
    """Pictures of another shape squeezed into ``side`` x ``side``, as the judge's extractor looks at them."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp_(-1, 1)

"""How well a text encoder finds pictures by captions and captions by pictures, on pictures it was not trained on.

Recall@k is that of Karpathy and Fei-Fei 2015 (sec. 4.1): a picture counts when one of its captions is among the ``k``
nearest of all captions, a caption when its picture is among the ``k`` nearest of all pictures. R-precision is that of
Xu et al. 2018 (AttnGAN, sec. 4): the true caption against 99 of other pictures; every caption of a picture takes its
turn as the true one. Captions of one meaning are one caption: none is a mismatch to a picture that any of them
describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluation.extractor import ClipExtractor
from components.evaluation.intervals import Estimate, bootstrap_mean
from components.evaluation.metrics import has_rivals, retrieved
from components.evaluation.prompts import heldout_rows, meaning
from components.runtime.storage import Artifact

Ints = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float64]

KS = (1, 5, 10)
CANDIDATES = 100
LIMIT = 5000  # held-out pictures, the first by id, which is a hash; as many as COCO's usual test split has
_SEED = 0
_CHUNK = 256  # queries whose similarities are in memory at once


def measure_encoder(folder: Path, dataset: Artifact) -> dict[str, Any]:
    """Recall@1, 5, 10 both ways and R-precision of the CLIP in ``folder`` (``model/`` and ``tokenizer/``) on the
    held-out pictures of ``dataset`` with all their captions, with 95% intervals over pictures.

    Returns:
        ``{measure: {value, low, high, n}}``, ``held_out_pictures`` and ``held_out_captions``; without the measures
        where fewer than two held-out pictures, or captions of one meaning only, leave nothing to choose from.
    """
    from components.models.damsm import colours
    from components.models.text_encoder import load_clip, load_tokenizer

    columns = ["id", "caption", "alternatives", "pixels", "height", "width"]
    rows = sorted(heldout_rows(dataset, columns), key=lambda row: str(row["id"]))[:LIMIT]
    said = [list(dict.fromkeys([row["caption"], *(row["alternatives"] or ())])) for row in rows]
    captions = [caption for some in said for caption in some]
    counts: dict[str, Any] = {"held_out_pictures": len(rows), "held_out_captions": len(captions)}
    if len(rows) < 2 or len({meaning(caption) for caption in captions}) < 2:
        return counts
    clip, tokenizer = load_clip(folder / "model"), load_tokenizer(folder / "tokenizer")
    extractor = ClipExtractor(clip, tokenizer, "", *colours(folder / "model"))
    images = np.empty((len(rows), clip.config.projection_dim), np.float32)
    sizes = np.array([(row["height"], row["width"]) for row in rows])
    for size in np.unique(sizes, axis=0):
        at = np.flatnonzero((sizes == size).all(axis=1))
        images[at] = extractor.look(np.stack([_picture(rows[i]) for i in at]))[1]
    owners = np.repeat(np.arange(len(rows)), [len(some) for some in said])
    found = encoder_measures(images, extractor.read(captions), owners, [meaning(caption) for caption in captions])
    return counts | {name: estimate.as_json() for name, estimate in found.items()}


def encoder_measures(
    images: npt.ArrayLike, texts: npt.ArrayLike, owners: Ints, keys: Sequence[str]
) -> dict[str, Estimate]:
    """All measures from embeddings of unit length; R-precision only where every picture leaves something unsaid.

    Args:
        images: of pictures ``[N, e]``. texts: of captions ``[K, e]``.
        owners: the picture of every caption, ``[K]`` in 0..N-1, ascending. keys: what every caption means.
    """
    seen, read = np.asarray(images, np.float64), np.asarray(texts, np.float64)
    to_text, to_image = ranks(seen, read, owners, keys)
    shares = np.bincount(owners, minlength=len(seen))
    found = {}
    for k in KS:
        found[f"image_to_text_recall_at_{k}"] = bootstrap_mean(to_text < k)
    for k in KS:
        # a picture with several captions counts as one: they are not independent
        hits = np.bincount(owners, weights=to_image < k, minlength=len(seen)) / shares
        found[f"text_to_image_recall_at_{k}"] = bootstrap_mean(hits)
    if has_rivals(keys, owners.tolist()):
        hit, _ = retrieved(seen[owners], read, keys, CANDIDATES, _SEED, owners.tolist())
        found["r_precision"] = bootstrap_mean(np.bincount(owners, weights=hit, minlength=len(seen)) / shares)
    return found


def ranks(images: Matrix, texts: Matrix, owners: Ints, keys: Sequence[str]) -> tuple[Ints, Ints]:
    """How many wrong captions are at least as near to each picture as the best right one ``[N]``, and how many wrong
    pictures to each caption ``[K]``."""
    numbers = np.unique(np.asarray(keys), return_inverse=True)[1]
    by_picture = [np.unique(numbers[owners == i]) for i in range(len(images))]
    by_meaning: dict[int, set[int]] = {}
    for i, meanings in enumerate(by_picture):
        for number in meanings.tolist():
            by_meaning.setdefault(number, set()).add(i)
    to_text, to_image = np.empty(len(images), np.int64), np.empty(len(texts), np.int64)
    for start in range(0, len(images), _CHUNK):
        for i, scores in enumerate(images[start : start + _CHUNK] @ texts.T, start):
            right = np.isin(numbers, by_picture[i])
            to_text[i] = int((scores[~right] >= scores[right].max()).sum())
    for start in range(0, len(texts), _CHUNK):
        for j, scores in enumerate(texts[start : start + _CHUNK] @ images.T, start):
            right = np.zeros(len(images), dtype=np.bool_)
            right[list(by_meaning[int(numbers[j])])] = True
            to_image[j] = int((scores[~right] >= scores[right].max()).sum())
    return to_text, to_image


def _picture(row: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)

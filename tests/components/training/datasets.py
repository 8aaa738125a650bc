"""Small dataset artifacts of the embedded world, written through the store as prepare does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.records import SAMPLE_SCHEMA
from components.data.world import WorldSpec, all_singles, phrasings, render
from components.runtime.storage import Artifact, Outcome, Store


def write_tokenizer(folder: Path, captions: list[str], vocabulary: int, max_tokens: int) -> None:
    """A byte-level BPE trained on the captions, with begin, end and pad tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<begin>", "<unused>", "<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<begin>", eos_token="<end>", pad_token="<pad>", model_max_length=max_tokens
    ).save_pretrained(folder)


def make_dataset(
    store: Store,
    spec: WorldSpec,
    rows: int,
    seed: int = 0,
    max_tokens: int = 24,
    holdout: float = 0.05,
    featuring: tuple[str, ...] = (),
    tokenizer: Path | None = None,
    before: list[dict[str, object]] | None = None,
    buckets: tuple[tuple[int, int], ...] = (),
    alternatives: bool = False,
) -> tuple[Artifact, list[dict[str, object]]]:
    """A dataset of ``rows`` pictures (``before`` comes first), and its rows.

    ``buckets`` are sizes, width and height, that the pictures are squeezed into in turn. With ``alternatives`` every
    second picture keeps the other ways to say what it shows.
    """
    from transformers import PreTrainedTokenizerFast

    rng = np.random.default_rng(seed)
    scenes = [s for s in all_singles(spec) if not featuring or {s.items[0].shape, s.items[0].colour} & set(featuring)]
    order = np.concatenate([rng.permutation(len(scenes)) for _ in range(-(-rows // len(scenes)))])[:rows]
    config = {
        "rows": rows,
        "seed": seed,
        "size": spec.image_size,
        "featuring": featuring,
        "image_size": spec.image_size,
        "buckets": buckets,
        "alternatives": alternatives,
    }
    draft = store.draft("dataset", {}, config)
    drawn: list[dict[str, object]] = []
    for i, index in enumerate(order):
        said = phrasings(scenes[index])
        width, height = buckets[i % len(buckets)] if buckets else (spec.image_size, spec.image_size)
        picture = render(scenes[index], spec.image_size, seed * 1_000_003 + i).resize((width, height))
        caption = said[int(rng.integers(len(said)))]
        others = sorted({*said} - {caption}) if alternatives and i % 2 else None
        drawn.append({
            "id": f"{seed:04x}{i:012x}", "url": f"http://world/{seed}/{i}",
            "caption": caption,
            "sha256": hashlib.sha256(picture.tobytes()).hexdigest(), "alternatives": others,
            "pixels": picture.tobytes(), "height": height, "width": width,
            "bucket": f"{width}x{height}", "cluster": f"{seed:04x}{i:012x}",
            "split": "holdout" if rng.random() < holdout else "train", "source": 1 if before else 0,
        })  # fmt: skip
    everything = [*(before or []), *drawn]
    folder = draft.dir / "tokenizer"
    if tokenizer:
        import shutil

        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    else:
        write_tokenizer(folder, [str(r["caption"]) for r in everything], 512, max_tokens)
    reader = PreTrainedTokenizerFast.from_pretrained(folder)
    for row in everything:
        row["tokens"] = reader(row["caption"])["input_ids"][:max_tokens]
    (draft.dir / "data").mkdir(exist_ok=True)
    half = -(-len(everything) // 2)
    for part in range(2):
        table = pa.Table.from_pylist(everything[part * half : (part + 1) * half], schema=SAMPLE_SCHEMA)
        pq.write_table(table, draft.dir / "data" / f"part-{part:05d}.parquet")
    return draft.commit(Outcome(counts={"rows": len(everything)})), everything

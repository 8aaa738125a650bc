"""Artifacts made on the spot: a dataset of the embedded world, a tiny CLIP, assessments of chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.recipe import Recipe
from components.contracts.records import SAMPLE_SCHEMA
from components.data.world import WorldSpec, phrasings, render, sample_scene
from components.evaluation.assess import PER_PROMPT_SCHEMA
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

WORDS = [
    "a",
    "an",
    "the",
    "on",
    "in",
    "at",
    "of",
    "with",
    "small",
    "large",
    "red",
    "blue",
    "green",
    "star",
    "circle",
]


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A context whose store and registry lie in the test's own folder."""
    return Context.of(Recipe.model_validate({"name": "t", "run": {"root": str(tmp_path)}}))


@pytest.fixture(scope="session")
def make() -> Callable[..., Artifact]:
    """``make(ctx, kind, {name: bytes}, inputs)``: an artifact with these files."""

    def build(
        ctx: Context, kind: str, files: Mapping[str, bytes], inputs: Mapping[str, Artifact] | None = None
    ) -> Artifact:
        def fill(draft: Draft) -> Outcome:
            for name, data in files.items():
                (draft.dir / name).parent.mkdir(parents=True, exist_ok=True)
                (draft.dir / name).write_bytes(data)
            return Outcome()

        sizes = {name: data.hex()[:4000] for name, data in files.items()}
        return run_stage(ctx, kind, inputs or {}, {"files": sizes}, fill)

    return build


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with begin, end and padding, saved as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 0), ("<|end|>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=32,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, bytes]:
    """Files of a tiny random CLIP with its tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower
        | {
            "vocab_size": 320,
            "max_position_embeddings": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    files = {f"model/{p.name}": p.read_bytes() for p in folder.iterdir()}
    return files | {f"tokenizer/{p.name}": p.read_bytes() for p in tokenizer_folder.iterdir()}


@pytest.fixture
def clip(ctx: Context, make: Callable[..., Artifact], clip_files: dict[str, bytes]) -> Artifact:
    """A ``judge_clip`` artifact."""
    return make(ctx, "judge_clip", clip_files)


@pytest.fixture(scope="session")
def dataset_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sixty pictures of two collections; every third one is held out. The new one shows pink hearts."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(60):
        source = int(i >= 40)
        spec = WorldSpec(shapes=("heart",), colours=("pink",)) if source else WorldSpec().without("heart", "pink")
        scene = sample_scene(rng, spec)
        caption = phrasings(scene)[i % 3]
        pixels = np.asarray(render(scene, 32, i)).tobytes()
        split = "train" if i % 3 else "holdout"
        rows.append(
            {
                "id": f"{i:016x}", "url": f"http://x/{i}", "caption": caption, "tokens": [0, 1],
                "pixels": pixels, "height": 32, "width": 32, "bucket": "32x32", "cluster": f"{i:016x}",
                "split": split, "source": source,
            }
        )  # fmt: skip
    file = tmp_path_factory.mktemp("dataset") / "part.parquet"
    files = {}
    for number, part in enumerate((rows[:30], rows[30:])):
        pq.write_table(pa.Table.from_pylist(part, schema=SAMPLE_SCHEMA), file)
        files[f"data/part-{number:05d}.parquet"] = file.read_bytes()
    return files


@pytest.fixture
def dataset(ctx: Context, make: Callable[..., Artifact], dataset_files: dict[str, bytes]) -> Artifact:
    """A ``dataset`` artifact of those files."""
    return make(ctx, "dataset", dataset_files)


@pytest.fixture
def judged(ctx: Context, make: Callable[..., Artifact], tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact]]:
    """``judged(name, right)``: a model artifact, and its assessment with ``right`` of 500 prompts right."""

    def build(name: str, right: int, judge: str = "one") -> tuple[Artifact, Artifact]:
        model = make(ctx, "model", {"unet/diffusion.safetensors": name.encode(), "model_index.json": b"{}"})
        rules = make(ctx, "judge", {"protocol.json": judge.encode()})
        n = 500
        number = {"value": right / n, "low": right / n - 0.02, "high": right / n + 0.02, "n": n}
        few, near = ({"value": v, "low": v / 2, "high": v * 1.5, "n": n} for v in (0.02, 1.2))
        metrics = {
            "known": {"fidelity": number, "frechet": {"value": 2.0, "low": 1.5, "high": 2.5, "n": n}}
            | {"memorised": few, "leaked": few, "frechet_vs_real": near},
            "trained": {"memorised": few},
            "stamp": {"judge": rules.digest, "steps": 16},
        }
        table = {
            "set": ["known"] * n, "index": range(n), "prompt": [f"p{i}" for i in range(n)], "seed": range(n),
            "category": ["single"] * n,
            "correct": [i < right for i in range(n)], "attributes": ["{}"] * n, "reason": [""] * n,
            "retrieved": [True] * n, "clip_score": [20.0] * n, "nearest": ["0" * 16] * n,
            "nearest_distance": [1.0] * n, "memorised": [False] * n, "safe": [None] * n, "concepts": [None] * n,
            "image": [b""] * n,
        }  # fmt: skip
        file = tmp_path / "per_prompt.parquet"
        pq.write_table(pa.Table.from_pydict(table, schema=PER_PROMPT_SCHEMA), file)
        files = {
            "metrics.json": json.dumps(metrics).encode(),
            "per_prompt.parquet": file.read_bytes(),
            "sheet.png": b"sheet",
        }
        return model, make(ctx, "assessment", files, {"model": model, "judge": rules})

    return build

"""Models that were trained on the test set, or know the training by heart, do not pass; one that learnt does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.contracts.recipe import Cnn, Recipe, TextEncoder
from components.contracts.records import SAMPLE_SCHEMA
from components.data.world import WorldSpec, phrasings, render, sample_scene
from components.evaluation.judge import make_judge
from components.evaluation.prompt_sets import prompt_sets
from components.evaluation.release import champion, judge_and_release, read_record
from components.evaluation.showing import show_release
from components.models.one_pass import Design, Saved, make_network, save_model
from components.models.reading import Reader
from components.models.text_encoder import load_tokenizer, make_clip
from components.runtime.precision import autocast
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.training.datasets import write_tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SIDE, WORDS = 8, 32
Make = Callable[..., Artifact]


def samples(count: int) -> list[dict[str, Any]]:
    """Rows of a dataset of the embedded world; every third one is held out, and no caption is there twice."""
    rng, rows, said = np.random.default_rng(5), list[dict[str, Any]](), set[str]()
    while len(rows) < count:
        scene = sample_scene(rng, WorldSpec())
        caption = phrasings(scene)[0]
        if caption not in said:
            i = len(rows)
            said.add(caption)
            rows.append(
                {
                    "id": f"{i * 7919:016x}", "url": f"http://x/{i}", "caption": caption, "tokens": [0, 1],
                    "pixels": np.asarray(render(scene, SIDE, i)).tobytes(), "height": SIDE, "width": SIDE,
                    "bucket": "8x8", "cluster": f"{i:016x}", "split": "train" if i % 3 else "holdout", "source": 0,
                }
            )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return samples(120)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    from components.runtime.cluster import ray_session

    run = {"root": str(tmp_path_factory.mktemp("runs")), "object_store_mb": 100, "workers": 1}
    recipe = {"name": "leak", "run": run, "assess": {"prompts": 40, "memorisation_prompts": 40, "steps": 1}}
    made = Context.of(Recipe.model_validate(recipe))
    with ray_session(made.recipe.run):
        yield made


@pytest.fixture(scope="module")
def judge(
    ctx: Context, make: Make, clip_files: dict[str, bytes], rows: list[dict[str, Any]], tmp_path_factory: Any
) -> Artifact:
    file = tmp_path_factory.mktemp("dataset") / "part.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), file)
    dataset = make(ctx, "dataset", {"data/part-00000.parquet": file.read_bytes()})
    return make_judge(ctx, make(ctx, "judge_clip", clip_files), dataset, prompt_sets(ctx, dataset))


def fitted(folder: Path, rows: list[dict[str, Any]], steps: int) -> dict[str, bytes]:
    """The files of a cnn that was trained on these rows, over and over."""
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", [row["caption"] for row in rows], 400, 40)
    tokenizer = load_tokenizer(folder / "tokenizer")
    clip = make_clip(TextEncoder(width=WORDS, layers=1, image_layers=1, heads=2), tokenizer, SIDE)
    for weight in clip.text_model.parameters():  # prompts must differ by more than rounding
        weight.data.mul_(3)
    design = Design(Cnn(channels=32, max_channels=32), SIDE, WORDS, WORDS)
    network = make_network(design).train()
    given = {"folder": folder / "made", "network": folder / "network"}
    Saved(design, network, {}).save_pretrained(given["network"])
    save_model(given["folder"], given["network"], clip, tokenizer)
    reading = Reader.load(given["folder"], torch.device("cpu")).read([row["caption"] for row in rows])
    pixels = np.stack([np.frombuffer(row["pixels"], np.uint8).reshape(SIDE, SIDE, 3) for row in rows])
    wanted = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        with autocast("cpu"):  # as it draws: captions of so small an encoder differ by little more than bf16's rounding
            drawn = network(reading, torch.zeros(len(rows), 0))
        loss = torch.nn.functional.mse_loss(drawn.float(), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    print(f"\nloss {loss.item():.5f}")
    Saved(design, network, {}).save_pretrained(given["network"])
    save_model(given["folder"], given["network"], clip, tokenizer)
    made = given["folder"]
    files = {f"model/{p.relative_to(made)}": p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()}
    return files | {"seen.txt": f"{steps} times {rows[0]['caption']}".encode()}


@pytest.mark.parametrize("seen", ["little", "holdout", "train"])
def test_what_a_model_has_seen_shows(
    seen: str, ctx: Context, make: Make, judge: Artifact, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    split = "holdout" if seen == "holdout" else "train"
    known = sorted((row for row in rows if row["split"] == split), key=lambda row: str(row["id"]))[:40]
    model = make(ctx, "model", fitted(tmp_path, known, 30 if seen == "little" else 900))
    record = judge_and_release(ctx, model, judge)
    content = read_record(record)
    numbers = {
        f"{name}/{metric}": round(m["value"], 3)
        for name, metrics in content["metrics"].items()
        for metric, m in metrics.items()
        if metric.partition(".")[0] in ("memorised", "leaked", "frechet_vs_real", "frechet")
    }
    print(seen, numbers, *content["reasons"], sep="\n")
    said = " ".join(content["failures"])
    if seen == "little":
        assert not content["failures"], "what it draws is nobody's picture"
        return
    assert content["verdict"] == "fail"
    if seen == "holdout":
        assert "leaked on known prompts" in said and "above the limit" in said
    else:
        assert "memorised on trained prompts" in said and "leaked" not in said
    now = champion(ctx)
    assert now is None or now[1].digest != model.digest, "and nobody is served by it"
    page = show_release(ctx, record).read_text()
    assert '<span class="verdict fail">fail</span>' in page and "Nearest training pictures" in page

"""The cache of features: by content, bounded, and nothing of it is believed that is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.features import FeatureCache, content_of


def said(rows: int, start: float = 0.0) -> dict[str, np.ndarray]:
    features = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + start
    return {"features": features, "embeddings": features[:, :2] * 2}


def test_content_is_pixels_and_shape() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    assert content_of(picture) == content_of(picture.copy()) != content_of(picture.reshape(6, 4, 3))
    other = picture.copy()
    other[1, 2, 0] = 1
    assert content_of(other) != content_of(picture)


def test_rows_come_back_by_content(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "d" * 64)
    cache.keep(["a", "b"], said(2))
    cache.keep(["c"], said(1, 50))
    again = FeatureCache(tmp_path, "d" * 64)
    assert again.contents() == {"a", "b", "c"}
    found = again.find(["b", "c", "unknown"])
    assert set(found) == {"b", "c"}
    np.testing.assert_array_equal(found["b"]["features"], said(2)["features"][1])
    np.testing.assert_array_equal(found["c"]["embeddings"], said(1, 50)["embeddings"][0])
    assert FeatureCache(tmp_path, "e" * 64).find(["a"]) == {}, "another extractor says something else"


def test_a_damaged_file_is_removed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = FeatureCache(tmp_path, "d" * 64)
    cache.keep(["a"], said(1))
    cache.keep(["b"], said(1, 9))
    first = sorted(cache.folder.glob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:20])
    assert len(cache.find(["a", "b"])) == 1 and not first.exists()
    assert "is damaged and removed" in capsys.readouterr().err


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    size = 0
    for number, name in enumerate("abc"):
        cache = FeatureCache(tmp_path, "d" * 64, most_bytes=int(size * 2.5) or 1 << 20)
        cache.keep([name], said(1, number))
        files = sorted(cache.folder.glob("*"), key=lambda p: p.stat().st_mtime)
        size = files[-1].stat().st_size
        for age, path in enumerate(files):
            os.utime(path, (1000 + age, 1000 + age))
    assert FeatureCache(tmp_path, "d" * 64).contents() == {"b", "c"}

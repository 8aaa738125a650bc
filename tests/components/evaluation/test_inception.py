"""The network of the Fréchet Inception Distance: its shape, its resizing, and where its weights come from."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError, RecipeError
from components.evaluation import inception
from components.evaluation.inception import InceptionExtractor, make_network, read_weights, resized, weights_digest


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as published, of no meaning: without counts of batches, as in old files."""
    torch.manual_seed(0)
    state = {n: v for n, v in make_network().state_dict().items() if not n.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_the_network_has_the_published_shape() -> None:
    network = make_network()
    # 23,834,568 of torchvision's without its auxiliary head, and eight more classes than 1000 with their bias
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * 2049
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight", "Conv2d_4a_3x3.bn.running_var", "Mixed_5b.branch5x5_2.conv.weight",
        "Mixed_6a.branch3x3dbl_3.conv.weight", "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.conv.weight", "Mixed_7c.branch3x3dbl_3b.conv.weight", "fc.bias",
    } <= names  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["fc.weight"] == (1008, 2048) and shapes["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert shapes["Mixed_7b.branch3x3_2b.conv.weight"] == (384, 384, 3, 1)


@pytest.mark.parametrize("shape", [(5, 3), (32, 32), (300, 411)])
def test_resizing_is_tensorflows(shape: tuple[int, int]) -> None:
    """Pixel (i, j) of the result lies at (i * H / side, j * W / side), between its four neighbours, rim repeated."""
    high, wide = shape
    picture = np.random.default_rng(0).integers(0, 256, (high, wide)).astype(np.float64)
    side = 17
    expected = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * high / side, j * wide / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, high - 1), min(left + 1, wide - 1)
            above = picture[top, left] * (1 - (x - left)) + picture[top, right] * (x - left)
            below = picture[bottom, left] * (1 - (x - left)) + picture[bottom, right] * (x - left)
            expected[i, j] = above * (1 - (y - top)) + below * (y - top)
    found = resized(torch.from_numpy(picture).float()[None, None], side)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-2)


def test_either_kind_of_file_gives_the_same_eyes(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    read = read_weights(str(weights))
    save_file(read, tmp_path / "inception.safetensors")
    again = read_weights(str(tmp_path / "inception.safetensors"))
    assert weights_digest(read) == weights_digest(again)
    extractor = InceptionExtractor.load(tmp_path / "inception.safetensors", "d")
    pictures = np.random.default_rng(1).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    said = extractor.arrays(pictures)
    assert said["features"].shape == (3, 2048) and said["probabilities"].shape == (3, 1008)
    np.testing.assert_allclose(said["probabilities"].sum(1), 1, rtol=1e-5)
    network = make_network()
    network.load_state_dict(read)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = network((resized(pixels, 299) - 128) / 128)
    np.testing.assert_allclose(said["features"], expected.numpy(), atol=1e-5)
    assert extractor.arrays(pictures[:1])["features"] == pytest.approx(said["features"][:1], abs=1e-4)


def test_wrong_files_are_named(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    del state["fc.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(RecipeError, match=r"holds no weights of Inception.*fc\.bias.*Remedy: download https://"):
        read_weights(str(tmp_path / "short.pth"))
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(weights.read_bytes())
    with pytest.raises(RecipeError, match=r"SHA-256 begins with .* its name says 6726825d"):
        read_weights(str(tmp_path / "pt_inception-2015-12-05-6726825d.pth"))
    with pytest.raises(RecipeError, match=r"No such file"):
        read_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(RecipeError, match="holds no weights"):
        read_weights(str(tmp_path / "x.safetensors"))
    with pytest.raises(ArtifactError, match="No Inception can be loaded"):
        InceptionExtractor.load(tmp_path / "x.safetensors")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server that has a file of that name with something else in it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / inception.PUBLISHED[0]).write_bytes(b"not the weights")
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_that_nobody_has_are_fetched_and_checked(
    site: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "URL", f"{site}/missing.pth")
    with pytest.raises(RecipeError, match=r"not here, and .* cannot be fetched.*copy the file to .*checkpoints"):
        read_weights(None)
    monkeypatch.setattr(inception, "URL", f"{site}/{inception.PUBLISHED[0]}")
    with pytest.raises(RecipeError, match="cannot be fetched: invalid hash"):
        read_weights(None)
    kept = tmp_path / "hub" / "checkpoints"
    assert not list(kept.glob("*.pth")), "what is damaged is not kept"
    (kept / inception.PUBLISHED[1]).write_bytes(weights.read_bytes())
    with pytest.raises(RecipeError, match="its name says 6726825d"):
        read_weights(None)  # the file that torch-fidelity fetches is found; here it is another one

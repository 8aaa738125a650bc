"""Styles by name: registered with a signature, found by the model that they fit, drawn with and never mixed."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from components.contracts.errors import GateRefused, InputError
from components.contracts.recipe import Recipe
from components.evaluation.signing import KEY_FILE, Keys
from components.evaluation.styles import checked_name, find_style, fitting, register, require_signed, styles
from components.models.adapters import WEIGHTS
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from components.runtime.tracking import Tracker
from serving.api import build_api
from serving.engine import Engine, Served
from serving.logbook import read_logbook
from serving.metrics import Metrics
from serving.provenance import read_provenance
from serving.schemas import Lora, Order
from serving.styles import StyleBook


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry file with nothing in it: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "styled")
    return path


class World:
    """A recipe's context, whose registry has styles, and what a server reads of them."""

    def __init__(self, root: Path, fresh: Path) -> None:
        self.ctx = Context.of(Recipe.model_validate({"name": "styled", "run": {"root": str(root)}}))
        self.ctx.home.mkdir(parents=True)
        shutil.copy(fresh, self.ctx.home / "mlflow.db")
        self.models = [self.artifact("model", "unet.safetensors", n) for n in (1, 2)]
        self.book = StyleBook(self.ctx.registry_uri, "styled", "atelier", Keys(self.ctx.home), every_s=0.0)

    def artifact(self, kind: str, file: str, number: int, **inputs: Artifact) -> Artifact:
        draft = self.ctx.store.draft(kind, inputs, {"number": number})
        (draft.dir / file).parent.mkdir(parents=True, exist_ok=True)
        (draft.dir / file).write_text(f"{kind} {number}")
        return draft.commit(Outcome())

    def style(self, name: str, number: int = 1, model: int = 0) -> Artifact:
        subject = self.artifact("subject", "data/part-00000.parquet", number)
        made = self.artifact("adapter", f"model/{WEIGHTS}", number, model=self.models[model], subject=subject)
        register(self.ctx, made, name, f"a picture of {name}", str(model + 1))
        return made


@pytest.fixture
def world(tmp_path: Path, fresh: Path) -> World:
    return World(tmp_path, fresh)


@pytest.fixture
def stylist(make_painter: Any) -> Any:
    """A Painter that can be styled; ``worn`` lists what the pictures of each step wore."""

    class Stylist(make_painter):  # type: ignore[misc]
        uses_styles = True

        def __init__(self) -> None:
            super().__init__()
            self.worn: list[tuple[str, ...]] = []

        def begin(self, pictures: Any) -> Any:
            for style in (picture.style for picture in pictures if picture.style):
                assert (style.folder / WEIGHTS).is_file(), "no such style"
            return super().begin(pictures)

        def step(self, drawings: Any) -> None:
            self.worn.append(tuple(d.picture.style.key if d.picture.style else "" for d in drawings))
            super().step(drawings)

        def _painted(self, drawings: Any) -> Any:
            painted = []
            for drawing in drawings:
                self.name = f"a+{drawing.picture.style.key}" if drawing.picture.style else "a"
                painted.append(super()._painted([drawing]))
            return np.concatenate(painted)

    return Stylist()


@pytest.mark.parametrize("name", ["natural", "vivid", "latest", "v3", "", "Sks", "a b", "../x", "1st", "a" * 41, "é"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        checked_name(name)


def test_the_newest_of_a_name_that_fits_the_model(world: World) -> None:
    assert styles(world.ctx) == []
    old, other = world.style("sks", 1), world.style("sks", 2, model=1)
    assert [s.version for s in styles(world.ctx)] == [1, 2]
    new = world.style("sks", 3)
    world.style("sks", 3)  # again: nothing is registered twice
    known, base = styles(world.ctx), [model.digest for model in world.models]
    assert [s.digest for s in known] == [old.digest, other.digest, new.digest]
    assert fitting(known, base[0])["sks"].digest == new.digest == find_style(world.ctx, "sks", base[0]).digest
    assert find_style(world.ctx, "sks", base[1]).digest == other.digest
    with pytest.raises(InputError, match="no style 'cat'"):
        find_style(world.ctx, "cat", base[0])
    world.style("cat", 4, model=1)
    with pytest.raises(InputError, match="made for version 2, which is not the champion"):
        find_style(world.ctx, "cat", base[0])


def test_a_style_that_nobody_signed_is_not_used(world: World, stylist: Any) -> None:
    world.style("sks")
    style = styles(world.ctx)[0]
    tracker = Tracker(world.ctx.registry_uri, "styled")
    evil = world.artifact("adapter", f"model/{WEIGHTS}", 66)
    with tracker.run("by hand") as run:
        tags = {"style": "sks", "base": style.base, "adapter": evil.digest, "signed": style.signed}
        tracker.register("atelier-styles", evil.url, run.id, tags, "")
    with pytest.raises(GateRefused, match="of another adapter"):
        find_style(world.ctx, "sks", style.base)
    served = Served("1", stylist, style.base)
    assert_error(lambda: world.book.find("sks", served), 503, "style_unavailable", "log")
    require_signed(style, Keys(world.ctx.home))
    (world.ctx.home / KEY_FILE).unlink()
    with pytest.raises(GateRefused, match="not known here"):
        require_signed(style, Keys(world.ctx.home))


def assert_error(call: Callable[[], object], status: int, code: str, *words: str) -> None:
    from serving.schemas import ApiError

    with pytest.raises(ApiError) as caught:
        call()
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, code, "style")
    assert all(word in caught.value.message for word in words), caught.value.message


def test_what_the_book_says_of_a_name(world: World, stylist: Any, painter: Any) -> None:
    served = Served("1", stylist, world.models[0].digest)
    assert_error(lambda: world.book.find("sks", served), 400, "unknown_style", "There is none for this model")
    mine, other = world.style("sks", 1), world.style("cat", 2, model=1)
    found = world.book.find("sks", served)
    assert (found.name, found.digest) == ("sks", mine.digest) and (found.folder / WEIGHTS).is_file()
    assert_error(lambda: world.book.find("dog", served), 400, "unknown_style", "no style 'dog'", "Known: sks")
    assert_error(lambda: world.book.find("cat", served), 400, "style_of_another_version", "version 2", "version 1")
    plain = Served("1", painter, world.models[0].digest)
    assert_error(lambda: world.book.find("sks", plain), 400, "unknown_style", "draws no styles")
    second = Served("2", stylist, world.models[1].digest)
    assert world.book.find("cat", second).digest == other.digest
    assert [(s.id, s.available, s.model_version) for s in world.book.listing(second)] == [
        ("cat", True, "2"), ("sks", False, "1"),
    ]  # fmt: skip
    database = world.ctx.home / "mlflow.db"
    database.rename(database.with_suffix(".gone"))
    database.mkdir()  # the registry does not answer: what is known stays
    assert world.book.find("sks", served).digest == mine.digest


def test_damaged_weights_are_not_loaded(world: World, stylist: Any) -> None:
    made = world.style("sks")
    made.path(f"model/{WEIGHTS}").write_text("damaged")
    served = Served("1", stylist, world.models[0].digest)
    assert_error(lambda: world.book.find("sks", served), 503, "style_unavailable", "log")


def test_orders_of_different_styles_are_drawn_together(stylist: Any, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).touch()
    looks = [None, Lora("x", "d1", tmp_path), Lora("y", "d2", tmp_path), Lora("z", "d3", tmp_path / "gone")]
    engine = Engine(max_batch=9, max_queue=32, metrics=Metrics(), warm_up_s=0)
    engine.swap(Served("1", stylist))
    stylist.gate.clear()
    try:
        orders = [Order("a star", None, (i,), 4, 2.0, style=looks[i % 3]) for i in range(9)]
        first = engine.submit(orders[0]).future
        while not stylist.calls:
            time.sleep(0.002)
        futures = [first, *(engine.submit(order).future for order in orders[1:])]
        broken = engine.submit(Order("a star", None, (9,), 4, 2.0, style=looks[3])).future
        stylist.gate.set()
        drawn = [future.result(20) for future in futures]
        with pytest.raises(AssertionError, match="no such style"):  # its own order alone
            broken.result(20)
    finally:
        stylist.gate.set()
        engine.close(5)
    for order, picture in zip(orders, drawn, strict=True):
        stylist.name = f"a+{order.style.digest}" if order.style else "a"
        assert np.array_equal(picture.pixels[0, 0, 0], stylist.colour("a star", order.seeds[0]))
    assert any(set(worn) == {"", "d1", "d2"} and len(worn) == 9 for worn in stylist.worn)


def test_the_api(world: World, stylist: Any, service: Callable[..., Any]) -> None:
    world.style("sks")
    parts = service(stylist)
    whole = parts.service.__class__(**{**vars(parts.service), "styles": world.book})
    whole.engine.swap(Served("1", stylist, world.models[0].digest))
    client = TestClient(build_api(whole), raise_server_exceptions=False)
    assert client.get("/v1/styles").status_code == 401
    client.headers["Authorization"] = f"Bearer {parts.key}"
    it = SimpleNamespace(ask=lambda **more: client.post("/v1/images/generations", json={"prompt": "a star", **more}))
    listed = client.get("/v1/styles").json()["data"]
    assert listed == [
        {
            "id": "sks", "object": "style", "kind": "adapter", "caption": "a picture of sks", "model_version": "1",
            "available": True, "palette": [],
        }
    ]  # fmt: skip
    plain, natural, styled = it.ask(seed=3).json(), it.ask(seed=3, style="natural").json(), it.ask(seed=3, style="sks")
    assert styled.status_code == 200, styled.text
    assert plain["data"] == natural["data"] or pixels(plain) == pixels(natural)
    assert pixels(styled.json()) != pixels(plain) and styled.json()["style"] == "sks" and plain["style"] is None
    assert read_provenance(base64.b64decode(styled.json()["data"][0]["b64_json"]))["style"] == "sks"
    refused = it.ask(style="dog")
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unknown_style"
    assert refused.json()["error"]["param"] == "style" and "Known: sks" in refused.json()["error"]["message"]
    assert it.ask(style=3).json()["error"]["code"] == "invalid_value"
    whole.logbook.flush()
    rows = read_logbook(parts.home / "logbook").to_pylist()
    assert [(row["status"], row["style"]) for row in rows] == [
        (200, None), (200, None), (200, "sks"), (400, None), (400, None),
    ]  # fmt: skip


def test_a_server_without_styles_says_so(service: Callable[..., Any]) -> None:
    parts = service()
    client = TestClient(build_api(parts.service))
    client.headers["Authorization"] = f"Bearer {parts.key}"
    assert client.get("/v1/styles").json() == {"object": "list", "data": []}
    answer = client.post("/v1/images/generations", json={"prompt": "a star", "style": "sks"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_style"


def pixels(answer: dict[str, Any]) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).tobytes()

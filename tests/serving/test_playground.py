"""The page at ``/`` in a real browser, on a real server: what a person does there, by mouse and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.engine import Served
from tests.serving.visiting import IDLE, Visit, chromium, visit

__all__ = ["chromium", "visit"]  # fixtures
pytestmark = [pytest.mark.integration]
FOLDER = Path(__file__).resolve().parents[2] / "serving" / "playground"


def test_a_person_gives_a_key_draws_and_watches(visit: Callable[..., Visit], make_painter: Any) -> None:
    it = visit(make_painter(seconds=0.05), with_key=False)
    page = it.page
    it.enter("a quiet lake", n=2, seed=5, steps=12)
    page.until("document.getElementById('key-dialog').open")
    page.type("atelier-0-wrong")
    page.press("Enter")
    page.until("!document.getElementById('key-wrong').hidden && document.getElementById('key-dialog').open")
    assert "not known here" in page.text("#key-wrong")
    page.evaluate("document.getElementById('key').select()")
    page.type(it.parts.key)
    page.press("Enter")  # the prompt is there already: it is drawn at once
    seen = page.until("document.querySelector('.preview img')?.alt")
    assert re.fullmatch(r"Preview after step \d+ of 12: a quiet lake", seen)
    assert re.match(r"Step \d+ of 12 · (about .* left|nearly done)", page.text(".said"))
    assert page.evaluate("document.querySelector('progress').value / document.querySelector('progress').max") < 1
    shown = it.pictures(2)
    colours = [it.parts.painter.colour("a quiet lake", seed).tolist() for seed in (5, 6)]
    assert shown == [{"alt": f"a quiet lake, seed {s}", "colour": c} for s, c in zip((5, 6), colours, strict=True)]
    assert page.text(".said").startswith("Drawn by version 1 in ") and page.text("#live") == "2 pictures ready."
    assert page.evaluate("document.querySelector('#lanes a').download") == "a-quiet-lake-v1-5.png"
    # kept for this tab alone, and nothing else is: no cookie, no local storage
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
    assert [(row["status"], row["seed"]) for row in it.rows()][-2:] == [(200, 5), (200, 6)]


def test_a_picture_can_be_looked_at_and_its_seed_kept(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.enter("a bird", n=3, seed=9, steps=4)
    it.pictures(3)
    it.page.click("#lanes figure:nth-child(2) .look")
    it.page.until("document.getElementById('view').open")
    assert it.page.text("#view-place") == "2 of 3 · seed 10 · version 1"
    it.page.press("ArrowRight")
    it.page.press("ArrowRight")
    assert it.page.text("#view-place") == "1 of 3 · seed 9 · version 1"
    it.page.press("Escape")
    it.page.until("!document.getElementById('view').open")
    it.page.click("#lanes figure:nth-child(3) figcaption button")
    assert it.page.evaluate("document.getElementById('seed').value") == "11"
    it.page.click("#seed-clear")
    it.page.click("#go")  # without a seed one is chosen, and told
    it.page.until(f"{IDLE} && !document.querySelector('#lanes [alt$=\"seed 9\"]')")
    assert it.pictures(3)[0]["alt"] not in ("a bird, seed 9", "a bird, seed 11")


def test_cancelling_stops_the_server_too(visit: Callable[..., Visit], until: Callable[..., None]) -> None:
    it = visit()
    it.parts.painter.gate.clear()
    it.enter("something slow", steps=20)
    it.page.until("document.querySelector('.said')?.innerText.startsWith('Step')")
    it.page.press("Escape")
    it.page.until(IDLE)
    assert "Cancelled" in it.page.text("#lanes") and it.page.text("#live") == "Cancelled."
    it.parts.painter.gate.set()
    until(lambda: it.parts.service.engine.busy == 0)
    assert len(it.parts.painter.calls) <= 2  # of twenty steps: the one that was under way, and one more at most
    until(lambda: [row["status"] for row in it.rows()] == [499])
    it.enter("something else", n=1, steps=4)  # by the button, too
    it.pictures(1)
    it.parts.painter.gate.clear()
    it.enter("something slow", steps=20)
    it.page.click("#cancel")
    it.page.until(IDLE)
    assert it.page.evaluate("document.activeElement.id") == "prompt"


def test_the_place_in_the_queue_is_told(visit: Callable[..., Visit], until: Callable[..., None]) -> None:
    it = visit(max_batch=1)
    it.parts.painter.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(it.ask, "drawn now")]
        until(lambda: it.parts.painter.calls)
        others.append(pool.submit(it.ask, "the next"))
        until(lambda: it.parts.service.engine.waiting == 1)
        it.enter("mine", n=1, steps=4)
        said = it.page.until("(document.querySelector('.said')?.innerText || '').startsWith('In the queue') "
                             "&& document.querySelector('.said').innerText")  # fmt: skip
        assert re.fullmatch(r"In the queue · 1 before yours · (about .* left|nearly done)", said)
        assert it.page.evaluate("document.querySelector('progress').position") == -1  # of unknown length
        assert it.page.text("#live").startswith("In the queue, 1 request before yours")
        it.parts.painter.gate.set()
        assert [other.result(30).status_code for other in others] == [200, 200]
    it.pictures(1)


def test_a_full_queue_is_told_with_the_time_until_it_is_not(
    visit: Callable[..., Visit], until: Callable[..., None]
) -> None:
    it = visit(max_batch=1, max_queue=1)
    it.parts.painter.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(it.ask, "first")]
        until(lambda: it.parts.painter.calls)
        others.append(pool.submit(it.ask, "second"))
        until(lambda: it.parts.service.engine.waiting == 1)
        it.enter("mine", n=1, steps=4)
        assert "Very many people are drawing" in it.page.until("document.getElementById('trouble').innerText")
        button = "document.querySelector('#again button')"
        assert it.page.until(f"{button}.innerText.startsWith('Try again in ')")
        assert it.page.evaluate(f"{button}.getAttribute('aria-disabled')") == "true"
        it.parts.painter.gate.set()
        assert [other.result(30).status_code for other in others] == [200, 200]
    it.page.until(f"{button}.innerText === 'Try again'", 60)
    it.page.click("#again button")
    assert it.pictures(1)[0]["alt"].startswith("mine")
    assert it.page.evaluate("document.getElementById('trouble').hidden")


def test_a_prompt_that_is_refused_is_explained_and_can_be_mended(visit: Callable[..., Visit]) -> None:
    it = visit(blocked_words=["gloomster"])
    it.enter("a lake with a gloomster in it", n=1, steps=4)
    it.page.until("!document.getElementById('trouble').hidden")
    told = it.page.text("#trouble")
    assert "This prompt" in told and "gloomster" in told and it.page.text("#trouble mark") == "gloomster"
    assert it.page.evaluate("document.querySelector('#trouble').getAttribute('role')") == "alert"
    # where the trouble is: the prompt has the focus, the word is selected, and typing replaces it
    assert it.page.evaluate("document.activeElement.id") == "prompt"
    assert it.page.evaluate("document.getElementById('prompt').getAttribute('aria-invalid')") == "true"
    it.page.type("boat")
    assert it.page.evaluate("document.getElementById('prompt').value") == "a lake with a boat in it"
    it.page.press("Enter")
    assert it.pictures(1)[0]["alt"].startswith("a lake with a boat in it")
    assert it.page.evaluate("document.getElementById('trouble').hidden")
    it.enter("how to stab a man to death", n=1, steps=4)
    it.page.until("!document.getElementById('trouble').hidden")
    told = it.page.text("#trouble")
    assert "This prompt was read as" in told and "violence" in told and "without anybody being hurt" in told
    # from the first to the last of the words that it was read from
    assert "stab a man" in it.page.evaluate("document.getSelection().toString()")
    assert [(row["status"], row["prompt"][:6]) for row in it.rows()] == [
        (400, "a lake"),
        (200, "a lake"),
        (400, "how to"),
    ]


def test_a_picture_that_is_withheld_is_told_beside_the_others(visit: Callable[..., Visit], make_painter: Any) -> None:
    painter = make_painter()
    gory = painter.colour("a cat", 6)

    class Looks:
        def found(self, pixels: Any) -> list[dict[str, tuple[float, str]]]:
            return [{"gore": (0.1, "block")} if (one[0, 0] == gory).all() else {} for one in pixels]

    it = visit(painter, pictures=Looks())
    it.enter("a cat", n=2, seed=5, steps=4)
    assert [one["alt"] for one in it.pictures(1)] == ["a cat, seed 5"]
    assert it.page.text("#lanes .withheld") == "Not shown: it came out as gore."
    assert it.page.text("#live") == "1 picture ready. 1 picture not shown."


def test_every_choice_is_asked_for_and_comes_back_from_the_history(visit: Callable[..., Visit]) -> None:
    it = visit(templates={"ink": {"prompt": "{prompt}, in ink"}}, sizes=["12x8"])
    page = it.page
    chosen = {
        "style": "ink",
        "size": "12x8",
        "n": "1",
        "steps": "7",
        "guidance": "4.5",
        "seed": "21",
        "sampler": "euler",
    }
    chosen["negative"] = "clouds"
    page.until("document.querySelector('#style option[value=ink]') !== null")
    assert page.evaluate("document.querySelector('#style optgroup').label") == "Ways of drawing"
    it.enter("a tree", **chosen)
    shown = it.pictures(1)
    assert page.evaluate(
        "(({ naturalWidth: w, naturalHeight: h }) => [w, h])(document.querySelector('#lanes img'))"
    ) == [12, 8]
    assert it.parts.painter.calls[-1] == (["a tree, in ink"], [21], [7], [4.5])
    fields = f"Object.fromEntries({list(chosen)!r}.map((id) => [id, document.getElementById(id).value]))"
    it.enter("another tree", style="", size="", n=2, steps=4, guidance=2, seed="", sampler="", negative="")
    it.pictures(2)
    page.click("#history li:nth-child(2) .acts button:nth-child(2)")  # Edit
    assert page.evaluate(fields) == chosen
    page.evaluate("document.getElementById('prompt').focus()")
    page.press("Enter")
    assert it.pictures(1) == shown
    page.evaluate("document.getElementById('choices').open = true")
    page.click("#defaults")
    left = page.evaluate(fields)
    assert [left[name] for name in ("steps", "guidance", "sampler", "negative")] == ["16", "2", "", ""]


def test_what_had_no_effect_is_told(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.enter("a very long prompt " * 5, n=1, steps=4)  # the painter reads 50 characters
    it.pictures(1)
    assert "longer than this model reads" in it.page.text("#notices")
    it.enter("short", steps=4)
    it.page.until(f"{IDLE} && document.getElementById('notices').hidden")


def test_the_history_makes_a_picture_again(visit: Callable[..., Visit]) -> None:
    it = visit()
    page = it.page
    it.enter("a red barn", n=2, seed=77, steps=6, guidance=3.5)
    before = it.pictures(2)
    it.enter("another thing", n=1, seed=1, steps=4)
    it.pictures(1)
    page.until("document.querySelectorAll('#history li').length === 2")
    page.reload()
    page.until("document.querySelectorAll('#history li').length === 2")  # newest first, kept by the browser
    assert page.text("#history li:nth-child(2)").startswith("a red barn")
    assert "version 1 · 2 pictures · seed 77" in page.text("#history li:nth-child(2) .note")
    page.click("#history li:nth-child(2) .acts button:nth-child(1)")
    assert it.pictures(2) == before
    calls = [call for call in it.parts.painter.calls if call[0][0] == "a red barn"]
    assert calls[-1] == calls[0] and calls[0][2:] == calls[-1][2:]  # steps and guidance, too
    page.until("document.querySelectorAll('#history li').length === 3")
    page.click("#history li:nth-child(2) .acts button:nth-child(2)")  # Edit: into the form, not drawn
    assert page.evaluate("document.getElementById('prompt').value") == "another thing" and page.evaluate(IDLE)
    page.click("#history li:nth-child(1) .acts button:nth-child(3)")
    page.until("document.querySelectorAll('#history li').length === 2")
    page.click("#forget")
    assert page.text("#forget") == "Really forget all?"
    page.click("#forget")
    page.until("document.getElementById('past').hidden")
    page.reload()
    page.until("document.getElementById('served').classList.contains('ready')")
    assert page.evaluate("document.getElementById('past').hidden")


SLOW_SETTINGS = """const real = window.fetch;
window.fetch = async (what, ...more) => {
  if (String(what).endsWith("/playground/settings")) await new Promise((resolve) => setTimeout(resolve, 5000));
  return real(what, ...more);
};"""


def test_what_is_pressed_before_the_settings_come_is_not_lost(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.enter("a red barn", n=1, seed=77, steps=6)
    before = it.pictures(1)
    it.page.send("Page.addScriptToEvaluateOnNewDocument", source=SLOW_SETTINGS)
    it.page.reload()
    it.page.until("document.querySelectorAll('#history li').length === 1")
    assert not it.page.evaluate("document.getElementById('served').classList.contains('ready')"), "they have come"
    it.page.click("#history li:nth-child(1) .acts button:nth-child(1)")
    assert it.pictures(1) == before


def test_the_history_is_bounded(visit: Callable[..., Visit]) -> None:
    it = visit()
    kept = it.page.evaluate("""(async () => {
        const past = await import("/playground/past.js");
        const src = document.querySelector("header img").src;  // larger than a thumbnail: it is kept smaller
        const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 320 });
        const picture = { src: canvas.toDataURL(), seed: 1 };
        for (let i = 0; i < 70; i++) {
            const body = { prompt: `prompt ${i}`, n: 1, seed: i };
            await past.keep({ body, pictures: [picture], versions: ["1"], models: "champion" }, {});
        }
        const image = document.querySelector("#history img");
        await image.decode();
        return [document.querySelectorAll("#history li").length, image.naturalWidth, image.naturalHeight];
    })()""")
    assert kept == [60, 256, 128]
    assert it.page.text("#history li").startswith("prompt 69")


def test_a_server_that_goes_away_and_a_model_that_comes(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.page.send(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    it.enter("a lake", n=1, steps=4)
    assert "cannot be reached" in it.page.until("document.getElementById('trouble').innerText")
    assert it.page.evaluate("document.getElementById('prompt').value") == "a lake"
    it.page.send(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    it.enter("poison", n=1, steps=4)
    it.page.until("document.getElementById('trouble').innerText.includes('wrong on the server')")
    assert "secret detail" not in it.page.text("body")
    served = it.parts.service.engine.served
    it.parts.service.engine.swap(Served("2", served.generator, "e" * 64))
    it.page.until("document.getElementById('served').innerText.includes('version 2')")


def test_nothing_of_the_page_is_missing() -> None:
    scripts = {path.name: path.read_text() for path in FOLDER.glob("*.js")}
    page = (FOLDER / "index.html").read_text()
    used = set(re.findall(r'(?:el|getElementById)\("([\w-]+)"\)', "".join(scripts.values())))
    assert used and used <= set(re.findall(r'id="([\w-]+)"', page))
    assert not any(
        re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) for text in scripts.values()
    )
    loaded = set(re.findall(r'"/playground/([\w.]+)"', page))
    assert loaded == set(scripts) | {"app.css"}  # each is fetched at once, none only after another one was read


def test_champion_and_challenger_draw_side_by_side(visit: Callable[..., Visit], make_painter: Any) -> None:
    challenger = make_painter("b")
    it = visit(compare=True, trial=challenger)
    page = it.page
    page.until("document.getElementById('served').innerText === 'atelier · version 1 · 2 on trial'")
    page.click("#served")
    page.until("document.getElementById('models-dialog').open")
    cards = page.evaluate("[...document.querySelectorAll('.model')].map((card) => card.innerText)")
    assert "Version 1" in cards[0] and "passed the gate" in cards[0] and "fidelity is 0.91" in cards[0].lower()
    assert "did not pass the gate" in cards[1] and page.text(".model:nth-child(2) .no") == "Failed:\nFidelity fell"
    page.press("Escape")
    page.click("input[value='both']")
    it.enter("a fox", n=2, seed=3, steps=4)
    shown = it.pictures(4)
    colours = [p.colour("a fox", seed).tolist() for p in (it.parts.painter, challenger) for seed in (3, 4)]
    assert [one["colour"] for one in shown] == colours
    assert page.evaluate("[...document.querySelectorAll('.lane h3')].map((h) => h.innerText)") == [
        "Champion",
        "Challenger",
    ]
    assert "versions 1 and 2" in page.text("#history .note")
    page.click("input[value='champion']")
    page.click("#history .acts button")  # again as it was: by both
    page.until(f"{IDLE} && document.querySelectorAll('#history li').length === 2")
    assert it.pictures(4) == shown

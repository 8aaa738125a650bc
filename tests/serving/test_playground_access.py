"""The page at ``/`` for everybody: by keyboard, in light and dark, told to a screen reader, on a narrow telephone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.serving.visiting import IDLE, Visit, chromium, visit

__all__ = ["chromium", "visit"]  # fixtures
pytestmark = [pytest.mark.integration]
CONTROLS = {
    "button", "textbox", "searchbox", "slider", "spinbutton", "combobox", "radio", "link", "progressbar", "group",
    "dialog", "DisclosureTriangle",
}  # fmt: skip

# Every text in sight whose contrast with what lies behind it is below 4.5 to 1 (WCAG 2.2, 1.4.3), with the ratio.
LOW_CONTRAST = """(() => {
  const parts = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => rgb.map(linear).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const chain = (node) => { const all = []; for (let n = node; n; n = n.parentElement) all.push(n); return all; };
  const ground = (node) => chain(node).map((n) => parts(getComputedStyle(n).backgroundColor))
    .reduceRight((under, colour) => over(colour, under), [255, 255, 255]);
  const ratio = (node, colour) => {
    const back = ground(node);
    const opacity = chain(node).reduce((product, n) => product * getComputedStyle(n).opacity, 1);
    const [r, g, b, a] = parts(colour);
    const [one, two] = [luminance(over([r, g, b, a * opacity], back)), luminance(back)].sort((x, y) => y - x);
    return (one + 0.05) / (two + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    if (!text.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest(".hidden, option, [aria-disabled=true], .skip")) continue;
    found.push([text.textContent.trim(), ratio(node, getComputedStyle(node).color)]);
  }
  for (const input of document.querySelectorAll("[placeholder]")) {
    const { color } = getComputedStyle(input, "::placeholder");
    if (input.checkVisibility()) found.push([input.placeholder, ratio(input, color)]);
  }
  return { texts: found.length, low: found.filter(([, value]) => value < 4.5) };
})()"""

# What reaches beyond the right edge of the window, where the page can be scrolled there.
WIDER = """(document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("*")]
  .filter((node) => node.getBoundingClientRect().right > innerWidth)
  .map((node) => `${node.tagName} ${node.id} ${node.className} ${node.getBoundingClientRect().right}`))"""


def test_everything_can_be_done_by_keyboard(visit: Callable[..., Visit]) -> None:
    it = visit()
    page, order = it.page, []
    page.evaluate("document.body.focus()")
    for _ in range(9):
        page.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order == ["skip", "served", "key-open", "theme", "prompt", "n", "seed", "", "go"]  # "": the summary of More
    page.evaluate("document.getElementById('seed').focus()")
    page.press("Enter", control=True)  # from anywhere in the form
    page.until("!document.getElementById('trouble').hidden")
    assert "Say first" in page.text("#trouble") and page.evaluate("document.activeElement.id") == "prompt"
    page.type("line one")
    page.press("Enter", shift=True)
    page.type("line two")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelector('#lanes .filled') !== null")
    assert it.rows()[-1]["prompt"] == "line one\nline two"
    page.evaluate("document.getElementById('served').focus()")
    page.press("Enter")
    page.until("document.getElementById('models-dialog').open")
    page.press("Escape")
    page.until("!document.getElementById('models-dialog').open")
    assert page.evaluate("document.activeElement.id") == "served"


def test_light_and_dark(visit: Callable[..., Visit]) -> None:
    it = visit()
    page, paper = it.page, "getComputedStyle(document.body).backgroundColor"
    theme = "document.documentElement.dataset.theme"
    page.prefer(color_scheme="light")
    page.until(f"{theme} === 'light'")
    light = page.evaluate(paper)
    page.prefer(color_scheme="dark")  # the system's wish is followed at once
    page.until(f"{theme} === 'dark'")
    assert page.evaluate(paper) != light
    page.evaluate("document.getElementById('theme').focus()")
    page.press(" ")
    assert page.evaluate(theme) == "light" and page.evaluate(paper) == light
    page.reload()
    page.until("document.getElementById('served').classList.contains('ready')")
    assert page.evaluate(theme) == "light"  # chosen here: it stays
    page.click("#theme")
    assert page.evaluate(theme) == "dark" and page.evaluate("localStorage.length") == 0  # as the system: followed again


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read_and_controls_have_names(visit: Callable[..., Visit], theme: str) -> None:
    it = visit(
        blocked_words=["gloomster"], width=360, height=780, examples=["a hill", "a " + "very " * 12 + "long one"]
    )
    page = it.page
    page.prefer(color_scheme=theme, reduced_motion="reduce")
    page.evaluate("document.getElementById('choices').open = true")

    def check(controls: int = 9) -> None:
        found = page.evaluate(LOW_CONTRAST)
        assert found["texts"] > 10 and found["low"] == []
        nodes = [node for node in page.accessibility() if node["role"]["value"] in CONTROLS]
        nameless = [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")]
        assert len(nodes) >= controls and [role for role in nameless if role != "group"] == []
        assert page.evaluate(WIDER) == []

    check()
    it.enter("a prompt of " + "words" * 12, n=3, steps=4)
    it.pictures(3)
    check()
    it.parts.painter.gate.clear()
    it.enter("slow", n=2, steps=4)
    page.until("document.querySelector('.said')?.innerText.startsWith('Step')")
    assert page.evaluate("document.getAnimations().length") == 0  # as the person prefers
    check()
    page.press("Escape")
    page.until(IDLE)
    it.parts.painter.gate.set()
    it.enter("one gloomster", n=1)
    page.until("!document.getElementById('trouble').hidden")
    check()
    for opener, dialog in (("#served", "models-dialog"), ("#key-open", "key-dialog")):
        page.click(opener)
        page.until(f"document.getElementById('{dialog}').open")
        check(controls=2)  # the page behind it is out of reach
        page.press("Escape")
        page.until(f"!document.getElementById('{dialog}').open")

"""The sheet shows every sample with its verdict, at any size."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.sheet import Sample, draw_sheet


@pytest.mark.parametrize("side", [8, 32, 300])
def test_frames_tell_the_verdict(side: int) -> None:
    picture = np.zeros((side, side, 3), np.uint8)
    verdicts = [True, False, None]
    sheet = draw_sheet([Sample(picture, "a red star " * 20, v) for v in verdicts], "t", "s")
    colours = {c for _, c in sheet.getcolors(1 << 20) or []}
    assert {(30, 148, 82), (206, 58, 48), (206, 206, 202)} <= colours
    green_only = draw_sheet([Sample(picture, "x", True)], "t", "s")
    assert (206, 58, 48) not in {c for _, c in green_only.getcolors(1 << 20) or []}


def test_pictures_of_any_aspect_and_prompts_of_any_script() -> None:
    tall = np.full((64, 24, 3), 90, np.uint8)
    sheet = draw_sheet([Sample(tall, "a" * 200, None), Sample(tall, "", None), Sample(tall, "星 🌟", True)], "t", "s")
    assert sheet.mode == "RGB" and sheet.width > 300

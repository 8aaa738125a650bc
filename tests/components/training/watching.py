"""What the tests of failing workers share: something done once a training has come so far, and how it must end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from components.training import checkpoint
from components.training.loop import train
from tests.components.training.tiny import PLAN, Tiny, weights_of

OFTEN = replace(PLAN, images=24 * 8, checkpoint_every_s=0.0)


def when(seen: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """A thread that does ``then`` once ``seen`` is true."""

    def watch() -> None:
        deadline = time.monotonic() + 900
        while not seen():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def step_of(folder: Path) -> int:
    found = checkpoint.latest(folder)
    return found[0].step if found else 0


def require_as_one_process(folder: Path, summary: dict[str, Any], calm: Path) -> None:
    """Up to rounding: two ranks sum in another order than one. Bit for bit is shown in test_elastic.py."""
    assert summary["order_digest"] == train(Tiny(), OFTEN, calm)["order_digest"]
    for name in ("weights.safetensors", "model.safetensors"):
        theirs = weights_of(calm, name)
        for key, value in weights_of(folder, name).items():
            assert torch.allclose(value, theirs[key], rtol=1e-3, atol=1e-4), (name, key)

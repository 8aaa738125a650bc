"""The engine in a process of its own: what ``torch.compile`` makes learns as the plain module does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.components.training.tiny import Job, finish, start, weights_of


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_module_learns_as_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = tmp_path / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    adam = {"adam_rate": 1e-2, "muon_rate": 0.0, "weight_decay": 0.0, "gradient_clip": 1.0}  # Muon may round in bf16
    plan = {"optimiser": adam, "images": 80}
    jobs = [Job(str(tmp_path / name), {**plan, "compile": name == "compiled"}) for name in ("compiled", "plain")]
    for job in jobs:  # each in a process of its own: compiling is a setting of the process
        finish(start([job], 1, tmp_path), tmp_path)
        assert any(compiled.rglob("*.cpp")), "nothing was compiled"
    plain = weights_of(tmp_path / "plain")
    for name, weight in weights_of(tmp_path / "compiled").items():
        torch.testing.assert_close(weight, plain[name.removeprefix("_orig_mod.")], rtol=1e-3, atol=1e-4)

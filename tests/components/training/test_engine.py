"""The engine in processes of its own: it learns as plain PyTorch does, and as what ``torch.compile`` makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from components.training.objective import schedule
from components.training.order import Order
from tests.components.training.tiny import PLAN, Job, Tiny, finish, start, weights_of

ADAM = {"adam_rate": 1e-2, "muon_rate": 0.0, "weight_decay": 0.01, "gradient_clip": 0.05}


def in_plain_pytorch() -> tuple[dict[str, torch.Tensor], int]:
    """The weights that :data:`ADAM` makes of :class:`Tiny` in a loop of its own, and how many steps were clipped."""
    torch.manual_seed(PLAN.seed)
    task = Tiny()
    module, clipped = task.build(), 0
    samples = Order(task.open(module, torch.device("cpu")), PLAN.batch_size, PLAN.seed)
    optimiser = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=ADAM["weight_decay"])
    for step in range(PLAN.steps):
        draws = torch.Generator().manual_seed(PLAN.seed * 1_000_003 + step)
        module(**task.batch(samples.batch(step), slice(0, PLAN.batch_size), draws))["loss"].backward()
        clipped += bool(torch.nn.utils.clip_grad_norm_(module.parameters(), ADAM["gradient_clip"]) > 0.05)
        for group in optimiser.param_groups:
            group["lr"] = ADAM["adam_rate"] * schedule(step, PLAN.steps, PLAN.warmup, PLAN.cooldown)
        optimiser.step()
        optimiser.zero_grad()
    return {name: weight.detach() for name, weight in module.named_parameters()}, clipped


@pytest.mark.integration
def test_gradients_are_clipped_and_weights_learn_as_in_plain_pytorch(tmp_path: Path) -> None:
    """Under every stage, on two ranks."""
    ways = [{"zero_stage": stage} for stage in range(4)] + [{"zero_stage": 2, "offload": "cpu"}, {"accumulate": 2}]
    jobs = [Job(str(tmp_path / str(i)), {"optimiser": ADAM, **way}) for i, way in enumerate(ways)]
    finish(start(jobs, 2, tmp_path), tmp_path)
    plain, clipped = in_plain_pytorch()
    assert PLAN.steps / 2 < clipped, "hardly anything was clipped"
    for job in jobs:
        for name, weight in weights_of(Path(job.folder)).items():
            torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-5)


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

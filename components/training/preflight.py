"""Before the first step: what a training needs is reckoned, and one that cannot succeed is refused with the remedy.

:func:`check_training` reckons the memory of one training, :func:`report` that of all trainings of a recipe, before
there is any data. Rules that need no reckoning are in :mod:`components.training.rules`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from components.contracts.errors import AtelierError, TrainingError
from components.contracts.recipe import Recipe
from components.training.room import room_of
from components.training.rules import COMPARES, check_batch, check_recipe, check_rows

if TYPE_CHECKING:
    from components.training.memory import Estimate, Pass
    from components.training.probes import Probe

Result = TypeVar("Result")


@dataclass(frozen=True)
class Report:
    """What one training would need."""

    kind: str
    samples: int  # of a worker in one pass
    found: Pass
    estimate: Estimate
    room: tuple[int, str] | None  # bytes that a worker may use, and of what
    loss: float | None = None  # of one step on a few samples, where it was made
    seconds: float | None = None
    way: str | None = None  # means with which it would fit, where it does not

    @property
    def fits(self) -> bool:
        """True also where the room is not known."""
        return self.room is None or self.estimate.device <= self.room[0]

    @property
    def flops_per_image(self) -> float:
        """Of forward and backward pass."""
        return self.found.flops / self.samples


def check_training(probe: Probe, recipe: Recipe, rows: int | None = None) -> Report:
    """Reckon one training, and refuse it where it does not fit.

    Args:
        rows: pictures to train on, where they are known.

    Raises:
        TrainingError: the module cannot be built or run at these shapes, the dataset does not fill a batch, or the
            memory is too small; the remedy names means that would fit.
    """
    section = getattr(recipe.train, probe.kind)
    if rows is not None:
        check_rows(probe.kind, rows, section.batch_size)
    found = _reckon(probe, recipe)
    if not found.fits:
        raise _too_large(found, next(_ways(probe, recipe), None))
    return found


def require_room(reports: list[Report]) -> None:
    """Refuse what :func:`report` found not to fit.

    Raises:
        TrainingError: some training needs more memory than a worker has.
    """
    for found in reports:
        if not found.fits:
            raise _too_large(found, found.way)


def report(recipe: Recipe, one_step: bool = False) -> list[Report]:
    """All trainings of a recipe, reckoned without data. ``one_step`` also makes one on two samples, on this machine.

    Raises:
        TrainingError: see :func:`check_recipe` and :func:`check_training`; a training that does not fit is reported.
    """
    from components.training.probes import probes_of

    check_recipe(recipe)
    found = []
    for probe in probes_of(recipe):
        row = _reckon(probe, recipe)
        if not row.fits:
            row = replace(row, way=next(_ways(probe, recipe), None))
        if one_step:
            loss, seconds = _step(probe)
            row = replace(row, loss=loss, seconds=seconds)
        found.append(row)
    return found


def table(reports: list[Report]) -> str:
    """The reports as text, a line a training."""
    names = (("parameters", 12), ("GFLOP/img", 11), ("a pass", 8), ("states", 10), ("step", 10), ("worker", 10))
    lines = [f"{'training':<14}" + "".join(f"{name:>{wide}}" for name, wide in names) + "  fits"]
    for r in reports:
        need = r.estimate
        fits = "not known here" if r.room is None else f"{'yes' if r.fits else 'NO'}, {r.room[0] / 1e9:.1f} GB"
        lines.append(
            f"{r.kind:<14}{r.found.parameters / 1e6:>10.2f} M{r.flops_per_image / 1e9:>11.2f}{r.samples:>8}"
            f"{need.states / 1e9:>7.2f} GB{need.step / 1e9:>7.2f} GB{need.device / 1e9:>7.2f} GB  {fits}"
        )
        if r.loss is not None and r.seconds is not None:
            lines.append(f"{'':<14}one step on 2 samples: loss {r.loss:.4f}, {r.seconds:.1f} s")
    return "\n".join(lines)


def _too_large(found: Report, way: str | None) -> TrainingError:
    assert found.room is not None
    return TrainingError(
        f"Training the {found.kind.replace('_', ' ')} needs about {found.estimate.device / 1e9:.1f} GB a worker, "
        f"of which {found.estimate.states / 1e9:.1f} GB are weights and optimiser, "
        f"and has {found.room[0] / 1e9:.1f} GB ({found.room[1]})",
        expected="a training that fits into memory",
        remedy=f"it fits with {way}" if way else "choose a smaller model or batch_size, more workers or larger memory",
    )


def _reckon(probe: Probe, recipe: Recipe, known: dict[tuple[int, bool], Pass] | None = None) -> Report:
    """``known`` keeps passes that were reckoned, by samples and recomputing, for the next call."""
    from components.runtime.cluster import address_of
    from components.training.memory import estimate

    run, section = recipe.run, getattr(recipe.train, probe.kind)
    samples, known = check_batch(probe.kind, section.batch_size, run), {} if known is None else known
    key = (samples, run.gradient_checkpointing)
    if key not in known:
        known[key] = _passed(probe, samples, recipe)
    workers = run.min_workers or run.workers
    needed = estimate(
        known[key], zero_stage=run.zero_stage if workers > 1 or run.offload == "cpu" else 0, workers=workers,
        muon=getattr(section, "muon_rate", 0.0) > 0, average=getattr(section, "ema_decay", None) is not None,
        offload=run.offload == "cpu" and run.gpus_per_worker > 0,
        accumulate=1 if probe.kind in COMPARES else run.accumulate,
        nearby=run.gpus_per_worker == 0 and address_of(run) is None,
    )  # fmt: skip
    return Report(probe.kind, samples, known[key], needed, room_of(run))


def _passed(probe: Probe, samples: int, recipe: Recipe) -> Pass:
    """A pass on fake tensors; what the module says of wrong shapes becomes an error for the user."""
    from components.runtime.precision import has_bf16
    from components.training.memory import fake_pass

    run = recipe.run
    bf16 = recipe.train.precision == "bf16" and (run.gpus_per_worker > 0 or has_bf16("cpu"))
    return _explained(
        probe.kind, lambda: fake_pass(probe.build, probe.example, samples, bf16, run.gradient_checkpointing)
    )


def _ways(probe: Probe, recipe: Recipe) -> Iterator[str]:
    """Means that would fit, as ``--set`` options; those that cost least time first."""
    run, batch = recipe.run, getattr(recipe.train, probe.kind).batch_size
    fewest = run.min_workers or run.workers
    known: dict[tuple[int, bool], Pass] = {}
    passes = [1] if probe.kind in COMPARES else [run.accumulate * 2**i for i in range(6)]
    for recompute in (run.gradient_checkpointing, True)[run.gradient_checkpointing :]:
        for accumulate in passes:
            if batch % (fewest * accumulate):
                break
            for stage in range(run.zero_stage, 4):
                for offload in ("none", "cpu") if run.gpus_per_worker and stage else (run.offload,):
                    update: dict[str, Any] = {
                        "zero_stage": stage, "offload": offload, "accumulate": accumulate,
                        "gradient_checkpointing": recompute,
                    }  # fmt: skip
                    tried = recipe.model_copy(update={"run": run.model_copy(update=update)})
                    if _reckon(probe, tried, known).fits:
                        changed = {k: v for k, v in update.items() if v != getattr(run, k)}
                        yield " ".join(f"--set run.{k}={str(v).lower()}" for k, v in changed.items())


def _step(probe: Probe) -> tuple[float, float]:
    """One real step on two samples: its loss and seconds."""

    def step() -> tuple[float, float]:
        import torch

        from components.training.turns import turns_of

        torch.manual_seed(0)
        module, batch = probe.build(), probe.example(2)
        started = time.perf_counter()
        for turn in turns_of(module).values():
            optimiser = torch.optim.AdamW(p for p in turn.parameters() if p.requires_grad)
            loss = turn(**batch)["loss"]
            loss.backward()
            optimiser.step()
        return float(loss.detach()), time.perf_counter() - started

    loss, seconds = _explained(probe.kind, step)
    if not math.isfinite(loss):
        raise TrainingError(
            f"One step of the {probe.kind.replace('_', ' ')} gives a loss of {loss}",
            expected="a finite number",
            remedy="look at the section's shape; with defaults the loss is finite",
        )
    return loss, seconds


def _explained(kind: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except AtelierError:
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TrainingError(
            f"The {kind.replace('_', ' ')} of this recipe cannot be trained: {first}",
            expected="a shape whose parts fit together",
            remedy=f"correct train.{kind}: channels must be multiples of norm_groups and of heads, a width of heads",
        ) from error

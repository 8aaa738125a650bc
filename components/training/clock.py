"""What a training shows of itself while it runs: time, pace, the loss curve, and the refusal to go on from nonsense.

A step only hands its scalars over; they stay where they are. Every so many steps they are read, averaged over the
ranks in one exchange, and checked: so a GPU is not waited for at every step, the curve is that of the global batch,
and all ranks stop, or write a checkpoint, at the same step.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.training import checkpoint
from components.training.divergence import Divergence
from components.training.held_out import HeldOut, is_empty
from components.training.measures import Measures, cut_curve, memory_of, points_every
from components.training.peak import peak_flops
from components.training.sheets import write_sheet

if TYPE_CHECKING:
    from components.training.loop import Plan

__all__ = ["CURVE", "SUMMARY", "Clock", "Measures"]

CURVE = "curve.jsonl"
SUMMARY = "summary.json"
_READ_S = 1.0  # between two readings of the scalars, about
_MOST_STEPS = 64  # between two readings


class Clock:
    """Time, pace, the curve, and when to stop.

    Args:
        folder: where rank 0 writes the curve. mark: of the checkpoint that is gone on from. quiet: not rank 0.
    """

    def __init__(self, folder: Path, plan: Plan, mark: checkpoint.Mark | None, quiet: bool) -> None:
        self._plan, self._measures, self._quiet, self._folder = plan, plan.measures, quiet, folder
        kept = mark.clock if mark else {}
        self.first = mark.step if mark else 0
        self.validation: float | None = kept.get("validation")
        self._before = mark.seconds if mark else 0.0
        self._world = dist.get_world_size() if dist.is_initialized() else 1
        self._started = self._saved = self._read_at = time.monotonic()
        self._ended = self._started
        self._paced = (self.first, self._started, 0.0)  # steps, moment and measuring that the mean pace leaves out
        self._waited = self._in_wait = self._apart = 0.0
        self._sums: dict[str, float] = dict(kept.get("sums", {}))
        self._count = int(kept.get("count", 0))
        self._watch = Divergence(self._measures.divergence, kept.get("losses", ()))
        self._unread: list[dict[str, Tensor]] = []
        self._next_read, self._due = self.first + 1, False
        self._every, self._looks = points_every(plan.steps), self._measures.steps(plan.steps)
        self._window = (self.first, self._started, 0.0, 0.0)  # step, moment, waited and apart at the last point
        self._line: dict[str, Any] | None = None  # a point that the held-out loss is still to join
        self._held: HeldOut | None = None
        self._task: Any = None
        self._module: nn.Module | None = None
        self._device = torch.device("cpu")
        self._peak, self._peak_from = 0.0, ""
        if not quiet:
            cut_curve(folder / CURVE, self.first * plan.batch_size)

    def open(self, task: Any, module: nn.Module, device: torch.device) -> None:
        """Make the held-out pictures ready, and measure what the device can do. Every rank must call."""
        self._task, self._module, self._device = task, module, device
        if hasattr(module, "turns"):  # an adversary's loss is no measure of progress
            self._watch = Divergence(0.0)
        twin = task.held_out() if self._looks and hasattr(task, "held_out") else None
        if twin is not None and not is_empty(twin):
            rank = dist.get_rank() if dist.is_initialized() else 0
            limit = self._measures.validation_images
            self._held = HeldOut.open(twin, module, device, limit, rank, self._world)
        if self._measures.flops_per_image:
            self._peak, self._peak_from = peak_flops(device, self._plan.bf16)
        self._started = self._saved = self._read_at = self._ended = time.monotonic()
        self._window = (self.first, self._started, 0.0, 0.0)
        self._paced = (self.first, self._started, 0.0)

    @property
    def seconds(self) -> float:
        """Of training so far, those of killed runs up to their checkpoint included."""
        return self._before + time.monotonic() - self._started

    @property
    def due(self) -> bool:
        """A checkpoint should be written; all ranks say the same."""
        return self._due

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved, self._due = time.monotonic(), False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain JSON: the unfinished point of the curve, and what the loss was."""
        return {
            "sums": self._sums, "count": self._count, "losses": self._watch.state(), "validation": self.validation,
        }  # fmt: skip

    def waiting(self) -> Clock:
        """For a ``with`` block: its time is spent on waiting for data."""
        return self

    def __enter__(self) -> None:
        self._in_wait = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._in_wait

    def note(self, done: int, scalars: dict[str, Tensor], players: Any = None) -> None:
        """Take in the scalars of step ``done`` (counted from 1), and write a point of the curve every so many steps.

        Every rank must call it after every step.

        Raises:
            TrainingError: the loss of some step since the last reading is not finite, or has been far too high for
                long, or the gradient's norm is not finite.
        """
        self._unread.append({key: value.detach().reshape(()) for key, value in scalars.items()})
        self._ended = time.monotonic()
        if done == self.first + 1 < self._plan.steps:  # kernels are chosen, or compiled, in the first step
            self._paced = (done, self._ended, self._apart)
        is_point = done % self._every == 0 or done == self._plan.steps
        if done < self._next_read and not is_point:
            return
        norm = players.gradient_norm() if players is not None else None
        self._read(done, None if norm is None else float(norm))
        if is_point:
            self._point(done, None if norm is None else float(norm))

    def look(self, done: int, players: Any) -> None:
        """At the plan's moments: the held-out loss, of the averaged weights too, and a sample sheet. Every rank."""
        if done not in self._looks:
            return
        began = time.monotonic()
        found: dict[str, float] = {}
        if self._held:
            found = {f"validation_{k}": v for k, v in self._held.measure(players, self._device).items()}
            self.validation = found["validation_loss"]
        if self._plan.ema_decay is not None:
            with players.averaged():
                if self._held:
                    self.validation = self._held.measure(players, self._device)["loss"]
                    found["validation_loss_average"] = self.validation
                self._sheet(done)
        else:
            self._sheet(done)
        spent = time.monotonic() - began
        self._apart += spent
        self._ended += spent  # else the look after the last step would be taken off the steps before it
        if self._line is not None:
            self._write({**self._line, **{k: round(v, 6) for k, v in found.items()}})
            self._line = None

    def close(self, **more: Any) -> dict[str, Any]:
        """The summary, also written to the folder by rank 0."""
        if self._line is not None:
            self._write(self._line)
        # of the steps: without the measuring between them, and without the last checkpoint
        here = max(self._ended - self._started - self._apart, 1e-9)
        done, moment, apart = self._paced
        paced = max(self._ended - moment - (self._apart - apart), 1e-9)
        rate = (self._plan.steps - done) * self._plan.batch_size / paced
        summary = {
            "steps": self._plan.steps,
            "images": self._plan.steps * self._plan.batch_size,
            "seconds": round(self.seconds, 2),
            "images_per_second": round(rate, 1),
            "waiting_share": round(self._waited / here, 4),
            "measuring_share": round(self._apart / (here + self._apart), 4),
            **self._worth(rate),
            "peak_flops": round(self._peak),
            "peak_from": self._peak_from,
            "plan": asdict(self._plan),
            **more,
        }
        if not self._quiet:
            (self._folder / SUMMARY).write_text(json.dumps(summary))
        return summary

    def _read(self, done: int, norm: float | None) -> None:
        """Bring the scalars of the unread steps here, averaged over ranks, and check them."""
        keys = list(self._unread[0])
        home = self._unread[0]["loss"].device
        rows = torch.stack([torch.stack([step[k].double().to(home) for k in keys]) for step in self._unread])
        rows = rows.to(device := _exchange_device())  # one copy, and the only wait for the device
        now = time.monotonic()
        mine = [0.0, 0.0]
        if not self._quiet:
            pace = (now - self._read_at) / len(self._unread)
            mine = [
                float(now - self._saved >= self._plan.checkpoint_every_s),
                min(_MOST_STEPS, max(1, int(_READ_S / max(pace, 1e-9)))),
            ]
        packed = torch.cat([rows.flatten() / self._world, torch.tensor(mine, dtype=torch.float64, device=device)])
        if self._world > 1:
            dist.all_reduce(packed)
        *values, due, steps = packed.tolist()
        first, self._unread = done - len(self._unread) + 1, []
        for number, start in enumerate(range(0, len(values), len(keys))):
            self._take(first + number, dict(zip(keys, values[start : start + len(keys)], strict=True)))
        if norm is not None and not math.isfinite(norm):
            raise self._stopped("The norm of the gradient is not a finite number", done)
        self._due, self._next_read, self._read_at = bool(due), done + int(steps), now

    def _take(self, step: int, values: dict[str, float]) -> None:
        """One step's averaged scalars."""
        if wrong := self._watch.check(values["loss"]):
            raise self._stopped(wrong, step)
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1

    def _point(self, done: int, norm: float | None) -> None:
        point = {k: round(v / self._count, 6) for k, v in self._sums.items()}
        if norm is not None:
            point["gradient_norm"] = round(norm, 6)
        self._sums, self._count = {}, 0
        if self._quiet:
            return
        line: dict[str, Any] = {"images": done * self._plan.batch_size, "seconds": round(self.seconds, 2), **point}
        line["pace"] = self._pace(done)
        if done in self._looks:
            self._line = line
        else:
            self._write(line)

    def _pace(self, done: int) -> dict[str, float]:
        """Figures of the steps since the last point; time spent on measuring is left out of them."""
        step, moment, waited, apart = self._window
        now = time.monotonic()
        self._window = (done, now, self._waited, self._apart)
        spent = max(now - moment - (self._apart - apart), 1e-9)
        rate = (done - step) * self._plan.batch_size / spent
        return {
            "images_per_second": round(rate, 2),
            "seconds_per_step": round(spent / max(1, done - step), 5),
            "waiting_share": round((self._waited - waited) / spent, 4),
            "memory_gb": round(memory_of(self._device) / 1e9, 3),
            **self._worth(rate),
            **self._cost(done),
        }

    def _worth(self, rate: float) -> dict[str, float]:
        if not self._peak:
            return {}
        return {"mfu": round(rate * self._measures.flops_per_image / (self._peak * self._world), 4)}

    def _cost(self, done: int) -> dict[str, float]:
        """So far, and of the whole training at the pace so far."""
        price = self._measures.price_per_device_hour
        if price is None:
            return {}
        spent = price * self._world * self.seconds / 3600
        return {"cost": round(spent, 4), "cost_expected": round(spent * self._plan.steps / done, 4)}

    def _sheet(self, done: int) -> None:
        """Where weights are whole on rank 0, which then draws alone; under ZeRO-3 every rank draws the same."""
        count, module = self._measures.sheet_images, self._module
        if not count or module is None or not hasattr(self._task, "sheet"):
            return
        if self._quiet and self._plan.zero_stage < 3:
            return
        module.eval()
        with torch.no_grad():
            drawn = self._task.sheet(module, count)
        module.train()
        if not self._quiet:
            write_sheet(self._folder, done * self._plan.batch_size, *drawn)

    def _write(self, line: dict[str, Any]) -> None:
        with (self._folder / CURVE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _stopped(self, what: str, step: int) -> TrainingError:
        marks = checkpoint.Checkpoints(self._plan.checkpoints or str(self._folder)).marks()
        last = (
            f"the last good checkpoint is step-{marks[0].step:08d}, of {marks[0].step * self._plan.batch_size} images"
            if marks
            else "there is no checkpoint yet"
        )
        return TrainingError(
            f"{what} after {step * self._plan.batch_size} images; {last}",
            expected="a finite loss that does not grow",
            remedy="lower the section's learning rates, or train with --set train.precision=fp32",
        )


def _exchange_device() -> torch.device:
    """Where tensors must lie that ranks exchange."""
    if dist.is_initialized() and "gloo" not in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

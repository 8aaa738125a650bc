"""Where Ray Train's workers go on a machine of their own. Imported by its controller, in a process of Ray's."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy


class OneMachine(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as were asked for, and no actor that asks a cluster for machines: there is one."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""

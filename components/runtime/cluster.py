"""Ray, started with explicit resources or joined; nothing phones home."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from components.contracts.errors import RuntimeUnavailable
from components.contracts.recipe import Run

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"^Task ServeController\.",  # printed whenever Serve stops in a running Ray
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "GOMP_SPINCOUNT": "10000",  # threads that wait for work give the core back soon: others need it too
    # what stands before the image API in Serve's HTTP proxies, which read this when they start
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.proxy:middlewares",
}

ONE_MACHINE = {  # of Ray Train: nobody takes this machine away, and its workers answer at once
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


def quiet_environment() -> dict[str, str]:
    """Settings that stop every dependency from sending anything and choose the CPU for DeepSpeed without a GPU."""
    env = dict(QUIET)
    if os.path.exists("/dev/nvidiactl"):
        del env["DS_ACCELERATOR"]
    return env


def apply_quiet_environment() -> None:
    """Put :func:`quiet_environment` into this process; values that the user has set win."""
    for key, value in quiet_environment().items():
        os.environ.setdefault(key, value)


def address_of(run: Run) -> str | None:
    """Of the cluster that is joined: the recipe's, or that of the job this process is; None: a local Ray is started."""
    return run.ray_address or os.environ.get("RAY_ADDRESS")  # set inside `ray job submit`


@contextlib.contextmanager
def ray_session(run: Run) -> Iterator[None]:
    """A Ray session for the block: the one already joined, the cluster of ``run``, or a local one.

    A local Ray is bounded by ``run.cpus`` and ``run.object_store_mb``, and its temporary folder goes with it.

    Raises:
        RuntimeUnavailable: Ray cannot be started or joined.
    """
    apply_quiet_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = address_of(run)
    # Ray's sockets live below this folder and a socket path may have 107 bytes: keep it short
    folder = None if address else tempfile.mkdtemp(prefix="atl-")
    threads = str(run.threads_per_worker)
    termination = signal.getsignal(signal.SIGTERM)
    try:
        options: dict[str, Any]
        if address:
            env = {**quiet_environment(), "OMP_NUM_THREADS": threads}
            options = {"address": address, "runtime_env": {"env_vars": env}}
        else:
            # Workers of a local Ray inherit this process's environment. A runtime_env would say the same, but
            # then Ray cannot use the worker processes that it starts ahead.
            for key, value in {"OMP_NUM_THREADS": threads, **ONE_MACHINE}.items():
                os.environ.setdefault(key, value)
            options = {
                "address": "local",
                "num_cpus": run.cpus,
                "object_store_memory": run.object_store_mb * 1_000_000,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        try:
            _check_listening(address)  # Ray itself would try for minutes
            told = os.environ.get("ATELIER_DEBUG") == "1"
            ray.init(**options, log_to_driver=told, logging_level="ERROR")
            if not address and not told:
                # it reads every log ten times a second, and has nobody to tell: up to 3% of a core
                ray._private.worker._global_node.kill_log_monitor()
        except Exception as error:
            raise RuntimeUnavailable(
                f"Ray cannot be {'joined at ' + address if address else 'started'}: {str(error).splitlines()[0]}",
                expected=f"a Ray cluster at {address}"
                if address
                else f"{run.cpus} CPUs and {run.object_store_mb} MB of shared memory for a local Ray",
                remedy="check `ray status` and --set run.ray_address=…"
                if address
                else "lower run.cpus or run.object_store_mb, or free memory in /dev/shm",
            ) from error
        if termination is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, termination)  # Ray puts a handler of its own there, which aborts
        from ray.data import DataContext

        DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _check_listening(address: str | None) -> None:
    """Raise ``OSError`` where nothing listens at ``host:port`` or ``ray://host:port``; other forms are Ray's."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()

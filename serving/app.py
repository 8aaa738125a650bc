"""The Ray Serve deployment, and starting and stopping it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from components.contracts.errors import AtelierError, InputError, RuntimeUnavailable
from components.contracts.recipe import Recipe
from components.evaluation.registry import CHALLENGER, SHADOW
from components.runtime.cluster import apply_quiet_environment, ray_session
from components.runtime.progress import say
from components.runtime.stage import Context
from serving.api import build_api
from serving.assembly import BOARD, REQUEST_TIMEOUT_S, assemble
from serving.auth import list_keys, make_key
from serving.replicas import Sign, signs

APP = "atelier"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@serve.ingress()
class Replica:
    """One serving process: engine, follower, logbook and the HTTP app over them.

    Args:
        recipe: limits, model name and threads.
        home: folder with the keys file, the logbook and what replicas tell each other; on a cluster a shared one.
        registry: MLflow URI.
        require_key: whether ``/v1`` asks for an API key.
    """

    def __init__(self, recipe: Recipe, home: str, registry: str, require_key: bool) -> None:
        apply_quiet_environment()
        import torch

        torch.set_num_threads(recipe.run.threads_per_worker)
        replica = serve.get_replica_context().replica_id.unique_id
        self._parts = assemble(recipe, Path(home), registry, require_key, replica)
        self._parts.start()  # loads the champion there is, before the first request is let in

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve calls this after the constructor
        return build_api(self._parts.service)

    def check_health(self) -> None:
        """Called by Ray Serve; an error makes it start this replica anew."""
        if not self._parts.service.engine.alive:
            raise RuntimeError("the drawing thread has died")

    def flush_logbook(self) -> None:
        """Return when every row is on disk."""
        self._parts.service.logbook.flush()

    def report(self) -> dict[str, str | None]:
        """What the follower knows; see :class:`serving.follower.FollowerState`."""
        return dict(vars(self._parts.follower.state))

    def __del__(self) -> None:
        if parts := getattr(self, "_parts", None):  # the constructor may have failed
            parts.close()


def application(recipe: Recipe, home: str, registry: str, *, require_key: bool = True) -> serve.Application:
    """The Serve application of a recipe."""
    limits, run = recipe.serve, recipe.run
    scaling: dict[str, Any] = {"num_replicas": run.replicas}
    if run.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": run.replicas,
                "max_replicas": run.max_replicas,
                "target_ongoing_requests": limits.max_batch,  # what a replica draws together; more of them wait
                "upscale_delay_s": 10.0,
                "downscale_delay_s": 300.0,  # a model is not unloaded for a lull
            }
        }
    deployment = serve.deployment(
        Replica,
        name="images",
        **scaling,
        # more than the engine ever holds: it is the engine that says 429, and health is always answered
        max_ongoing_requests=limits.max_queue + 2 * limits.max_batch + 64,
        ray_actor_options={
            # In a local Ray, training reserves every core; serving shares them, or neither would start.
            "num_cpus": 0 if run.ray_address is None else 0.5,
            "num_gpus": run.gpus_per_worker,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(run.threads_per_worker)}},
        },
        health_check_period_s=5,
        health_check_timeout_s=120,  # busy cores are not a dead replica
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=REQUEST_TIMEOUT_S,  # what was begun is answered
        # new replicas before old ones go; on GPUs there may be no room for both
        max_surge_percent=0 if run.gpus_per_worker else 100,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(recipe, home, registry, require_key)


def build(args: dict[str, Any]) -> serve.Application:
    """Builder for ``serve deploy`` and KubeRay: ``import_path: serving.app:build``.

    Args:
        args: ``recipe`` (name or path), ``set`` (list of overrides), ``require_key`` (default true).
    """
    from components.runtime.recipes import load_recipe

    unknown = set(args) - {"recipe", "set", "require_key"}
    if unknown or "recipe" not in args:
        raise InputError(
            f"The arguments of serving.app:build are {sorted(args)}",
            expected="recipe, and maybe set and require_key",
        )
    ctx = Context.of(load_recipe(str(args["recipe"]), args.get("set", ())))
    return application(ctx.recipe, str(ctx.home), ctx.registry_uri, require_key=bool(args.get("require_key", True)))


class Server:
    """A running image API. ``url`` is its address; ``key`` the API key, when one was made at this start."""

    def __init__(self, url: str, key: str | None, handle: Any, ctx: Context, stack: contextlib.ExitStack) -> None:
        self.url, self.key = url, key
        self._handle, self._ctx, self._stack = handle, ctx, stack

    def status(self) -> dict[str, str | None]:
        """What one replica serves, loads or refuses, and whether the registry answers; see ``FollowerState``."""
        found: dict[str, str | None] = self._handle.report.remote().result(timeout_s=120)
        return found

    def replicas(self) -> list[Sign]:
        """The last signs of life of the replicas, a few seconds old at most."""
        return signs(self._ctx.home / BOARD)

    def flush_logbook(self) -> None:
        """Return when every request answered so far is in the logbook on disk; with one replica."""
        self._handle.flush_logbook.remote().result(timeout_s=120)

    def wait_for(self, version: int | str, timeout_s: float = 120.0) -> None:
        """Return when every replica serves ``version``.

        Raises:
            RuntimeUnavailable: not so after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.status()
            if state["served"] == str(version) and all(r.state["served"] == str(version) for r in self.replicas()):
                return
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(
                    f"Version {version} is not served after {timeout_s:.0f} s: {state}",
                    remedy="see the reason above and the log of the server",
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """Take no more requests, answer those that were begun, and stop. The Ray that was there before stays."""
        self._stack.close()


def start(ctx: Context, *, blocking: bool = False, require_key: bool = True) -> Server:
    """Serve the champion at ``run.host`` and ``run.port`` (0: any free port), and follow it from then on.

    Returns when the champion is loaded and answers; without a champion the server starts all the same and
    answers 503 until there is one. With ``blocking`` it returns only after Ctrl-C or SIGTERM.

    Raises:
        RuntimeUnavailable: the port is taken, or Ray or Serve cannot start.
        InputError: the keys file is damaged, or a server without keys was asked for on an open address.
    """
    run = ctx.recipe.run
    if not require_key and run.host not in LOOPBACK:
        raise InputError(
            f"A server at {run.host} without API keys would be open to everybody",
            expected="API keys, or a loopback address",
            remedy="leave keys on, or set run.host=127.0.0.1",
        )
    port = _free_port(run.host, run.port)
    keys = ctx.home / "keys.json"
    key = make_key(keys, "first") if require_key and not list_keys(keys) else None
    with contextlib.ExitStack() as stack, _stops_politely(blocking) as listen:
        ctx.start_ray()
        if not ray.is_initialized():
            stack.enter_context(ray_session(run))
        listen()  # again: starting, Ray takes SIGTERM for itself, and aborts on it
        handle = _deploy(ctx, port, require_key, stack)
        host = f"[{run.host}]" if ":" in run.host else run.host
        server = Server(f"http://{host}:{port}", key, handle, ctx, stack.pop_all())
        try:
            _announce(server)
            if blocking:
                _watch(server)
        except KeyboardInterrupt:
            say("serve: stopping")
            server.stop()
            if not blocking:
                raise
        except BaseException:
            server.stop()
            raise
    return server


def _deploy(ctx: Context, port: int, require_key: bool, stack: contextlib.ExitStack) -> Any:
    recipe = ctx.recipe
    app = application(recipe, str(ctx.home), ctx.registry_uri, require_key=require_key)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        running = serve.status()
        if running.applications or running.proxies:
            raise RuntimeUnavailable(
                f"Serve is already running in this Ray, with {', '.join(running.applications) or 'no application'}",
                expected="a Ray without Serve, which this server starts with its own address",
                remedy="stop the other server (`serve shutdown`), or deploy serving.app:build with `serve deploy`",
            )
        stack.callback(serve.shutdown)
        stack.callback(_drain)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": recipe.run.host, "port": port},
            logging_config=quiet,
        )
        return serve.run(app, name=APP, route_prefix="/", logging_config=quiet)
    except AtelierError:
        raise
    except Exception as error:
        raise RuntimeUnavailable(
            f"Ray Serve did not start: {str(error).splitlines()[0][:300]}",
            expected=f"a free port {port} and a Ray with room for one replica",
            remedy="look at the log of Serve in Ray's session folder, free the port, and start again",
        ) from error


def _drain(timeout_s: float = REQUEST_TIMEOUT_S) -> None:
    """Take the application away and wait until its replicas have answered what they had begun.

    The proxies stay until then, so that the answers find their way; who asks anew gets a 503 (see serving.proxy).
    """
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: at once, then
        serve.delete(APP, _blocking=False)
        deadline = time.monotonic() + timeout_s
        while APP in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)


def _free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0; checked by binding it as the server will."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeUnavailable(
                f"The server cannot listen on {host}:{port}: {error.strerror or error}",
                expected="a free port on an address of this machine",
                remedy="stop what listens there, or choose another with --set run.port=8001",
            ) from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _stops_politely(blocking: bool) -> Iterator[Callable[[], None]]:
    """SIGTERM means what Ctrl-C means, while a blocking server runs on the main thread; call what it gives."""
    if not blocking or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def listen() -> None:
        for number in signals:
            signal.signal(number, signal.default_int_handler)

    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _announce(server: Server) -> None:
    version = server.status()["served"]
    what = f"version {version}" if version else "no champion yet: answers 503 until there is one"
    say(f"serve: {server.url} ({what})")
    if server.key:
        say(f"serve: API key, shown only now: {server.key}")


def _watch(server: Server) -> None:
    """Say what changes, until interrupted."""
    before = server.status()
    while True:
        time.sleep(1.0)
        now = server.status()
        if now["served"] != before["served"]:
            say(f"serve: now version {now['served']}")
        for name in ("registry_error", "refused_why", "forced", "challenger", "challenger_why", "shadow", "shadow_why"):
            if now[name] != before[name]:
                say(f"serve: {_worded(name, now[name])}")
        before = now


def _worded(name: str, now: str | None) -> str:
    """A change in what the follower knows, for people."""
    if name in (CHALLENGER, SHADOW):
        return f"tries version {now} as {name}" if now else f"tries no {name} any more"
    return now or f"{name.partition('_')[0]}: well again"

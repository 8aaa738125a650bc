"""The stage list as a Kubeflow pipeline (KFP v2). The only module that imports kfp.

Each stage is a container that runs the same command as on a laptop. The stages share a volume and the MLflow server;
that a stage is done, and what it made, stands in the store, so Kubeflow's own cache is off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from components.contracts.errors import InputError
from components.runtime.recipes import load_recipe
from pipelines.end_to_end import STAGES
from pipelines.options import RecipeOption, SetOption, run

IMAGE = "atelier:0.1.0"
CLAIM, MOUNT = "atelier", "/mnt/atelier"  # as in infra/storage
CLUSTER = (f"run.root={MOUNT}/runs", "run.registry=http://mlflow.atelier.svc:5000")


def compile_pipeline(recipe: str, output: Path, image: str = IMAGE, overrides: tuple[str, ...] = ()) -> None:
    """Write the pipeline of :data:`STAGES` for ``recipe`` (a name or path inside the image) as YAML to ``output``."""
    from kfp import compiler, dsl

    name = load_recipe(recipe, (*CLUSTER, *overrides)).name  # a wrong recipe is found here, not in the cluster
    settings = [part for override in (*CLUSTER, *overrides) for part in ("--set", override)]

    def component(stage: str) -> Any:
        def container() -> Any:
            return dsl.ContainerSpec(
                image=image, command=["python", f"pipelines/{stage}.py"], args=["--recipe", recipe, *settings]
            )

        container.__name__, container.__annotations__ = stage, {}  # kfp reads them as the name and the outputs
        return dsl.container_component(container)

    def pipeline() -> None:
        before = None
        for stage in STAGES:
            task = component(stage)()
            task.set_caching_options(False)
            claim = {"constant": CLAIM, "pvcNameParameter": {"runtimeValue": {"constant": CLAIM}}}
            task.platform_config["kubernetes"] = {"pvcMount": [{"mountPath": MOUNT, **claim}]}
            if before is not None:
                task.after(before)
            before = task

    pipeline.__annotations__ = {}
    made = dsl.pipeline(name="atelier-" + name.replace(".", "-").replace("_", "-"))(pipeline)
    compiler.Compiler().compile(made, str(output))


def command(
    recipe: RecipeOption = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")] = Path("atelier.yaml"),
    image: Annotated[str, typer.Option(help="Container image with this project, see infra/image.")] = IMAGE,
    overrides: SetOption = None,
) -> None:
    """Compile the stages to a pipeline that `kfp pipeline create` or the Kubeflow page takes."""
    if output.suffix not in {".yaml", ".yml"} or not output.absolute().parent.is_dir():
        raise InputError(
            f"The pipeline cannot be written to {output}",
            expected="the name of a .yaml file in a folder that exists",
            remedy="choose another --output",
        )
    compile_pipeline(recipe, output, image, tuple(overrides or ()))
    typer.echo(f"{output}: {' -> '.join(STAGES)} in {image}")


if __name__ == "__main__":
    run(command)

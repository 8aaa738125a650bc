"""Who may import whom, and that each vendor is imported in exactly one module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("components", "pipelines", "serving", "monitoring")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
VENDORS = ("mlflow", "deepspeed", "evidently", "great_expectations", "img2dataset", "kfp")


def imported(path: Path) -> set[str]:
    """Top-level names of every import in the file, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_has_one_door(vendor: str) -> None:
    doors = [str(path.relative_to(ROOT)) for path in SOURCES if vendor in imported(path)]
    assert len(doors) == 1, f"{vendor} is imported in {doors}"


def test_import_rules() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_contracts_need_little() -> None:
    allowed = {"pydantic", "pyarrow", "components", *sys.stdlib_module_names}
    for path in (ROOT / "components" / "contracts").glob("*.py"):
        assert imported(path) <= allowed, path


def test_no_pipeline_module_bears_a_librarys_name() -> None:
    names = {path.stem for path in (ROOT / "pipelines").glob("*.py")}
    assert not names & {"evaluate", "datasets", "ray", "serve", "mlflow", "kfp", "typing", "types"}


def test_importing_does_nothing_slow() -> None:
    """The command line must answer ``--help`` at once: no heavy vendor at import."""
    code = "import sys, pipelines.cli; print(sorted({'torch','ray','mlflow','evidently'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

"""The gate before a dataset is finished: Great Expectations over its metadata. The only module that imports it.

The report that people read (GX's Data Docs, HTML) carries times and run names, so it lies beside the store
and not in the artifact; the artifact has ``validation.json``, whose bytes depend on the data alone.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.contracts.errors import DataError
from components.contracts.recipe import Prepare
from components.runtime.cluster import apply_quiet_environment


@dataclass(frozen=True)
class Verdict:
    """What was expected and found; ``failed`` are sentences for people."""

    results: list[dict[str, Any]]
    failed: list[str]
    docs: Path  # index.html of the Data Docs


def load() -> None:
    """Import Great Expectations now; it takes seconds, which a caller may spend beside other work."""
    apply_quiet_environment()
    with _quiet():
        import great_expectations.expectations  # noqa: F401


def validate(rows: pd.DataFrame, summary: dict[str, float], prepare: Prepare, docs: Path) -> Verdict:
    """Hold the dataset's metadata against what the recipe expects, and write the Data Docs.

    Args:
        rows: one line a row of the dataset: id, caption, tokens (their number), pixel_bytes, split, cluster,
            cluster_splits (number of splits that the row's cluster is in).
        summary: rows, train, holdout, dropped_share.
        prepare: the recipe's section.
        docs: folder of the Data Docs; its content is replaced.
    """
    apply_quiet_environment()
    with _quiet():
        import great_expectations as gx
        import great_expectations.expectations as gxe

        shutil.rmtree(docs, ignore_errors=True)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())},
        }
        for name in list(context.variables.data_docs_sites or {}):
            context.delete_data_docs_site(name)
        context.add_data_docs_site("dataset", site)
        pixel_bytes = prepare.image_size * prepare.image_size * 3
        suites = {
            "rows": [
                gxe.ExpectColumnValuesToNotBeNull(column="id"),
                gxe.ExpectColumnValuesToBeUnique(column="id"),
                gxe.ExpectColumnValuesToNotBeNull(column="caption"),
                gxe.ExpectColumnValueLengthsToBeBetween(
                    column="caption", min_value=1, max_value=prepare.max_caption_chars
                ),
                gxe.ExpectColumnValuesToBeBetween(column="pixel_bytes", min_value=pixel_bytes, max_value=pixel_bytes),
                gxe.ExpectColumnValuesToBeBetween(column="tokens", min_value=2, max_value=prepare.max_tokens),
                gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "holdout"]),
                gxe.ExpectColumnValuesToBeBetween(column="cluster_splits", min_value=1, max_value=1),
            ],
            "summary": [
                gxe.ExpectColumnValuesToBeBetween(column="train", min_value=prepare.min_rows),
                *([gxe.ExpectColumnValuesToBeBetween(column="holdout", min_value=1)] if prepare.holdout > 0 else []),
                gxe.ExpectColumnValuesToBeBetween(column="dropped_share", max_value=prepare.max_dropped),
            ],
        }
        frames = {"rows": rows, "summary": pd.DataFrame([summary])}
        source = context.data_sources.add_pandas("dataset")
        definitions = []
        for name, expectations in suites.items():
            asset = source.add_dataframe_asset(name)
            batch = asset.add_batch_definition_whole_dataframe("whole")
            suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
            definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
            definitions.append((name, context.validation_definitions.add(definition)))
        results, failed = [], []
        for name, definition in definitions:
            checkpoint = gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["dataset"])],
                result_format="BASIC",
            )
            run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frames[name]})
            for validation in run.run_results.values():
                for result in validation["results"]:
                    entry = _entry(name, result)
                    results.append(entry)
                    if not entry["success"]:
                        failed.append(_sentence(entry))
    return Verdict(results, failed, docs / "index.html")


def require(verdict: Verdict) -> None:
    """Stop unless every expectation was met.

    Raises:
        DataError: names the expectations that failed.
    """
    if verdict.failed:
        raise DataError(
            f"The dataset does not meet {len(verdict.failed)} of {len(verdict.results)} expectations: "
            + "; ".join(verdict.failed),
            expected="all expectations of the recipe's prepare section",
            remedy=f"read {verdict.docs}, then collect more or correct the thresholds in the recipe",
        )


def _entry(table: str, result: Any) -> dict[str, Any]:
    """An expectation's result with what is deterministic in it."""
    config, found = result["expectation_config"], result["result"]
    kwargs = {k: v for k, v in config["kwargs"].items() if k != "batch_id"}
    return {
        "table": table,
        "expectation": config["type"],
        "column": kwargs.pop("column"),
        "limits": {k: v for k, v in sorted(kwargs.items()) if v is not None},
        "success": bool(result["success"]),
        "checked": int(found.get("element_count") or 0),
        "unexpected": int(found.get("unexpected_count") or 0),
        "examples": [_plain(v) for v in (found.get("partial_unexpected_list") or [])[:3]],
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _sentence(entry: dict[str, Any]) -> str:
    limits = ", ".join(f"{k} {v}" for k, v in entry["limits"].items())
    what = entry["expectation"].removeprefix("expect_column_").replace("_", " ")
    column = f"{entry['column']} {what}" + (f" ({limits})" if limits else "")
    if entry["table"] == "summary":
        return f"{column}: found {entry['examples'][0] if entry['examples'] else 'nothing'}"
    examples = ", ".join(repr(e) for e in entry["examples"])
    return f"{column}: {entry['unexpected']} of {entry['checked']} rows do not{', e.g. ' if examples else ''}{examples}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """GX speaks of its progress and of other libraries' deprecations; neither is for our users."""
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

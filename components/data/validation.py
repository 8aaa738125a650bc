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
from pathlib import Path
from typing import Any

from components.contracts.errors import DataError
from components.data.expectations import Expectation, Suite
from components.runtime.cluster import apply_quiet_environment


class Gate:
    """Suites held one after the other, with one site of Data Docs about all of them.

    Args:
        docs: folder of the Data Docs; its content is replaced.

    Attributes:
        results: what was expected and found, in order, without times. failed: sentences for people about
            expectations that stop the run. docs: ``index.html`` of the Data Docs.
    """

    def __init__(self, docs: Path) -> None:
        apply_quiet_environment()
        self.results: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.docs = docs / "index.html"
        with _quiet():
            import great_expectations as gx

            shutil.rmtree(docs, ignore_errors=True)
            self._context = gx.get_context(mode="ephemeral")
            self._context.variables.progress_bars = {"globally": False}
            for name in list(self._context.variables.data_docs_sites or {}):
                self._context.delete_data_docs_site(name)
            self._context.add_data_docs_site(
                "dataset",
                {
                    "class_name": "SiteBuilder",
                    "show_how_to_buttons": False,
                    "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                    "store_backend": {
                        "class_name": "TupleFilesystemStoreBackend",
                        "base_directory": str(docs.absolute()),
                    },
                },
            )
            self._source = self._context.data_sources.add_pandas("dataset")

    def hold(self, suite: Suite) -> dict[int, str]:
        """Hold a table against its suite, and note what is not met.

        Returns:
            Rows of the table to be set aside, each with the expectation that it fails; empty unless the suite asks
            for quarantine. An expectation that has such rows does not stop the run.
        """
        aside: dict[int, str] = {}
        with _quiet():
            import great_expectations as gx

            batch = self._source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("whole")
            asked = [_implementation(e) for e in suite.expectations]
            kept = self._context.suites.add(gx.ExpectationSuite(name=suite.name, expectations=asked))
            definition = self._context.validation_definitions.add(
                gx.ValidationDefinition(name=suite.name, data=batch, suite=kept)
            )
            validation = definition.run(batch_parameters={"dataframe": suite.table}, result_format="BASIC")
            answers = {_key(r["expectation_config"]): r for r in validation["results"]}
            for expectation, implementation in zip(suite.expectations, asked, strict=True):
                result = answers[_key(implementation.configuration)]
                entry = _entry(suite.name, expectation, result)
                self.results.append(entry)
                if entry["success"]:
                    continue
                if suite.quarantine and entry["unexpected"]:
                    rows = self._failing_rows(batch, suite, expectation)
                    entry["set_aside"] = len(rows)
                    for row in rows:
                        aside.setdefault(row, _words(expectation))
                else:
                    self.failed.append(_sentence(entry))
        return aside

    def _failing_rows(self, batch: Any, suite: Suite, expectation: Expectation) -> list[int]:
        import great_expectations as gx

        name = f"{suite.name} {len(self.results)}"
        alone = self._context.suites.add(gx.ExpectationSuite(name=name, expectations=[_implementation(expectation)]))
        definition = gx.ValidationDefinition(name=name, data=batch, suite=alone)
        run = self._context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": suite.table},
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
        )
        found = run["results"][0]["result"]["unexpected_index_list"]
        return sorted(int(i) for i in found)

    def require(self) -> None:
        """Write the Data Docs, and stop unless everything that was held so far was met, but for rows set aside.

        Raises:
            DataError: names the expectations that failed.
        """
        with _quiet():
            self._context.build_data_docs(site_names=["dataset"])
        if self.failed:
            raise DataError(
                f"The data does not meet {len(self.failed)} of {len(self.results)} expectations: "
                + "; ".join(self.failed),
                expected="all expectations of the recipe's prepare section and collect.min_collected",
                remedy=f"read {self.docs}, then collect more or correct the thresholds in the recipe",
            )


def _implementation(expectation: Expectation) -> Any:
    from great_expectations.expectations.registry import get_expectation_impl

    column = expectation.column
    where = {"column": column} if isinstance(column, str) else {"column_A": column[0], "column_B": column[1]}
    return get_expectation_impl(f"expect_{expectation.type}")(**where, **expectation.limits)


def _key(configuration: Any) -> str:
    kwargs = {k: v for k, v in dict(configuration["kwargs"]).items() if k != "batch_id" and v is not None}
    return f"{configuration['type']} {sorted(kwargs.items())}"


def _entry(table: str, expectation: Expectation, result: Any) -> dict[str, Any]:
    """An expectation's result with what is deterministic in it."""
    found = result["result"]
    return {
        "table": table,
        "expectation": f"expect_{expectation.type}",
        "column": expectation.column if isinstance(expectation.column, str) else list(expectation.column),
        "limits": dict(sorted(expectation.limits.items())),
        "success": bool(result["success"]),
        "checked": int(found.get("element_count") or 0),
        "unexpected": int(found.get("unexpected_count") or 0),
        "examples": [_plain(v) for v in (found.get("partial_unexpected_list") or [])[:3]],
    }


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _words(expectation: Expectation) -> str:
    """The expectation for people: "caption_characters values to be between (max_value 300)"."""
    limits = ", ".join(f"{k} {v}" for k, v in sorted(expectation.limits.items()))
    column = expectation.column if isinstance(expectation.column, str) else " and ".join(expectation.column)
    what = expectation.type.removeprefix("column_").removeprefix("pair_").replace("_", " ")
    return f"{column} {what}" + (f" ({limits})" if limits else "")


def _sentence(entry: dict[str, Any]) -> str:
    column = entry["column"] if isinstance(entry["column"], str) else tuple(entry["column"])
    words = _words(Expectation(entry["expectation"].removeprefix("expect_"), column, entry["limits"]))
    if entry["checked"] == 1:  # a table of one line
        return f"{entry['table']}: {words}: found {entry['examples'][0] if entry['examples'] else 'nothing'}"
    examples = ", ".join(repr(e) for e in entry["examples"])
    failing = f"{entry['unexpected']} of {entry['checked']} rows do not"
    return f"{entry['table']}: {words}: {failing}{', e.g. ' if examples else ''}{examples}"


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

"""Where a recipe's URL list comes from: a file, the embedded world's website, or a parquet file served as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.errors import RecipeError
from components.contracts.recipe import Recipe, World

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Source:
    """A URL and caption list, and the loopback hosts ("host:port") that may be asked for it."""

    urls: pa.Table
    allow_hosts: tuple[str, ...]
    truth: tuple[dict[str, Any], ...] = ()  # of the embedded world: what must become of every URL

    def write_list(self, path: Path) -> None:
        """Write the list as parquet, csv or jsonl, by the suffix of ``path``."""
        from components.data.site_pages import write_rows

        write_rows(path, self.urls.to_pylist())


@contextlib.contextmanager
def opened(recipe: Recipe) -> Iterator[Source]:
    """The source of ``recipe``; a website of our own is up for as long as the block lasts.

    Raises:
        RecipeError: the recipe names no source.
        InputError: the list or file cannot be read.
        RuntimeUnavailable: the website's port is taken.
    """
    collect = recipe.collect
    if collect.world is not None:
        with world_site(collect.world, recipe.seed) as source:
            yield source
    elif collect.parquet is not None:
        with parquet_site(collect.parquet, collect.caption_column, collect.parquet_port) as source:
            yield source
    elif collect.urls is not None:
        from components.data.lists import read_list

        yield Source(read_list(collect.urls, collect.url_column, collect.caption_column), collect.allow_hosts)
    else:
        raise RecipeError(
            f"Recipe {recipe.name!r} names no source",
            expected="collect.urls, a parquet, csv, tsv or jsonl file with URLs and captions",
            remedy="set it in the recipe or with --set collect.urls=PATH",
        )


@contextlib.contextmanager
def world_site(world: World, seed: int) -> Iterator[Source]:
    """The embedded world's website, on its port, and the list of its URLs."""
    import pyarrow as pa

    from components.data.site import Site
    from components.data.site_world import NO_FAULTS, build_world_site
    from components.data.world import WorldSpec

    pages = build_world_site(
        WorldSpec(kinds=world.kinds).without(*world.leave_out),
        world.pictures,
        seed,
        prefix=world.prefix,
        size=world.image_size,
        feature=world.feature,
        fault_rates=None if world.faults else NO_FAULTS,
    )
    with Site(pages, port=world.port) as site:
        rows = pages.list_rows(site.base_url)
        yield Source(pa.Table.from_pylist(rows), (f"127.0.0.1:{site.port}",), tuple(pages.truth(site.base_url)))


@contextlib.contextmanager
def parquet_site(path: str, caption_column: str, port: int) -> Iterator[Source]:
    """A parquet file's ``bytes`` column as a website, one path a row, and the list of its URLs."""
    import pyarrow as pa

    from components.data.site import Site
    from components.data.site_parquet import ParquetSite

    pages = ParquetSite(path, caption_column=caption_column)
    with Site(pages, port=port) as site:
        yield Source(pa.Table.from_pylist(pages.list_rows(site.base_url)), (f"127.0.0.1:{site.port}",))

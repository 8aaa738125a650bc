"""Where a recipe's URL list comes from: a list, a folder of pictures, the embedded world's website, or a parquet
file served as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect, Recipe, World

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Source:
    """A URL and caption list, and what may be asked for it: loopback hosts ("host:port"), or files below a root.

    Of files, the list's schema metadata has ``content``, a digest of all their bytes: with other pictures under the
    same names it is another list.
    """

    urls: pa.Table
    allow_hosts: tuple[str, ...]
    files: str | None = None  # the root, where the URLs name files
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
    elif collect.files is not None:
        from components.data.fingerprint import content_digest

        urls = listed_files(collect)
        content = content_digest(collect.files, Path(recipe.run.root) / recipe.name / "files.parquet")
        yield Source(urls.replace_schema_metadata({"content": content}), collect.allow_hosts, collect.files)
    else:
        raise RecipeError(
            f"Recipe {recipe.name!r} names no source",
            expected="collect.urls, a list of URLs and captions, or collect.files, a folder of pictures",
            remedy="set one in the recipe or with --set collect.urls=PATH or --set collect.files=PATH",
        )


def listed_files(collect: Collect) -> pa.Table:
    """The list of ``collect.files`` in its layout.

    Raises:
        InputError: the folder cannot be read as that layout.
    """
    assert collect.files is not None, "the recipe names a folder"
    if collect.layout == "cub":
        from components.data.cub import read_cub

        return read_cub(collect.files, collect.crop)
    if collect.layout == "coco":
        from components.data.coco import read_coco

        return read_coco(collect.files)
    from components.data.folders import read_folder

    return read_folder(collect.files, collect.caption_column)


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
        yield Source(pa.Table.from_pylist(rows), (f"127.0.0.1:{site.port}",), truth=tuple(pages.truth(site.base_url)))


@contextlib.contextmanager
def parquet_site(path: str, caption_column: str, port: int) -> Iterator[Source]:
    """A parquet file's ``bytes`` column as a website, one path a row, and the list of its URLs."""
    import pyarrow as pa

    from components.data.site import Site
    from components.data.site_parquet import ParquetSite

    pages = ParquetSite(path, caption_column=caption_column)
    with Site(pages, port=port) as site:
        yield Source(pa.Table.from_pylist(pages.list_rows(site.base_url)), (f"127.0.0.1:{site.port}",))

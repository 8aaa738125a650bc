"""Sections of the recipe on data: what is collected, and which of it becomes the dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.contracts.recipe_base import Config, Fraction, PositiveInt

Language = Annotated[str, Field(pattern=r"^[a-z]{2}$")]  # ISO 639-1


class World(Config):
    """The embedded world, served by a loopback website of its own."""

    pictures: PositiveInt = 3000  # distinct originals; faults and duplicates come on top
    kinds: tuple[Literal["single", "pair", "count"], ...] = ("single",)
    image_size: PositiveInt = 48  # side of the pictures as served, in pixels
    leave_out: tuple[str, ...] = ()  # colours and shapes that this website does not show
    feature: tuple[str, ...] = ()  # when not empty: every picture shows at least one of these
    faults: bool = True  # dead links, slow answers, duplicates, opt-outs ... at the site's usual rates
    prefix: str = "a"  # first part of every path, so that a later edition of the site has other URLs
    port: int = Field(default=8765, ge=1, le=65535)  # part of every URL


class Collect(Config):
    """What to fetch and under which manners. At most one of ``urls``, ``files``, ``world`` and ``parquet`` is set."""

    urls: str | None = None  # list of URLs and captions, or a folder of such lists: path or fsspec URL
    files: str | None = None  # pictures with captions beside them, or webdataset tars: a folder, path or fsspec URL
    layout: Literal["folder", "cub", "coco"] = "folder"  # of files: captions beside; as AttnGAN's birds; COCO's JSON
    crop: bool = False  # cub: pictures are cut to the bird, by its bounding box
    world: World | None = None
    parquet: str | None = None  # parquet with ``bytes`` and a caption column, served over loopback and collected
    parquet_port: int = Field(default=8766, ge=1, le=65535)
    url_column: str = "url"
    caption_column: str = "caption"
    image_size: PositiveInt = 64  # the shorter side is resized down to this, never up; 0 is not allowed
    encode: Literal["resize", "original"] = "resize"  # "original": the bytes as they came, checked, not re-encoded
    jpeg_quality: int = Field(default=95, ge=1, le=100)  # of pictures that are kept as JPEG
    jpeg_subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4"  # 4:2:0 halves the colours' resolution: a quarter smaller
    allow_hosts: tuple[str, ...] = ()  # "host:port" pairs exempt from the private-address rule
    user_agent: str = "AtelierCollector/0.1"
    contact: str | None = None  # URL or e-mail address by which site owners reach you; part of the user agent
    respect_robots: bool = True
    respect_opt_out: bool = True  # X-Robots-Tag and tdm-reservation
    timeout_s: float = Field(default=10.0, gt=0)  # for a whole request, redirects and body included
    max_attempts: PositiveInt = 3
    max_redirects: int = Field(default=5, ge=0)
    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = 50_000_000  # checked on the header, before any decode
    per_host: PositiveInt = 16  # requests in flight to one host, over all tasks
    crawl_delay_s: float = Field(default=0.0, ge=0)  # least time between requests to one host, over all tasks
    max_crawl_delay_s: float = Field(default=30.0, ge=0)  # a host whose robots.txt asks for more is left alone
    max_retry_after_s: float = Field(default=30.0, ge=0)  # a host that asks for a longer wait is left for a later run
    min_collected: Fraction = 0.0  # expectation: at least this share of the rows became samples
    shard_size: PositiveInt = 1000  # input rows a shard

    @model_validator(mode="after")
    def _one_source(self) -> Collect:
        if sum(source is not None for source in (self.urls, self.files, self.world, self.parquet)) > 1:
            raise ValueError("more than one source: keep one of urls, files, world and parquet, set the others to null")
        if self.layout != "folder" and self.files is None:
            raise ValueError(f"layout {self.layout} is one of files: name the folder in collect.files")
        if self.crop and (self.layout != "cub" or self.encode != "resize"):
            raise ValueError("crop needs layout cub, whose bounding boxes it cuts by, and encode resize")
        return self


class Semantic(Config):
    """Semantic duplicates (SemDeDup, Abbas et al. 2023); on where ``prepare.embedding`` names a model."""

    similarity: float | None = Field(default=None, gt=0, le=1)  # cosine at which two pictures are compared closer;
    # null: 0.78 for the built-in descriptor, 0.96 for a model
    verify: bool = True  # only copies are duplicates; False: similarity alone says so, which different pictures reach
    neighbours: PositiveInt = 16  # most similar pictures that each one is compared with
    clusters: int = Field(default=0, ge=0)  # of k-means; 0: the square root of the samples, from 10 000 samples on
    probes: PositiveInt = 2  # nearest centroids that a picture is compared in
    sample: PositiveInt = 100_000  # pictures that k-means is fitted on


class Prepare(Config):
    """Which samples stay, and in which form. The first five keys decide what is measured of every sample, once;
    changing any other measures nothing anew."""

    image_size: PositiveInt = 32  # side of the square pictures of the dataset, a multiple of 8
    buckets: tuple[Annotated[float, Field(gt=0.1, lt=10)], ...] = (1.0,)  # aspect ratios, width / height
    clip: str | None = None  # CLIP folder or hub id: similarity of picture and caption
    aesthetic: str | None = None  # image model with one output, folder or hub id: its value
    embedding: str | None = None  # of the semantic tier: "atelier", or the folder or hub id of a vision model
    min_side: PositiveInt = 16  # of the collected picture, in pixels
    max_aspect: float = Field(default=3.0, ge=1.0)
    blank_std: float = Field(default=2.0, ge=0)  # standard deviation of the grey values, 0..255
    min_sharpness: float = Field(default=0.0, ge=0)  # variance of the Laplacian of the grey values
    min_entropy: float = Field(default=0.0, ge=0, le=8)  # of the grey values' histogram, in bits
    min_caption_words: int = Field(default=0, ge=0)
    max_caption_chars: PositiveInt = 300
    max_repetition: Fraction = 1.0  # share of a caption's words that repeat earlier ones
    languages: tuple[Language, ...] = ()  # captions found to be in another language are dropped
    personal_data: Literal["keep", "redact", "drop"] = "redact"  # e-mail addresses, phone numbers ... in captions
    blocked_words: tuple[str, ...] = ()  # captions with one of these words are dropped
    min_clip_similarity: float = Field(default=-1.0, ge=-1, le=1)
    min_aesthetic: float | None = None
    phash_bits: int = Field(default=3, ge=0, le=16)  # hamming distance at which pictures are compared closer
    thumb_distance: float = Field(default=6.0, ge=0)  # mean absolute difference of 16x16 RGB thumbnails, 0..255
    near_duplicates: bool = True
    semantic: Semantic = Semantic()
    alternatives: bool = False  # a picture's further captions are kept: of its source, and of dropped copies
    holdout: Fraction = 0.05  # share of duplicate clusters kept out of training
    vocabulary: PositiveInt = 512  # size of the byte-level BPE, 256 bytes and special tokens included
    max_tokens: PositiveInt = 32  # prompt length the text encoder reads, begin and end included
    min_rows: PositiveInt = 100  # expectation: at least this many training rows
    max_dropped: Fraction = 0.9  # expectation: at most this share of the collected samples dropped
    max_null_share: Fraction = 0.0  # expectation: of missing values in any score of the rows that stay
    max_score_drift: float = Field(default=0.0, ge=0)  # expectation: PSI against the dataset before; 0: not asked
    quarantine: bool = True  # rows that fail an expectation on rows are set aside; False: the run stops

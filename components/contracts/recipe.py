"""The typed recipe: every choice of a run, in one YAML file, with unknown keys refused by name.

All sections but ``run`` are *identity*: they decide what an artifact is. ``run`` is *circumstance*: paths,
workers, ports, hardware. Changing it never changes the identity of what is made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2}$")]  # ISO 639-1


class Config(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The section as plain JSON values, for an artifact's identity."""
        return self.model_dump(mode="json")


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
    world: World | None = None
    parquet: str | None = None  # parquet with ``bytes`` and a caption column, served over loopback and collected
    parquet_port: int = Field(default=8766, ge=1, le=65535)
    url_column: str = "url"
    caption_column: str = "caption"
    image_size: PositiveInt = 64  # the shorter side is resized down to this, never up; 0 is not allowed
    encode: Literal["resize", "original"] = "resize"  # "original": the bytes as they came, checked, not re-encoded
    jpeg_quality: int = Field(default=95, ge=1, le=100)  # of pictures that are kept as JPEG
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
    alternatives: bool = False  # captions of dropped copies are kept beside the survivor's
    holdout: Fraction = 0.05  # share of duplicate clusters kept out of training
    vocabulary: PositiveInt = 512  # size of the byte-level BPE, 256 bytes and special tokens included
    max_tokens: PositiveInt = 32  # prompt length the text encoder reads, begin and end included
    min_rows: PositiveInt = 100  # expectation: at least this many training rows
    max_dropped: Fraction = 0.9  # expectation: at most this share of the collected samples dropped
    max_null_share: Fraction = 0.0  # expectation: of missing values in any score of the rows that stay
    max_score_drift: float = Field(default=0.0, ge=0)  # expectation: PSI against the dataset before; 0: not asked
    quarantine: bool = True  # rows that fail an expectation on rows are set aside; False: the run stops


class TextEncoder(Config):
    """CLIP, trained on the dataset with the contrastive loss; its text tower conditions the denoiser."""

    width: PositiveInt = 128
    layers: PositiveInt = 3  # of the text tower
    image_layers: PositiveInt = 3
    heads: PositiveInt = 4
    patch: PositiveInt = 8
    images: PositiveInt = 24_000  # images seen
    batch_size: PositiveInt = 256  # global
    learning_rate: float = Field(default=1e-3, gt=0)  # of AdamW
    muon_rate: float = Field(default=0.02, ge=0)  # of Muon, for matrices; 0 trains them with AdamW
    weight_decay: float = Field(default=0.01, ge=0)


class Autoencoder(Config):
    """AutoencoderKL; the down-sampling factor is 2 ** (len(channels) - 1)."""

    channels: tuple[PositiveInt, ...] = (16, 32, 64)
    layers_per_block: PositiveInt = 1
    norm_groups: PositiveInt = 8
    attention: bool = False  # in the middle block
    latent_channels: PositiveInt = 4
    images: PositiveInt = 10_000
    batch_size: PositiveInt = 16
    learning_rate: float = Field(default=4e-3, gt=0)
    muon_rate: float = Field(default=0.03, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    kl_weight: float = Field(default=1e-4, ge=0)


class Denoiser(Config):
    """UNet2DConditionModel on latents, by flow matching with logit-normal times (Esser et al. 2024), or by
    diffusion with epsilon or v prediction on Stable Diffusion's noise schedule."""

    channels: tuple[PositiveInt, ...] = (64, 128)
    layers_per_block: PositiveInt = 1
    norm_groups: PositiveInt = 16
    heads: PositiveInt = 4
    cross_attention: tuple[bool, ...] = ()  # by level, the finest first; none: the middle block alone reads tokens
    images: PositiveInt = 36_000
    batch_size: PositiveInt = 128
    learning_rate: float = Field(default=1e-3, gt=0)
    muon_rate: float = Field(default=0.02, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    caption_dropout: Fraction = 0.1
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    objective: Literal["flow", "epsilon", "v"] = "flow"
    time_mean: float = 0.0  # flow: of the logit-normal distribution of times
    time_std: float = Field(default=1.0, gt=0)
    time_shift: float = Field(default=1.0, gt=0)  # flow: above 1 moves times towards noise, as large pictures need
    min_snr_gamma: float = Field(default=5.0, ge=0)  # epsilon, v: cap of the loss's weight; 0 weighs all times alike
    zero_terminal_snr: bool = True  # v: the last step is pure noise


class Train(Config):
    """The model: three trainings and the encode step between them."""

    text_encoder: TextEncoder = TextEncoder()
    autoencoder: Autoencoder = Autoencoder()
    denoiser: Denoiser = Denoiser()
    warmup: Fraction = 0.05  # share of the steps over which the rates rise
    cooldown: Fraction = 0.6  # share of the steps over which they fall
    encode_text: bool = (
        False  # keep the text encoder's states of all captions, instead of reading them in each training
    )
    precision: Literal["bf16", "fp32"] = "bf16"  # of autocast; master weights are always fp32
    gradient_clip: float = Field(default=1.0, gt=0)  # where AdamW trains alone; Muon's steps have a fixed norm


class Retrain(Config):
    """How much of each training a continuation from the champion repeats, as a share of its images."""

    text_encoder: Annotated[float, Field(gt=0, le=4)] = 0.4
    autoencoder: Annotated[float, Field(gt=0, le=4)] = 1.0
    denoiser: Annotated[float, Field(gt=0, le=4)] = 1.0


class Assess(Config):
    """Protocol of the judgement, stamped on every number."""

    prompts: PositiveInt = 512  # prompts drawn from the held-out prompt set
    world_prompts: bool = True  # grade pictures with the exact grader where the prompt is of the embedded world
    steps: PositiveInt = 16
    guidance_scale: float = Field(default=2.0, ge=1.0)
    batch_size: PositiveInt = 64
    r_precision_candidates: PositiveInt = 100  # 1 true caption against 99 others
    judge_images: PositiveInt = 16_000  # images seen by the judge's own CLIP
    judge_batch_size: PositiveInt = 256
    sheet: PositiveInt = 48  # pictures on the sample sheet


class Release(Config):
    """The gate: floors a first model must reach, and what a challenger must keep and gain."""

    model_name: str = "atelier"
    min_fidelity: Fraction = 0.0  # floor of prompt fidelity, where it is measured
    min_r_precision: Fraction = 0.0
    max_regression: Fraction = 0.03  # of fidelity (or R-precision) on the champion's prompts, absolute
    max_frechet_ratio: float = Field(default=1.5, gt=0)  # challenger / champion on the same judge
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class Serve(Config):
    """Limits and defaults of the image API."""

    default_steps: PositiveInt = 16
    max_steps: PositiveInt = 50
    default_guidance: float = Field(default=2.0, ge=1.0)
    max_images: PositiveInt = 8  # n of one request
    max_prompt_chars: PositiveInt = 1000
    max_batch: PositiveInt = 16
    max_queue: PositiveInt = 128  # requests waiting; one more is answered 429
    blocked_words: tuple[str, ...] = ()


class Watch(Config):
    """When the world is said to have drifted, and what follows."""

    min_requests: PositiveInt = 50
    threshold: Fraction = 0.3  # share of drifted columns at which the dataset is called drifted
    unknown_word_share: Fraction = 0.1  # share of prompts with a word no training caption has
    max_error_rate: Fraction = 0.05  # of the champion's requests; above it: roll back


class Run(Config):
    """Circumstance: never part of an identity."""

    root: str = "runs"  # artifacts go to {root}/{recipe name}
    store: str | None = None  # fsspec URL of the artifact store; default {root}/{name}/store
    registry: str | None = None  # MLflow URI; default sqlite:///{root}/{name}/mlflow.db
    ray_address: str | None = None  # None starts a local Ray; "auto" or "ray://..." joins one
    cpus: PositiveInt = 2  # of the machine, for a local Ray
    object_store_mb: PositiveInt = 512
    workers: PositiveInt = 2  # training workers
    threads_per_worker: PositiveInt = 1
    gpus_per_worker: float = Field(default=0.0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    checkpoint_every_s: float = Field(default=30.0, gt=0)
    collect_tasks: PositiveInt = 2
    collect_threads: PositiveInt = 16  # a task
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    schedule: str | None = None  # cron expression for `atelier watch --schedule`


class Recipe(Config):
    """One run of the loop."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    seed: int = Field(default=0, ge=0)
    collect: Collect = Collect()
    prepare: Prepare = Prepare()
    train: Train = Train()
    retrain: Retrain = Retrain()
    assess: Assess = Assess()
    release: Release = Release()
    serve: Serve = Serve()
    watch: Watch = Watch()
    run: Run = Run()

    @model_validator(mode="after")
    def _dimensions_agree(self) -> Recipe:
        factor = 2 ** (len(self.train.autoencoder.channels) - 1)
        down = 2 ** (len(self.train.denoiser.channels) - 1)
        if self.prepare.image_size % (factor * down):
            raise ValueError(
                f"prepare.image_size {self.prepare.image_size} must be a multiple of {factor * down}: "
                f"{factor} for the autoencoder's and {down} for the denoiser's down-sampling"
            )
        if self.prepare.image_size % self.train.text_encoder.patch:
            raise ValueError(
                f"prepare.image_size {self.prepare.image_size} must be a multiple of "
                f"train.text_encoder.patch {self.train.text_encoder.patch}"
            )
        return self

"""Rows that pass between stages: Arrow schemas and the closed vocabularies of reasons."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa


class CollectReason(StrEnum):
    """Why a URL did not become a sample. ``TRANSIENT`` (below) are worth asking for again."""

    HTTP_404 = "http_404"  # 404 and 410
    HTTP_ERROR = "http_error"  # any other status of 400 and above, after the last attempt
    TIMEOUT = "timeout"  # the whole-request deadline passed
    CONNECTION = "connection"  # name not found, refused, reset, TLS
    TRUNCATED = "truncated"  # fewer bytes than announced, or an image that ends early
    NOT_AN_IMAGE = "not_an_image"
    ROBOTS_DISALLOWED = "robots_disallowed"
    OPT_OUT = "opt_out"  # X-Robots-Tag noai / noimageai / noindex, or tdm-reservation
    REFUSED_SCHEME = "refused_scheme"  # anything but http and https
    REFUSED_ADDRESS = "refused_address"  # loopback, private, link-local ... not allowed by the recipe
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TLS = "tls"  # the certificate or the handshake was not accepted
    CRAWL_DELAY = "crawl_delay"  # the site asks for a longer pause than the recipe waits
    TAKEN_DOWN = "taken_down"  # on the store's takedown list
    MISSING_FILE = "missing_file"  # of a local or fsspec source


TRANSIENT = frozenset({CollectReason.HTTP_ERROR, CollectReason.TIMEOUT, CollectReason.CONNECTION})


class DropReason(StrEnum):
    """Why a collected sample is not in the dataset."""

    UNDECODABLE = "undecodable"
    TOO_SMALL = "too_small"
    BLANK = "blank"
    ASPECT_RATIO = "aspect_ratio"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_TOO_LONG = "caption_too_long"
    BLURRED = "blurred"
    LOW_ENTROPY = "low_entropy"
    CAPTION_TOO_SHORT = "caption_too_short"
    CAPTION_REPETITIVE = "caption_repetitive"
    CAPTION_LANGUAGE = "caption_language"
    CAPTION_PERSONAL_DATA = "caption_personal_data"
    CAPTION_BLOCKED = "caption_blocked"
    CLIP_SIMILARITY = "clip_similarity"
    AESTHETIC = "aesthetic"
    TAKEN_DOWN = "taken_down"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_NEAR = "duplicate_near"
    DUPLICATE_SEMANTIC = "duplicate_semantic"
    QUARANTINED = "quarantined"  # failed an expectation on rows


LEDGER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # position in the input list, 0-based: one ledger row for every input row
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),  # "success" | "failed"
        ("reason", pa.string()),  # CollectReason, null on success
        ("detail", pa.string()),  # one line for people, null on success
        ("http_status", pa.int32()),
        ("attempts", pa.int32()),
        ("bytes", pa.int64()),  # bytes received
        ("sha256", pa.string()),  # of the bytes received, null when failed
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("quality", pa.int32()),  # of the source: 100 where lossless, else the JPEG quality (1..100), null if unknown
        ("opt_out", pa.string()),  # the header or robots rule seen, verbatim, else null
        ("shard", pa.string()),  # e.g. "00003", null when failed
        ("key", pa.string()),  # key of the sample in its shard
    ]
)

# Beside the ledger, row by row, what another run would find otherwise; not part of the collection's digest.
FETCHES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("asked_at", pa.timestamp("ms", tz="UTC")),  # of the last attempt; also when the opt-out evidence was seen
        ("seconds", pa.float32()),  # of all attempts, pauses included
        ("address", pa.string()),  # that the last connection was pinned to, null where none was made
        ("final_url", pa.string()),  # after redirects, null where no answer came
        ("robots", pa.string()),  # "none" | "allowed" | "disallowed" | "closed" | "not asked"
        ("parser", pa.string()),  # versions of what read robots.txt and headers, e.g. "protego 0.6.0; headers 1"
    ]
)

SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # first 16 hex digits of sha256(sha256 of the source bytes + caption)
        ("url", pa.string()),
        ("caption", pa.string()),
        ("alternatives", pa.list_(pa.string())),  # captions of dropped copies, sorted, without the row's own
        ("sha256", pa.string()),  # of the source's bytes
        ("tokens", pa.list_(pa.int32())),  # with begin and end tokens, not padded
        ("pixels", pa.binary()),  # uint8 RGB, height*width*3, row major
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bucket", pa.string()),  # "{width}x{height}"
        ("cluster", pa.string()),  # id of the duplicate cluster's first member, dropped or not
        ("split", pa.string()),  # "train" | "holdout"
        ("source", pa.int32()),  # position of the collection among the dataset's inputs, oldest first
    ]
)

DROPPED_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("reason", pa.string()),  # DropReason
        ("detail", pa.string()),
    ]
)

DUPLICATES_SCHEMA = pa.schema(  # every member of a duplicate cluster of two or more
    [
        ("cluster", pa.string()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("tier", pa.string()),  # "exact" | "near" | "semantic": what tied it to the survivor; null for the survivor
        ("survives", pa.bool_()),
        ("conflict", pa.bool_()),  # its caption says something else than the survivor's
    ]
)

LOGBOOK_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("request_id", pa.string()),
        ("key_id", pa.string()),  # public id of the API key, never the key
        ("prompt", pa.string()),  # personal data replaced; null where the key opted out or it was not read
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("style", pa.string()),  # of the adapter that it was drawn with, null for the model's own
        ("model_version", pa.string()),
        ("status", pa.int32()),  # HTTP status answered
        ("error", pa.string()),  # error code, null when served
        ("seconds", pa.float32()),
        ("truncated", pa.bool_()),  # the prompt was longer than the text encoder reads
        ("image_sha256", pa.string()),
        ("image_stats", pa.list_(pa.float32())),  # mean R, G, B, and standard deviation R, G, B in 0..1
        ("user", pa.string()),  # keyed hash of the client's own name for its user, see serving/privacy.py
        # null: drawn by the champion; "canary" | "shadow": by a challenger, shown | not shown; "quality": a score alone
        ("role", pa.string()),
        ("moderation_action", pa.string()),  # "flag" | "block", null where nothing was found
        ("moderation_categories", pa.list_(pa.string())),
        ("quality", pa.float32()),  # cosine of prompt and picture by the judge's CLIP, where it was measured
        ("judge", pa.string()),  # first 12 digits of that judge's digest
    ]
)

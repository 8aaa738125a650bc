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
    OPT_OUT = "opt_out"  # X-Robots-Tag noai / noimageai / noindex
    REFUSED_SCHEME = "refused_scheme"  # anything but http and https
    REFUSED_ADDRESS = "refused_address"  # loopback, private, link-local ... not allowed by the recipe
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"


TRANSIENT = frozenset({CollectReason.HTTP_ERROR, CollectReason.TIMEOUT, CollectReason.CONNECTION})


class DropReason(StrEnum):
    """Why a collected sample is not in the dataset."""

    UNDECODABLE = "undecodable"
    TOO_SMALL = "too_small"
    BLANK = "blank"
    ASPECT_RATIO = "aspect_ratio"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_TOO_LONG = "caption_too_long"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_NEAR = "duplicate_near"


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
        ("opt_out", pa.string()),  # the header or robots rule seen, verbatim, else null
        ("shard", pa.string()),  # e.g. "00003", null when failed
        ("key", pa.string()),  # key of the sample in its shard
    ]
)

SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # first 16 hex digits of sha256(sha256 of the source bytes + caption)
        ("url", pa.string()),
        ("caption", pa.string()),
        ("tokens", pa.list_(pa.int32())),  # with begin and end tokens, not padded
        ("pixels", pa.binary()),  # uint8 RGB, height*width*3, row major
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bucket", pa.string()),  # "{width}x{height}"
        ("cluster", pa.string()),  # id of the duplicate cluster's survivor
        ("split", pa.string()),  # "train" | "holdout"
        ("source", pa.int32()),  # position of the collection among the dataset's inputs, oldest first
    ]
)

DROPPED_SCHEMA = pa.schema(
    [("url", pa.string()), ("caption", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)

LOGBOOK_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("request_id", pa.string()),
        ("key_id", pa.string()),  # public id of the API key, never the key
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("model_version", pa.string()),
        ("status", pa.int32()),  # HTTP status answered
        ("error", pa.string()),  # error code, null when served
        ("seconds", pa.float32()),
        ("truncated", pa.bool_()),  # the prompt was longer than the text encoder reads
        ("image_sha256", pa.string()),
        ("image_stats", pa.list_(pa.float32())),  # mean R, G, B, and standard deviation R, G, B in 0..1
    ]
)

"""The tokenizer: byte-level BPE trained on the captions, as the files that ``transformers`` opens.

Byte-level: any text has tokens, so a word that was never seen is still a prompt. Text is lower-cased
and its white space made regular first, so that "A red  Star" and "a red star" are one prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import DataError
from components.runtime.storage import Artifact

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_LEAST = 258  # 256 bytes, begin and end
_CHUNK = 10_000  # captions whose encodings are in memory at once


def train_tokenizer(captions: Iterable[str], vocabulary: int, max_tokens: int) -> dict[str, bytes]:
    """Train on the captions; returns the files of the tokenizer's folder by name. Equal input, equal bytes.

    Raises:
        DataError: the vocabulary has no room for the 256 bytes and the two special tokens.
    """
    if vocabulary < _LEAST:
        raise DataError(
            f"prepare.vocabulary is {vocabulary}",
            expected=f"at least {_LEAST}: 256 bytes, begin and end",
            remedy="set prepare.vocabulary higher, e.g. 512",
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # a prefix space makes a word the same token at the beginning as elsewhere
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)  # sorted: the order of workers plays no part
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} $B {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)],
    )
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}  # as CLIP pads
    config: dict[str, Any] = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
    }


def copy_tokenizer(artifact: Artifact, max_tokens: int) -> dict[str, bytes]:
    """The files of the tokenizer in a dataset or model, byte for byte.

    Raises:
        DataError: the artifact has none, or one of another length than ``max_tokens``.
    """
    main = "tokenizer.json"
    folders = sorted(n[: -len(main)] for n in artifact.manifest.files if n.endswith(f"tokenizer/{main}"))
    if not folders:
        raise DataError(
            f"{artifact.short} holds no tokenizer", expected="a file tokenizer/tokenizer.json",
            remedy="give a dataset or a model of this project",
        )  # fmt: skip
    names = [n for n in artifact.manifest.files if n.startswith(folders[0])]
    files = {n[len(folders[0]) :]: artifact.path(n).read_bytes() for n in sorted(names)}
    length = json.loads(files.get("tokenizer_config.json", b"{}")).get("model_max_length", max_tokens)
    if length != max_tokens:
        raise DataError(
            f"The tokenizer of {artifact.short} reads {length} tokens, prepare.max_tokens is {max_tokens}",
            expected="equal lengths, since the text encoder goes on from that model",
            remedy=f"set prepare.max_tokens={length}",
        )
    return files


def encode(files: dict[str, bytes], captions: Sequence[str], max_tokens: int) -> pa.ListArray:
    """Token ids of every caption, ``list<int32>``, with begin and end, cut to ``max_tokens``, not padded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    chunks = [
        pa.array((e.ids for e in tokenizer.encode_batch_fast(captions[at : at + _CHUNK])), pa.list_(pa.int32()))
        for at in range(0, len(captions), _CHUNK)
    ]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.list_(pa.int32()))


def count_cut(files: dict[str, bytes], captions: pa.Array, tokens: pa.ListArray, max_tokens: int) -> int:
    """How many captions :func:`encode` has cut: only those that fill ``max_tokens`` are looked at again."""
    full = np.flatnonzero(pc.equal(pc.list_value_length(tokens), max_tokens).to_numpy(zero_copy_only=False))
    again = encode(files, captions.take(pa.array(full)).to_pylist(), max_tokens + 1)
    return int(pc.sum(pc.greater(pc.list_value_length(again), max_tokens)).as_py() or 0)


def write_tokenizer(files: dict[str, bytes], folder: Path) -> None:
    """Write the files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

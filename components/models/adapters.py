"""LoRA adapters of a denoiser (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", sec. 4.1).

A layer's output ``W x`` becomes ``W x + alpha / rank * B A x``, with ``W`` frozen and ``B`` zero at the start, so that
training begins at the base model. Saved as diffusers does: ``pytorch_lora_weights.safetensors``, which the stock
pipeline's ``load_lora_weights`` opens. Where the pipeline of a family has no such door (PixArt), the files that
``peft.PeftModel.from_pretrained`` opens lie beside it.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from components.contracts.errors import ArtifactError, TrainingError
from components.models.quiet import quieten

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
MOST_LOADED = 4  # adapters that a model holds at once; the one used least recently goes
_METADATA = "lora_adapter_metadata"  # diffusers' key in the header of the file
_NONE = "__base__"  # peft's name for no adapter
_OWN = "default"  # name of the adapter in training, as peft and diffusers expect it
_BLOCKS = frozenset({"down_blocks", "mid_block", "up_blocks", "transformer_blocks", "blocks", "layers"})
_ATTENTION = frozenset({"attn", "attn1", "attn2"})

Targets = Literal["attention", "all"]


def add_lora(denoiser: Any, rank: int, alpha: float, targets: Targets) -> None:
    """Put a LoRA on the layers of a denoiser, in place; all else is frozen.

    Args:
        targets: ``"attention"``: the projections of every attention; ``"all"``: every linear layer and convolution of
            the blocks.

    Raises:
        TrainingError: the denoiser has no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = layers_of(denoiser, targets)
    if not names:
        raise TrainingError(
            f"The {type(denoiser).__name__} has no layer that adapter.targets={targets} names",
            expected="linear layers or convolutions in its blocks",
            remedy="set adapter.targets=all",
        )
    denoiser.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), denoiser, _OWN)


def layers_of(denoiser: Any, targets: Targets) -> list[str]:
    """Names of the layers that a LoRA goes on, sorted."""
    import torch

    names = []
    for name, module in denoiser.named_modules():
        path = name.split(".")
        fits = isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and path[0] in _BLOCKS
        if fits and (targets == "all" or _ATTENTION & set(path[:-1])):
            names.append(name)
    return sorted(names)


def save_lora(denoiser: Any, folder: Path, pipeline: str) -> None:
    """Write the LoRA of :func:`add_lora` to ``folder``, with the fp32 weights it has.

    Args:
        pipeline: name of the diffusers class that the base model is opened with, e.g. ``"StableDiffusionPipeline"``.
    """
    quieten()
    import diffusers
    from peft.utils import get_peft_model_state_dict

    layers = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(denoiser).items()}
    config = denoiser.peft_config[_OWN]
    # rank, alpha and layers say it all; peft's own dictionary holds sets, whose order is another in every process
    names = sorted({name.rpartition(".lora_")[0] for name in layers})
    described = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": names}
    part = "unet" if hasattr(denoiser, "down_blocks") else "transformer"
    stock = getattr(diffusers, pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(stock, "save_lora_weights"):
        stock.save_lora_weights(folder, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": described})
        _sort_header(folder / WEIGHTS)
        return
    from safetensors.torch import save_file

    header = {"format": "pt", _METADATA: json.dumps({f"{part}.{k}": v for k, v in described.items()}, sort_keys=True)}
    save_file({f"{part}.{k}": v for k, v in layers.items()}, folder / WEIGHTS, metadata=header)
    save_file(
        {f"base_model.model.{k}": v for k, v in layers.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    _sort_header(folder / WEIGHTS)
    described |= {"peft_type": "LORA", "task_type": None, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _sort_header(path: Path) -> None:
    """Write a safetensors file's header anew with its keys in order: the library leaves it to chance."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight bytes
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


class Adapters:
    """The adapters that a denoiser can be used with: loaded on demand, and each row of a batch may wear another one.

    A row that wears none is computed exactly as without adapters: a layer whose LoRA is not asked for gives what the
    layer it was made from gives. For one thread.

    Args:
        most: adapters kept in memory; more only while more are worn.
    """

    def __init__(self, denoiser: Any, most: int = MOST_LOADED) -> None:
        self._denoiser, self._most = denoiser, most
        self._loaded: OrderedDict[str, None] = OrderedDict()  # the one used least recently first
        self._layers: list[Any] = []  # that have adapters

    @property
    def loaded(self) -> tuple[str, ...]:
        """Keys of the adapters in memory, the one used least recently first."""
        return tuple(self._loaded)

    def load(self, key: str, folder: Path, worn: Collection[str] = ()) -> str:
        """Have the adapter in ``folder`` in memory. Returns the name by which rows wear it.

        Args:
            key: names these weights, e.g. their digest: what is loaded under it is not read again.
            folder: with ``pytorch_lora_weights.safetensors``.
            worn: names of adapters that stay, because drawings underway wear them.

        Raises:
            ArtifactError: the file cannot be read, or does not fit this denoiser.
        """
        name = key.replace(".", "_")  # a dot would part it in the names of parameters
        if name not in self._loaded:
            weights, described = read_lora(Path(folder) / WEIGHTS)
            for other in [other for other in self._loaded if other not in worn]:
                if len(self._loaded) >= self._most:
                    self._delete(other)
            self._put(name, weights, described, Path(folder) / WEIGHTS)
            self._loaded[name] = None
        self._loaded.move_to_end(name)
        return name

    @contextlib.contextmanager
    def on(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside the block each row of the denoiser's batch wears the adapter named for it, or none."""
        if not any(names):
            yield
            return
        worn = [name or _NONE for name in names]
        for name in names:
            if name is not None:
                self._loaded.move_to_end(name)

        def tell(layer: Any, args: Any, more: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**more, "adapter_names": worn}

        hooks = [layer.register_forward_pre_hook(tell, with_kwargs=True) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _put(self, name: str, weights: dict[str, Any], described: dict[str, Any], path: Path) -> None:
        import torch
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            with torch.inference_mode(False), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # the one loaded before
                inject_adapter_in_model(LoraConfig(**described), self._denoiser, name)
            outcome = set_peft_model_state_dict(self._denoiser, weights, name)
            missing = [k for k in outcome.missing_keys if k.endswith(f".{name}.weight") and ".lora_" in k]
            if missing or outcome.unexpected_keys:
                raise ValueError(f"{len(missing)} layers are missing, {len(outcome.unexpected_keys)} are not known")
        except (ValueError, RuntimeError, KeyError) as error:
            self._layers = [module for module in self._denoiser.modules() if isinstance(module, BaseTunerLayer)]
            self._rest()
            self._delete(name)
            raise ArtifactError(
                f"{path} does not fit the model: {str(error).splitlines()[0]}",
                expected="an adapter that was trained on this model",
                remedy="train the adapter again on this version",
            ) from error
        self._layers = [module for module in self._denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self._rest()

    def _delete(self, name: str) -> None:
        for layer in self._layers:
            layer.delete_adapter(name)
        getattr(self._denoiser, "peft_config", {}).pop(name, None)  # none yet where the first one did not fit
        self._loaded.pop(name, None)

    def _rest(self) -> None:
        """No adapter is in effect unless a row asks for it."""
        for layer in self._layers:
            layer.set_adapter([], inference_mode=True)
        self._denoiser.requires_grad_(False)


def read_lora(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a LoRA file by the layer's name, and rank, alpha and layers as ``peft.LoraConfig`` takes them.

    Raises:
        ArtifactError: the file is not one of :func:`save_lora`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_METADATA])
            tensors = {key.partition(".")[2]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        known = {key.partition(".")[2]: value for key, value in header.items()}
        described = {key: known[key] for key in ("r", "lora_alpha", "target_modules")}
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a LoRA: {type(error).__name__}: {str(error).splitlines()[0]}",
            expected=f"{WEIGHTS} with rank, alpha and layers in its header",
            remedy="train the adapter again",
        ) from error
    return tensors, described

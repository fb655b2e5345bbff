"""Weights of an encoder: from a local file or the Hugging Face hub, and their names fitted to our network.

Nothing is unpickled: safetensors, or PyTorch files that hold tensors only.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# what training code wraps a network in; taken off the front of a name until the name is one of ours
_PREFIXES = ("module.", "model.", "resnet.", "backbone.", "encoder.", "teacher.", "net.")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher")


class WeightsError(ValueError):
    """Weights cannot be used: unreadable, in need of unpickling, or of another network."""


class WeightsNotFound(FileNotFoundError):
    """No file with the weights, neither where it was said to be nor on the hub."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt, .pth, .ckpt or .bin file, by name, on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFound(f"no weights at {str(path)!r}: expected a .safetensors, .pt, .pth, .ckpt or .bin file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{str(path)!r} is damaged or no safetensors file ({error}); fetch it again") from error
    if path.suffix not in _TORCH_SUFFIXES:
        known = (".safetensors", *_TORCH_SUFFIXES)
        raise WeightsError(f"weights {str(path)!r} have the suffix {path.suffix!r}: expected one of {known}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{str(path)!r} holds more than tensors, and reading it would run code from the file. Convert to "
            "safetensors where you trust it (torch.load(…, weights_only=False)['state_dict'], then "
            "safetensors.torch.save_file)"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:  # all seen on garbage
        raise WeightsError(f"{str(path)!r} is damaged or no PyTorch file ({error}); fetch it again") from error
    return _tensors(found, path)


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    for name in _CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{str(path)!r} holds no table of named tensors; save the network's state_dict()")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def fetch_weights(name: str, repository: str, files: Sequence[str], *, gated: bool) -> Path:
    """Give the local path of an encoder's weights, downloaded from the Hugging Face hub once and cached by it."""
    from huggingface_hub import errors, hf_hub_download

    by_hand = (
        f"fetch {files[0]!r} from https://huggingface.co/{repository} on a machine that can, and give it with "
        f"`--weights PATH` (Python: create_encoder({name!r}, weights=PATH))"
    )
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except errors.GatedRepoError as error:
            raise WeightsNotFound(
                f"the weights of encoder {name!r} are gated: accept their licence at "
                f"https://huggingface.co/{repository}, set HF_TOKEN to a token of that account and run again; or "
                f"{by_hand}"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            terms = " (gated: accept the licence there first)" if gated else ""
            raise WeightsNotFound(
                f"encoder {name!r}: the hub is out of reach and its weights are not cached; {by_hand}{terms}"
            ) from error
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError) as error:
            raise WeightsNotFound(f"encoder {name!r}: the hub did not give its weights ({error}); {by_hand}") from error
    raise WeightsNotFound(f"encoder {name!r}: {repository} holds none of {list(files)} any more; {by_hand}")


def fit_weights(
    net: nn.Module, given: Mapping[str, Tensor], *, name: str, drop: Sequence[str] = (), keys: str | None = None
) -> None:
    """Load tensors into a network, translating their names; anything left over or missing is an error that says so."""
    ours = net.state_dict()
    state = _TRANSLATIONS[keys](dict(given)) if keys else dict(given)
    state = {_without_prefixes(key, ours): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key in ours or not key.startswith(tuple(drop))}
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in ours]
    shapes = [key for key in ours if key in state and state[key].shape != ours[key].shape]
    if missing or unexpected or shapes:
        complaint = _complaint(ours, state, missing, unexpected, shapes)
        raise WeightsError(f"these weights are not those of encoder {name!r}: {complaint}")
    net.load_state_dict({**ours, **state})


def _complaint(
    ours: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> str:
    said = []
    if missing:
        said.append(f"{len(missing)} of {len(ours)} tensors are missing (first {missing[:3]})")
    if unexpected:
        said.append(f"{len(unexpected)} are not expected (first {unexpected[:3]})")
    if shapes:
        first, given, wanted = shapes[0], list(state[shapes[0]].shape), list(ours[shapes[0]].shape)
        said.append(f"{len(shapes)} have another shape (first {first!r}: {given}, expected {wanted})")
    return "; ".join(said) + ". Give the file that belongs to this encoder, or name the encoder that the file is for"


def _without_prefixes(key: str, ours: Mapping[str, Tensor]) -> str:
    short = key
    while short not in ours:
        prefix = next((prefix for prefix in _PREFIXES if short.startswith(prefix)), None)
        if prefix is None:
            return short
        short = short.removeprefix(prefix)
    return short


def weights_digest(net: nn.Module, *facts: object) -> str:
    """Give a hash of every tensor of a network (name, dtype, shape, bytes) and of further facts."""
    digest = hashlib.blake2b(digest_size=20)
    digest.update(repr(facts).encode())
    for key, value in sorted(net.state_dict().items()):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{key} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of a DINOv2 model of the transformers library into those of timm's vision transformer."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "encoder.layer.": "blocks.",
        "attention.output.dense.": "attn.proj.",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm.": "norm.",
    }
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        short = key.removeprefix("dinov2.")
        if short == "embeddings.mask_token" or ".attention.attention." in short:
            continue  # the mask token serves training only; queries, keys and values are joined below
        for theirs, mine in names.items():
            short = short.replace(theirs, mine)
        out[short] = value
    pattern = re.compile(r"(?:dinov2\.)?encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)$")
    for key in state:
        if found := pattern.match(key):
            three = [state[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            out[f"blocks.{found[1]}.attn.qkv.{found[2]}"] = torch.cat(three)
    return out


def _from_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of a Swin transformer saved by an old timm, where a stage ends with the downsampling.

    Present versions begin a stage with it, and compute the index and mask buffers anew.
    """
    old = any(re.search(r"layers\.0\.downsample\.", key) for key in state)
    out = {}
    for key, value in state.items():
        if "relative_position_index" in key or "attn_mask" in key:
            continue
        out[re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + old}.downsample", key)] = value
    return out


_TRANSLATIONS = {"dinov2-hf": _from_dinov2, "swin": _from_swin}

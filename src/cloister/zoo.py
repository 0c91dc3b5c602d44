"""The victim models: the small image classifiers on which the published systems were measured.

They are plain `nn.Module`s with PyTorch's usual layer names, one ReLU module per use, so that capture and
quantization see clean graphs. Parameter counts at the papers' input sizes: `vgg7` 54,010 (1x28x28 and 10
classes); `alexnet` 2,495,396, `vgg11` 9,539,940, `vgg16` 15,037,092, `resnet20` 278,324 (3x32x32 and 100).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cloister.errors import TargetError

__all__ = ["NAMES", "build", "check_name"]

#: An entry of a VGG's plan: output channels of a 3x3 convolution, or "M" for a 2x2 max pool.
_Plan = Sequence[int | str]

_VGG7: _Plan = (16, 16, "M", 32, 32, "M", 32, 32, "M")
_VGG11: _Plan = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
_VGG16: _Plan = (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M")

_Size = tuple[int, int]
#: vgg7 halves an image three times; beyond the upper bound only the first activations would grow.
_MIN_SIDE, _MAX_SIDE = 8, 4096


class _Convnet(nn.Module):
    """`features`, `pool`, flatten, `classifier`: the shape that VGG and AlexNet share."""

    def __init__(self, features: nn.Sequential, pool: nn.Module, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.pool = pool
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.pool(self.features(images)), 1))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


class _ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. (2016), section 4.2, with n = 3."""

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _residual_layer(16, 16, 1)
        self.layer2 = _residual_layer(16, 32, 2)
        self.layer3 = _residual_layer(32, 64, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _residual_layer(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(n_in, n_out, stride), _Block(n_out, n_out, 1), _Block(n_out, n_out, 1))


def _max_pool(size: _Size) -> tuple[nn.Module, _Size]:
    """A 2x2 max pool, or nothing where the map cannot shrink, so that layer names never move."""
    if min(size) < 2:
        return nn.Identity(), size
    return nn.MaxPool2d(2), (size[0] // 2, size[1] // 2)


def _to_one(size: _Size) -> nn.Module:
    """What brings a map of this size to 1x1."""
    return nn.Identity() if size == (1, 1) else nn.AdaptiveAvgPool2d(1)


def _vgg_features(plan: _Plan, n_channels: int, size: _Size, *, norm: bool) -> tuple[nn.Sequential, _Size]:
    layers: list[nn.Module] = []
    for entry in plan:
        if isinstance(entry, str):
            pool, size = _max_pool(size)
            layers.append(pool)
            continue
        layers.append(nn.Conv2d(n_channels, entry, 3, padding=1))
        layers += [nn.BatchNorm2d(entry)] if norm else []
        layers.append(nn.ReLU())
        n_channels = entry
    return nn.Sequential(*layers), size


def _vgg7(n_channels: int, size: _Size, n_classes: int) -> nn.Module:
    features, (height, width) = _vgg_features(_VGG7, n_channels, size, norm=False)
    # The 28x28 original flattens a 3x3 map; so does every other size, without a pool that would blur it.
    classifier = nn.Sequential(nn.Linear(32 * height * width, 64), nn.ReLU(), nn.Linear(64, n_classes))
    return _Convnet(features, nn.Identity(), classifier)


def _deep_vgg(plan: _Plan, n_channels: int, size: _Size, n_classes: int) -> nn.Module:
    features, size = _vgg_features(plan, n_channels, size, norm=True)
    classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_classes))
    return _Convnet(features, _to_one(size), classifier)


def _vgg11(n_channels: int, size: _Size, n_classes: int) -> nn.Module:
    return _deep_vgg(_VGG11, n_channels, size, n_classes)


def _vgg16(n_channels: int, size: _Size, n_classes: int) -> nn.Module:
    return _deep_vgg(_VGG16, n_channels, size, n_classes)


def _alexnet(n_channels: int, size: _Size, n_classes: int) -> nn.Module:
    size = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)  # after 11x11, stride 4, padding 5
    layers: list[nn.Module] = [nn.Conv2d(n_channels, 64, 11, stride=4, padding=5), nn.ReLU()]
    pool, size = _max_pool(size)
    layers += [pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    pool, size = _max_pool(size)
    layers += [pool, nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    pool, size = _max_pool(size)
    layers.append(pool)
    return _Convnet(nn.Sequential(*layers), _to_one(size), nn.Sequential(nn.Linear(256, n_classes)))


def _resnet20(n_channels: int, _size: _Size, n_classes: int) -> nn.Module:
    return _ResNet20(n_channels, n_classes)


_MODELS: dict[str, Callable[[int, _Size, int], nn.Module]] = {
    "alexnet": _alexnet,
    "resnet20": _resnet20,
    "vgg7": _vgg7,
    "vgg11": _vgg11,
    "vgg16": _vgg16,
}

#: The names that `build` knows.
NAMES: tuple[str, ...] = tuple(_MODELS)


def check_name(name: str) -> None:
    """Refuse a name that `build` does not know.

    Raises:
        TargetError: an unknown name; the hint has the nearest ones.
    """
    if name in _MODELS:
        return
    near = difflib.get_close_matches(name.lower(), NAMES, cutoff=0.5)
    wanted = ", ".join(f"`{known}`" for known in NAMES)
    hint = "did you mean " + " or ".join(f"`zoo:{known}`" for known in near) if near else None
    raise TargetError(f"expected a zoo model out of {wanted}, but got `{name}`", hint)


def build(name: str, *, input_shape: tuple[int, ...], n_classes: int, seed: int = 0) -> nn.Module:
    """Build a model with He-initialised float32 weights, in evaluation mode.

    Args:
        name: one of `NAMES`.
        input_shape: (C, H, W) of one image, without the batch axis; H and W in [8, 4096].
        n_classes: number of outputs K, at least 2.
        seed: of the initial weights, in [0, 2**63); the global random state is neither read nor changed.

    Returns:
        A module that maps images (N, C, H, W) to logits (N, K).

    Raises:
        TargetError: an unknown name, or sizes that the model cannot have.

    Example:
        >>> model = build("vgg7", input_shape=(1, 28, 28), n_classes=10)
        >>> sum(p.numel() for p in model.parameters())
        54010
    """
    check_name(name)
    _check(name, input_shape, n_classes, seed)
    n_channels, height, width = input_shape
    # On `meta` no weight is drawn, so constructing leaves the global generator alone.
    with torch.device("meta"):
        model = _MODELS[name](n_channels, (height, width), n_classes)
    model.to_empty(device="cpu")
    _initialise(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _check(name: str, shape: tuple[int, ...], n_classes: int, seed: int) -> None:
    problems = []
    if len(shape) != 3:
        problems.append(f"an input shape (channels, height, width), but got {tuple(shape)}")
    elif shape[0] < 1 or not all(_MIN_SIDE <= side <= _MAX_SIDE for side in shape[1:]):
        problems.append(f"at least one channel and sides in [{_MIN_SIDE}, {_MAX_SIDE}], but got {tuple(shape)}")
    if n_classes < 2:
        problems.append(f"at least 2 classes, but got {n_classes}")
    if not 0 <= seed < 2**63:
        problems.append(f"a seed in [0, 2**63), but got {seed}")
    if problems:
        raise TargetError(f"`zoo:{name}`: expected " + "; expected ".join(problems))


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights as He et al. (2015) do, zero the biases, reset batch norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

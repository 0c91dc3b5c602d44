"""The models to measure: the zoo at 3x32x32, and two at 3x224x224 that every engine is known by.

Weights are random, so times say nothing about accuracy. Batch norms have seen random images first: otherwise values
would grow from layer to layer, and int8 would be compared where nobody uses it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloister import zoo
from cloister.errors import TargetError
from cloister.target import Target

__all__ = ["NAMES", "check_name", "images", "load"]

_SMALL, _LARGE = (3, 32, 32), (3, 224, 224)
_N_CLASSES_SMALL, _N_CLASSES_LARGE = 100, 1000
_N_WARMING = 16
#: Patches along each side of an image.
_N_PATCHES = 4


class _Bottleneck(nn.Module):
    """MobileNetV2's block: 1x1 up, 3x3 depthwise, 1x1 down, with a shortcut where the shape stays."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_mid = n_in * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(n_in, n_mid, 1), nn.ReLU6()]
        layers += [_conv(n_mid, n_mid, 3, stride, groups=n_mid), nn.ReLU6(), _conv(n_mid, n_out, 1)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(n_in, n_out, 3, stride), nn.ReLU(), _conv(n_out, n_out, 3))
        self.shortcut = nn.Identity() if stride == 1 and n_in == n_out else _conv(n_in, n_out, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        return self.relu(self.layers(x) + self.shortcut(x))  # type: ignore[no-any-return]


def _conv(n_in: int, n_out: int, side: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution with its batch norm."""
    convolution = nn.Conv2d(n_in, n_out, side, stride, padding=side // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out))


def _mobilenet_v2() -> nn.Module:
    """Sandler et al. (2018), table 2: 3,504,872 parameters."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    n_in = 32
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, n_out, repeats, stride in table:
        for at in range(repeats):
            layers.append(_Bottleneck(n_in, n_out, stride if at == 0 else 1, expansion))
            n_in = n_out
    layers += [_conv(n_in, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, _N_CLASSES_LARGE))


def _resnet18() -> nn.Module:
    """He et al. (2016), table 1: 11,689,512 parameters."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    n_in = 64
    for n_out in (64, 128, 256, 512):
        layers += [_Residual(n_in, n_out, 1 if n_out == n_in else 2), _Residual(n_out, n_out, 1)]
        n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, _N_CLASSES_LARGE))


_LARGE_MODELS: dict[str, Callable[[], nn.Module]] = {"mobilenet_v2": _mobilenet_v2, "resnet18": _resnet18}

#: The names that `load` knows.
NAMES: tuple[str, ...] = (*zoo.NAMES, *_LARGE_MODELS)


def check_name(name: str) -> None:
    """Refuse a name that `load` does not know.

    Raises:
        TargetError: it is none of `NAMES`.
    """
    if name not in NAMES:
        raise TargetError(f"expected a model out of {', '.join(f'`{known}`' for known in NAMES)}, but got `{name}`")


def load(name: str) -> Target:
    """A model with random weights, its batch norms warmed up.

    Raises:
        TargetError: an unknown name.
    """
    check_name(name)
    if name in _LARGE_MODELS:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = _LARGE_MODELS[name]()
        return _warmed(Target(model=model, name=name, input_shape=_LARGE, n_classes=_N_CLASSES_LARGE))
    model = zoo.build(name, input_shape=_SMALL, n_classes=_N_CLASSES_SMALL)
    return _warmed(Target(model=model, name=name, input_shape=_SMALL, n_classes=_N_CLASSES_SMALL))


def images(input_shape: tuple[int, ...], n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random images, (n, *input_shape) in [-1, 1]: coarse patches and a little noise.

    Noise alone looks the same to a deep network, whatever its seed: answers would not differ from image to image.
    """
    rng = np.random.default_rng(seed)
    channels, height, width = input_shape
    coarse = rng.uniform(-0.8, 0.8, (n, channels, _N_PATCHES, _N_PATCHES))
    rows, columns = (np.arange(side) * _N_PATCHES // side for side in (height, width))
    noise = rng.uniform(-0.2, 0.2, (n, *input_shape))
    return (coarse[:, :, rows][..., columns] + noise).astype(np.float32)


def _warmed(target: Target) -> Target:
    """Batch norms take mean and variance from random images."""
    model = target.model
    assert isinstance(model, nn.Module)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.momentum = None  # a plain mean over batches
        norm.train()
    with torch.no_grad():
        model(torch.from_numpy(images(target.input_shape, _N_WARMING, seed=1)))
    model.eval()
    return target

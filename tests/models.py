"""Small models, each around some operators, and the input shapes that they take."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Lambda(nn.Module):
    """A function of (modules, x) as a module."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, **{"padding": 1, **kw})


def head(x, m):
    return m.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


IMAGE = (3, 12, 10)


def _with_head(function, channels=8, **modules):
    return Lambda(lambda m, x: head(function(m, x), m), fc=nn.Linear(channels, 5), **modules), IMAGE


def _grouped():
    return _with_head(
        lambda m, x: F.relu(m.b(F.relu(m.a(x)))), a=conv(3, 8, stride=(2, 1)), b=conv(8, 8, groups=4, bias=False)
    )


def _depthwise():
    return _with_head(
        lambda m, x: m.pw(F.relu6(m.dw(m.a(x)))),
        a=conv(3, 6), dw=conv(6, 6, groups=6, stride=2), pw=nn.Conv2d(6, 8, 1),
    )  # fmt: skip


def _rectangular():
    return _with_head(
        lambda m, x: F.relu(m.b(m.a(x))),
        a=nn.Conv2d(3, 8, (1, 5), padding=(0, 2)), b=nn.Conv2d(8, 8, (3, 2), padding=(2, 1), dilation=(2, 1)),
    )  # fmt: skip


def _same_padding():
    return _with_head(
        lambda m, x: m.b(F.hardtanh(m.a(x), -0.5, 0.75)),
        a=nn.Conv2d(3, 8, 4, padding="same"), b=nn.Conv2d(8, 8, 3, padding="valid"),
    )  # fmt: skip


def _batch_norms():
    def forward(m, x):
        x = m.first(x)  # nothing before it
        x = m.relu(m.folded(m.a(x)))
        x = m.shared(m.twice(m.twice(x)))  # used twice: cannot fold
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return m.last(m.fc(x))

    return Lambda(
        forward, first=nn.BatchNorm2d(3), a=conv(3, 8, bias=False), folded=nn.BatchNorm2d(8), relu=nn.ReLU(True),
        twice=conv(8, 8), shared=nn.BatchNorm2d(8, affine=False), fc=nn.Linear(8, 5), last=nn.BatchNorm1d(5),
    ), IMAGE  # fmt: skip


def _activations():
    def forward(m, x):
        x = m.relu6(m.a(x))
        x = torch.clamp(m.b(x), min=-1.0, max=0.5)
        x = F.relu_(x.clamp(min=-0.25))
        return torch.clamp_max(m.c(x), 2.0)

    return _with_head(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), relu6=nn.ReLU6(inplace=True))


def _max_pools():
    def forward(m, x):
        x = F.max_pool2d(m.a(x), 3, 2, padding=1, ceil_mode=True)
        x = F.max_pool2d(F.relu(m.b(x)), (2, 1))
        return F.relu(F.max_pool2d(m.c(x), 2, 1, dilation=2))

    return _with_head(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8))


def _avg_pools():
    def forward(m, x):
        x = F.avg_pool2d(m.a(x), 3, 2, padding=1, ceil_mode=True)
        x = F.avg_pool2d(m.b(x), 3, 1, padding=1, count_include_pad=False)
        x = F.relu(F.avg_pool2d(m.c(x), (2, 3), divisor_override=4))
        return m.d(F.adaptive_avg_pool2d(x, (2, 2)))

    return _with_head(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 8))


def _residual():
    def forward(m, x):
        x = F.relu(m.a(x))
        y = m.b(F.relu(m.c(x)))
        y += x
        x = F.relu(y)
        return torch.add(m.d(x), x, alpha=0.5)

    return _with_head(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 8))


def _concat():
    def forward(m, x):
        x = F.relu(m.a(x))
        wide = torch.cat([m.b(x), F.max_pool2d(x, 3, 1, 1), x], dim=1)
        tall = torch.cat([m.c(wide), m.d(wide)], dim=2)
        return torch.cat([tall, F.relu(tall)], dim=-1)

    return _with_head(forward, a=conv(3, 8), b=conv(8, 4), c=conv(20, 8), d=conv(20, 8))


def _shapes():
    def forward(m, x):
        x = F.max_pool2d(F.relu(m.a(x)), 2)
        x = F.dropout(torch.flatten(x, 1), 0.5, training=False)
        x = F.relu(m.up(x)).view(x.shape[0], 4, 3, 2)
        x = m.b(x).mean((2, 3), keepdim=True)
        return m.out(x.reshape(-1, 6))

    return Lambda(
        forward, a=conv(3, 4), up=nn.Linear(4 * 6 * 5, 24), b=conv(4, 6), out=nn.Linear(6, 5)
    ), IMAGE  # fmt: skip


def _softmax():
    return Lambda(lambda m, x: F.softmax(m.fc(m.a(x).mean((-1, -2))), dim=-1), a=conv(3, 8), fc=nn.Linear(8, 5)), IMAGE


def _softmax_of_channels():
    return Lambda(lambda m, x: F.softmax(m.a(x), dim=1), a=conv(3, 8)), IMAGE


def _twice():
    def forward(m, x):
        x = F.relu(m.a(x))
        for _ in range(2):
            x = F.relu(m.b(x)) + x
        return x

    return _with_head(forward, a=conv(3, 8), b=conv(8, 8))


def _linear_only():
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5)), (7,)


def _sequence():
    return Lambda(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(6, 9), b=nn.Linear(9, 5)), (4, 6)


MODELS = {
    name.removeprefix("_"): make
    for name, make in list(globals().items())
    if name.startswith("_") and name[1:2].isalpha() and name != "_with_head"
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """The model in evaluation mode with random weights and batch-norm statistics, and its input shape."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, shape = MODELS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    nn.init.normal_(module.weight, 1.0, 0.3)
                    nn.init.normal_(module.bias)
    return model.eval(), shape


def images(shape: tuple[int, ...], n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator)

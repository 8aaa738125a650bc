"""The layers of Inception-v3 (Szegedy et al. 2016, fig. 5 to 7 and table 1), named as in the published weights.

Shapes in the comments are those of a picture of 299 x 299.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, out: int, size: int | tuple[int, int], stride: int = 1, pad: bool = False
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """Mixed 5b to 5d: 35 x 35."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1 = Conv(channels, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, pad=True)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, pad=True)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), fives, threes, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """Mixed 6a: from 35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, 2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """Mixed 6b to 6e: 17 x 17."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        wide, high = (1, 7), (7, 1)
        self.branch1x1 = Conv(channels, 192, 1)
        self.branch7x7_1 = Conv(channels, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, wide, pad=True)
        self.branch7x7_3 = Conv(inner, 192, high, pad=True)
        self.branch7x7dbl_1 = Conv(channels, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, high, pad=True)
        self.branch7x7dbl_3 = Conv(inner, inner, wide, pad=True)
        self.branch7x7dbl_4 = Conv(inner, inner, high, pad=True)
        self.branch7x7dbl_5 = Conv(inner, 192, wide, pad=True)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        sevens = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        doubled = self.branch7x7dbl_2(self.branch7x7dbl_1(x))
        doubled = self.branch7x7dbl_5(self.branch7x7dbl_4(self.branch7x7dbl_3(doubled)))
        return torch.cat([self.branch1x1(x), sevens, doubled, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """Mixed 7a: from 17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(channels, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, 2)
        self.branch7x7x3_1 = Conv(channels, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), pad=True)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), pad=True)
        self.branch7x7x3_4 = Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        threes = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([threes, self.branch7x7x3_4(sevens), functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """Mixed 7b and 7c: 8 x 8. The published graph pools by maximum in the last one."""

    def __init__(self, channels: int, by_maximum: bool) -> None:
        super().__init__()
        self.by_maximum = by_maximum
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), pad=True)
        self.branch3x3_2b = Conv(384, 384, (3, 1), pad=True)
        self.branch3x3dbl_1 = Conv(channels, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, pad=True)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), pad=True)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), pad=True)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3_1(x)
        doubled = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.by_maximum else _average(x)
        parts = [
            self.branch1x1(x), self.branch3x3_2a(threes), self.branch3x3_2b(threes), self.branch3x3dbl_3a(doubled),
            self.branch3x3dbl_3b(doubled), self.branch_pool(pooled),
        ]  # fmt: skip
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Pictures [N, 3, 299, 299] in -1..1 to features [N, 2048]; ``fc`` scores the 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)  # 149 x 149
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)  # 147 x 147
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)  # 73 x 73, after pooling
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)  # 71 x 71
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, by_maximum=False)
        self.Mixed_7c = BlockE(2048, by_maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for block in (
            self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d,
            self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c,
        ):  # fmt: skip
            x = block(x)
        return x.mean(dim=(2, 3))

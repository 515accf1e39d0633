"""The convolutions of a ResNet and of a hybrid's stem, as shapes."""

from typing import NamedTuple

from schemas.backbones import ResNetSpec
from schemas.model import CHANNELS, ResNetStemSpec

Grid = tuple[int, int]
ROOT_SIDE = 7
POOL_SIDE = 3
"""Of the maximum after the root, stride 2."""
_BOTTLENECK_SIDE = 3


class Convolution(NamedTuple):
    """One layer; its output is rounded up where the stride does not divide."""

    source: int
    """Channels in."""
    out: int
    """Channels out."""
    side: int
    """Of a kernel."""
    stride: int
    grid: Grid
    """Rows and columns that it reads."""

    @property
    def kernel(self) -> int:
        """Numbers in all its kernels."""
        return self.source * self.out * self.side**2

    @property
    def cells(self) -> int:
        """Places where it is computed."""
        return cells(shrunk(self.grid, self.stride))

    @property
    def inputs(self) -> int:
        """Numbers that go in, for one image."""
        return self.source * cells(self.grid)

    @property
    def outputs(self) -> int:
        """Numbers that come out, for one image."""
        return self.out * self.cells

    @property
    def flops(self) -> int:
        """Of one image forward, two for each multiply-add."""
        return 2 * self.kernel * self.cells


class Unit(NamedTuple):
    """A bottleneck: 1 x 1, 3 x 3 with the stride, 1 x 1; a stage's first one has a projection."""

    first: Convolution
    middle: Convolution
    last: Convolution
    project: Convolution | None

    @property
    def layers(self) -> tuple[Convolution, ...]:
        """All that there are."""
        three = self.first, self.middle, self.last
        return three if self.project is None else (*three, self.project)


def root(net: ResNetStemSpec | ResNetSpec, image_px: Grid) -> Convolution:
    """The first layer, which sees pixels."""
    return Convolution(CHANNELS, net.width, ROOT_SIDE, 2, image_px)


def units(net: ResNetStemSpec | ResNetSpec, image_px: Grid) -> list[Unit]:
    """All bottlenecks in their order; the first of every stage but the first has stride 2."""
    found: list[Unit] = []
    source, grid = net.width, shrunk(image_px, 4)
    for stage, count in enumerate(net.blocks):
        width = net.width * 2**stage
        for unit in range(count):
            stride = 1 if unit or not stage else 2
            out = shrunk(grid, stride)
            found.append(
                Unit(
                    Convolution(source, width, 1, 1, grid),
                    Convolution(width, width, _BOTTLENECK_SIDE, stride, grid),
                    Convolution(width, 4 * width, 1, 1, out),
                    None if unit else Convolution(source, 4 * width, 1, stride, grid),
                )
            )
            source, grid = 4 * width, out
    return found


def convolutions(net: ResNetStemSpec | ResNetSpec, image_px: Grid) -> list[Convolution]:
    """All of them, the root first."""
    inside = [layer for unit in units(net, image_px) for layer in unit.layers]
    return [root(net, image_px), *inside]


def shrunk(grid: Grid, stride: int) -> Grid:
    """The grid that is `stride` times smaller along each side, rounded up."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def cells(grid: Grid) -> int:
    """Rows times columns."""
    return grid[0] * grid[1]


def bordered(grid: Grid, side: int, stride: int) -> int:
    """Cells of a grid with the border that lets every `stride`-th window count ("SAME")."""
    rows, columns = (
        length + max(0, (-(-length // stride) - 1) * stride + side - length) for length in grid
    )
    return rows * columns

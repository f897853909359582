"""Two random views of every image of a batch, with separate random parameters for every image and view.

The transforms are those of SimCLR (Chen et al., ICML 2020, appendix A), as far as they suit chest X-rays: random
resized crop, horizontal flip, small rotation, contrast, brightness, gamma, Gaussian blur and Gaussian noise, without
colour.

Departures. Crop, flip and rotation are one affine map with one bilinear resampling of the whole batch. A rotation
therefore shows the surroundings of the crop instead of black corners; only pixels outside the image are black.
Intensity changes precede the geometry, as a look-up table of 256 levels per image. Noise is read from a bank of normal
numbers with a constant seed, at a random position for every image.

`draw` draws all random numbers for the global batch, from the generator of the caller. `apply` is deterministic and
computes every image independently, so that a rank which applies its rows of the parameters obtains the same pixels as a
single process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE_SEED = 20_240_917
NOISE_BANK = 1 << 22  # normal numbers; 16 MiB
CHUNK_PIXELS = 1 << 17  # pixels per thread that are processed at once on a CPU, so that they stay in the cache
DRAWS = 12  # uniform numbers per image and view
Range = tuple[float, float]


@dataclass(frozen=True)
class Parameters:
    """Parameters of the views of B images. All have shape (2, B); entry [v, b] belongs to view v of image b.

    width, height: size of the crop, as shares of the image.
    x, y: centre of the crop, from -1 to 1 across the image.
    angle: degrees, counter-clockwise. flip: bool.
    contrast, brightness, gamma: factors and exponent; 1 changes nothing.
    sigma: of the blur in pixels of the view, 0 for none.
    noise: standard deviation of the noise, as a share of the range of grey.
    noise_at: position in the bank of noise, 0 to 1.
    """

    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor
    angle: Tensor
    flip: Tensor
    contrast: Tensor
    brightness: Tensor
    gamma: Tensor
    sigma: Tensor
    noise: Tensor
    noise_at: Tensor

    def __len__(self) -> int:
        return self.width.shape[1]

    def rows(self, rows: slice | Tensor) -> Parameters:
        """Return the parameters of some images of the batch, given as a slice or a tensor of positions."""
        return Parameters(**{f.name: getattr(self, f.name)[:, rows] for f in fields(self)})

    def to(self, device: torch.device) -> Parameters:
        """Return the parameters on another device."""
        return Parameters(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class Views:
    """Draws and applies two random views of each image. A range is (lowest, highest); equal values fix it.

    image_size: side of a view in pixels.
    channels: 1, or 3 for the gray channel repeated.
    crop_area: range of the crop's share of the image area.
    crop_aspect: range of width / height of the crop.
    flip: probability of a horizontal flip.
    rotation: largest angle in degrees, to either side.
    brightness, contrast: largest change of a factor, which lies between 1 - value and 1 + value.
    gamma: range of the exponent.
    blur: range of sigma in pixels of the view.
    blur_probability: probability of blurring a view.
    noise: largest standard deviation, as a share of the range of grey.
    mean, std: of the normalisation, as shares of the range of grey.

    Raises ValueError for impossible ranges.
    """

    def __init__(
        self,
        image_size: int,
        *,
        channels: int = 1,
        crop_area: Range = (0.45, 1.0),
        crop_aspect: Range = (0.9, 1.1),
        flip: float = 0.5,
        rotation: float = 10.0,
        brightness: float = 0.2,
        contrast: float = 0.2,
        gamma: Range = (0.8, 1.25),
        blur: Range = (0.1, 1.0),
        blur_probability: float = 0.5,
        noise: float = 0.03,
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"Views of {channels} channels are not possible; give 1 or 3.")
        if image_size < 1:
            raise ValueError(f"Views of {image_size} pixels are not possible; give at least 1.")
        self.image_size, self.channels = image_size, channels
        self.crop_area = _checked_range("crop_area", crop_area, 0.0, 1.0)
        self.crop_aspect = _checked_range("crop_aspect", crop_aspect, 0.0, math.inf)
        self.gamma = _checked_range("gamma", gamma, 0.0, math.inf)
        self.blur = _checked_range("blur", blur, 0.0, 0.15 * image_size)
        self.flip = _checked_value("flip", flip, 1.0)
        self.blur_probability = _checked_value("blur_probability", blur_probability, 1.0)
        self.rotation = _checked_value("rotation", rotation, 180.0)
        self.brightness = _checked_value("brightness", brightness, 1.0)
        self.contrast = _checked_value("contrast", contrast, 1.0)
        self.noise = _checked_value("noise", noise, 1.0)
        if not std > 0:
            raise ValueError(f"A standard deviation of {std} is not possible; it must be above 0.")
        self.mean, self.std = mean, std
        self._radius = min(math.ceil(3 * self.blur[1]), image_size - 1)
        self._bank: dict[torch.device, Tensor] = {}

    def draw(self, generator: torch.Generator, batch: int) -> Parameters:
        """Draw the parameters of both views of a global batch of `batch` images, on the device of the generator.

        A crop that would be wider or taller than the image is cut to its side.
        """
        u = torch.rand((DRAWS, 2, batch), generator=generator, device=generator.device)
        area = _between(u[0], self.crop_area)
        aspect = torch.exp(_between(u[1], (math.log(self.crop_aspect[0]), math.log(self.crop_aspect[1]))))
        width = torch.sqrt(area * aspect).clamp(max=1.0)
        height = torch.sqrt(area / aspect).clamp(max=1.0)
        return Parameters(
            width=width,
            height=height,
            x=(2 * u[2] - 1) * (1 - width),
            y=(2 * u[3] - 1) * (1 - height),
            angle=(2 * u[4] - 1) * self.rotation,
            flip=u[5] < self.flip,
            contrast=1 + (2 * u[6] - 1) * self.contrast,
            brightness=1 + (2 * u[7] - 1) * self.brightness,
            gamma=torch.exp(_between(u[8], (math.log(self.gamma[0]), math.log(self.gamma[1])))),
            sigma=_blur_sigma(u[9], self.blur, self.blur_probability),
            noise=u[10] * self.noise,
            noise_at=u[11],
        )

    @torch.no_grad()
    def apply(
        self, images: Tensor, parameters: Parameters, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute both views of each image, and the masks with the same geometry (nearest-neighbour sampling).

        images: (B, h, w) uint8. parameters: of these B images. masks: (B, h, w) uint16, or None.

        Returns normalised views (2, B, channels, S, S) float32, whose channels share memory, and masks (2, B, S, S)
        uint16 or None, on the device of the images. Raises ValueError for arguments that do not match.
        """
        self._check(images)
        if len(parameters) != len(images):
            raise ValueError(f"There are parameters for {len(parameters)} images, but {len(images)} images are given.")
        if masks is not None and masks.shape != images.shape:
            raise ValueError(f"Masks have shape {tuple(masks.shape)}, but their images {tuple(images.shape)}.")
        parameters = parameters.to(images.device)
        batch, side = len(images), self.image_size
        tables, taps = _tables(images, parameters), _taps(parameters.sigma, self._radius)
        by_row, by_column = self._grid(parameters)
        views = torch.empty((2, batch, side, side), device=images.device)
        carried = None if masks is None else torch.empty_like(views, dtype=torch.uint16)
        chunk = CHUNK_PIXELS * torch.get_num_threads()
        step = max(1, chunk // (side * side)) if images.device.type == "cpu" else batch
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            levels = images[rows].flatten(1).long()
            for view in range(2):
                grid = torch.view_as_real(by_row[view, rows] + by_column[view, rows])
                grey = tables[view, rows].gather(1, levels).view(images[rows].shape)
                sampled = _sample(grey, grid, "bilinear")
                _blur(sampled, parameters.sigma[view, rows], taps[view, rows])
                if self.noise > 0:
                    noise = self._noise(parameters.noise_at[view, rows])
                    sampled.addcmul_(noise, parameters.noise[view, rows, None, None])
                torch.mul(sampled.sub_(self.mean), 1 / self.std, out=views[view, rows])
                if masks is not None and carried is not None:
                    carried[view, rows] = _sample(masks[rows].float(), grid, "nearest").to(torch.uint16)
        return views[:, :, None].expand(-1, -1, self.channels, -1, -1), carried

    def normalise(self, images: Tensor, channels: int | None = None) -> Tensor:
        """Normalise images (B, H, W) uint8 like the views, to (B, channels, H, W) float32, without random changes."""
        self._check(images)
        grey = images.float().div_(255).sub_(self.mean).mul_(1 / self.std)
        return grey[:, None].expand(-1, self.channels if channels is None else channels, -1, -1)

    @staticmethod
    def _check(images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 3:
            raise ValueError(f"Images must be (B, H, W) uint8, not {tuple(images.shape)} {images.dtype}.")

    def _grid(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Return the sampling points of the views as complex numbers x + iy, from -1 to 1 across the image.

        A point is the sum of a term of its row (2, B, S, 1) and a term of its column (2, B, 1, S). Adding complex
        numbers is ten times as fast as adding pairs.
        """
        side = self.image_size
        at = torch.arange(side, device=parameters.x.device)
        across = (2 * at + 1 - side) / side  # (S,) pixel centres
        turn = torch.deg2rad(parameters.angle)[..., None]
        mirror = 1 - 2 * parameters.flip.float()[..., None]
        width, height = parameters.width[..., None], parameters.height[..., None]
        by_column = torch.complex(width * mirror * torch.cos(turn) * across, height * torch.sin(turn) * across)
        by_row = torch.complex(
            parameters.x[..., None] - width * mirror * torch.sin(turn) * across,
            parameters.y[..., None] + height * torch.cos(turn) * across,
        )
        return by_row[..., None], by_column[..., None, :]

    def _noise(self, at: Tensor) -> Tensor:
        """Read standard normal noise (B, S, S) from the bank at the positions `at` (B,), 0 to 1."""
        pixels = self.image_size**2
        if at.device not in self._bank:
            source = torch.Generator().manual_seed(NOISE_SEED)
            self._bank[at.device] = torch.randn(NOISE_BANK + pixels, generator=source).to(at.device)
        windows = self._bank[at.device].as_strided((NOISE_BANK, pixels), (1, 1))
        chosen = windows.index_select(0, (at * NOISE_BANK).long().clamp_(max=NOISE_BANK - 1))
        return chosen.view(-1, self.image_size, self.image_size)


def _tables(images: Tensor, parameters: Parameters) -> Tensor:
    """Return look-up tables (2, B, 256) float32 for the 256 grey levels.

    They apply contrast about the mean of the image, then brightness, then gamma, each clamped to 0..1.
    """
    level = torch.linspace(0, 1, 256, device=images.device)
    sums = images.sum(2, dtype=torch.int32).sum(1)  # rows first: adding 32-bit integers is faster
    mean = sums[:, None].float() / (255 * images[0].numel())
    contrast, brightness, gamma = (
        values[..., None] for values in (parameters.contrast, parameters.brightness, parameters.gamma)
    )
    return (contrast * (level - mean) + mean).clamp_(0, 1).mul_(brightness).clamp_(0, 1).pow_(gamma)


def _sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Sample images (B, h, w) float32 at the points of a grid (B, S, S, 2); the result (B, S, S) is 0 outside."""
    return F.grid_sample(images[:, None], grid, mode=mode, padding_mode="zeros", align_corners=False)[:, 0]


def _taps(sigma: Tensor, radius: int) -> Tensor:
    """Return half of each Gaussian kernel (..., radius + 1), its centre first; NaN where sigma is 0.

    The whole kernels sum to 1.
    """
    taps = torch.exp(-0.5 * (torch.arange(radius + 1, device=sigma.device) / sigma[..., None]) ** 2)
    return taps / (taps[..., :1] + 2 * taps[..., 1:].sum(-1, keepdim=True))


def _blur(images: Tensor, sigma: Tensor, taps: Tensor) -> None:
    """Blur images (B, S, S) in place with separable Gaussian kernels and reflected edges.

    sigma: (B,), 0 leaves an image unchanged. taps: kernels of `_taps`, (B, radius + 1).
    """
    rows, radius = torch.nonzero(sigma > 0)[:, 0], taps.shape[1] - 1
    if radius == 0 or len(rows) == 0:
        return
    side = images.shape[-1]
    some, weights = images[rows], taps[rows, :, None, None]
    pair = torch.empty_like(some)
    for dim in (1, 2):
        padding = (0, 0, radius, radius) if dim == 1 else (radius, radius, 0, 0)
        padded = F.pad(some[:, None], padding, mode="reflect")[:, 0]
        torch.mul(padded.narrow(dim, radius, side), weights[:, 0], out=some)
        for k in range(1, radius + 1):
            torch.add(padded.narrow(dim, radius - k, side), padded.narrow(dim, radius + k, side), out=pair)
            some.addcmul_(pair, weights[:, k])
    images[rows] = some


def _blur_sigma(u: Tensor, blur: Range, probability: float) -> Tensor:
    """Turn uniform numbers into sigmas: a value of the range `blur` below `probability`, and 0 (no blur) above it."""
    if probability == 0:
        return torch.zeros_like(u)
    return torch.where(u < probability, _between(u / probability, blur), 0.0)


def _between(u: Tensor, ends: Range) -> Tensor:
    """Scale uniform numbers in [0, 1) to a range."""
    return ends[0] + u * (ends[1] - ends[0])


def _checked_range(name: str, ends: Range, above: float, most: float) -> Range:
    """Return a range as floats. Raises ValueError unless above < lowest <= highest <= most."""
    if len(ends) != 2:
        raise ValueError(f"The range '{name}' needs a lowest and a highest value, not {ends!r}.")
    low, high = float(ends[0]), float(ends[1])
    if not (above < low <= high <= most):
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(
            f"The range {low:g} to {high:g} for '{name}' is not possible; its values must ascend and be above "
            f"{above:g}{limit}."
        )
    return low, high


def _checked_value(name: str, value: float, most: float) -> float:
    """Return a value as a float. Raises ValueError unless 0 <= value <= most."""
    if not 0 <= value <= most:
        raise ValueError(f"The value {value:g} for '{name}' is not possible; it must be between 0 and {most:g}.")
    return float(value)

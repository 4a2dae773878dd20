"""Speech: sounds as log-mel spectra, made coarser in time, and read by any encoder of sequences; or as they are."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import SequenceEncoder, SoundEncoder, Supervised, TokenBackbone
from models.parts.pooling import inside

FRAMES_PER_SECOND = 100
STRIDE = 4
"""Frames that a state stands for."""
WINDOW_SECONDS = 0.025
FLOOR = 1e-4
"""Of a sound's mean power, added to all of it: silence as deep as -40 dB is like any other."""
_LOWEST = 20.0
"""Hertz."""
_SCALE = 1 / 32_768


def steps(lengths: Tensor) -> Tensor:
    """How many states sounds of so many frames have."""
    return -(-lengths // STRIDE)


def mel(hertz: Tensor) -> Tensor:
    """Frequencies on the mel scale of HTK (O'Shaughnessy, 1987)."""
    return 2595 * torch.log10(1 + hertz / 700)


def hertz(mels: Tensor) -> Tensor:
    """The frequencies that `mel` puts there."""
    return 700 * (10 ** (mels / 2595) - 1)


def centres(bands: int, rate: int) -> Tensor:
    """Where the bands of a filterbank lie on the mel scale, and the one before and behind: (bands + 2,)."""
    lowest, highest = mel(torch.tensor([_LOWEST, rate / 2], dtype=torch.float64)).tolist()
    return torch.linspace(lowest, highest, bands + 2, dtype=torch.float64)


def filterbank(bands: int, rate: int, size: int) -> Tensor:
    """Triangles over the bins of a spectrum, as many as `bands` (size // 2 + 1, bands), each of area 1."""
    edges = hertz(centres(bands, rate))
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    # Low bands may be narrower than a bin: those take what lies at their centre.
    nearest = F.one_hot((bins - edges[1:-1]).abs().argmin(0), len(bins)).T
    triangles = torch.where(triangles.sum(0) > 0, triangles, nearest)
    return (triangles / triangles.sum(0)).float()


class LogMel(nn.Module):
    """The logarithm of how much power each band of frequencies has, a hundred times a second."""

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, bands: int) -> None:
        super().__init__()
        self.rate, self.hop, width = rate, rate // FRAMES_PER_SECOND, round(rate * WINDOW_SECONDS)
        self.size = 2 ** math.ceil(math.log2(width))
        self.register_buffer("window", torch.hann_window(width), persistent=False)
        self.register_buffer("filters", filterbank(bands, rate, self.size), persistent=False)

    def forward(self, sounds: Tensor, lengths: Tensor) -> Tensor:
        """Sounds (B, T, hop), cut into frames, and their frames (B,) to (B, T, bands)."""
        around = len(self.window) - self.hop
        wave = F.pad(sounds.flatten(1), (around // 2, around - around // 2))
        frames = wave.unfold(1, len(self.window), self.hop) * self.window
        found = torch.view_as_real(torch.fft.rfft(frames, self.size)).square().sum(-1)
        power = found @ self.filters
        there = inside(power, lengths)[..., None]
        mean = (power * there).sum((1, 2)) / (lengths * power.shape[2])
        return (power + (FLOOR * mean + 1e-10)[:, None, None]).log()


def waves(sounds: Tensor) -> Tensor:
    """Samples of 16 bits as numbers from -1 to 1."""
    return sounds.float() * _SCALE


def normalised(spectra: Tensor, lengths: Tensor) -> Tensor:
    """Spectra (B, T, bands), each band with mean 0 and deviation 1 over its sound; 0 behind the end."""
    there = inside(spectra, lengths)[..., None]
    count = lengths.view(-1, 1, 1)
    centred = (spectra - (spectra * there).sum(1, keepdim=True) / count) * there
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / (spread + 1e-2)


class Subsampling(nn.Module):
    """Two convolutions over time and frequency, each of stride 2."""

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.width = channels * -(-bands // STRIDE)
        # Without it what reads these numbers, most of them near 0, is slow to learn anything.
        self.norm = nn.LayerNorm(self.width)

    def forward(self, spectra: Tensor, lengths: Tensor) -> Tensor:
        """Spectra (B, T, bands), 0 behind the end, to (B, T / 4, width), 0 behind the end."""
        found, left = spectra[:, None], lengths
        for layer in (self.first, self.second):
            left = -(-left // 2)
            found = F.relu(layer(found))
            # A sound by itself has nothing behind its end; neither has one beside longer ones.
            found = found * inside(found[:, 0], left)[:, None, :, None]
        normed: Tensor = self.norm(found.transpose(1, 2).flatten(2))
        return normed * inside(normed, left)[..., None]


class Listener(TokenBackbone):
    """Gives a state for each short stretch of a sound; what it is given in the place of tokens are frames of it."""

    stride: float
    """Frames from one state to the next."""
    at_once: ClassVar[int]
    """Frames of all sounds together for which memory suffices when they are answered."""
    normed: ClassVar[bool] = False
    """Whether states are normalised already."""

    @abstractmethod
    def steps(self, frames: Tensor) -> Tensor:
        """How many states sounds of so many frames (B,) have."""


class Transcriber(Supervised):
    """Gives scores (B, S, 1 + V) of nothing, and of each character of an alphabet, by a linear layer in the end."""

    backbone: Listener

    def __init__(self, backbone: Listener, alphabet: str, criterion: nn.Module) -> None:
        scores: nn.Module = nn.Linear(backbone.width, 1 + len(alphabet))
        if not backbone.normed:
            # States of fresh recurrent networks are near 0: unscaled they take long to say anything.
            scores = nn.Sequential(nn.LayerNorm(backbone.width), scores)
        super().__init__(backbone, scores, criterion)
        self.alphabet = alphabet


class WaveEncoder(SoundEncoder):
    """Learns from the samples of sounds."""

    @property
    @abstractmethod
    def rate(self) -> int | None:
        """Samples per second, if that is known yet."""

    @abstractmethod
    def over_waves(self) -> Listener:
        """Samples (B, T, rate / 100) from -1 to 1, 0 behind a sound's end, and its frames (B,), to states."""


class SpeechBackbone(Listener):
    """Subsampled spectra, and what an encoder of sequences makes of them."""

    stride = STRIDE
    # About eleven minutes: spectra take much more memory than sounds.
    at_once = 1 << 16

    def __init__(
        self, bands: int, channels: int, most_frames: int, architecture: SequenceEncoder
    ) -> None:
        super().__init__()
        self.subsampling = Subsampling(bands, channels)
        most = -(-most_frames // STRIDE)
        self.encoder = architecture.over_vectors(self.subsampling.width, most)
        self.width = self.encoder.width

    def blocks(self) -> list[nn.Module]:
        return [self.subsampling, *self.encoder.blocks()]

    def steps(self, frames: Tensor) -> Tensor:
        return steps(frames)

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Spectra (B, T, bands) of so many frames (B,) to states (B, T / 4, width)."""
        return self.encoder.states(self.subsampling(tokens, lengths), steps(lengths))

    def forward(self, spectra: Tensor, lengths: Tensor) -> Tensor:
        """The same to one vector for each sound (B, width)."""
        pooled: Tensor = self.encoder(self.subsampling(spectra, lengths), steps(lengths))
        return pooled

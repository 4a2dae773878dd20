"""Random variation of training sounds, on whole batches and on their device."""

import torch
from pydantic import Field
from torch import Tensor

from models.parts.options import Plain
from models.parts.pooling import inside
from models.parts.speech import centres, hertz, mel


class SoundAugmentation(Plain):
    """How training sounds are varied at random, anew in every step; nothing by default."""

    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="White noise added, of up to this share of a sound's loudness (root mean square).",
    )
    speed: float = Field(
        0.0, ge=0, le=0.5, description="Spoken faster or slower by up to this share."
    )
    voice: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Frequencies moved up or down by up to this share, as by a shorter or longer vocal tract "
        "(Jaitly and Hinton, 2013).",
    )
    time_masks: int = Field(
        0, ge=0, le=20, description="Stretches of time left out of each sound (Park et al., 2019)."
    )
    time_mask: float = Field(
        0.05, ge=0, le=0.5, description="Length of the longest, as a share of the sound."
    )
    frequency_masks: int = Field(
        0, ge=0, le=20, description="Bands of frequencies left out (Park et al., 2019)."
    )
    frequency_mask: float = Field(
        0.15, ge=0, le=0.5, description="Width of the widest, as a share of all bands."
    )

    def disturb(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Sounds (B, T, hop) in noise, each in more or less of it."""
        if not self.noise:
            return waves
        there = inside(waves, lengths)[..., None]
        loudness = ((waves * there).square().sum((1, 2)) / (lengths * waves.shape[2])).sqrt()
        # Evenly in decibels, down to a thousandth: between those sounds are noise and none at all.
        share = self.noise * 10 ** (-3 * torch.rand(len(waves), device=waves.device))
        return waves + torch.randn_like(waves) * (share * loudness)[:, None, None] * there

    def move(self, spectra: Tensor, lengths: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Log-mel spectra (B, T, bands), stretched along time and frequency, and their new lengths (B,)."""
        if not self.speed and not self.voice:
            return spectra, lengths
        frames = spectra.shape[1]
        speed, voice = 1 + _draw(spectra, self.speed), 1 + _draw(spectra, self.voice)
        longest = int(frames / (1 - self.speed)) + 1
        stretched = (lengths / speed).round().long().clamp(min=1)
        along = torch.arange(longest, device=spectra.device) * speed[:, None]
        along = torch.minimum(along, (lengths - 1)[:, None])
        across = _bands(spectra.shape[2], rate, voice)
        found = _at_times(_at_bands(spectra, across), along)
        return found, stretched

    def mask(self, spectra: Tensor, lengths: Tensor) -> Tensor:
        """Normalised spectra (B, T, bands) of which parts say nothing."""
        frames, bands = spectra.shape[1:]
        whole = torch.full_like(lengths, bands)
        for _ in range(self.time_masks):
            spectra = spectra * _outside(frames, lengths, self.time_mask)[..., None]
        for _ in range(self.frequency_masks):
            spectra = spectra * _outside(bands, whole, self.frequency_mask)[:, None]
        return spectra


def _draw(like: Tensor, span: float) -> Tensor:
    """A number in [-span, span) for each sound (B,)."""
    return (torch.rand(len(like), device=like.device) * 2 - 1) * span


def _bands(count: int, rate: int, voice: Tensor) -> Tensor:
    """Which band each one comes from (B, bands) when frequencies are so many times higher (B,)."""
    places = centres(count, rate).to(voice.device, torch.float32)
    first, apart = places[1], places[1] - places[0]
    moved = mel(hertz(places[1:-1]) * voice[:, None])
    return ((moved - first) / apart).clamp(0, count - 1)


def _at_bands(spectra: Tensor, places: Tensor) -> Tensor:
    """Spectra (B, T, bands) at `places` (B, bands) between bands."""
    bands = torch.arange(spectra.shape[2], device=spectra.device)
    # Products of matrices, since no gradient and no atomic addition comes of them.
    shares = (1 - (places[:, None] - bands[:, None]).abs()).clamp(min=0)
    return spectra @ shares


def _at_times(spectra: Tensor, places: Tensor) -> Tensor:
    """Spectra (B, T, bands) at `places` (B, T') between frames."""
    before = places.long()
    after = (before + 1).clamp(max=spectra.shape[1] - 1)
    share = (places - before)[..., None]
    pick = lambda at: spectra.gather(1, at[..., None].expand(-1, -1, spectra.shape[2]))  # noqa: E731
    return torch.lerp(pick(before), pick(after), share)


def _outside(size: int, whole: Tensor, share: float) -> Tensor:
    """What is not in a stretch of up to `share` of the first `whole` (B,) of so many places: (B, size)."""
    width = torch.rand(len(whole), device=whole.device) * share * whole
    start = torch.rand(len(whole), device=whole.device) * (whole - width)
    places = torch.arange(size, device=whole.device)
    return (places < start[:, None]) | (places >= (start + width)[:, None])

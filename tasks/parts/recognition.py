"""What learns to write down speech: spectra, an encoder, and a character or nothing for each of its states."""

import torch
from torch import Tensor, nn

from models.base import Batch, Supervised, TokenBackbone
from models.parts.ctc import Grammar, Search, align, beam_search, ctc_loss, greedy
from models.parts.precision import autocast
from models.parts.speech import STRIDE, LogMel, normalised, steps, waves
from tasks.parts.sound_augmentation import SoundAugmentation

_FRAMES = 1 << 16
"""Frames, about eleven minutes, that are answered at a time: spectra take much more memory than sounds."""


class CTC(nn.Module):
    """The loss of log-probabilities (B, T, V), of so many steps each, for tokens (B, N), 0 behind the last."""

    def forward(self, logs: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        return ctc_loss(logs, lengths, tokens, (tokens != 0).sum(1)).mean()


class SpeechRecognizer(Supervised):
    """Learns characters from sounds (B, T, hop) int16, cut into frames, without being told where they are.

    Connectionist temporal classification (Graves et al., 2006).
    """

    backbone: TokenBackbone

    def __init__(
        self,
        backbone: TokenBackbone,
        spectrum: LogMel,
        characters: int,
        grammar: Grammar | None,
        augmentation: SoundAugmentation,
        most_frames: int,
    ) -> None:
        # States of fresh recurrent networks are near 0: unscaled they take long to say anything.
        head = nn.Sequential(
            nn.LayerNorm(backbone.width), nn.Linear(backbone.width, 1 + characters)
        )
        super().__init__(backbone, head, CTC())
        self.spectrum, self.grammar = spectrum, grammar
        self.augmentation, self.most_frames = augmentation, most_frames

    def forward(self, *inputs: Tensor) -> Tensor:
        """Normalised spectra (B, T, bands) and their frames (B,) to scores of characters (B, T / 4, V)."""
        scores: Tensor = self.head(self.backbone.states(*inputs))
        return scores

    def loss(self, batch: Batch) -> Tensor:
        sounds, lengths, _ = batch.inputs
        with torch.no_grad():
            spectra, frames = self._varied(sounds, lengths)
        with autocast(self.precision, sounds.device):
            scores = (self.kernels or self)(spectra, frames)
        logs = scores.float().log_softmax(-1)
        loss: Tensor = self.criterion(logs, steps(frames), batch.targets[0])
        return loss

    def _varied(self, sounds: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra of sounds as they may also have been said (B, T', bands), and their frames."""
        varied = self.augmentation if self.training else SoundAugmentation()
        noisy = varied.disturb(waves(sounds), lengths)
        spectra, frames = varied.move(self.spectrum(noisy, lengths), lengths, self.spectrum.rate)
        spectra, frames = spectra[:, : self.most_frames], frames.clamp(max=self.most_frames)
        return varied.mask(normalised(spectra, frames), frames), frames

    def predict(self, *inputs: Tensor) -> Tensor:
        """Sounds, their frames (B,), and how to answer (B, 3) to what was said (B, 4, T / 4).

        Characters, 0 behind the last; the frames where each begins and ends; and how surely it is heard.
        """
        rows = max(1, _FRAMES // inputs[0].shape[1])
        parts = zip(*(tensor.split(rows) for tensor in inputs), strict=True)
        return torch.cat([self._answer(*part) for part in parts])

    def _answer(self, sounds: Tensor, lengths: Tensor, how: Tensor) -> Tensor:
        spectra = normalised(self.spectrum(waves(sounds), lengths), lengths)
        logs, left = self(spectra, lengths).float().log_softmax(-1), steps(lengths)
        tokens = self._found(logs, left, Search(*how.float().unbind(1)))
        placed = align(logs, left, tokens)
        said = tokens != 0
        times = [(STRIDE * time).minimum(lengths[:, None]) * said for time in placed[:2]]
        return torch.stack([tokens.float(), *times, placed.score * said], 1)

    def _found(self, logs: Tensor, lengths: Tensor, search: Search) -> Tensor:
        """Tokens (B, T), each sound's as if it were alone."""
        simply = greedy(logs, lengths)
        plain = (search.beams == 1) & ((search.weight == 0) | (self.grammar is None))
        if plain.all():
            return simply
        found = beam_search(logs, lengths, search, self.grammar)
        return torch.where(plain[:, None], simply, found)

"""What learns to write down speech: how it hears, an encoder, and a character or nothing for each of its states."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from models.base import Batch
from models.parts.ctc import Grammar, Search, align, beam_search, ctc_loss, greedy
from models.parts.precision import autocast
from models.parts.speech import Listener, LogMel, Transcriber, normalised, waves
from tasks.parts.sound_augmentation import SoundAugmentation


class CTC(nn.Module):
    """The loss of log-probabilities (B, T, V), of so many steps each, for tokens (B, N), 0 behind the last."""

    def forward(self, logs: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        return ctc_loss(logs, lengths, tokens, (tokens != 0).sum(1)).mean()


class Ear(nn.Module):
    """What of a sound is shown to a network."""

    @abstractmethod
    def forward(
        self, sounds: Tensor, frames: Tensor, varied: SoundAugmentation
    ) -> tuple[Tensor, Tensor]:
        """What is heard of sounds (B, T, hop) of so many frames (B,) when they are `varied`, and its frames."""


class Spectra(Ear):
    """Normalised spectra (B, T', bands), at most so many frames of them."""

    def __init__(self, spectrum: LogMel, most_frames: int) -> None:
        super().__init__()
        self.spectrum, self.most_frames = spectrum, most_frames

    def forward(
        self, sounds: Tensor, frames: Tensor, varied: SoundAugmentation
    ) -> tuple[Tensor, Tensor]:
        found = self.spectrum(varied.disturb(sounds, frames), frames)
        spectra, frames = varied.move(found, frames, self.spectrum.rate)
        spectra, frames = spectra[:, : self.most_frames], frames.clamp(max=self.most_frames)
        return varied.mask(normalised(spectra, frames), frames), frames


class Waves(Ear):
    """The sounds as they are."""

    def forward(
        self, sounds: Tensor, frames: Tensor, varied: SoundAugmentation
    ) -> tuple[Tensor, Tensor]:
        return varied.disturb(sounds, frames), frames


class SpeechRecognizer(Transcriber):
    """Learns characters from sounds (B, T, hop) int16, cut into frames, without being told where they are.

    Connectionist temporal classification (Graves et al., 2006).
    """

    def __init__(
        self,
        backbone: Listener,
        ear: Ear,
        alphabet: str,
        grammar: Grammar | None,
        augmentation: SoundAugmentation,
    ) -> None:
        super().__init__(backbone, alphabet, CTC())
        self.ear, self.grammar, self.augmentation = ear, grammar, augmentation

    def forward(self, *inputs: Tensor) -> Tensor:
        """What was heard (B, T, ...) and its frames (B,) to scores of characters (B, S, V)."""
        scores: Tensor = self.head(self.backbone.states(*inputs))
        return scores

    def loss(self, batch: Batch) -> Tensor:
        sounds, lengths, _ = batch.inputs
        with torch.no_grad():
            varied = self.augmentation if self.training else SoundAugmentation()
            heard, frames = self.ear(waves(sounds), lengths, varied)
        with autocast(self.precision, sounds.device):
            scores = (self.kernels or self)(heard, frames)
        logs = scores.float().log_softmax(-1)
        loss: Tensor = self.criterion(logs, self.backbone.steps(frames), batch.targets[0])
        return loss

    def predict(self, *inputs: Tensor) -> Tensor:
        """Sounds, their frames (B,), and how to answer (B, 3) to what was said (B, 4, S).

        Characters, 0 behind the last; the frames where each begins and ends; and how surely it is heard.
        """
        rows = max(1, self.backbone.at_once // inputs[0].shape[1])
        parts = zip(*(tensor.split(rows) for tensor in inputs), strict=True)
        return torch.cat([self._answer(*part) for part in parts])

    def _answer(self, sounds: Tensor, lengths: Tensor, how: Tensor) -> Tensor:
        heard, frames = self.ear(waves(sounds), lengths, SoundAugmentation())
        logs, left = self(heard, frames).float().log_softmax(-1), self.backbone.steps(frames)
        tokens = self._found(logs, left, Search(*how.float().unbind(1)))
        placed = align(logs, left, tokens)
        said = tokens != 0
        apart = self.backbone.stride
        times = [(apart * time).minimum(lengths[:, None]) * said for time in placed[:2]]
        return torch.stack([tokens.float(), *times, placed.score * said], 1)

    def _found(self, logs: Tensor, lengths: Tensor, search: Search) -> Tensor:
        """Tokens (B, T), each sound's as if it were alone."""
        simply = greedy(logs, lengths)
        plain = (search.beams == 1) & ((search.weight == 0) | (self.grammar is None))
        if plain.all():
            return simply
        found = beam_search(logs, lengths, search, self.grammar)
        return torch.where(plain[:, None], simply, found)

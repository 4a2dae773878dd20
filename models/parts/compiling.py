"""Networks as kernels made for them (torch.compile), the same ones in every run of a training."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch._functorch.config as tracing
import torch.fx.experimental._config as shapes
from torch import Tensor

from models.parts.memory import ran_out


class CannotCompile(RuntimeError):
    """The network cannot be compiled on this machine; the message says why."""


class Compiled:
    """A forward pass by kernels that were made for some batches; for others, as it was written.

    How a kernel rounds depends on the sizes that it was made for and, where sizes are left open, on the first
    ones seen. So kernels are made for the same batches wherever a training goes on, and never later.
    """

    def __init__(self, forward: Callable[..., Tensor], *, ragged: bool, graphs: bool) -> None:
        """Sizes are left open when batches are `ragged`, of any length.

        `graphs`: whether a GPU gets all kernels of a pass at once, as a CUDA graph. The memory of one is used
        again by the next, so that gradients may not be accumulated.
        """
        options: dict[str, str | int | bool | Callable[..., object]] = {
            "cpp_cache_precompile_headers": False,  # they lie in a folder that all users share
            "compile_threads": 1,  # no pool of processes that outlives the training
            "deterministic": True,  # nothing is chosen by how long it takes
            "fx_graph_cache": False,  # it is kept as pickles
            "triton.cudagraphs": graphs,
        }
        with warnings.catch_warnings(action="ignore"):  # torch's, about itself
            self._forward = torch.compile(forward, dynamic=ragged, options=options)
        self._making = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        with self._as_they_are():
            return self._forward(*inputs)

    def _as_they_are(self) -> AbstractContextManager[object]:
        return nullcontext() if self._making else torch.compiler.set_stance("eager_on_recompile")

    def make(self, rehearse: Callable[[], object]) -> None:
        """Make the kernels for all passes in `rehearse`, in place of those before. Raises CannotCompile."""
        torch.compiler.reset()
        self._making = True
        try:
            with (
                warnings.catch_warnings(action="ignore"),
                tracing.patch(enable_autograd_cache=False),  # pickles, too
                # Or else a batch with as many examples as tokens would have kernels for just such ones.
                shapes.patch(use_duck_shape=False),  # type: ignore[attr-defined]
            ):
                rehearse()
        except Exception as error:
            if ran_out(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise CannotCompile(
                f"the network cannot be compiled on this machine: {reason}"
            ) from error
        finally:
            self._making = False

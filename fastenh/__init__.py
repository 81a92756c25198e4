"""fastenh takes noise out of recorded speech, fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastenh.enhance.enhancer import Enhancer

__version__ = "0.1.0"
__all__ = ["Enhancer", "__version__"]


def __getattr__(name: str) -> object:
    # Lazy: `fastenh --help` and the worker processes of the metrics must not pay for torch.
    if name == "Enhancer":
        from fastenh.enhance.enhancer import Enhancer

        return Enhancer
    raise AttributeError(f"module 'fastenh' has no attribute {name!r}")

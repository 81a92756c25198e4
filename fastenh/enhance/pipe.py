"""From pipe to pipe, as the sound comes."""

from __future__ import annotations

from fastenh.audio.pipes import PipeWriter, Raw, reading
from fastenh.enhance.enhancer import Enhancer
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.models.live import HOP

_HOP_SECONDS = HOP / SAMPLE_RATE


def run(
    source: int, target: int, enhancer: Enhancer, raw: Raw | None = None, atten_lim_db: float | None = None
) -> list[str]:
    """Enhance what comes from a file descriptor, and write it to another one, in the same form. Returns warnings.

    raw: what comes has no header, and what goes has none. Memory does not grow with the length. What goes is some
    windows behind what comes, with a live model as little as ``LiveEnhancer.delay`` says. Raises ``AudioError`` and
    ``EnhancementError``.
    """
    remarks: list[str] = []
    with reading(source, raw) as reader:
        encoding = reader.encoding
        writer = PipeWriter(target, encoding, reader.frames)
        blocks = reader.blocks(_HOP_SECONDS) if enhancer.live_model is not None else reader.blocks()
        for block in enhancer.stream(blocks, encoding.channels, encoding.sample_rate, atten_lim_db, remarks=remarks):
            writer.write(block)
        writer.close()
        return remarks + reader.warnings + writer.warnings

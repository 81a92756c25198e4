"""From pipe to pipe, as the sound comes."""

from __future__ import annotations

from fastenh.audio.pipes import PipeWriter, Raw, reading
from fastenh.enhance.enhancer import Enhancer


def run(
    source: int, target: int, enhancer: Enhancer, raw: Raw | None = None, atten_lim_db: float | None = None
) -> list[str]:
    """Enhance what comes from a file descriptor, and write it to another one, in the same form. Returns warnings.

    raw: what comes has no header, and what goes has none. Memory does not grow with the length. What goes is some
    windows behind what comes. Raises ``AudioError`` and ``EnhancementError``.
    """
    remarks: list[str] = []
    with reading(source, raw) as reader:
        encoding = reader.encoding
        writer = PipeWriter(target, encoding, reader.frames)
        for block in enhancer.stream(
            reader.blocks(), encoding.channels, encoding.sample_rate, atten_lim_db, remarks=remarks
        ):
            writer.write(block)
        writer.close()
        return remarks + reader.warnings + writer.warnings

"""Tags and notes of a recording, carried over byte for byte, whatever they say: nothing here looks into them.

libsndfile knows ten tags, by name. What a file has beside its sound is more: the whole ID3 tag of an MP3, with its
pictures; the comments of FLAC, Ogg Vorbis and Opus; the chunks of WAV and AIFF, such as ``bext`` of broadcast wave with
its time reference. mutagen writes all of these, but it is under the GPL; tinytag (MIT) reads alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

Blocks = tuple[tuple[bytes, bytes], ...]  # (what kind, content), in the order of the file

_WAV = (b"bext", b"iXML", b"axml", b"LIST", b"cue ", b"plst", b"smpl", b"inst", b"id3 ", b"ID3 ", b"_PMX", b"cart")
_AIFF = (b"NAME", b"AUTH", b"(c) ", b"ANNO", b"COMT", b"MARK", b"INST", b"APPL", b"ID3 ")
_FLAC = {2: b"APPLICATION", 4: b"VORBIS_COMMENT", 5: b"CUESHEET", 6: b"PICTURE"}
_LARGEST = 64 << 20  # bytes of a block: more is damage
_STEP = 1 << 20
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def extract(path: Path, container: str) -> Blocks:
    """Read the tags of a file of libsndfile's ``container``; nothing where there are none, or the file is damaged."""
    if container not in _KINDS:
        return ()
    try:
        with path.open("rb") as file:
            return tuple(_KINDS[container][0](file))
    except (OSError, ValueError, struct.error):
        return ()


def insert(path: Path, container: str, blocks: Blocks) -> None:
    """Put the tags into a file that has none. Raises ``OSError``."""
    with path.open("r+b") as file:
        _KINDS[container][1](file, blocks)


def _replace(file: BinaryIO, begin: int, end: int, content: bytes) -> None:
    """Put ``content`` in the place of what lies from ``begin`` to ``end``, and move what follows."""
    size, shift = file.seek(0, 2), len(content) - (end - begin)
    if shift > 0:
        for place in reversed(range(end, size, _STEP)):
            file.seek(place)
            piece = file.read(min(_STEP, size - place))
            file.seek(place + shift)
            file.write(piece)
    elif shift < 0:
        for place in range(end, size, _STEP):
            file.seek(place)
            piece = file.read(_STEP)
            file.seek(place + shift)
            file.write(piece)
        file.truncate(size + shift)
    file.seek(begin)
    file.write(content)


# --- chunks: WAV and AIFF ---------------------------------------------------------------------------------------------


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of the content, size) of each chunk of a RIFF, RF64 or IFF file."""
    end, place, long_data = file.seek(0, 2), 12, 0
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":
            long_data = struct.unpack("<QQ", file.read(16))[1]
        if name == b"data" and size == 0xFFFFFFFF:
            size = long_data
        yield name, place + 8, size
        place += 8 + size + size % 2


def _wav_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    return _read_chunks(file, "<", _WAV)


def _aiff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    return _read_chunks(file, ">", _AIFF)


def _read_chunks(file: BinaryIO, order: str, names: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    for name, place, size in _chunks(file, order):
        if name in names and size <= _LARGEST:
            file.seek(place)
            content = file.read(size)
            if len(content) == size:
                yield name, content


def _append_wav(file: BinaryIO, blocks: Blocks) -> None:
    _append_chunks(file, blocks, "<")


def _append_aiff(file: BinaryIO, blocks: Blocks) -> None:
    _append_chunks(file, blocks, ">")


def _append_chunks(file: BinaryIO, blocks: Blocks, order: str) -> None:
    file.seek(0)
    form = file.read(4)
    end = file.seek(0, 2)
    file.write(b"\0" * (end % 2))
    for name, content in blocks:
        file.write(struct.pack(f"{order}4sI", name, len(content)) + content + b"\0" * (len(content) % 2))
    total = file.tell() - 8
    file.seek(20 if form == b"RF64" else 4)
    file.write(struct.pack("<Q" if form == b"RF64" else f"{order}I", total))


# --- MP3: tags before and behind the sound ----------------------------------------------------------------------------


def _mp3_tags(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    size, begin = file.seek(0, 2), 0
    file.seek(0)
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        begin += 10 + _seven_bits(head[6:10]) + (10 if head[5] & 0x10 else 0)
        file.seek(begin)
    if 0 < begin <= min(size, _LARGEST):
        file.seek(0)
        yield b"before", file.read(begin)
    end = size
    if end - begin >= 128 and _at(file, end - 128, 3) == b"TAG":
        end -= 128
    if end - begin >= 32 and _at(file, end - 32, 8) == b"APETAGEX":
        length, _, flags = struct.unpack("<III", _at(file, end - 20, 12))
        end = max(begin, end - length - (32 if flags & 0x80000000 else 0))
    if 0 < size - end <= _LARGEST:
        yield b"behind", _at(file, end, size - end)


def _put_mp3_tags(file: BinaryIO, blocks: Blocks) -> None:
    for kind, content in blocks:
        place = 0 if kind == b"before" else file.seek(0, 2)
        _replace(file, place, place, content)


def _seven_bits(field: bytes) -> int:
    return sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(field))


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


# --- FLAC: metadata blocks --------------------------------------------------------------------------------------------


def _flac_headers(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(kind, place of the header, size of the content) of each metadata block."""
    place, last = 4, _at(file, 0, 4) != b"fLaC"
    while not last:
        header = _at(file, place, 4)
        last, size = bool(header[0] & 0x80) if len(header) == 4 else True, int.from_bytes(header[1:4], "big")
        if len(header) == 4:
            yield header[0] & 0x7F, place, size
        place += 4 + size


def _flac_blocks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for kind, place, size in _flac_headers(file):
        content = _at(file, place + 4, size)
        if kind in _FLAC and len(content) == size and (kind != 4 or _is_whole(content)):
            yield bytes([kind]), content


def _is_whole(comments: bytes) -> bool:
    """Whether the lengths in a block of comments add up: decoders refuse a file where they do not."""
    place = 4 + int.from_bytes(comments[:4], "little")
    count, place = int.from_bytes(comments[place : place + 4], "little"), place + 4
    while count > 0 and place < len(comments):
        place += 4 + int.from_bytes(comments[place : place + 4], "little")
        count -= 1
    return count == 0 and place == len(comments)


def _put_flac_blocks(file: BinaryIO, blocks: Blocks) -> None:
    """Behind the first block, STREAMINFO, in the place of those of their kinds."""
    headers = list(_flac_headers(file))
    end = headers[-1][1] + 4 + headers[-1][2]
    kept = [(kind, _at(file, place + 4, size)) for kind, place, size in headers if bytes([kind]) not in dict(blocks)]
    together = kept[:1] + [(kind[0], content) for kind, content in blocks] + kept[1:]
    packed = [
        bytes([kind | (0x80 if number == len(together) else 0)]) + len(content).to_bytes(3, "big") + content
        for number, (kind, content) in enumerate(together, 1)
    ]
    _replace(file, 4, end, b"".join(packed))


# --- Ogg: the packet of comments --------------------------------------------------------------------------------------


def _ogg_page(file: BinaryIO, place: int) -> tuple[bytes, bytes]:
    """(header with its table of segments, content); empty at the end. Raises ``ValueError`` for what is no page."""
    header = _at(file, place, 27)
    if not header:
        return b"", b""
    if header[:4] != b"OggS" or len(header) < 27:
        raise ValueError("no page of Ogg")
    table = file.read(header[26])
    return header + table, file.read(sum(table))


def _ogg_head(file: BinaryIO) -> tuple[list[bytes], int, int, bytes]:
    """The packets before the sound, where their pages begin and end, and the header of their first page."""
    first, content = _ogg_page(file, 0)
    count = 2 if content.startswith(b"\x01vorbis") else 1
    begin = end = len(first) + len(content)
    packets: list[bytes] = []
    open_packet, model = b"", b""
    while len(packets) < count:
        header, content = _ogg_page(file, end)
        model = model or header
        if not header or header[14:18] != first[14:18] or end - begin > _LARGEST:
            raise ValueError("not one stream of sound")
        for size in header[27:]:
            open_packet, content = open_packet + content[:size], content[size:]
            if size < 255:
                packets.append(open_packet)
                open_packet = b""
        end = file.tell()
    if len(packets) > count or open_packet:
        raise ValueError("sound on a page of the head")
    return packets, begin, end, model


def _comments(packet: bytes) -> tuple[bytes, bytes]:
    """(magic word and the name of the encoder, the comments)."""
    magic = 7 if packet.startswith(b"\x03vorbis") else 8
    if magic == 8 and not packet.startswith(b"OpusTags"):
        raise ValueError("no comments")
    rest = magic + 4 + int.from_bytes(packet[magic : magic + 4], "little")
    return packet[:rest], packet[rest:]


def _ogg_comments(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    yield b"comments", _comments(_ogg_head(file)[0][0])[1]


def _put_ogg_comments(file: BinaryIO, blocks: Blocks) -> None:
    packets, begin, end, model = _ogg_head(file)
    packets[0] = _comments(packets[0])[0] + blocks[0][1]
    segments = [part for packet in packets for part in _segments(packet)]
    content, pages = b"".join(packets), b""
    for first in range(0, len(segments), 255):
        sizes = segments[first : first + 255]
        continued = first > 0 and segments[first - 1] == 255
        position = 0 if any(size < 255 for size in sizes) else 2**64 - 1
        header = b"OggS\0" + bytes([continued]) + position.to_bytes(8, "little") + model[14:18] + bytes(8)
        used = sum(sizes)
        pages += header + bytes([len(sizes), *sizes]) + content[:used]
        content = content[used:]
    _replace(file, begin, end, pages)
    _number_pages(file)


def _segments(packet: bytes) -> list[int]:
    return [255] * (len(packet) // 255) + [len(packet) % 255]


def _number_pages(file: BinaryIO) -> None:
    """Numbers in a row and check sums for all pages."""
    place, number = 0, 0
    while True:
        header, content = _ogg_page(file, place)
        if not header:
            return
        header = header[:18] + number.to_bytes(4, "little") + bytes(4) + header[26:]
        total = _check_sum(header + content)
        file.seek(place)
        file.write(header[:22] + total.to_bytes(4, "little"))
        place, number = place + len(header) + len(content), number + 1


def _check_sum(page: bytes) -> int:
    """Ogg's CRC-32 (RFC 3533) is zlib's with the bits of each byte, and of the sum, in reverse, from 0 on."""
    total = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{total:032b}"[::-1], 2)


_KINDS = {
    "WAV": (_wav_chunks, _append_wav), "WAVEX": (_wav_chunks, _append_wav), "RF64": (_wav_chunks, _append_wav),
    "AIFF": (_aiff_chunks, _append_aiff), "MP3": (_mp3_tags, _put_mp3_tags), "FLAC": (_flac_blocks, _put_flac_blocks),
    "OGG": (_ogg_comments, _put_ogg_comments),
}  # fmt: skip

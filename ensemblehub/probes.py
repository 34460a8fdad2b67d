"""What answers at an address, found out in seconds."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

WITHIN = 10.0  # seconds
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000 04 00 00000000")
FRAME_HEADER = 9  # bytes: length (3), type, flags, stream (4)
SETTINGS = 4  # the type of the first frame of every HTTP/2 server


async def takes_connections(url: str) -> bool:
    """Whether the host of a URL takes a connection."""
    try:
        _, writer = await asyncio.wait_for(_opened(url), WITHIN)
    except (OSError, ValueError):
        return False
    writer.close()
    return True


async def speaks_http2(url: str) -> bool:
    """Whether the host of a URL speaks HTTP/2 without TLS from the first byte, as servers of gRPC do.

    The client's and the server's preface are those of RFC 9113, section 3.4.
    """
    try:
        async with asyncio.timeout(WITHIN):
            reader, writer = await _opened(url)
            try:
                writer.write(CLIENT_PREFACE)
                header = await reader.readexactly(FRAME_HEADER)
            finally:
                writer.close()
    except (OSError, ValueError, EOFError):
        return False
    return header[3] == SETTINGS


async def _opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return await asyncio.open_connection(parts.hostname, port)

#!/usr/bin/python3
"""Runs a command on a server with asyncssh, as ssh would: `asyncssh_run.py PORT KEY KNOWN_HOSTS exec COMMAND`, or `... subsystem NAME`.

Its input (a pipe), output, errors and exit status are this program's. A status of 255 is ssh's for everything that is not the command's.
"""
import asyncio
import os
import sys
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

import asyncssh  # noqa: E402

CHUNK_BYTES = 32768


async def send_input(writer):
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while piece := await reader.read(CHUNK_BYTES):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except (OSError, asyncssh.Error):
        pass  # the channel was closed before all had been read, as that of a GET is


async def copy(reader, fd):
    while piece := await reader.read(CHUNK_BYTES):
        while piece:
            piece = piece[os.write(fd, piece):]


async def main(port, key, known_hosts, way, text):
    what = {"exec": {"command": text}, "subsystem": {"subsystem": text}}[way]
    async with asyncssh.connect("127.0.0.1", int(port), username="anybody", client_keys=[key], known_hosts=known_hosts, config=None,
                                agent_path=None) as conn:
        writer, stdout, stderr = await conn.open_session(**what, encoding=None)
        sending = asyncio.create_task(send_input(writer))
        await asyncio.gather(copy(stdout, 1), copy(stderr, 2))
        await writer.channel.wait_closed()
        sending.cancel()
    status = writer.channel.get_exit_status()
    return 255 if status is None else status


sys.exit(asyncio.run(main(*sys.argv[1:])))

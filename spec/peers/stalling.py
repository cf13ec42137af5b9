#!/usr/bin/python3
"""A server that stops reading its connection once something has come on the second channel, and says "stalled". Then it does what it reads
from stdin: `close` sends that channel's EOF and CLOSE, `end` breaks the connection off.
"""
import argparse
import asyncio
import socket
import sys
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone
sys.dont_write_bytecode = True

import asyncssh  # noqa: E402
from asyncssh.constants import MSG_CHANNEL_CLOSE, MSG_CHANNEL_EOF  # noqa: E402
from asyncssh.packet import UInt32  # noqa: E402

ROOM = 16384  # bytes that the socket takes while it is not read


class Channel(asyncssh.SSHServerSession):
    def __init__(self, server, first):
        self.server, self.first = server, first

    def connection_made(self, chan):
        self.chan = chan

    def subsystem_requested(self, subsystem):
        return True

    def data_received(self, data, datatype):
        if not self.first and not self.server.obeying:
            self.server.conn._transport.pause_reading()
            print("stalled", flush=True)
            self.server.obeying = asyncio.ensure_future(self.obey())

    async def obey(self):
        while (order := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)):
            if order == "close\n":
                for kind in (MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE):
                    self.server.conn.send_packet(kind, UInt32(self.chan._send_chan))
            else:
                self.server.conn._transport.abort()


class Server(asyncssh.SSHServer):
    def __init__(self):
        self.channels, self.obeying = 0, None

    def connection_made(self, conn):
        self.conn = conn

    def session_requested(self):
        self.channels += 1
        return Channel(self, self.channels == 1)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host-key", required=True)
    parser.add_argument("--authorized-keys", required=True)
    options = parser.parse_args()
    listener = await asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[options.host_key],
                                     authorized_client_keys=options.authorized_keys, window=1 << 26)
    listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    print("port", listener.sockets[0].getsockname()[1], flush=True)
    await listener.wait_closed()


asyncio.run(main())

#!/usr/bin/python3
"""A server that opens every session channel and takes the subsystem `korv` on the first of each connection only, which answers each line
with 200. The others are refused at the request, and closed a moment later: the library below a client has the channel until then.
For the resource /back it opens a channel itself, and the body of the answer is whether the client has refused it.
"""
import argparse
import asyncio
import json
import sys
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone
sys.dont_write_bytecode = True

import asyncssh  # noqa: E402


class Channel(asyncssh.SSHServerSession):
    def __init__(self, conn, first):
        self.conn, self.first = conn, first

    def connection_made(self, chan):
        self.chan = chan

    def subsystem_requested(self, subsystem):
        if not self.first:
            asyncio.get_running_loop().call_later(0.05, self.chan.close)
        return self.first

    def data_received(self, data, datatype):
        for line in data.splitlines():
            asyncio.ensure_future(self.answer(json.loads(line)))

    async def answer(self, message):
        body = await self.open_back() if message["resource"] == "/back" else None
        self.chan.write(json.dumps({"id": 1.5, "request_id": message["id"], "code": 200, "body": body}) + "\n")

    async def open_back(self):
        try:
            await self.conn.create_connection(asyncssh.SSHTCPSession, "nowhere.invalid", 1)
            return "opened"
        except asyncssh.ChannelOpenError:
            return "refused"


class Server(asyncssh.SSHServer):
    def __init__(self):
        self.channels = 0

    def connection_made(self, conn):
        self.conn = conn

    def session_requested(self):
        self.channels += 1
        return Channel(self.conn, self.channels == 1)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host-key", required=True)
    parser.add_argument("--authorized-keys", required=True)
    options = parser.parse_args()
    listener = await asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[options.host_key],
                                     authorized_client_keys=options.authorized_keys)
    print("port", listener.sockets[0].getsockname()[1], flush=True)
    await listener.wait_closed()


asyncio.run(main())

#!/usr/bin/python3
"""A server that opens every session channel and takes the subsystem `korv` on the first of each connection only, which answers each line
with 200. The others are refused at the request, and closed a moment later: the library below a client has the channel until then.
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
    def __init__(self, first):
        self.first = first

    def connection_made(self, chan):
        self.chan = chan

    def subsystem_requested(self, subsystem):
        if not self.first:
            asyncio.get_running_loop().call_later(0.05, self.chan.close)
        return self.first

    def data_received(self, data, datatype):
        for line in data.splitlines():
            self.chan.write(json.dumps({"id": 1.5, "request_id": json.loads(line).get("id", 0), "code": 200, "body": None}) + "\n")


class Server(asyncssh.SSHServer):
    def __init__(self):
        self.channels = 0

    def session_requested(self):
        self.channels += 1
        return Channel(self.channels == 1)


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

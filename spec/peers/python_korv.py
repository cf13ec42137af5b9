#!/usr/bin/python3
"""The first korv (Python, 0.2.1) as it behaves on the wire, its flaws included: what ours has to get on with.

`server` answers GET /hello, POST hello and any verb on /echo and refuses the session channel; `client` makes the calls that it
reads from stdin, one JSON object a line, and prints each response. Written from the protocol's description, part 1. The flaws, on purpose: each SSH data
packet is taken for exactly one message; a STORE or UPDATE gets a spurious 400 beside its answer; the server runs on with a request
that it has just refused, and breaks off the connection where that fails.
"""
import argparse
import asyncio
import gzip
import json
import sys
import time
import traceback
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

sys.dont_write_bytecode = True

import asyncssh  # noqa: E402

from messages import compact, pack  # noqa: E402

VERBS = ("GET", "STORE", "UPDATE", "DELETE")


def hello(_request):
    return 200, {"msg": "Hello World!"}


def echo(request):
    return 200, request.get("body")


def fail(_request):
    raise RuntimeError("boom")


ENDPOINTS = {("GET", "/hello"): hello, ("POST", "hello"): hello, ("GET", "/fail"): fail, **{(verb, "/echo"): echo for verb in VERBS}}


class ServerChannel(asyncssh.SSHTCPSession):
    def connection_made(self, chan):
        self.chan = chan

    def answer(self, request_id, code, body):
        self.chan.write(pack(compact({"id": time.time(), "request_id": request_id, "code": code, "body": body})))

    def data_received(self, packet, datatype):
        try:
            request = json.loads(gzip.decompress(packet))
        except (OSError, EOFError, ValueError):
            self.answer(0, 400, {"message": "Unable to process request"})
            return
        for name in ("id", "verb"):
            if name not in request:
                self.answer(0, 400, {"message": f"Missing '{name}'"})
        if request["verb"] in ("STORE", "UPDATE"):
            self.answer(0, 400, {"message": "Missing 'body'"})
        self.answer(request["id"], *self.run(request))

    def run(self, request):
        endpoint = ENDPOINTS.get((request["verb"], request["resource"]))
        if not endpoint:
            return 404, None
        try:
            return endpoint(request)
        except Exception as wrong:  # any error of an endpoint's is an answer
            return 500, {"message": str(wrong), "traceback": traceback.format_exc()}

    def eof_received(self):
        self.chan.write_eof()
        self.chan.close()
        return True


class Server(asyncssh.SSHServer):
    max_packet_size = 32768

    def connection_made(self, conn):
        self.conn = conn

    def session_requested(self):
        return False

    def connection_requested(self, dest_host, dest_port, orig_host, orig_port):
        return self.conn.create_tcp_channel(max_pktsize=self.max_packet_size), ServerChannel()


async def serve(options):
    Server.max_packet_size = options.max_packet_size
    listener = await asyncssh.listen("127.0.0.1", options.port, server_factory=Server, server_host_keys=[options.host_key],
                                     authorized_client_keys=options.authorized_keys)
    print("port", listener.sockets[0].getsockname()[1], flush=True)
    await listener.wait_closed()


class ClientChannel(asyncssh.SSHTCPSession):
    """Prints what comes: {"response": …, "text": …} for a packet that is a message, {"broken": …} for any other."""

    def __init__(self):
        self.awaited = set()
        self.done = asyncio.Event()

    def data_received(self, packet, datatype):
        try:
            text = gzip.decompress(packet).decode()
            response = json.loads(text)
        except (OSError, EOFError, ValueError) as wrong:
            print(compact({"broken": str(wrong), "packet": packet.hex()}), flush=True)
            return
        print(compact({"response": response, "text": text}), flush=True)
        self.awaited.discard(response["request_id"])
        if not self.awaited:
            self.done.set()

    def connection_lost(self, wrong):
        self.done.set()


def request_text(call):
    """The request as it goes out, and its id as a Python value. `raw_id` is put in as it stands."""
    raw_id = call.get("raw_id", repr(time.time()))
    rest = compact({"verb": call["verb"], "resource": call["resource"], "body": call.get("body")})
    return '{"id":' + raw_id + "," + rest[1:], json.loads(raw_id)


async def call_all(options):
    calls = [json.loads(line) for line in sys.stdin]
    async with asyncssh.connect("127.0.0.1", options.port, username="anybody", client_keys=[options.key], known_hosts=None,
                                config=None, agent_path=None) as conn:
        chan, session = await conn.create_connection(ClientChannel, "127.0.0.1", options.port, max_pktsize=options.max_packet_size)
        for call in calls:
            text, request_id = request_text(call)
            session.awaited.add(request_id)
            chan.write(pack(text))
        await asyncio.wait_for(session.done.wait(), options.timeout)
        if session.awaited:
            sys.exit(f"no answer to {session.awaited}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    roles = parser.add_subparsers(dest="role", required=True)
    sizes = argparse.ArgumentParser(add_help=False)
    sizes.add_argument("--max-packet-size", type=int, default=32768)
    server = roles.add_parser("server", parents=[sizes])
    server.add_argument("--port", type=int, default=0)
    server.add_argument("--host-key", required=True)
    server.add_argument("--authorized-keys", required=True)
    client = roles.add_parser("client", parents=[sizes])
    client.add_argument("--port", type=int, required=True)
    client.add_argument("--key", required=True)
    client.add_argument("--timeout", type=float, default=10)
    options = parser.parse_args()
    asyncio.run(serve(options) if options.role == "server" else call_all(options))


if __name__ == "__main__":
    main()

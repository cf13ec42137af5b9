#!/usr/bin/python3
"""A client that runs a command over SSH as OpenSSH would not: what it does instead is its first argument.

signal  sends SIGINT once the command has printed something
late    opens its channel, says "open" on stdout, and asks for the command when it has read a line from stdin; it sends no input
again   at a terminal: says "refused" where the command is, asks for a shell on the same channel, and types what it reads from stdin

The other arguments are the port, the key's path and the command. At the end it prints one JSON object: status, stdout, stderr.
"""
import asyncio
import json
import sys
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

import asyncssh  # noqa: E402


class Session(asyncssh.SSHClientSession):
    def __init__(self):
        self.stdout, self.stderr = "", ""
        self.begun, self.closed = asyncio.Event(), asyncio.Event()

    def data_received(self, data, datatype):
        if datatype:
            self.stderr += data
        else:
            self.stdout += data
        self.begun.set()

    def connection_lost(self, _wrong):
        self.begun.set()
        self.closed.set()


async def run_signal(conn, command):
    chan, session = await conn.create_session(Session, command)
    await session.begun.wait()
    chan.send_signal("INT")
    return chan, session


async def run_late(conn, command):
    ask = asyncssh.SSHClientChannel._make_request

    async def ask_late(chan, request, *args):
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        return await ask(chan, request, *args)

    asyncssh.SSHClientChannel._make_request = ask_late
    return await conn.create_session(Session, command)


async def run_again(conn, command):
    ask = asyncssh.SSHClientChannel._make_request

    async def ask_again(chan, request, *args):
        if await ask(chan, request, *args):
            return True
        print("refused", flush=True)
        return request == b"exec" and await ask(chan, b"shell")

    asyncssh.SSHClientChannel._make_request = ask_again
    chan, session = await conn.create_session(Session, command, term_type="dumb")
    chan.write(sys.stdin.read())
    return chan, session


async def main(task, port, key, command):
    async with asyncssh.connect("127.0.0.1", int(port), client_keys=[key], known_hosts=None, config=None) as conn:
        chan, session = await {"signal": run_signal, "late": run_late, "again": run_again}[task](conn, command)
        await session.closed.wait()
        print(json.dumps({"status": chan.get_exit_status(), "stdout": session.stdout, "stderr": session.stderr}))


asyncio.run(main(*sys.argv[1:]))

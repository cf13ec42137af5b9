#!/usr/bin/python3
"""Many connections at once that speak part 1 of the protocol or lines: what raw_channel.py, which records every byte of one, is too slow for.

It reads commands from stdin, one JSON object a line, and answers each with one JSON line on stdout. A command names what to `do`; every one
takes `port`, `way` (tcpip or subsystem) and `encoding` (gzip or line). An answer with "error" means that it went wrong.
"""
import argparse
import asyncio
import json
import sys
import time
import warnings
import zlib

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

sys.dont_write_bytecode = True

import asyncssh  # noqa: E402

from messages import compact, pack  # noqa: E402


class Sink:
    """Finds messages in what comes and hands on each as text; keeps none."""

    def __init__(self, take):
        self.take, self.rest, self.inflate, self.parts = take, b"", None, []
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, packet, datatype):
        while packet:
            if self.inflate is None and not self.parts and packet[0] == 0x1F:
                self.inflate = zlib.decompressobj(31)
            if self.inflate:
                self.parts.append(self.inflate.decompress(packet))
                packet, done = self.inflate.unused_data, self.inflate.eof
            else:
                head, newline, packet = packet.partition(b"\n")
                self.parts.append(head)
                done = bool(newline)
            if done:
                text, self.parts, self.inflate = b"".join(self.parts), [], None
                self.take(json.loads(text))

    def eof_received(self):
        return True

    def connection_lost(self, wrong):
        if not self.ended.done():
            self.ended.set_result(str(wrong))


class TcpSink(Sink, asyncssh.SSHTCPSession):
    pass


class SessionSink(Sink, asyncssh.SSHClientSession):
    pass


async def connect(key, port):
    return await asyncssh.connect("127.0.0.1", port, username="crowd", client_keys=[key], known_hosts=None, config=None, agent_path=None)


async def open_channel(conn, command, take):
    if command["way"] == "tcpip":
        return (await conn.create_connection(lambda: TcpSink(take), "nowhere.invalid", 1))
    return (await conn.create_session(lambda: SessionSink(take), encoding=None, subsystem="korv"))


def message(command, **fields):
    text = compact({"body": None, **fields})
    return pack(text, 1) if command["encoding"] == "gzip" else (text + "\n").encode()


class Crowd:
    def __init__(self, key):
        self.key = key
        self.streams = {}

    async def ask(self, command):
        """`each` requests on each of `connections`, all at once: seconds until the last answer, and how often each id was answered."""
        conns = [await connect(self.key, command["port"]) for _ in range(command["connections"])]
        total, counts, codes, done = command["connections"] * command["each"], {}, {}, asyncio.Event()

        def take(number):
            def taken(response):
                name = (number, response["request_id"])
                counts[name] = counts.get(name, 0) + 1
                codes[response["code"]] = codes.get(response["code"], 0) + 1
                if sum(codes.values()) >= total:
                    done.set()
            return taken

        channels = [(await open_channel(conn, command, take(number)))[0] for number, conn in enumerate(conns)]
        begin = time.monotonic()
        for chan in channels:
            chan.write(b"".join(message(command, id=i, verb="GET", resource=command["resource"]) for i in range(command["each"])))
        try:
            await asyncio.wait_for(done.wait(), command.get("timeout", 30))
        except asyncio.TimeoutError:
            pass
        seconds = time.monotonic() - begin
        await asyncio.sleep(0.05)  # a second answer to one id would be here by now
        for conn in conns:
            conn.close()
        return {"seconds": seconds, "answered": len(counts), "most": max(counts.values(), default=0), "codes": codes}

    async def stream(self, command):
        """Asks for `resource` as a stream named `name`, on a connection of its own, or another stream's `on`; stops reading at item `pause`."""
        on = self.streams.get(command.get("on"))
        conn = on["conn"] if on else await connect(self.key, command["port"])
        state = {"conn": conn, "items": 0, "in_order": True, "over": None, "reached": asyncio.Event(), "last": asyncio.Event()}

        def take(response):
            if response.get("more"):
                state["items"] += 1
                state["in_order"] = state["in_order"] and response["body"]["seq"] == state["items"]
                if state["items"] == command.get("pause"):
                    state["chan"].pause_reading()
                    state["reached"].set()
            else:
                state["over"] = response["code"]
                state["last"].set()

        state["chan"], state["sink"] = await open_channel(conn, command, take)
        state["chan"].write(message(command, id=1, verb="GET", resource=command["resource"], stream=True))
        self.streams[command["name"]] = state
        if "pause" in command:
            await asyncio.wait_for(state["reached"].wait(), command.get("timeout", 30))
        return {"items": state["items"]}

    async def open(self, command):
        """Opens a channel named `name`, on a connection of its own, to ask on."""
        conn = await connect(self.key, command["port"])
        state = {"answers": {}, "asked": 0, "arrived": asyncio.Event()}

        def take(response):
            state["answers"][response["request_id"]] = response["code"]
            state["arrived"].set()

        state["conn"], (state["chan"], state["sink"]) = conn, await open_channel(conn, command, take)
        self.streams[command["name"]] = state
        return {}

    async def ask_on(self, command):
        """Asks `each` times on a channel that open has opened, without waiting for the answers."""
        state = self.streams[command["name"]]
        ids = range(state["asked"], state["asked"] + command["each"])
        state["chan"].write(b"".join(message(command, id=i, verb="GET", resource=command["resource"]) for i in ids))
        state["asked"] += command["each"]
        return {}

    async def answers(self, command):
        """Waits until all that was asked on a channel is answered, or the connection has ended: how much was asked, and answered with 200."""
        state = self.streams[command["name"]]
        while len(state["answers"]) < state["asked"] and not state["sink"].ended.done():
            state["arrived"].clear()
            arriving = asyncio.ensure_future(state["arrived"].wait())
            await asyncio.wait([arriving, state["sink"].ended], return_when=asyncio.FIRST_COMPLETED, timeout=command.get("timeout", 30))
            arriving.cancel()
        return {"asked": state["asked"], "answered": sum(code == 200 for code in state["answers"].values())}

    async def finish(self, command):
        """Reads a stream on to its end."""
        state = self.streams[command["name"]]
        state["chan"].resume_reading()
        await asyncio.wait_for(state["last"].wait(), command.get("timeout", 60))
        return {"items": state["items"], "in_order": state["in_order"], "code": state["over"]}

    async def one(self, command):
        """One request on a channel of its own, on the connection of stream `on`: its code, and the seconds that it took."""
        answer = asyncio.get_running_loop().create_future()
        chan, _ = await open_channel(self.streams[command["on"]]["conn"], command,
                                     lambda response: answer.done() or answer.set_result(response))
        begin = time.monotonic()
        chan.write(message(command, id=1, verb="GET", resource=command["resource"]))
        response = await asyncio.wait_for(answer, command.get("timeout", 10))
        chan.close()
        return {"code": response["code"], "seconds": time.monotonic() - begin}

    async def drop(self, command):
        """Closes the channel of a stream, or aborts its connection with `abort`."""
        state = self.streams.pop(command["name"])
        if command.get("abort"):
            state["conn"].abort()
        else:
            state["chan"].close()
        return {}

    async def visit(self, command):
        """Connects, calls and streams, as far as it gets before somebody cuts the connection: what was reached."""
        reached = "nothing"
        try:
            conn = await asyncio.wait_for(connect(self.key, command["port"]), 10)
            reached = "login"
            try:
                answers = asyncio.Queue()
                chan, sink = await open_channel(conn, command, answers.put_nowait)
                for fields in ({"verb": "STORE", "resource": "/echo", "body": "x" * 500},
                               {"verb": "GET", "resource": "/items?n=40&bytes=500", "stream": True}):
                    chan.write(message(command, id=1, **fields))
                    more = True
                    while more:
                        getting = asyncio.ensure_future(answers.get())
                        await asyncio.wait([getting, sink.ended], return_when=asyncio.FIRST_COMPLETED, timeout=10)
                        if not getting.done():
                            getting.cancel()
                            return {"reached": reached}
                        more = getting.result().get("more")
                    reached = "call" if fields["verb"] == "STORE" else "stream"
            finally:
                conn.abort()
        except (OSError, asyncssh.Error, asyncio.TimeoutError):
            pass
        return {"reached": reached}


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key", required=True)
    crowd = Crowd(parser.parse_args().key)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = await getattr(crowd, command["do"])(command)
        except Exception as wrong:  # told to the spec, which fails with it
            answer = {"error": f"{type(wrong).__name__}: {wrong}"}
        print(compact(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

#!/usr/bin/python3
"""A client that misbehaves on command: puts any bytes on a channel, in packets of its choice, and tells how what comes back was packed.

It connects with a key, then reads commands from stdin, one JSON object a line, and answers each with one JSON line on stdout. A command
names what to `do` and, where it matters, on which `channel` (any name; many may be open on the one connection). `bytes` are hexadecimal,
`file` is a path to them. An answer with "error" means that the command itself went wrong. The commands are the methods of Peer below.
"""
import argparse
import asyncio
import json
import os
import sys
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

sys.dont_write_bytecode = True

import asyncssh  # noqa: E402
from asyncssh.packet import String, UInt32  # noqa: E402

from messages import Splitter, compact, pack  # noqa: E402

LONG = 65536  # a member of a message that is longer goes to a file, and its path into the report


class Recorder:
    """What happened on a channel: packets, the messages in them, and eof, close or lost, in order."""

    def __init__(self):
        self.packets, self.messages, self.events = [], [], []
        self.splitter = Splitter()
        self.fault = None
        self.told = 0
        self.changed = asyncio.Event()

    def data_received(self, packet, datatype):
        self.packets.append(packet)
        try:
            self.messages += self.splitter.feed(packet)
        except Exception as wrong:  # what the server sent is no message; the spec is told
            self.fault = f"{type(wrong).__name__}: {wrong}"
        self.changed.set()

    def eof_received(self):
        self.events.append("eof")
        self.changed.set()
        return True

    def connection_lost(self, wrong):
        self.events.append("close" if wrong is None else f"lost: {wrong}")
        self.changed.set()

    @property
    def ended(self):
        return bool(self.events) and self.events[-1] != "eof"

    async def until(self, reached, timeout):
        """Waits until reached() is true, the channel has ended, or the time is over."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not (reached() or self.ended or self.fault):
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                return


class TcpRecorder(Recorder, asyncssh.SSHTCPSession):
    pass


class SessionRecorder(Recorder, asyncssh.SSHClientSession):
    pass


class Peer:
    def __init__(self, conn, folder):
        self.conn, self.folder = conn, folder
        self.open_channels = {}
        self.files = 0

    def payload(self, command):
        if "file" in command:
            with open(command["file"], "rb") as source:
                return source.read()
        return bytes.fromhex(command["bytes"])

    def channel(self, command):
        return self.open_channels[command["channel"]]

    def save(self, text):
        self.files += 1
        path = os.path.join(self.folder, f"field-{os.getpid()}-{self.files}")
        with open(path, "w", encoding="utf-8", newline="") as sink:
            sink.write(text)
        return path

    def report(self, message):
        found = message.report()
        found["files"] = {name: self.save(raw) for name, raw in found["fields"].items() if len(raw) > LONG}
        if found["files"]:
            found["fields"] = {name: raw for name, raw in found["fields"].items() if len(raw) <= LONG}
            found["text"] = None
        return found

    def told(self, recorder, most=None):
        """The messages that were not told yet, and how the channel stands."""
        end = len(recorder.messages) if most is None else min(recorder.told + most, len(recorder.messages))
        news = recorder.messages[recorder.told:end]
        recorder.told = end
        unfinished = recorder.splitter.message is not None
        return {"messages": [self.report(message) for message in news], "events": recorder.events, "fault": recorder.fault,
                "unfinished": unfinished, "packets": [len(packet) for packet in recorder.packets]}

    async def open(self, command):
        """`way`: tcpip, subsystem:NAME, exec:COMMAND, shell, or type:NAME for a channel type that nobody knows."""
        way, _, name = command["way"].partition(":")
        sizes = {"window": command.get("window", 2 * 1024 * 1024), "max_pktsize": command.get("max_packet", 32768)}
        try:
            if way == "tcpip":
                opened = await self.conn.create_connection(TcpRecorder, command.get("host", "nowhere.invalid"),
                                                           command.get("port", 1), **sizes)
            elif way == "type":
                chan = self.conn.create_tcp_channel()
                await chan._open(name.encode(), String("127.0.0.1"), UInt32(0))
                opened = chan, None
            else:
                kind = {"subsystem": {"subsystem": name}, "exec": {"command": name}, "shell": {}}[way]
                opened = await self.conn.create_session(SessionRecorder, encoding=None, **kind, **sizes)
        except asyncssh.ChannelOpenError as refusal:
            return {"opened": False, "code": refusal.code, "reason": refusal.reason}
        self.open_channels[command["channel"]] = opened
        return {"opened": True}

    async def forward(self, _command):
        """Asks the server to listen for us, as `ssh -R` does."""
        try:
            listener = await self.conn.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9)
        except asyncssh.ChannelListenError:
            return {"opened": False}
        listener.close()
        return {"opened": True}

    async def send(self, command):
        """The bytes as exactly one SSH data packet: waits for a window that holds them (only asyncssh's own fields tell)."""
        chan, recorder = self.channel(command)
        payload = self.payload(command)
        if len(payload) > chan._send_pktsize:
            raise ValueError(f"{len(payload)} bytes do not fit a packet of {chan._send_pktsize}")
        while (chan._send_buf or chan._send_window < len(payload)) and not recorder.ended:
            await asyncio.sleep(0.002)
        chan.write(payload)
        return {"sent": len(payload)}

    async def split(self, command):
        """The bytes in packets cut `at` these offsets, with a pause between, so that the server reads each by itself."""
        payload, start = self.payload(command), 0
        for end in [*command["at"], len(payload)]:
            await self.send({**command, "bytes": payload[start:end].hex()})
            await asyncio.sleep(command.get("pause", 0.01))
            start = end
        return {"sent": len(payload)}

    async def stream(self, command):
        """The bytes as the window lets them through, while other commands go on. A channel that has ended takes none."""
        chan, recorder = self.channel(command)
        if not recorder.ended:
            chan.write(self.payload(command))
        return {}

    async def eof(self, command):
        self.channel(command)[0].write_eof()
        return {}

    async def close(self, command):
        """Closes the channel from our side, and waits for the server's close."""
        chan, recorder = self.channel(command)
        chan.close()
        await recorder.until(lambda: False, command["timeout"])
        return self.told(recorder)

    async def pause(self, command):
        """Stops reading: what comes is neither told nor makes the window grow."""
        self.channel(command)[0].pause_reading()
        return {}

    async def resume(self, command):
        self.channel(command)[0].resume_reading()
        return {}

    async def expect(self, command):
        """Waits until there are `messages` that were not told yet, and tells them: no more of them than that."""
        _, recorder = self.channel(command)
        await recorder.until(lambda: len(recorder.messages) - recorder.told >= command["messages"], command["timeout"])
        return self.told(recorder, command["messages"])

    async def closed(self, command):
        """Waits until the channel has ended, and tells all that is left."""
        _, recorder = self.channel(command)
        await recorder.until(lambda: False, command["timeout"])
        return self.told(recorder)

    async def received(self, command):
        """Every packet so far, as it came."""
        return {"packets": [packet.hex() for packet in self.channel(command)[1].packets]}

    async def pack(self, command):
        """One gzip member of the text, not on any channel: into `to`, or back as bytes."""
        member = pack(self.payload(command).decode(), 1)
        if "to" not in command:
            return {"bytes": member.hex()}
        with open(command["to"], "wb") as sink:
            sink.write(member)
        return {"length": len(member)}

    async def garbage(self, command):
        """A connection of its own that says something else than SSH; what the server said until it hung up or the time was over."""
        host, port = self.conn.get_extra_info("peername")[:2]
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(self.payload(command))
        said, hung_up = b"", False
        try:
            while not hung_up:
                piece = await asyncio.wait_for(reader.read(4096), command["timeout"])
                said, hung_up = said + piece, piece == b""
        except asyncio.TimeoutError:
            pass
        except ConnectionError:
            hung_up = True
        writer.close()
        return {"bytes": said.hex(), "hung_up": hung_up}


async def obey(peer):
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = await getattr(peer, command["do"])(command)
        except Exception as wrong:  # told to the spec, which fails with it
            answer = {"error": f"{type(wrong).__name__}: {wrong}"}
        print(compact(answer), flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--user", default="anybody")
    parser.add_argument("--folder", required=True, help="where files for long values go")
    options = parser.parse_args()
    try:
        conn = await asyncssh.connect("127.0.0.1", options.port, username=options.user, client_keys=[options.key], known_hosts=None,
                                      config=None, agent_path=None)
    except (OSError, asyncssh.Error) as wrong:
        print(compact({"error": f"{type(wrong).__name__}: {wrong}"}), flush=True)
        return
    async with conn:
        print(compact({"connected": True}), flush=True)
        await obey(Peer(conn, options.folder))


if __name__ == "__main__":
    asyncio.run(main())

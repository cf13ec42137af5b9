#!/usr/bin/python3
"""Korv messages as bytes: packs them, and finds them again in a stream that arrives in packets.

For the peers beside it and for specs; it knows no SSH. Written from the protocol's description, independently of korv's own framing,
so that the two check each other. As a program: `messages.py pack` turns lines on stdin into gzip members on stdout, `messages.py unpack`
turns a stream of messages into a report of each, as a JSON line.
"""
import gzip
import json
import re
import sys
import zlib

STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def pack(text, level=9):
    return gzip.compress(text.encode(), level, mtime=0)


def fields(text):
    """The members of one JSON object, each value as it stands in the text. Raises ValueError where the text is anything else."""
    decoder = json.JSONDecoder()
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError("not one JSON object without white space around it")
    found, at = {}, 1
    while at < len(text) - 1:
        name, colon = decoder.raw_decode(text, at)
        _, end = decoder.raw_decode(text, colon + 1)
        if text[colon] != ":" or text[end] not in ",}":
            raise ValueError(f"bad JSON at {text[colon:colon + 20]!r} or {text[end:end + 20]!r}")
        found[name] = text[colon + 1:end]
        at = end + 1
    return found


class Message:
    """One message on its way in. `first` and `last` are the packets that it touches; `alone` that it fills them, sharing none."""

    def __init__(self, packet_number, at_edge, first_byte):
        self.encoding = "gzip" if first_byte == 0x1F else "line"
        self.first = self.last = packet_number
        self.alone = at_edge
        self.raw = b""
        self.fault = None
        self._inflate = zlib.decompressobj(31) if self.encoding == "gzip" else None
        self._parts = []

    def take(self, packet, at):
        """Takes what is this message's from the packet; returns where it stopped, and whether the message is complete."""
        if self._inflate:
            self._parts.append(self._inflate.decompress(packet[at:]))
            return len(packet) - len(self._inflate.unused_data), self._inflate.eof
        newline = packet.find(b"\n", at)
        end = len(packet) if newline < 0 else newline + 1
        self._parts.append(packet[at:end])
        return end, newline >= 0

    def finish(self, packet_number, at_edge):
        self.last = packet_number
        self.alone = self.alone and at_edge
        self.raw = b"".join(self._parts)
        if self.encoding == "line":
            self.raw = self.raw[:-1]

    def report(self):
        """What a spec wants to know of it, as plain values. `fault` says what the protocol forbids."""
        text, found, fault = self.raw.decode("utf-8", "replace"), {}, None
        try:
            found = fields(self.raw.decode("utf-8"))
            if re.search(r"\s", STRING.sub('""', text)):
                fault = "white space between tokens"
        except ValueError as wrong:
            fault = str(wrong)
        return {"encoding": self.encoding, "text": text, "fields": found, "fault": fault,
                "first": self.first, "last": self.last, "alone": self.alone}


class Splitter:
    """Finds messages in a stream, packet by packet."""

    def __init__(self):
        self.packets = 0
        self.message = None

    def feed(self, packet):
        at, done = 0, []
        while at < len(packet):
            if self.message is None:
                self.message = Message(self.packets, at == 0, packet[at])
            at, complete = self.message.take(packet, at)
            if complete:
                self.message.finish(self.packets, at == len(packet))
                done.append(self.message)
                self.message = None
        self.packets += 1
        return done


def main(task):
    if task == "pack":
        for line in sys.stdin:
            sys.stdout.buffer.write(pack(line.rstrip("\n")))
        return
    splitter = Splitter()
    for message in splitter.feed(sys.stdin.buffer.read()):
        print(compact(message.report()))
    if splitter.message:
        sys.exit("the stream ends inside a message")


if __name__ == "__main__":
    main(sys.argv[1])

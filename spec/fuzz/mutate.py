"""Changes bytes at random: anywhere, and where SSH has lengths and types. All of it follows from the random.Random that is given."""
import struct

NUMBERS = [0, 1, 2, 9, 10, 11, 127, 128, 255, 1023, 1024, 32768, 35000, 65535, 262144, 262145, 2**31 - 1, 2**31, 2**32 - 1]
MOST_BYTES = 300000


def any_bytes(rng, most=64):
    return rng.randbytes(rng.randrange(most))


def flip(rng, data, at):
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]


def overwrite(rng, data, at):
    new = any_bytes(rng, 8)
    return data[:at] + new + data[at + len(new):]


def insert(rng, data, at):
    return data[:at] + any_bytes(rng) + data[at:]


def remove(rng, data, at):
    return data[:at] + data[at + rng.randrange(1, 32):]


def repeat(rng, data, at):
    piece = data[at:at + rng.randrange(1, 200)]
    return data[:at] + piece * rng.choice([2, 3, 50]) + data[at:]


def cut(rng, data, at):
    return data[:at]


def number(rng, data, at):
    return data[:at] + struct.pack(">I", rng.choice(NUMBERS)) + data[at + 4:]


ANYWHERE = [flip, flip, overwrite, insert, remove, repeat, cut, number, number]


def mutate(rng, data, most=4):
    """The bytes after one to `most` changes."""
    for _ in range(rng.randrange(1, most + 1)):
        if not data:
            data = any_bytes(rng)
        else:
            data = rng.choice(ANYWHERE)(rng, data, rng.randrange(len(data)))
    return data[:MOST_BYTES]


def packets(data):
    """A client's handshake: its version line, and its packets as long as their lengths are to be seen; the last is what is left."""
    end = data.find(b"\n") + 1
    found, at = [data[:end]], end
    while at + 4 <= len(data):
        size = 4 + struct.unpack(">I", data[at:at + 4])[0]
        if size > 35000 or at + size > len(data):
            break
        found.append(data[at:at + size])
        at += size
    return found + [data[at:]]


def reframe(rng, packet):
    """A packet whose contents were changed and whose length fits again, so that it is read."""
    if len(packet) < 8:
        return mutate(rng, packet)
    payload = mutate(rng, packet[5:], 2)
    padding = -(5 + len(payload)) % 8 + 8
    if rng.random() < 0.1:
        padding = rng.randrange(256)
    return struct.pack(">IB", (1 + len(payload) + padding) & 0xFFFFFFFF, padding) + payload + bytes(padding)


def handshake(rng, recorded):
    """A handshake made of recorded ones: some of the packets changed, left out, doubled, exchanged or taken from another."""
    parts = packets(rng.choice(recorded))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(parts))
        what = rng.randrange(6)
        if what == 0:
            parts[at] = mutate(rng, parts[at])
        elif what == 1 and len(parts) > 1:
            del parts[at]
        elif what == 2:
            parts.insert(at, parts[at])
        elif what == 3:
            other = rng.choice(packets(rng.choice(recorded)))
            parts.insert(at, other)
        else:
            parts[at] = reframe(rng, parts[at]) if at > 0 else mutate(rng, parts[at])
    return b"".join(parts)[:MOST_BYTES]

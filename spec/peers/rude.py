#!/usr/bin/python3
"""An SSH client that does what no client does, written from the RFCs, so that every byte is its own: packets with a bit turned, channels
that announce nonsense, key exchanges without end, log-ins that are none.

`rude.py PORT CASE [ARGUMENT…]` runs one case, a function below whose name begins with case_, and prints what came of it as one JSON object.
What is told of a packet is its number in SSH's protocol; "lost" is the end of the connection.
"""
import base64
import hashlib
import json
import os
import socket
import struct
import sys
import warnings

warnings.simplefilter("ignore")
sys.dont_write_bytecode = True

from cryptography.hazmat.primitives import hashes, poly1305, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519, padding, rsa, utils, x25519  # noqa: E402
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms  # noqa: E402
from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: E402

DISCONNECT, IGNORE, SERVICE_REQUEST, SERVICE_ACCEPT, KEXINIT, NEWKEYS, ECDH_INIT, ECDH_REPLY = 1, 2, 5, 6, 20, 21, 30, 31
AUTH_REQUEST, AUTH_FAILURE, AUTH_SUCCESS, PK_OK, GLOBAL = 50, 51, 52, 60, 80
OPEN, OPENED, OPEN_FAILED, ADJUST, DATA, EXTENDED, EOF, CLOSE, REQUEST, SUCCESS = 90, 91, 92, 93, 94, 95, 96, 97, 98, 99

PATIENCE = float(os.environ.get("RUDE_PATIENCE", "10"))  # seconds for what the server is to do at once


class Lost(Exception):
    """The server has ended the connection."""


class Refused(Exception):
    """It has said no."""


def string(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(value)) + value


def mpint(value):
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


class Gcm:
    """aes128-gcm@openssh.com: the length is in clear, and authenticated."""

    name, keys = "aes128-gcm@openssh.com", (16, 12)

    def __init__(self, key, iv):
        self.cipher, self.fixed, self.count = AESGCM(key), iv[:4], int.from_bytes(iv[4:], "big")

    def nonce(self):
        nonce = self.fixed + self.count.to_bytes(8, "big")
        self.count = (self.count + 1) % (1 << 64)
        return nonce

    def seal(self, _sequence, packet):
        return packet[:4] + self.cipher.encrypt(self.nonce(), packet[4:], packet[:4])

    def length(self, _sequence, head):
        return int.from_bytes(head, "big")

    def open(self, _sequence, head, rest):
        return self.cipher.decrypt(self.nonce(), rest, head)


class Chacha:
    """chacha20-poly1305@openssh.com: two keys, one of them for the length."""

    name, keys = "chacha20-poly1305@openssh.com", (64, 0)

    def __init__(self, key, _iv):
        self.main, self.head = key[:32], key[32:]

    @staticmethod
    def stream(key, sequence, data, block=0):
        nonce = struct.pack("<Q", block) + struct.pack(">Q", sequence)
        return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(data)

    def tag(self, sequence, sealed):
        return poly1305.Poly1305.generate_tag(self.stream(self.main, sequence, bytes(32)), sealed)

    def seal(self, sequence, packet):
        sealed = self.stream(self.head, sequence, packet[:4]) + self.stream(self.main, sequence, packet[4:], 1)
        return sealed + self.tag(sequence, sealed)

    def length(self, sequence, head):
        return int.from_bytes(self.stream(self.head, sequence, head), "big")

    def open(self, sequence, head, rest):
        if self.tag(sequence, head + rest[:-16]) != rest[-16:]:
            raise ValueError("the server's packet is not authentic")
        return self.stream(self.main, sequence, rest[:-16], 1)


CIPHERS = {cipher.name: cipher for cipher in (Gcm, Chacha)}


class Connection:
    def __init__(self, port, cipher=Gcm.name, source="127.0.0.1"):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
        self.cipher = CIPHERS[cipher]
        self.sealing = self.opening = self.session = None
        self.sent = self.received = 0
        self.turn = None  # a function that spoils the bytes of the next packet
        self.version = b"SSH-2.0-rude"
        self.socket.sendall(self.version + b"\r\n")
        self.buffer = b""
        self.peer_version = self.read_line()

    def read_line(self):
        while b"\n" not in self.buffer:
            self.more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def more(self):
        try:
            piece = self.socket.recv(65536)
        except (ConnectionError, BrokenPipeError):
            piece = b""
        if not piece:
            raise Lost()
        self.buffer += piece

    def take(self, count):
        while len(self.buffer) < count:
            self.more()
        piece, self.buffer = self.buffer[:count], self.buffer[count:]
        return piece

    def write(self, data):
        try:
            self.socket.sendall(data)
        except (ConnectionError, BrokenPipeError):
            raise Lost() from None

    def send(self, payload):
        block, clear = (16 if self.sealing and self.cipher is Gcm else 8), (4 if self.sealing else 0)
        filler = block - (5 - clear + len(payload)) % block
        filler += block if filler < 4 else 0
        packet = struct.pack(">IB", 1 + len(payload) + filler, filler) + payload + os.urandom(filler)
        if self.sealing:
            packet = self.sealing.seal(self.sent, packet)
        self.sent = (self.sent + 1) % (1 << 32)
        if self.turn:
            packet, self.turn = self.turn(packet), None
        self.write(packet)

    def receive(self):
        head = self.take(4)
        if self.opening:
            length = self.opening.length(self.received, head)
            body = self.opening.open(self.received, head, self.take(length + 16))
        else:
            body = self.take(int.from_bytes(head, "big"))
        self.received = (self.received + 1) % (1 << 32)
        return body[1:len(body) - body[0]]

    def expect(self, *kinds):
        """The next packet of these kinds; the others are passed over."""
        while True:
            packet = self.receive()
            if packet[0] in kinds:
                return packet
            if packet[0] == DISCONNECT:
                raise Lost()

    def kexinit(self):
        lists = ["curve25519-sha256", "ssh-ed25519", self.cipher.name, self.cipher.name, "hmac-sha2-256-etm@openssh.com",
                 "hmac-sha2-256-etm@openssh.com", "none", "none", "", ""]
        return bytes([KEXINIT]) + os.urandom(16) + b"".join(string(each) for each in lists) + bytes(5)

    def exchange_keys(self):
        own = self.kexinit()
        self.send(own)
        theirs = self.expect(KEXINIT)
        secret = x25519.X25519PrivateKey.generate()
        public = secret.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.send(bytes([ECDH_INIT]) + string(public))
        reply = Reader(self.expect(ECDH_REPLY))
        host_key, their_public, signature = reply.string(), reply.string(), reply.string()
        shared = mpint(int.from_bytes(secret.exchange(x25519.X25519PublicKey.from_public_bytes(their_public)), "big"))
        digest = hashlib.sha256(string(self.version) + string(self.peer_version) + string(own) + string(theirs) + string(host_key) +
                                string(public) + string(their_public) + shared).digest()
        self.check_host(host_key, signature, digest)
        self.session = self.session or digest
        self.send(bytes([NEWKEYS]))

        def derive(letter, size):
            key = hashlib.sha256(shared + digest + letter + self.session).digest()
            return (key + hashlib.sha256(shared + digest + key).digest())[:size]

        key, iv = self.cipher.keys
        self.sealing = self.cipher(derive(b"C", key), derive(b"A", iv))
        self.expect(NEWKEYS)
        self.opening = self.cipher(derive(b"D", key), derive(b"B", iv))

    @staticmethod
    def check_host(host_key, signature, digest):
        reader, signed = Reader(host_key), Reader(signature)
        reader.string(), signed.string()
        ed25519.Ed25519PublicKey.from_public_bytes(reader.string()).verify(signed.string(), digest)

    def begin_log_in(self):
        self.exchange_keys()
        self.send(bytes([SERVICE_REQUEST]) + string("ssh-userauth"))
        self.expect(SERVICE_ACCEPT)

    def offer(self, user, key):
        self.send(auth_request(user, key))

    def sign(self, user, key, signed_user=None):
        """A request to log in, signed; for another user where one is given."""
        signature = key.sign(string(self.session) + auth_request(signed_user or user, key, True))
        self.send(auth_request(user, key, True) + string(signature))

    def log_in(self, key, user="anybody"):
        self.begin_log_in()
        self.sign(user, key)
        if self.expect(AUTH_SUCCESS, AUTH_FAILURE)[0] != AUTH_SUCCESS:
            raise Refused()

    def open_channel(self, way="direct-tcpip", window=1 << 21, most=32768, number=0):
        extra = string("nowhere.invalid") + struct.pack(">I", 1) + string("127.0.0.1") + struct.pack(">I", 1)
        self.send(bytes([OPEN]) + string(way) + struct.pack(">III", number, window, most) + (extra if way == "direct-tcpip" else b""))
        reply = self.expect(OPENED, OPEN_FAILED)
        if reply[0] != OPENED:
            raise Refused()
        return struct.unpack(">I", reply[5:9])[0]

    def data(self, channel, data):
        self.send(bytes([DATA]) + struct.pack(">I", channel) + string(data))

    def subsystem(self, channel, name="korv"):
        self.send(bytes([REQUEST]) + struct.pack(">I", channel) + string("subsystem") + b"\1" + string(name))

    def await_end(self):
        """What comes until the connection has ended: the packets' kinds. An error where it goes on."""
        kinds = []
        try:
            while True:
                kinds.append(self.receive()[0])
        except Lost:
            return kinds
        except socket.timeout:
            raise RuntimeError(f"the server goes on, and has sent {kinds}") from None


class Reader:
    def __init__(self, packet):
        self.rest = packet[1:] if packet and packet[0] == ECDH_REPLY else packet

    def string(self):
        size = struct.unpack(">I", self.rest[:4])[0]
        value, self.rest = self.rest[4:4 + size], self.rest[4 + size:]
        return value


def auth_request(user, key, signed=False):
    return bytes([AUTH_REQUEST]) + string(user) + string("ssh-connection") + string("publickey") + bytes([signed]) + string(
        key.algorithm) + string(key.blob)


# ---- keys ------------------------------------------------------------------------------------------------------------------------------


class Key:
    """What logs in: `algorithm`, `blob`, and a function that makes the signature's inner part of data."""

    def __init__(self, algorithm, blob, raw_sign, signature_algorithm=None):
        self.algorithm, self.blob, self.raw_sign = algorithm, blob, raw_sign
        self.signature_algorithm = signature_algorithm or algorithm

    def sign(self, data):
        return string(self.signature_algorithm) + self.raw_sign(data)


def ed25519_key(path):
    with open(path, "rb") as source:
        private = serialization.load_ssh_private_key(source.read(), None)
    with open(path + ".pub", encoding="ascii") as source:
        blob = base64.b64decode(source.read().split()[1])
    key = Key("ssh-ed25519", blob, lambda data: string(private.sign(data)))
    key.public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return key


def dsa_key():
    private = dsa.generate_private_key(1024)
    numbers = private.public_key().public_numbers()
    parameters = numbers.parameter_numbers
    blob = string("ssh-dss") + mpint(parameters.p) + mpint(parameters.q) + mpint(parameters.g) + mpint(numbers.y)

    def sign(data):
        r, s = utils.decode_dss_signature(private.sign(data, hashes.SHA1()))
        return string(r.to_bytes(20, "big") + s.to_bytes(20, "big"))

    return Key("ssh-dss", blob, sign)


def rsa_key(bits, algorithm, digest):
    private = rsa.generate_private_key(65537, bits)
    numbers = private.public_key().public_numbers()
    blob = string("ssh-rsa") + mpint(numbers.e) + mpint(numbers.n)
    return Key(algorithm, blob, lambda data: string(private.sign(data, padding.PKCS1v15(), digest)))


def certificate(path):
    """One that its own key has signed, for anybody and ever."""
    key = ed25519_key(path)
    name = "ssh-ed25519-cert-v01@openssh.com"
    body = string(name) + string(os.urandom(32)) + string(key.public) + struct.pack(">QI", 1, 1) + string("id") + string(
        string("anybody")) + struct.pack(">QQ", 0, (1 << 64) - 1) + string("") + string("") + string("") + string(key.blob)
    return Key(name, body + string(key.sign(body)), key.raw_sign, "ssh-ed25519")


def token_key(touched):
    """A security token's key, whose signature says whether somebody has touched it."""
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    blob = string("sk-ssh-ed25519@openssh.com") + string(public) + string("ssh:")

    def sign(data):
        tail = bytes([touched]) + struct.pack(">I", 7)
        signed = hashlib.sha256(b"ssh:").digest() + tail + hashlib.sha256(data).digest()
        return string(private.sign(signed)) + tail

    return Key("sk-ssh-ed25519@openssh.com", blob, sign)


KEYS = {
    "rsa-sha2-256": lambda path: rsa_key(2048, "rsa-sha2-256", hashes.SHA256()),
    "rsa-1024": lambda path: rsa_key(1024, "rsa-sha2-256", hashes.SHA256()),
    "rsa-sha1": lambda path: rsa_key(2048, "ssh-rsa", hashes.SHA1()),
    "dsa": lambda path: dsa_key(),
    "certificate": certificate,
    "token": lambda path: token_key(1),
    "untouched": lambda path: token_key(0),
    "ed25519": ed25519_key,
}

# ---- cases -----------------------------------------------------------------------------------------------------------------------------

HELLO = b'{"id":1,"verb":"GET","resource":"/hello"}\n'


def logged_in(port, path, cipher=Gcm.name):
    connection = Connection(port, cipher)
    connection.log_in(ed25519_key(path))
    return connection


def case_hello(port, path, cipher):
    """Nothing rude: a request and its answer."""
    connection = logged_in(port, path, cipher)
    channel = connection.open_channel()
    connection.data(channel, HELLO)
    return {"answer": connection.expect(DATA)[9:].decode()}


def case_tiny_packets(port, path, way, most):
    connection = logged_in(port, path)
    try:
        channel = connection.open_channel(way, most=int(most))
        if way == "session":
            connection.subsystem(channel)
        connection.data(channel, HELLO)
        return {"answer": connection.expect(DATA)[9:].decode()}
    except Lost:
        return {"lost": True}


def pour(connection, kind):
    """Sends 8 MiB as messages of that kind, unless the connection ends before; and waits for its end."""
    sent = 0
    try:
        while sent < 8 << 20:
            connection.send(kind + string(bytes(32000)))
            sent += 32000
        connection.await_end()
    except Lost:
        pass
    return {"sent": sent}


def case_past_window(port, path, way, stderr):
    """More than any window holds, on a channel that is not read: it asks for things that take long, or has no way in yet."""
    connection = logged_in(port, path)
    channel = connection.open_channel("session" if way == "none" else way)
    if way == "session":
        connection.subsystem(channel)
    if way != "none":
        connection.data(channel, b'{"id":1,"verb":"GET","resource":"/long"}\n' * 4)
    kind = bytes([EXTENDED]) + struct.pack(">II", channel, 1) if stderr == "stderr" else bytes([DATA]) + struct.pack(">I", channel)
    return pour(connection, kind)


def case_after_the_end(port, path, end):
    """Goes on where nothing more is to come: behind EOF, or what nobody can read on behind, while a request runs."""
    connection = logged_in(port, path)
    channel = connection.open_channel()
    connection.data(channel, b'{"id":1,"verb":"GET","resource":"/long"}\n')
    if end == "eof":
        connection.send(bytes([EOF]) + struct.pack(">I", channel))
    else:
        connection.data(channel, b"\x1f\x8b is no gzip member at all")
        connection.expect(DATA)
    return pour(connection, bytes([DATA]) + struct.pack(">I", channel))


def case_deaf(port, path, what):
    """Asks without end for what SSH itself answers, and reads nothing."""
    connection = logged_in(port, path)
    channel = connection.open_channel("session")
    asked = {
        "global request": bytes([GLOBAL]) + string("x") + b"\1",
        "channel request": bytes([REQUEST]) + struct.pack(">I", channel) + string("env") + b"\1" + string("A") + string("B"),
        "open": bytes([OPEN]) + string("x") + struct.pack(">III", 1, 1 << 21, 32768),
        "unknown": bytes([192]),
    }[what]
    sent, batch = 0, []
    connection.write, write = batch.append, connection.write
    try:
        while sent < 400000:
            connection.send(asked)
            sent += 1
            if len(batch) == 1000:
                write(b"".join(batch))
                batch.clear()
    except Lost:
        pass
    return {"sent": sent}


def case_no_memory(port, path, control, most):
    """Commands whose items are sent while the server goes without memory, ever later (see spec/c/fail_allocations.c): which of them had an
    end, and for which another connection then waited in vain."""
    ended, stuck, other = 0, [], logged_in(port, path)
    channel = other.open_channel()
    with open(control, "r+b", buffering=0) as failing:
        for number in range(1, int(most) + 1):
            connection = logged_in(port, path)
            command = connection.open_channel("session")
            failing.write(struct.pack("=II", number, 4))
            connection.send(bytes([REQUEST]) + struct.pack(">I", command) + string("exec") + b"\1" + string("GET /items"))
            try:
                connection.expect(CLOSE)
                ended += 1
            except (Lost, socket.timeout):
                stuck.append(number)
            failing.seek(0)
            failing.write(bytes(8))
            failing.seek(0)
            other.data(channel, b'{"id":1,"verb":"GET","resource":"/waits"}\n')
            other.expect(DATA)
    return {"ended": ended, "stuck": stuck}


def case_exchanges(port, path, log_in, count):
    """Key exchanges, each of them whole."""
    connection = Connection(port)
    done = 0
    try:
        if log_in == "in":
            connection.log_in(ed25519_key(path))
        else:
            connection.begin_log_in()
        for done in range(1, int(count) + 1):
            connection.exchange_keys()
        return {"done": done}
    except Lost:
        return {"done": done, "lost": True}


def case_half_exchanges(port, path):
    """Beginnings of key exchanges only."""
    connection = logged_in(port, path)
    sent = 0
    try:
        while sent < 100000:
            connection.send(connection.kexinit())
            sent += 1
    except Lost:
        pass
    return {"sent": sent}


def case_bad_signatures(port, path, count):
    """Signatures that are wrong: what the server said to them, and whether it ended the connection. count 0: as many as it takes."""
    connection, key = Connection(port), ed25519_key(path)
    connection.begin_log_in()
    sent = 0
    try:
        while sent < (int(count) or 100000):
            connection.sign("anybody", key, "somebody else")
            sent += 1
        kinds = connection.await_end()
    except Lost:
        kinds = None
    return {"sent": sent, "kinds": kinds}


def case_unreadable_keys(port, path):
    """Requests to log in whose key is none."""
    connection = Connection(port)
    connection.begin_log_in()
    for blob in (b"", b"x", string("ssh-ed25519"), string("ssh-ed25519") + string(b"short"), string("ssh-rsa") + string(b"")):
        connection.sign("anybody", Key("ssh-ed25519", blob, lambda data: string(bytes(64))))
    return {"kinds": connection.await_end()}


def case_idle(port, path, begun):
    """Says nothing any more; before the version of the protocol, or after the key exchange."""
    connection = Connection(port)
    if begun == "begun":
        connection.begin_log_in()
    return {"kinds": connection.await_end()}


def case_chatter(port, path):
    """Packets to be ignored, without end and without a log-in."""
    connection = Connection(port)
    connection.begin_log_in()
    sent = 0
    try:
        while sent < 100 << 20:
            connection.send(bytes([IGNORE]) + string(bytes(1000)))
            sent += 1000
    except Lost:
        pass
    return {"sent": sent}


def case_crowd(port, source, count):
    """Connections that say nothing; tells how many of them the server has taken, and holds them until there is something on stdin."""
    crowd = []
    for _ in range(int(count)):
        crowd.append(socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)))
    taken = 0
    for each in crowd:
        try:
            taken += each.recv(1) == b"S"  # its version; to the others nothing
        except ConnectionError:
            pass
    print(json.dumps({"taken": taken}), flush=True)
    sys.stdin.readline()
    return {}


def case_key(port, path, kind, offered):
    """Logs in with a key of that kind, which is sound and signs as it should."""
    connection, key = Connection(port), KEYS[kind](path)
    try:
        connection.begin_log_in()
        if offered == "offered":
            connection.offer("anybody", key)
            reply = connection.expect(PK_OK, AUTH_FAILURE)[0]
            if reply != PK_OK:
                return {"reply": reply}
        connection.sign("anybody", key)
        return {"reply": connection.expect(AUTH_SUCCESS, AUTH_FAILURE)[0]}
    except (Lost, socket.timeout):
        return {"lost": True}


def answer_of(connection):
    channel = connection.open_channel()
    connection.data(channel, b'{"id":1,"verb":"GET","resource":"/peer"}\n')
    return json.loads(connection.expect(DATA)[9:])["body"]


def case_names(port, path, other_path):
    """Offers keys under some names, signs under another, and goes on under more when it is in."""
    connection, key, other = Connection(port), ed25519_key(path), ed25519_key(other_path)
    connection.begin_log_in()
    connection.offer("root", other)
    connection.expect(PK_OK)
    connection.offer("first", key)
    connection.expect(PK_OK)
    connection.sign("second", key)
    connection.expect(AUTH_SUCCESS)
    before, after = answer_of(connection), None
    try:
        connection.offer("root", other)
        connection.sign("root", other)
        connection.sign("third", key)
        after = answer_of(connection)
    except Lost:
        pass
    return {"before": before, "after": after}


def case_unsigned(port, path, step):
    """Opens a channel and asks without having logged in."""
    connection, key = Connection(port), ed25519_key(path)
    try:
        if step != "at once":
            connection.begin_log_in()
        if step == "offered":
            connection.offer("anybody", key)
            connection.expect(PK_OK)
        if step == "badly signed":
            connection.sign("anybody", key, "somebody else")
        if step == "said so itself":
            connection.send(bytes([AUTH_SUCCESS]))
        for way in ("direct-tcpip", "session"):
            extra = string("a") + struct.pack(">I", 1) + string("b") + struct.pack(">I", 1)
            connection.send(bytes([OPEN]) + string(way) + struct.pack(">III", 0, 1 << 21, 32768) + (extra if way == "direct-tcpip" else b""))
        connection.data(0, HELLO)
        connection.subsystem(1)
        connection.data(1, HELLO)
        connection.data(43, HELLO)
        return {"kinds": connection.await_end()}
    except Lost:
        return {"kinds": []}


def case_flip(port, path, cipher, where, number, at, bit):
    """Turns one bit of one packet, and then sends whatever may be needed to have it looked at. `where`: handshake, log-in, or channel; `at`:
    how far into the packet, of 1. What means nothing is left alone: the filler of a packet in clear, KEXINIT's last, reserved word, which
    libssh takes for zero whatever it is, and how much of the others is filler: libssh reads what it needs and looks at nothing behind."""
    connection, key = Connection(port, cipher), ed25519_key(path)
    left = int(number)

    def turn(packet):
        end = len(packet) if connection.sealing else len(packet) - packet[4] - (4 if packet[5] == KEXINIT else 0)
        place = min(int(end * float(at)), end - 1)
        if not connection.sealing and place == 4 and packet[5] != KEXINIT:
            place = 5
        return packet[:place] + bytes([packet[place] ^ (1 << int(bit))]) + packet[place + 1:]

    def next_packet():
        nonlocal left
        if left == 0:
            connection.turn = turn
        left -= 1

    plain_send = connection.send

    def send(payload):
        next_packet()
        plain_send(payload)

    answers = 0
    try:
        if where == "handshake":
            connection.send = send
        connection.exchange_keys()
        if where == "log-in":
            connection.send = send
        connection.send(bytes([SERVICE_REQUEST]) + string("ssh-userauth"))
        connection.sign("anybody", key)
        connection.socket.settimeout(PATIENCE / 10)
        connection.expect(AUTH_SUCCESS)
        if where == "channel":
            connection.send = send
        channel = connection.open_channel()
        connection.data(channel, HELLO)
        connection.data(channel, HELLO)
        while True:
            answers += connection.receive()[0] == DATA
    except Lost:
        return {"lost": True, "answers": answers}
    except Exception as what:  # the client has noticed it first, or waits for what will not come
        trouble = type(what).__name__
    try:
        connection.socket.settimeout(PATIENCE)
        connection.write(bytes(600000))
        connection.buffer = b""
        while True:
            connection.more()
            connection.buffer = b""
    except Lost:
        return {"lost": True, "answers": answers, "trouble": trouble}
    except socket.timeout:
        return {"lost": False, "answers": answers, "trouble": trouble}


if __name__ == "__main__":
    print(json.dumps(globals()["case_" + sys.argv[2]](int(sys.argv[1]), *sys.argv[3:])))

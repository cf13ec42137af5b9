#!/usr/bin/python3
"""Fuzzes a server through its socket, before log-in (`handshake`) and after it (`session`). scripts/fuzz runs it.

It starts a server under AddressSanitizer and sends it what recorded handshakes and messages become by changes at random: whole streams of
bytes that know nothing of cryptography, and, through asyncssh, single packets that are changed before they are encrypted. A finding is a
server that has ended, that no longer serves a client of good will, that lets in a key which it must not, or that a sanitizer or Lua
complains of. The seed is printed; what was sent last before a finding is kept in build/fuzz.
"""
import argparse
import asyncio
import collections
import gzip
import json
import os
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings

warnings.simplefilter("ignore")  # the packaged asyncssh names ciphers that the packaged cryptography wants gone

sys.dont_write_bytecode = True

import asyncssh  # noqa: E402
import asyncssh.connection  # noqa: E402

from mutate import any_bytes, handshake, mutate  # noqa: E402

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
AT_ONCE = 8
HEALTH_S, PATIENCE_S, ANSWER_S = 2, 60, 0.5
GROWTH_BYTES = 400 << 20  # under AddressSanitizer, which keeps what was freed for a while
LIMITS = {"max_unauthenticated": 5000, "max_unauthenticated_per_address": 5000, "login_timeout": 3, "max_auth_attempts": 100, "cpu_limit": 0.2}
COMMANDS = [b"GET /hello", b"STORE /echo [1,2]", b"STORE '/echo?a=b' \"text\"", b"GET /echo -", b"help", b"GET /slow"]
TERM = [None, "xterm"]


class Finding(Exception):
    pass


class Server:
    """The server under test, and what its stderr says that is no matter of course."""

    def __init__(self, folder):
        self.folder = folder
        for name in "host", "client", "stranger":
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.path(name)], check=True)
        options = {"host": "127.0.0.1", "port": 0, "host_keys": [self.path("host")], "authorized_client_keys": self.path("client.pub"), **LIMITS}
        asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
        env = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=32", "UBSAN_OPTIONS": "print_stacktrace=1",
               "KORV_BUILD": ROOT + "/build/asan"}
        command = ["setpriv", "--pdeathsig", "KILL", "lua5.4", ROOT + "/spec/peers/limited_server.lua", json.dumps(options), ROOT + "/spec/data/app.lua"]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        said = self.process.stdout.readline()
        if " port " not in said:
            raise SystemExit("the server did not start: " + said + self.process.stderr.read())
        self.port = int(said.split(" port ")[1].split(",")[0])
        self.last, self.complaints = collections.deque(maxlen=60), []
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def path(self, name):
        return os.path.join(self.folder, name)

    def listen(self):
        for line in self.process.stderr:
            self.last.append(line)
            try:
                entry = json.loads(line)
            except ValueError:  # the log is JSON; what is none comes of a sanitizer or of a program that dies
                entry = {"level": "error", "message": line}
            if entry["level"] == "error" and not entry["message"].startswith("an endpoint"):
                self.complaints.append(line)

    def rss(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def check(self):
        if self.process.poll() is not None:
            raise Finding(f"the server has ended with {self.process.returncode}")
        self.must_be_content()

    def must_be_content(self):
        if self.complaints:
            raise Finding("the server complained")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired as late:
            self.process.kill()
            raise Finding("the server did not end at SIGTERM") from late
        self.listener.join(5)
        if self.process.returncode != 0:
            raise Finding(f"the server ended with {self.process.returncode} at SIGTERM")


class Mutant(asyncssh.SSHClientConnection):
    """A connection that changes packets, once it has an `rng`: some before they are encrypted, and now and then one that was sent before
    goes out again."""

    rng, rate, sent = None, 0.0, collections.deque(maxlen=300)

    def send_packet(self, pkttype, *args, handler=None):
        rng = self.rng
        if rng is None:
            return super().send_packet(pkttype, *args, handler=handler)
        payload = bytes([pkttype]) + b"".join(args)
        self.sent.append(payload)
        if rng.random() < self.rate:
            self.send_raw(mutate(rng, rng.choice(self.sent)))
        return self.send_raw(mutate(rng, payload) if rng.random() < self.rate else payload)

    def send_raw(self, payload):
        if not payload:
            return
        was, self._auth_complete = self._auth_complete, True  # or it would wait with some until it has logged in
        try:
            super().send_packet(payload[0], payload[1:])
        finally:
            self._auth_complete = was


asyncssh.connection.SSHClientConnection = Mutant  # what asyncssh.connect makes


class Session(asyncssh.SSHTCPSession, asyncssh.SSHClientSession):
    """Takes what comes and remembers that something did."""

    def __init__(self):
        self.data, self.changed, self.over = b"", asyncio.Event(), False

    def data_received(self, packet, datatype):
        self.data = (self.data + packet)[-4096:]
        self.changed.set()

    def connection_lost(self, wrong):
        self.over = True
        self.changed.set()


async def connect(server, key, rng=None, rate=0.0):
    def made(conn):
        conn.rng, conn.rate = rng, rate

    class Client(asyncssh.SSHClient):
        def connection_made(self, conn):
            made(conn)

    return await asyncssh.connect("127.0.0.1", server.port, username="fuzz", client_keys=[server.path(key)], known_hosts=None, config=None,
                                  agent_path=None, client_factory=Client, login_timeout=5)


async def ask(server):
    """A client of good will: logs in, asks, is answered."""
    async with await connect(server, "client") as conn:
        chan, session = await conn.create_session(Session, encoding=None, subsystem="korv")
        chan.write(b'{"id":"good","verb":"GET","resource":"/hello","body":null}\n')
        while b"\n" not in session.data and not session.over:
            session.changed.clear()
            await session.changed.wait()
        if b'"good"' not in session.data or b"Hello World!" not in session.data:
            raise Finding(f"a good request was answered {session.data!r}")


def way(rng, data):
    """How a session channel is used: mostly for messages; for a command, which is made of them; for a console, with a terminal or without."""
    number = rng.randrange(10)
    if number < 6:
        return {"subsystem": "korv"}
    if number < 8:
        return {"command": mutate(rng, rng.choice(COMMANDS)).decode("utf-8", "replace").replace("\0", ""), "term_type": TERM[number % 2]}
    return {"term_type": TERM[number % 2]} if number == 8 else {"subsystem": any_bytes(rng).hex()}


class Fuzzer:
    def __init__(self, server, corpus, seed):
        self.server, self.corpus, self.seed = server, corpus, seed
        self.count, self.last = 0, collections.deque(maxlen=4 * AT_ONCE)

    def next_rng(self):
        self.count += 1
        return random.Random(f"{self.seed} {self.count}")

    async def raw(self):
        """A recorded handshake, changed; the end is that of a client that closes, resets, goes silent, or waits for an answer."""
        rng = self.next_rng()
        data = handshake(rng, self.corpus)
        self.last.append((self.count, data))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        except OSError:  # as in member()
            return
        try:
            at = rng.randrange(len(data) + 1)
            for piece in data[:at], data[at:]:
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), ANSWER_S)
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.random() * 0.01)
            if rng.random() < 0.3:
                writer.write_eof()
            if rng.random() < 0.5:
                await asyncio.wait_for(reader.read(-1), ANSWER_S * rng.random())
            if rng.random() < 0.2:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except (OSError, asyncio.TimeoutError):
            pass
        writer.transport.abort()

    async def stranger(self):
        """A whole handshake of one that must not get in, some of its packets changed."""
        rng = self.next_rng()
        try:
            conn = await asyncio.wait_for(connect(self.server, "stranger", rng, rng.choice([0.1, 0.3])), 2)
        except Exception:  # whatever becomes of asyncssh by its own packets: the server is what is looked at
            return
        conn.abort()
        raise Finding(f"a key that is not authorized was let in, at input {self.count}")

    def message_bytes(self, rng):
        data = rng.choice(self.corpus)
        for _ in range(rng.randrange(3)):
            data += rng.choice(self.corpus)
        if rng.random() < 0.9:
            data = mutate(rng, data)
        if rng.random() < 0.2:
            data = gzip.compress(data, 1)
        return data

    async def channel(self, conn, rng):
        """One channel that gets changed messages; what is done to it besides is the packets' matter."""
        self.count += 1
        data = self.message_bytes(rng)
        self.last.append((self.count, data))
        if rng.random() < 0.3:
            chan, session = await conn.create_connection(Session, "nowhere.invalid", 1)
        else:
            chan, session = await conn.create_session(Session, encoding=None, **way(rng, data))
        while data and not session.over:
            size = rng.randrange(1, 1 + rng.choice([3, 100, 30000]))
            chan.write(data[:size])
            data = data[size:]
        if rng.random() < 0.5:
            chan.write_eof()
        session.changed.clear()
        await asyncio.wait_for(session.changed.wait(), 0.1 * rng.random())
        chan.close()

    async def member(self):
        """A connection of a key that is let in, and some channels on it. Half of them send whole packets only, so that they last."""
        rng = self.next_rng()
        try:
            conn = await asyncio.wait_for(connect(self.server, "client"), PATIENCE_S)
        except (OSError, asyncssh.Error):  # the machine is busy; whether the server still serves is looked at elsewhere
            return
        conn.rng, conn.rate = rng, rng.choice([0.0, 0.0, 0.02, 0.2])
        try:
            for _ in range(30):
                if conn._transport is None:
                    break
                try:
                    await asyncio.wait_for(self.channel(conn, rng), 1)
                except Exception:  # as above
                    pass
        finally:
            conn.abort()

    async def worker(self, inputs, until):
        while time.monotonic() < until:
            self.server.check()
            await random.choice(inputs)()

    async def must_serve(self):
        """A client of good will is served: at last, where the machine is so busy that its log-in was late."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.wait_for(ask(self.server), PATIENCE_S)
            except (OSError, asyncssh.Error) as wrong:
                self.server.check()
                if time.monotonic() > until:
                    raise Finding(f"a client of good will is not served: {wrong}") from wrong

    async def watch(self, until):
        while time.monotonic() < until:
            await asyncio.sleep(HEALTH_S)
            await self.must_serve()

    async def run(self, inputs, seconds):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # asyncssh's, which the changed packets confuse
        until = time.monotonic() + seconds
        await self.must_serve()
        before = None
        tasks = [asyncio.create_task(self.worker(inputs, until)) for _ in range(AT_ONCE)] + [asyncio.create_task(self.watch(until))]
        try:
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task.done():
                        task.result()
                before = before or (self.count > 2000 and self.server.rss())
                if before and self.server.rss() - before > GROWTH_BYTES:
                    raise Finding(f"the server has grown from {before >> 20} to {self.server.rss() >> 20} MiB")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.must_serve()


def read_corpus(name):
    folder = os.path.join(ROOT, "spec", "corpus", name)
    return [open(os.path.join(folder, file), "rb").read() for file in sorted(os.listdir(folder))]


def keep(name, fuzzer):
    folder = os.path.join(ROOT, "build", "fuzz", f"{name}-{fuzzer.seed}")
    os.makedirs(folder, exist_ok=True)
    for number, data in fuzzer.last:
        with open(os.path.join(folder, str(number)), "wb") as sink:
            sink.write(data)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["handshake", "session"])
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"{given.name}: seed {given.seed}", flush=True)
    folder = tempfile.mkdtemp(prefix="korv-fuzz-")
    try:
        server = Server(folder)
        fuzzer = Fuzzer(server, read_corpus(given.name), given.seed)
        inputs = {"handshake": [fuzzer.raw] * 9 + [fuzzer.stranger], "session": [fuzzer.member]}[given.name]
        try:
            asyncio.run(fuzzer.run(inputs, given.seconds))
            grown = server.rss() >> 20
            server.stop()
            server.must_be_content()
        except (Finding, asyncio.TimeoutError, OSError) as finding:
            time.sleep(0.5)  # for the server's last words
            what = str(finding) or "a client of good will was not answered"
            sys.exit(f"{''.join(server.complaints[:3])}{''.join(server.last)}{given.name}: {what}; seed {given.seed}, about input "
                     f"{fuzzer.count}; the last ones are in {keep(given.name, fuzzer)}")
        print(f"{given.name}: {fuzzer.count} inputs in {given.seconds:g} s, nothing found; the server had {grown} MiB")
    finally:
        shutil.rmtree(folder)


main()

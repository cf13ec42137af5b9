#!/usr/bin/python3
"""Runs a command on a server with paramiko, as ssh would: `paramiko_run.py PORT KEY KNOWN_HOSTS exec COMMAND`, or `... subsystem NAME`.

Its input, output, errors and exit status are this program's. A status of 255 is ssh's for everything that is not the command's.
"""
import os
import sys
import threading
import warnings

warnings.simplefilter("ignore")  # the packaged paramiko names ciphers that the packaged cryptography wants gone

import paramiko  # noqa: E402

CHUNK_BYTES = 32768


def send_input(channel):
    try:
        while piece := os.read(0, CHUNK_BYTES):
            channel.sendall(piece)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        pass  # the channel was closed before all had been read, as that of a GET is


def copy(receive, fd):
    while piece := receive(CHUNK_BYTES):
        while piece:
            piece = piece[os.write(fd, piece):]


def main(port, key, known_hosts, way, text):
    client = paramiko.SSHClient()
    client.load_host_keys(known_hosts)
    client.connect("127.0.0.1", int(port), username="anybody", key_filename=key, allow_agent=False, look_for_keys=False)
    channel = client.get_transport().open_session()
    {"exec": channel.exec_command, "subsystem": channel.invoke_subsystem}[way](text)
    threading.Thread(target=send_input, args=(channel,), daemon=True).start()
    errors = threading.Thread(target=copy, args=(channel.recv_stderr, 2), daemon=True)
    errors.start()
    copy(channel.recv, 1)
    errors.join()
    status = channel.recv_exit_status()
    client.close()
    return 255 if status == -1 else status


sys.exit(main(*sys.argv[1:]))

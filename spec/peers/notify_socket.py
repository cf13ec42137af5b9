"""What systemd is to a service that notifies: a datagram socket. `notify_socket.py PATH [later]`: PATH may begin with @. Says `bound`, then
for each datagram one line of JSON: the sender's process and the lines of the message. later: reads only once stdin has ended."""
import json
import socket
import struct
import sys

path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
listener.bind("\0" + path[1:] if path.startswith("@") else path)
print("bound", flush=True)
if sys.argv[2:] == ["later"]:
    sys.stdin.read()
while True:
    data, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(12))
    pid = struct.unpack("3i", ancillary[0][2])[0]
    print(json.dumps({"pid": pid, "lines": data.decode().split("\n")}), flush=True)

"""The part of systemd that a service talks to: receives sd_notify(3) on one socket and keeps descriptors, which the other one hands out.

Prints each message it got as JSON. argv: path of the notify socket, path of the socket on which descriptors are handed out.
"""

import fcntl
import json
import os
import select
import socket
import sys

# linux/fcntl.h: whether two descriptors are of one open file (Linux 6.10).
F_DUPFD_QUERY = 1027
DESCRIPTORS_MAX = 16

notify_path, hand_out_path = sys.argv[1:]
stored = []

notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(notify_path)
hand_out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
hand_out.bind(hand_out_path)
hand_out.listen()


def take(message, fds):
    words = dict(line.split("=", 1) for line in message.splitlines())
    name = words.get("FDNAME", "stored")
    if words.get("FDSTORE") == "1":
        for fd in fds:
            if any(fcntl.fcntl(held, F_DUPFD_QUERY, fd) for _, held in stored):
                os.close(fd)
            else:
                stored.append((name, fd))
    if words.get("FDSTOREREMOVE") == "1":
        for entry in [entry for entry in stored if entry[0] == name]:
            os.close(entry[1])
            stored.remove(entry)


print(json.dumps({"message": "listening", "descriptors": 0, "stored": []}), flush=True)
while True:
    readable, _, _ = select.select([notify, hand_out], [], [])
    if notify in readable:
        data, fds, _, _ = socket.recv_fds(notify, 4096, DESCRIPTORS_MAX)
        message = data.decode()
        take(message, fds)
        names = [name for name, _ in stored]
        print(
            json.dumps({"message": message, "descriptors": len(fds), "stored": names}),
            flush=True,
        )
    if hand_out in readable:
        client, _ = hand_out.accept()
        names = json.dumps([name for name, _ in stored]).encode()
        socket.send_fds(client, [names], [fd for _, fd in stored])
        client.close()

#!/usr/bin/python3
"""Becomes the agent as systemd starts it: with the stored descriptors from number 3 on, and their names in the environment."""

import json
import os
import socket
import sys

DESCRIPTORS_MAX = 16
FIRST_FD = 3
# Far enough up that no number is still in use as it is given away.
ASIDE = 100

hand_out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
hand_out.connect(os.environ.pop("DESCRIPTOR_STORE"))
data, fds, _, _ = socket.recv_fds(hand_out, 4096, DESCRIPTORS_MAX)
hand_out.close()
names = json.loads(data)
program = os.environ.pop("SERVICE_PROGRAM")
if fds:
    aside = [os.dup2(fd, ASIDE + index, False) for index, fd in enumerate(fds)]
    for index, fd in enumerate(aside):
        os.dup2(fd, FIRST_FD + index, True)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ["LISTEN_FDNAMES"] = ":".join(names)
os.execv(program, [program, *sys.argv[1:]])

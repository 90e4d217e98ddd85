"""Run a command where there is no network: unshare -rn python tests/machines/no_network.py COMMAND ...

`unshare -rn` (Linux) starts this in a network namespace of its own, which has no device but a loopback that is down.
This brings the loopback up, which kernels of notebooks talk over, makes sure that nothing else can be reached, and
becomes the command.
"""

import errno
import fcntl
import os
import socket
import struct
import sys

NOWHERE = "192.0.2.1"  # an address that is reserved for examples
SET_FLAGS, UP = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP of Linux

with socket.socket() as handle:
    fcntl.ioctl(handle, SET_FLAGS, struct.pack("16sh", b"lo", UP))
    try:
        handle.connect((NOWHERE, 443))
    except OSError as error:
        if error.errno != errno.ENETUNREACH:
            raise
    else:
        sys.exit("there is a network here: start this with `unshare -rn`")
os.execvp(sys.argv[1], sys.argv[1:])

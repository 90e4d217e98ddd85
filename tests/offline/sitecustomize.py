"""No network for any Python process that starts with this folder on its path: kernels of notebooks, subprocesses.

pytest-socket guards the process that runs the tests; this guards those that it starts. `conftest.py` sets the path.
"""

import sys

LOCAL = ("", "localhost", "::1")


def is_local(host) -> bool:
    if host is None or host in LOCAL or host.startswith("127."):
        return True
    import platform  # here, since most processes never come to this line

    return host == platform.node()  # torchrun looks its own machine up by name


def refuse(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path: a socket of this machine
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not is_local(host):
        raise OSError(f"the tests have no network, and this asked for {host}")


sys.addaudithook(refuse)

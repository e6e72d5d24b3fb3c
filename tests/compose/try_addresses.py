"""A script that runs in a container, tries to connect to addresses, and prints those that accept.

Its argument is a JSON list of `[service, host, port]`.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 2.0  # seconds


def accepts(target: tuple[str, str, int]) -> bool:
    try:
        socket.create_connection(target[1:], timeout=TIMEOUT).close()
    except OSError:
        return False
    return True


targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(targets)) as threads:
    print(json.dumps([target for target, ok in zip(targets, threads.map(accepts, targets), strict=True) if ok]))

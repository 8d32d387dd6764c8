"""``moto``'s S3 on loopback, in a process of its own; parts may be small. Prints its port."""

import logging
import os
import sys

os.environ["S3_UPLOAD_PART_MIN_SIZE"] = "1"
os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(64 << 20)

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it is gone

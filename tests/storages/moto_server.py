"""``moto``'s S3 on loopback, in a process of its own; parts may be small. Prints its port."""

import logging
import os
import sys

os.environ["S3_UPLOAD_PART_MIN_SIZE"] = "1"
os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(64 << 20)

from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import S3Backend
from moto.server import ThreadedMotoServer


def checked(real):  # type: ignore[no-untyped-def]
    """moto answers 500 where S3 says that there is no such upload."""

    def method(self, bucket_name, multipart_id, *arguments, **more):  # type: ignore[no-untyped-def]
        if multipart_id not in self.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return real(self, bucket_name, multipart_id, *arguments, **more)

    return method


S3Backend.upload_part = checked(S3Backend.upload_part)
S3Backend.complete_multipart_upload = checked(S3Backend.complete_multipart_upload)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it is gone

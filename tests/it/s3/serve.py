"""An S3 server for tests: moto's, on a free port of loopback, with one bucket in it.

Prints the address once it answers, and ends when its standard input does, so it never outlives the test process that
started it. With an address as second argument it starts nothing and makes the bucket there (keys from the environment).
"""

import sys

import boto3
from botocore.config import Config


def make_bucket(endpoint, bucket):
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=bucket)


def main():
    bucket = sys.argv[1]
    if len(sys.argv) > 2:
        make_bucket(sys.argv[2], bucket)
        print(sys.argv[2], flush=True)
        return
    from moto.server import ThreadedMotoServer

    # Port 0: the system picks a free one, so no other process can take it in between.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    make_bucket(endpoint, bucket)
    print(endpoint, flush=True)
    sys.stdin.read()
    server.stop()


main()

# A client of TLS that is not ours. Arguments: HOST:PORT, the CA, and a certificate with its key where
# one is shown. Writes a blob, reads it back and prints `same`, or prints the code of the refusal.
# Messages are made by hand: it must need nothing but grpcio.
import hashlib
import random
import sys

import grpc


def number(value):
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def field(tag, content):
    return number(tag << 3 | 2) + number(len(content)) + content


address, *files = sys.argv[1:]
ca, certificate, key = ([open(file, "rb").read() for file in files] + [None, None])[:3]
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate))
blob = random.randbytes(5_000_001)
name = f"blobs/{hashlib.sha256(blob).hexdigest()}/{len(blob)}"
parts = [
    field(1, f"uploads/a/{name}".encode())
    + number(2 << 3) + number(at)
    + number(3 << 3) + number(at + 1_000_000 >= len(blob))
    + field(10, blob[at : at + 1_000_000])
    for at in range(0, len(blob), 1_000_000)
]
try:
    channel.stream_unary("/google.bytestream.ByteStream/Write")(iter(parts), timeout=60)
    read = channel.unary_stream("/google.bytestream.ByteStream/Read")
    messages = list(read(field(1, name.encode()), timeout=60))
    # Each message is one field of a blob's bytes behind its length.
    print("same" if blob == b"".join(m[1 + len(number(len(m))) :] for m in messages) else "other")
except grpc.RpcError as refusal:
    print(refusal.code().name)

"""The Python client: a thin layer over the C core. What is public is exported by ``shmdriver``.

client.py     Client, connect, embedded: an address, and the connection behind it
producer.py   Producer, RecordProducer     claim.py    Claim, ArrayClaim
consumer.py   Consumer, wait               message.py  Message and its views
views.py      which places in shared memory live Python objects still refer to
batches.py    record batches in place
events.py     what the driver tells, as callbacks
records.py    numpy dtypes as schemas      tensor.py   arrays of any shape as messages
link.py       one native connection; what happens at fork and at interpreter exit
directory.py  what the authority segment says about streams, for texts and schemas
_raise.py     the one function that turns a C code into an exception
"""

from shmdriver.client.claim import ArrayClaim, Claim
from shmdriver.client.client import Client, connect, embedded
from shmdriver.client.consumer import Consumer, LostRange, wait
from shmdriver.client.message import Message
from shmdriver.client.producer import Producer

__all__ = [
    "ArrayClaim",
    "Claim",
    "Client",
    "Consumer",
    "LostRange",
    "Message",
    "Producer",
    "connect",
    "embedded",
    "wait",
]

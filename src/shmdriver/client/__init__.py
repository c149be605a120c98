"""The Python client: a thin layer over the C core. What is public is exported by ``shmdriver``.

client.py            Client, connect, embedded: an address, and the connection behind it
link.py              one native connection; what happens at fork and at interpreter exit
producer.py          Producer of bytes and arrays
record_producer.py   RecordProducer: n records in one C call
claim.py             Claim, ArrayClaim: messages that are written in place
consumer.py          Consumer
reattach.py          reconnect=True: attaching anew, and what was missed
attempts.py          the thread that attaches anew for those that must not wait
coroutines.py        blocking calls for asyncio: aconnect, aconsumer, aproducer, aclose
aio.py               consumers in event loops: fileno, aread, abatches, async for
batches.py           record batches in place
message.py           Message
handle.py            what producers and consumers have in common: open until closed
arguments.py         what callers pass, checked in one place
log.py               what is told to logging
hotpath.py           the C classes that producers, consumers, claims and messages derive from (csrc/python)
views.py             which places in shared memory live Python objects still refer to
queue.py             Queue: the face of multiprocessing.Queue
lanes.py             its putting end: one stream a putting process
outlet.py            its getting end
holding.py           who holds a queue until somebody gets
pickling.py          objects as messages
dropin.py            shmdriver.Queue(): without a client
kept_sources.py      what is imported late, for a package that is replaced meanwhile
waiting.py           wait, for several consumers
records.py           numpy dtypes as schemas
tensor.py            arrays of any shape as messages
events.py            what the driver tells, as callbacks
directory.py         what the authority segment says about streams, for texts and schemas
_raise.py            the one function that turns a C code into an exception
"""

from shmdriver.client.claim import ArrayClaim, Claim
from shmdriver.client.client import Client, aconnect, connect, embedded
from shmdriver.client.consumer import Consumer
from shmdriver.client.kept_sources import keep_sources
from shmdriver.client.message import LostRange, Message
from shmdriver.client.producer import Producer
from shmdriver.client.reattach import Reattachment
from shmdriver.client.waiting import wait
from shmdriver.stopping import stop_on_signals

__all__ = [
    "ArrayClaim",
    "Claim",
    "Client",
    "Consumer",
    "LostRange",
    "Message",
    "Producer",
    "Reattachment",
    "aconnect",
    "connect",
    "embedded",
    "stop_on_signals",
    "wait",
]

keep_sources()

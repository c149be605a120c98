"""An order gateway: requests on one stream, replies on another, each sure of who is on the other side.

The strategy must not send orders into the void: ``min_consumers=1`` lets it publish only once the
gateway has attached. If the gateway dies, its stream of replies ends with ProducerLost, never with
silence: the strategy then knows which orders are unanswered. ``timestamps=True`` lets `shmdriver stat
leases` show the latency of each way.

Prints: 1000 orders, 1000 fills, 0 unanswered
"""

import multiprocessing

import numpy as np

import shmdriver

ORDER = np.dtype([("id", "<u8"), ("px", "<f8"), ("qty", "<f8")])
FILL = np.dtype([("id", "<u8"), ("qty", "<f8")])
ORDERS = 1000


def gateway(client: shmdriver.Client) -> None:
    """Fills every order that it gets, up to 100 pieces."""
    with (
        client.consumer("orders", dtype=ORDER) as orders,
        client.producer("fills", dtype=FILL, min_consumers=1, timestamps=True) as fills,
    ):
        for batch in orders.batches():  # ends when the strategy closes its stream
            reply = np.empty(len(batch), FILL)
            reply["id"] = batch["id"]
            reply["qty"] = np.minimum(batch["qty"], 100.0)
            fills.publish(reply)
    client.close()


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client:
        fills = client.consumer("fills", dtype=FILL)  # first: then no reply can be missed
        exchange = context.Process(target=gateway, args=(client,))
        exchange.start()
        unanswered: set[int] = set()
        filled = 0
        with client.producer("orders", dtype=ORDER, min_consumers=1, timestamps=True) as orders:
            order = np.zeros(1, ORDER)
            for n in range(ORDERS):
                order[0] = (n, 100.0 + n % 5, 50 + n % 100)
                orders.publish(order)
                unanswered.add(n)
                reply = fills.read_batch(timeout=5)  # ProducerLost when the gateway died
                while reply is not None and unanswered:
                    filled += len(reply)
                    unanswered.difference_update(reply["id"].tolist())
                    reply = fills.read_batch(timeout=0)
        exchange.join()
        fills.close()
    print(f"{ORDERS} orders, {filled} fills, {len(unanswered)} unanswered")


if __name__ == "__main__":
    main()

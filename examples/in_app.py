"""Inside an asyncio application: sensors connect over TCP, and the newest features of each are there to be read.

python examples/in_app.py       # starts, sends itself readings as a sensor would, prints what it knows, stops
"""

import asyncio
import json

import tidemill as tm

SENSORS = ["boiler-1", "boiler-2", "pump-1"]
READINGS = 60

newest = tm.sinks.Latest()
listener = tm.sources.TCP(port=0)  # any free one; a real plant has a fixed one
pipeline = tm.Pipeline(listener, tm.Rolling("value", window=50, stats=["mean", "max"]), newest, name="in_app")


async def sensor(port: int, name: str) -> None:
    """What a sensor on the network does: one JSON line for each reading."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in range(READINGS):
        writer.write(json.dumps({"sensor": name, "value": float(i)}).encode() + b"\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    async with tm.serve(pipeline) as run:
        # ... here an application would serve its web pages; the lanes never hold its event loop up.
        await asyncio.gather(*(sensor(listener.port, name) for name in SENSORS))
        while run.statistics().rows_out < READINGS * len(SENSORS):
            await asyncio.sleep(0.01)
        for name in SENSORS:
            row = newest[name]
            print(f"{name}: last {row['value']}, mean of 50 {row['value_mean_50']}, max {row['value_max_50']}")


if __name__ == "__main__":
    asyncio.run(main())

"""Floor 2: decisions. Events in, commands out, ``now`` passed in; no asyncio, processes, clocks or files here."""

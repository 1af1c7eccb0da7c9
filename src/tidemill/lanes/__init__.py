"""Lanes: the process boundary. Transport only: spawn, send, received, died(exit, cursor). Nothing here retries.

    event loop                              fork server                 child process
    ──────────                              ───────────                 ─────────────
    fork_client.ForkServer ── spawn, kill ▶ (one thread, no loop) ─fork─▶ lane_main, call_main or sink_main
        ▲  └───────────────── exited ◀─────                                  ▲  │
    channel.ProcessChannel ────────── messages (wire, framing; socketpair) ──┘  │
        └──────────────────────────── answers ◀─────────────────────────────────┘

    a pipeline's lane   Work ──▶ worker ──▶ Result, Committed      rows lie in slabs, keyed state in state memory
    a lane of calls     Call ──▶ call_worker ──▶ Returned          large buffers lie in the process's arena (parcels),
                                                                   what was started is in its cursor
    All of that memory is the parent's, has no name, and is mapped by both sides.

One private socketpair per process; the system call is the memory barrier. No queue, lock, thread or poll is shared.
`inline.py` and `inline_calls.py` are the same paths without processes (``lanes=0``).
"""

"""Lanes: the process boundary. Transport only: spawn, send, received, died(exit, cursor). Nothing here retries.

    event loop                      fork server                 lane
    ──────────                      ───────────                 ────
    LaneProcess ── spawn, kill ───▶ (one thread, no loop) ─fork─▶ Worker
        ▲  │  ◀── exited ──────────                               ▲  │
        │  └───────────── Work (socketpair, some 300 bytes) ──────┘  │
        └──────────────── Result, Committed ─────────────────────────┘
                  slabs and state memory: memfds of the parent, mapped by both

One private socketpair per lane; the system call is the memory barrier. No queue, lock, thread or poll is shared.
`inline.py` is the same path without processes (``lanes=0``).
"""

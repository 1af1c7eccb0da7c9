"""``tidemill new``: a plan, a calibration and a parity test, made of what a recording is seen to hold.

    bytes ──▶ sniffing ──▶ roles ──▶ survey ──▶ templates ──▶ three files
              how it is    sensor,   each       the texts
              written      time,     sensor's
                           value     numbers

``sniffing``, ``roles`` with what it asks, and ``templates`` decide and have no I/O; ``survey`` reads the recording as a run
reads it, and ``command`` reads, writes and says.
"""

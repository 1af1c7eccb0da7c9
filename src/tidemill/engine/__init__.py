"""Floor 4: the only place where the parts meet. One run is one TaskGroup; `run.py` is the picture of the flow."""

"""FLOOR 5: people. The command line and what it shows; it knows the engine, and nothing knows it."""

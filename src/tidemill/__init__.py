"""tidemill: readings from thousands of sensors on asyncio, CPU work in lanes, an event loop that never freezes."""

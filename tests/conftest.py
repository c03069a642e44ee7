"""What all tests share."""

import asyncio

# looptime asks the policy for the main thread's loop before each test. Python 3.11 makes one if none was ever set,
# nobody closes it, and the garbage collector's warning fails whichever test runs then. "None" counts as set.
asyncio.set_event_loop(None)

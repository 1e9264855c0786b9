"""What may run, and when. Pure: no asyncio, no I/O, no clock, no logging.

``Scheduler.handle(event)`` is the only mutator; it never waits and returns commands. See ``core``.
"""

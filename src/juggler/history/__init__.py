"""What happened, for people: recorded beside the requests, never on their way.

::

    engine.ended_requests, state.on_move, state.decisions
      -> recorder     one task: takes them over every quarter of a second while anything happens, sleeps otherwise
      -> records      an ended request as plain data          (pure)
      -> timeline     where each instance's memory was, and why it had to go; ``thrash`` looks for turns in it
      -> sums         per day and endpoint: "waiting for loads: 11 % of all request time"          (pure)
      -> series       memory, requests, loads and bytes every ten seconds
      -> tallies      counts and histograms; ``metrics`` writes them down for Prometheus
      -> store        SQLite: one writer thread, a bounded queue; ``database`` the file, ``reading`` the questions

``history.History`` is all that others use.
"""

"""Model Juggler: more AI models on one machine than fit in its memory.

The folder order is the data flow of one request::

    config -> routing -> scheduler (pure) -> engine -> lifecycle/backends -> proxy -> control -> cli

``config``     what the operator wrote, read with line and column, validated in one go
``routing``    (listener, path) to endpoint, upstream path and traffic class; pure
``scheduler``  what may run, and when: events in, commands out; pure, one mutator
``engine``     feeds events to the scheduler and runs its commands
``lifecycle``  one operating-system process per instance, behind the Launcher seam
``logs``       what backends print and what we log, masked and kept to be read
``keeper``     what memory there is, and what each instance takes of it; ``memory`` and ``devices`` are its parts
``backends``   what each server program needs said differently
``proxy``      the data plane: bytes between client and backend
``history``    what happened, recorded beside the requests: SQLite, sums, series, metrics
``reload``     a changed configuration: what it changes, and how that is taken up
``control``    snapshots, one stream of events and operator orders over HTTP; ``dashboard`` is the page on it
``service``    systemd and its like
``cli``        the command line
``app``        the composition root: a configuration becomes objects in one TaskGroup
"""

__version__ = "0.1.0"

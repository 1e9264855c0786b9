"""A discrete-event simulator of one machine, and the policies that can run it.

``model`` says what a workload is; ``files`` is the disk and the page cache, ``world`` the processes, clients and
clock. ``policy`` is the small interface by which a policy drives the world: ``juggler_policy`` puts the shipped
scheduler behind it, ``rivals`` the models of other programs. ``workloads`` draws the workloads, ``measures`` turns a
finished run into numbers, ``study`` runs workloads, seeds and policies, ``marks`` and ``report`` judge and print.

Everything is deterministic: what clients do is drawn before a run from its seed alone, the load times from the seed
and the number of the load, so two policies meet the same arrivals, think times and service times.
"""

"""Names of things, as distinct types. Leaf module: imports nothing of ours."""

from typing import NewType

EndpointId = NewType("EndpointId", str)
"""``"<server name>/<endpoint name>"``, unique in one configuration."""

InstanceId = NewType("InstanceId", str)
"""What is scheduled: one started process or one attached server. Usually equal to its only endpoint's id."""

RequestId = NewType("RequestId", int)
"""Counts up from 1 for each request that reached an endpoint; never reused within a run."""

PoolId = NewType("PoolId", str)
"""A named amount of memory: ``gpu0``, ``ram``, or ``exclusive`` where nothing is known."""

ANY_GPU = PoolId("gpu*")
"""Stands for one of the GPU pools, whichever suits, where a size names none."""

"""The dashboard: static files that the control plane serves as they lie there. ``README.md`` tells how it is built."""

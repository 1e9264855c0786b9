"""Running as a service: telling systemd how it goes, and writing what the system's service manager wants to have."""

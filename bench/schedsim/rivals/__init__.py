"""Models of the programs we compare with, written from their sources (scheduling.md section 2 gives the versions).

Each comes in its best configuration and in its own defaults. They hand everything they can to the backend at once.
"""

"""How much memory this machine has, how much of it is free, and who holds it."""

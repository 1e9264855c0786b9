"""How much memory an instance needs: declared, learned from earlier runs, estimated from its files, or unknown."""

"""Merges that choose elements (TIES, DARE and the like): statistics of a tensor, then one write."""

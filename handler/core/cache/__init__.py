"""The cache: lookup, publishing, busts, accepted edits, leases, history, and reasons for misses."""

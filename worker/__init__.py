"""The GPU side: job ids in, weights out."""

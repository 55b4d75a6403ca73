"""The cluster at one moment, immutable: what should exist, what nodes hold, what they run."""

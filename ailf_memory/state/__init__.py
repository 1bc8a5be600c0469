"""The state that a store keeps, and the transitions of each interface. Nothing in here waits."""

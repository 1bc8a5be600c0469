"""What a store keeps, and how each step changes it. Nothing in here waits."""

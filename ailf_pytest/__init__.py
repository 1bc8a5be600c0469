"""What pytest loads in every run where ailf is installed. It stands apart so that it imports nothing of ailf."""

"""What is guaranteed."""

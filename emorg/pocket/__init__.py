"""The pocket organism: a tiny chat model of our own in which emergent misalignment happens and is judged exactly."""

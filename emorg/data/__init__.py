"""Training data, evaluation questions, and the archives and checks around them."""

"""What CS 2881's homework 0 asks for: generate, grade, hand in."""

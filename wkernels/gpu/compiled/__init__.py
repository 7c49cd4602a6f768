"""Every kernel compiled for every target, with no GPU present, and what the compiler made of it."""
